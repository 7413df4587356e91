from __future__ import annotations

import threading
from dataclasses import replace

from pared.specs import PlanSpec
from pared.state import lifecycle
from tests.support.job_specs import PRUNE
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


def test_a_worker_takes_what_its_queues_name(bench):
    with bench.sessions.begin() as session:
        plan = lifecycle.create(session, "local", PlanSpec(type="plan", job=PRUNE)).id

    def taken(queues: str) -> tuple[str | None, list[str]]:
        worker = replace(bench.worker, settings=bench.settings.model_copy(update={"queues": queues}))
        with bench.sessions() as session:
            turn = tasks._turn(session, worker, "auto")
        return turn and turn.job_id, tasks._takes(worker)

    assert taken("") == taken("auto,quick") == (plan, ["cpu"])
    assert taken("auto") == (None, ["cpu"])
    with bench.sessions.begin() as session:
        job = lifecycle.create(session, "local", PRUNE).id
    assert taken("auto") == taken("") == (job, ["cpu"])
    assert taken("cuda,quick")[1] == taken("quick")[1] == []
