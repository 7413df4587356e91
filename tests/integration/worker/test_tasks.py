from __future__ import annotations

import threading

from tests.support.processes import wait_for
from worker import tasks
from worker.shutdown import Shutdown


def test_a_sweep_that_takes_long_or_fails_keeps_no_worker_from_showing_signs_of_life(monkeypatch):
    shutdown, go_on = Shutdown(), threading.Event()
    beats, sweeps = [], []

    def beat():
        beats.append(1)
        if len(beats) == 1:
            raise RuntimeError

    def sweep():
        sweeps.append(1)
        go_on.wait(10)
        raise OSError

    for name, value in (("_shutdown", shutdown), ("_write_heartbeat", beat), ("_sweep", sweep), ("HEARTBEAT_S", 0.01)):
        monkeypatch.setattr(tasks, name, value)
    tasks._start_threads()
    wait_for(lambda: len(beats) > 3, "signs of life during one sweep")
    assert len(sweeps) == 1
    go_on.set()
    shutdown.request()
    wait_for(lambda: not {"alive", "sweep"} & {thread.name for thread in threading.enumerate()}, "both end")
