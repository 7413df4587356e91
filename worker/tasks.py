"""Owns the Celery process: its one task, its sign of life, its part in the sweep, and its orderly stop.

    celery -A worker.tasks worker -c 1

Before it takes a job it finds out what it can hold a child to, and whether its GPU computes; it listens to the
queues of the devices that it has. Celery's main process only takes messages. All else happens in the process it
forks: the task, a thread that keeps the worker's row, and one that sweeps. The main process never opens the
database, because SQLite must not be carried across a fork.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import structlog
from celery import signals
from sqlalchemy import delete, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pared import gpus
from pared.errors import DeviceUnavailable, ParedError
from pared.state.logs import configure_logging
from pared.state.objects import open_store
from pared.state.queue import TASK, next_unlisted, queues_of
from pared.state.queue import app as app  # noqa: PLC0414 - what `celery -A worker.tasks` and `pared worker` look for
from pared.state.session import make_engine, make_sessions
from pared.state.settings import settings
from pared.state.sweep import Sweep
from pared.state.tables import WorkerHeartbeat, db_now
from worker import attempt, canaries, sandbox
from worker.devices import CPU_ALONE, Serving
from worker.devices import find as find_devices
from worker.drain import Drain
from worker.forkserver import ForkServer
from worker.sandbox import Confinement
from worker.watch import Ending, Hindered, Worker

log = structlog.get_logger()

CHILD = (sys.executable, "-P", "-m", "worker.forkserver", "worker.child")
"""The program of the jobs."""
ALIVE_S = 10.0
"""How often a worker says that it lives."""
QUICK_S = 0.5
"""How often it looks for quick jobs."""
GOODBYE_S = 10.0
"""How long it waits, when stopped, for the one under way to be handed back."""

_drain = Drain()
_forked = mmap.mmap(-1, 1)  # one byte, shared with every process that is forked from here
_main_pid = os.getpid()
_confinement = Confinement("none")
_serving = CPU_ALONE
_threads: dict[str, threading.Thread] = {}
_working = threading.Lock()  # held while a job runs that is not quick


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run one job to an end of the attempt. The id is all that a message carries."""
    try:
        with _working:
            ending = attempt.run(_worker(), job_id)
    except (DBAPIError, PoolTimeout) as error:
        log.warning("database_away", job=job_id, reason=str(error))  # the job is rung again when it is back
        return
    _look_at(ending)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def find_out_what_is_here(**_: Any) -> None:
    """Before anything is forked: what this machine can hold a child to, what it computes on, and so what to hear of."""
    global _confinement, _serving, _main_pid  # noqa: PLW0603 - inherited by the forked process
    _main_pid = os.getpid()
    configure_logging()
    signal.signal(signal.SIGUSR2, _start_afresh)
    sandbox.hide_from_others()
    scratch = settings().data_dir.resolve() / "scratch"
    cards = [] if settings().device == "cpu" else gpus.visible()
    try:
        probe = canaries.probe(scratch, gpu=bool(cards))
    except Exception:
        # Celery would swallow it. What could not be shown to hold is not assumed to.
        log.exception("sandbox_not_probed")
    else:
        _confinement = probe.confinement
        log.info("sandbox_probed", level=_confinement.level, held=_confinement.in_words(), escaped=probe.escaped)
    if _confinement.level != "standard":
        log.warning("sandbox_weak", torchscript="allowed" if settings().allow_weak_sandbox else "refused")
    try:
        _serving = find_devices(settings().device, cards, scratch, _confinement)
    except Exception as error:
        log.exception("devices_not_found")
        _serving = Serving(() if settings().device == "cuda" else ("cpu",), problem=f"No GPU could be tried: {error}")
    tell = log.info if _serving.problem is None else log.warning
    tell(
        "serving",
        devices=_serving.devices,
        on=_serving.in_words(_threads_of_a_job()),
        visible=[card.name for card in cards],
        problem=_serving.problem,
    )
    app.amqp.queues.select(queues_of(_serving.devices))


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def start_working(**_: Any) -> None:
    """In the forked process: die with the main one, and show signs of life."""
    sandbox.end_with_parent()
    if os.getppid() != _main_pid:
        os._exit(1)
    if _forked[0] and not _drain.requested:
        # The process before this one was killed, perhaps while it held the lock of the pipe that tasks come
        # through; then nobody can ever take it again, and the worker would look alive and do nothing.
        os.kill(_main_pid, signal.SIGUSR2)
        os._exit(1)
    _forked[0] = 1
    # A service manager may signal all processes of the group: this one too hands its job back first.
    signal.signal(signal.SIGTERM, lambda *_: _drain.request())
    if _serving.devices:
        with suppress(OSError):  # the first job says why
            _worker().children.start()
    _stay_alive()


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def say_goodbye(**_: Any) -> None:
    """A stopped worker is not one that was lost: its quick job goes back too, and its row goes."""
    if "quick" in _threads and _threads["quick"] is not threading.current_thread():
        _threads["quick"].join(GOODBYE_S)
    try:
        with _worker().sessions.begin() as session:
            session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.name == _worker().name))
    except (DBAPIError, PoolTimeout) as error:
        log.warning("database_away", reason=str(error))


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(**_: Any) -> None:
    """SIGTERM to the main process: the running job goes back to the queue, uncharged."""
    _drain.request()


def _start_afresh(*_: object) -> None:
    """In the main process: become a new worker, under the same process id and the same parent."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # stays so across exec, until the new worker listens
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line


def _look_at(ending: Ending | None) -> None:
    """If a device that was promised is gone: hand back what runs beside, and become a worker that tries it anew."""
    if not (isinstance(ending, Hindered) and isinstance(ending.error, DeviceUnavailable)):
        return
    log.warning("device_lost", reason=ending.error.detail)
    _drain.request()
    with _working:
        say_goodbye()
        os.kill(_main_pid, signal.SIGUSR2)
        os._exit(1)


def _threads_of_a_job() -> int:
    return settings().threads or len(os.sched_getaffinity(0))


@lru_cache(maxsize=1)
def _worker() -> Worker:
    """Made in the forked process, on first use."""
    return Worker(
        settings=settings(),
        sessions=make_sessions(make_engine(settings().effective_database_url)),
        store=open_store(settings().effective_objects_url),
        children=ForkServer(
            CHILD,
            _confinement,
            threads=_threads_of_a_job(),
            gpu="" if _serving.card is None else _serving.card.token,
        ),
        name=f"{socket.gethostname()}:{os.getpid()}",
        drain=_drain,
        serving=_serving,
    )


def _stay_alive() -> None:
    """Write the worker's row, sweep, and do what is quick; each in its thread, so that none waits for another."""
    rounds = (("alive", _say_alive, ALIVE_S), ("sweep", _sweep, settings().sweep_s), ("quick", _do_quick, QUICK_S))
    for name, act, pause_s in rounds:
        thread = threading.Thread(target=_repeat, args=(name, act, pause_s), name=name, daemon=True)
        _threads[name] = thread
        thread.start()


def _repeat(name: str, act: Callable[[], None], pause_s: float) -> None:
    """Do something until the worker stops. No error ends it: the next round may do better."""
    while True:
        try:
            act()
        except (DBAPIError, PoolTimeout, OSError, ParedError) as error:
            log.warning("round_failed", thread=name, reason=str(error))
        except Exception:
            log.exception("round_failed", thread=name)
        if _drain.wait(pause_s):
            return


def _say_alive() -> None:
    worker = _worker()
    row = {
        "sandbox": worker.confinement.level,
        "device": worker.serving.in_words(worker.threads),
        "devices": list(worker.serving.devices),
        "device_problem": worker.serving.problem,
        "seen_at": db_now(),
    }
    with worker.sessions.begin() as session:
        known = update(WorkerHeartbeat).where(WorkerHeartbeat.name == worker.name).values(**row)
        if session.execute(known.returning(WorkerHeartbeat.name)).first() is None:
            session.add(WorkerHeartbeat(name=worker.name, **row))


def _do_quick() -> None:
    """Inspections and plans: somebody waits for them, and they take seconds, so they run beside a job that takes hours.

    Where the worker is idle their message may come first; whoever claims the job does it.
    """
    worker = _worker()
    while not worker.drain.requested:
        with worker.sessions() as session:
            job_id = session.scalar(next_unlisted(worker.serving.devices))
        if job_id is None:
            return
        _look_at(attempt.run(worker, job_id))


def _sweep() -> None:
    _sweeper()()


@lru_cache(maxsize=1)
def _sweeper() -> Sweep:
    worker = _worker()
    return Sweep(worker.sessions, worker.settings, store=worker.store)
