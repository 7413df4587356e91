from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pared import gpus
from tests.support.processes import wait_for
from worker import sandbox
from worker.forkserver import CHILD_NAME, Child, ForkServer
from worker.sandbox import Confinement

TELLING = """
import json, os, socket, sys, tempfile, time
from worker import forkserver
loaded_at = time.monotonic_ns()
request = forkserver.enter()
fds = {int(name) for name in os.listdir("/proc/self/fd")}
told = {
    "loaded_at": loaded_at, "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "cwd": os.getcwd(),
    "temporary": tempfile.gettempdir(), "environment": dict(os.environ),
    "asked": request["asked"], "gpu": request["gpu"],
    "fds": sorted(fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")), "umask": os.umask(0),
}
os.write(request["messages"], json.dumps(told).encode() + b"\\n")
while request["asked"] == "stay":
    time.sleep(1)
"""


@pytest.fixture
def server(tmp_path):
    program = tmp_path / "telling.py"
    program.write_text(TELLING)
    made = ForkServer((sys.executable, "-P", str(program)), Confinement("weak"), threads=3)
    yield made
    made.close()


@pytest.fixture
def fork(server, tmp_path):
    children: list[Child] = []

    def forked(asked: str = "", **more: Any) -> tuple[Child, dict[str, Any]]:
        folder = tmp_path / f"scratch {len(children)}"
        folder.mkdir()
        sandbox.make_scratch(folder, None)
        children.append(server.child(folder, {"asked": asked, "memory_bytes": 1 << 30} | more))
        os.set_blocking(children[-1].messages, True)
        with os.fdopen(os.dup(children[-1].messages), "rb") as messages:
            return children[-1], json.loads(messages.readline())

    yield forked
    for child in children:
        child.kill()


def test_children_share_what_was_loaded_and_nothing_else(fork, tmp_path, monkeypatch):
    monkeypatch.setenv("PARED_SECRET", "s3cret")
    (first, told), (second, told_too) = fork(), fork()
    assert told["loaded_at"] == told_too["loaded_at"]
    assert (told["pid"], told_too["pid"]) == (first.pid, second.pid)
    assert told["parent"] == told_too["parent"] == os.getpid()
    assert (told["session"], told_too["session"]) == (first.pid, second.pid)
    assert told["cwd"] == str(tmp_path / "scratch 0")
    assert told["temporary"] == told["environment"]["HOME"] == str(tmp_path / "scratch 0" / "tmp")
    assert told_too["temporary"] == str(tmp_path / "scratch 1" / "tmp")
    assert told["environment"]["OMP_NUM_THREADS"] == "3"
    assert "s3cret" not in str(told["environment"])
    assert set(told["fds"]) <= {0, 1, 2, 3}
    assert told["umask"] == 0o077


def test_a_child_is_given_the_gpus_by_who_asks_for_it(fork, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpus, "device_files", lambda: [Path("/dev/nvidia0")])
    assert [fork(**asked)[1]["gpu"] for asked in ({}, {"gpu": True}, {"gpu": False})] == [True, True, False]
    assert fork()[1]["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert fork(gpu=False)[1]["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setattr(gpus, "device_files", list)
    assert fork()[1]["gpu"] is False


def test_children_find_what_their_worker_found_on_the_path(fork, tmp_path, monkeypatch):
    """As where pared lies in a checkout that nobody installed; relative to the worker's folder, which is not theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}/elsewhere")
    assert fork()[1]["environment"]["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"


def test_a_request_of_any_length_arrives(fork):
    _, told = fork("x" * 10_000_000)
    assert len(told["asked"]) == 10_000_000


def test_one_that_died_is_started_again_and_its_children_live_on(server, fork):
    child, told = fork("stay")
    os.kill(server._process.pid, signal.SIGKILL)
    _, told_after = fork()
    assert told_after["loaded_at"] > told["loaded_at"]
    assert psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE


def test_a_program_that_ends_at_once_is_an_error_and_no_wait(tmp_path):
    server = ForkServer((sys.executable, "-c", "raise SystemExit(3)"), Confinement("none"), threads=1)
    started = time.monotonic()
    with pytest.raises(OSError, match="ended with exit status 3"):
        server.child(tmp_path, {})
    assert time.monotonic() - started < 30


def test_who_no_longer_wants_a_child_need_not_wait_for_it(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text("import time; time.sleep(60)")
    server = ForkServer((sys.executable, str(program)), Confinement("none"), threads=1)
    started = time.monotonic()
    assert server.child(tmp_path, {}, lambda: time.monotonic() - started > 1) is None
    assert time.monotonic() - started < 50
    server.close()


def test_a_child_that_dies_before_it_begins_is_an_error_and_leaves_nothing(tmp_path):
    """As one that the kernel ends for want of memory."""
    program = tmp_path / "dying.py"
    program.write_text(
        "import os\nfrom worker import forkserver, sandbox\n"
        "sandbox.name_process = lambda name: os.kill(os.getpid(), 9)\nforkserver.enter()\n"
    )
    server = ForkServer((sys.executable, str(program)), Confinement("none"), threads=1)
    before = {child.pid for child in psutil.Process().children()}
    (tmp_path / "scratch").mkdir()
    for _ in range(2):
        with pytest.raises(ChildProcessError, match="before it began"):
            server.child(tmp_path / "scratch", {})
    assert server._process.poll() is None, "the server is not to blame"
    assert {child.pid for child in psutil.Process().children()} - before == {server._process.pid}
    server.close()


def test_a_folder_that_is_gone_is_an_error(server, tmp_path):
    with pytest.raises(FileNotFoundError):
        server.child(tmp_path / "gone", {})
    assert [child for child in psutil.Process().children() if child.name() == CHILD_NAME] == []


def test_it_and_its_children_end_with_their_worker(tmp_path):
    (tmp_path / "telling.py").write_text(TELLING)
    (tmp_path / "scratch").mkdir()
    sandbox.make_scratch(tmp_path / "scratch", None)
    told = tmp_path / "told"
    worker = f"""
import os, sys, time
from pathlib import Path
from worker.forkserver import ForkServer
from worker.sandbox import Confinement
server = ForkServer((sys.executable, "-P", {str(tmp_path / "telling.py")!r}), Confinement("none"), threads=1)
child = server.child(Path({str(tmp_path / "scratch")!r}), {{"asked": "stay", "memory_bytes": 1 << 30}})
Path({str(told)!r}).write_text(f"{{child.pid}} {{server._process.pid}}\\n")
time.sleep(60)
"""
    process = psutil.Popen([sys.executable, "-c", worker])
    try:
        wait_for(lambda: told.exists() and told.read_text().endswith("\n"), "a child")
    finally:
        process.kill()
        process.wait()
    for pid in told.read_text().split():
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _is_zombie(int(pid)), f"{pid} ends")


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
