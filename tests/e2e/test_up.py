"""`pared up` on a machine with several GPUs: a worker for each, and what serves is told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil

from pared.gpus import VISIBLE
from tests.support.processes import Processes, environment, wait_for
from tests.support.servers import free_port

# Its supervisor alone is shown two cards; the workers find none there, and say so.
UP = """
import sys
from pared import cli, gpus
gpus.visible = lambda: [gpus.Gpu("GPU-0a", "card a"), gpus.Gpu("GPU-0b", "card b")]
sys.argv = ["pared", "up", "--port", sys.argv[1], "--data", sys.argv[2]]
cli.main()
"""


def test_each_gpu_has_a_worker_and_all_end_together(tmp_path: Path, processes: Processes) -> None:
    command = [sys.executable, "-P", "-c", UP, str(free_port()), str(tmp_path / "data")]
    up = processes.start(command, name="pared up", log=tmp_path / "log", cwd=tmp_path, env=environment())
    wait_for(lambda: "pared is ready" in up.tail(), f"pared up is ready\n{up.tail()}")
    workers = [one for one in psutil.Process(up.popen.pid).children() if one.cmdline()[-1] == "worker"]
    assert sorted(worker.environ()[VISIBLE] for worker in workers) == ["GPU-0a", "GPU-0b"]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {worker.environ()["PARED_THREADS"] for worker in workers} == {str(threads)}
    words = f"{threads} CPU{'s' if threads > 1 else ''}"
    assert f"serving        {words}; {words}" in up.tail()
    assert {path.name for path in (tmp_path / "data" / "logs").iterdir()} == {"api.log", "worker-0.log", "worker-1.log"}
    workers[0].send_signal(signal.SIGKILL)
    wait_for(lambda: "is started again" in up.tail(), "the worker that died is told")
    assert up.stop() == 0
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_must_have_cuda_and_has_none_is_told_at_once(tmp_path: Path, processes: Processes) -> None:
    port = str(free_port())
    env = environment(PARED_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-P", "-m", "pared", "up", "--port", port, "--data", str(tmp_path / "data")]
    up = processes.start(command, name="pared up", log=tmp_path / "log", cwd=tmp_path, env=env)
    wait_for(lambda: "pared is not ready: " in up.tail(), f"the reason is told\n{up.tail()}")
    assert "No NVIDIA GPU is visible" in up.tail()
    assert up.stop() == 0
