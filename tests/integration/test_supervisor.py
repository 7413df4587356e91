"""Workers of several GPUs are kept alive by their supervisor, as real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from pared.gpus import VISIBLE
from tests.support.processes import Processes, environment, wait_for
from tests.unit.test_gpus import SUPERVISOR, UUIDS, three_cards


def test_workers_are_kept_alive_one_for_each_card_and_end_with_their_supervisor(
    tmp_path: Path, processes: Processes
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    supervisor = processes.start(
        [sys.executable, "-c", SUPERVISOR, str(three_cards(tmp_path / "driver"))],
        name="supervisor",
        log=tmp_path / "log",
        cwd=here,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
    )

    def running() -> dict[int, dict[str, str]]:
        told = {int(path.stem): json.loads(path.read_text()) for path in here.glob("*.json")}
        living = {process.pid for process in supervisor.tree()}
        return {pid: environment for pid, environment in told.items() if pid in living}

    def both() -> dict[int, dict[str, str]] | None:
        found = running()
        return found if len(found) == 2 else None

    wanted = [{VISIBLE: UUIDS[index], "PARED_THREADS": "8"} for index in (0, 2)]
    first = wait_for(both, "two workers")
    assert sorted(first.values(), key=str) == wanted
    killed, kept = sorted(first)
    os.kill(killed, signal.SIGKILL)
    after = wait_for(lambda: (found := both()) and killed not in found and found, "another one")
    assert kept in after
    assert sorted(after.values(), key=str) == wanted
    assert supervisor.stop() == 0
    assert {int(path.stem) for path in here.glob("*.drained")} == set(after)


CHATTERBOX = """
import os, sys
from pathlib import Path
from pared.supervisor import Process, Supervisor
code = "import time\\nwhile True: print('a line of a log, again and again' * 1000), time.sleep(0.005)"
command = [sys.executable, "-uc", code]
Supervisor([Process("chatterbox", command, os.environ, Path("chatterbox.log"))], 1 << 20).run()
"""


def test_a_log_that_is_full_is_begun_anew_under_its_writer(tmp_path: Path, processes: Processes) -> None:
    supervisor = processes.start(
        [sys.executable, "-c", CHATTERBOX],
        name="supervisor",
        log=tmp_path / "log",
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
    )
    oldest = tmp_path / "chatterbox.log.4"
    wait_for(oldest.exists, "four earlier files", every_s=0.02)
    assert supervisor.stop() == 0
    assert len(list(tmp_path.glob("chatterbox.log*"))) == 5
    for path in tmp_path.glob("chatterbox.log.*"):
        assert b"\0" not in path.read_bytes(), "no gap, as where a writer does not append"


ON_A_FULL_DISK = """
import os, sys
from pathlib import Path
from pared.supervisor import Process, Supervisor
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
command = [sys.executable, "-Sc", "open('lives', 'a').write('x')"]
Supervisor([Process("mayfly", command, os.environ, Path("logs/mayfly.log"))]).run()
"""


def test_a_supervisor_outlives_that_nothing_can_be_written(tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "logs").mkdir()
    supervisor = processes.start(
        [sys.executable, "-c", ON_A_FULL_DISK],
        name="supervisor",
        log=tmp_path / "log",
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
    )

    def lives() -> int:
        return len((tmp_path / "lives").read_text()) if (tmp_path / "lives").exists() else 0

    wait_for(lives, "a first life")
    (tmp_path / "logs").rename(tmp_path / "away")
    before = lives()
    time.sleep(2)  # in which it would have been started again
    (tmp_path / "away").rename(tmp_path / "logs")
    wait_for(lambda: lives() > before + 1, "more lives")
    assert supervisor.stop() == 0
