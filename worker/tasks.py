"""Owns the Celery process: its one task, its heartbeat, its part in the sweep, and its orderly shutdown.

    celery -A worker.tasks worker -c 1

Before it takes a job it probes how strong its sandbox is, and whether its GPU computes; it listens to the queues of
the devices that it has. Celery's main process only takes messages. All else happens in the process that it forks: the
task, a thread that writes the worker's row, one that sweeps, and one for quick jobs. The main process never opens the
database, because SQLite must not be carried across a fork.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import structlog
from celery import signals
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from pared import gpus
from pared.errors import DeviceUnavailable, ParedError, Unavailable
from pared.full_disk import FULL
from pared.state import tracing
from pared.state.data_folder import close_to_others
from pared.state.failpoints import arm
from pared.state.keys import any_works
from pared.state.limits import most_running
from pared.state.logs import configure_logging
from pared.state.objects import ObjectStore, open_store
from pared.state.queue import TASK, enqueue, process_app, queues_of
from pared.state.session import make_engine, make_sessions
from pared.state.settings import settings
from pared.state.sweep import Sweep
from pared.state.tables import Job, WorkerHeartbeat, db_now
from pared.state.turns import Lane, anything_waits, next_in_turn
from pared.state.workers import count_living
from worker import attempt, children_user, sandbox, sandbox_probe, scratch, waiting_results
from worker.attempt_types import Ending, Hindered, Worker
from worker.condition import Condition
from worker.devices import CPU_ALONE, Serving, find_devices
from worker.forkserver import ForkServer
from worker.sandbox import Confinement
from worker.shutdown import Shutdown

log = structlog.get_logger()

app = process_app()
"""What `celery -A worker.tasks` and `pared worker` look for."""
CHILD = (sys.executable, "-P", "-m", "worker.forkserver", "worker.child")
"""The program of the jobs."""
HEARTBEAT_S = 10.0
"""How often a worker writes its row."""
CLEAR_S = 30.0
"""How often it looks for scratch folders that nobody needs."""
QUICK_S = 0.5
"""How often it looks for quick jobs."""
LOOKS_A_S = 50
"""How often all workers together look for them: of many, each looks more seldom."""
SHUTDOWN_TIMEOUT_S = 10.0
"""How long it waits, when stopped, for the quick job under way to be handed back."""

TRIES = 10
"""How often another worker may be first before a message is given up; the sweep then sends another."""


def _objects() -> ObjectStore:
    return _worker().store


_shutdown = Shutdown()
_condition = Condition(lambda: settings().data_dir.resolve() / "scratch", _objects)
_forked = mmap.mmap(-1, 1)  # one byte, shared with every process that is forked from here
_main_pid = os.getpid()
_confinement = Confinement("none")
_serving = CPU_ALONE
_sandbox_problem: str | None = None
_workers = 0  # that live, as of the last heartbeat
_unprobed: str | None = None  # why the sandbox could not be probed: no job is taken before it was
_threads: dict[str, threading.Thread] = {}
_working = threading.Lock()  # held while a job runs that is not quick


@dataclass(frozen=True)
class Turn:
    """A job that may be claimed, unless its owner has `most_held` of its lane under way (0: any number)."""

    job_id: str
    most_held: int
    held_by: Sequence[str] | None
    """Where only jobs of these workers count, their names."""


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run one attempt at the job whose turn it is, of those that ask for the same device as the one in the message."""
    if _unprobed or _cannot_start():
        return  # the message is sent again
    try:
        with _working:
            ending = _run_next(_worker(), job_id)
    except (DBAPIError, PoolTimeout) as error:
        log.warning("database_away", job=job_id, reason=str(error))  # the message is sent again when it is back
        return
    _condition.note(ending)
    _restart_without_device(ending)


def _run_next(worker: Worker, job_id: str) -> Ending | None:
    """The attempt that a message for this job leads to; None: no attempt was made, or it is not ours to end."""
    for _ in range(TRIES):
        with worker.sessions() as session:
            named = session.execute(select(Job.device, Job.request_id).where(Job.id == job_id)).first()
            if named is None:
                return None
            turn = _turn(session, worker, named.device)
        if turn is None:
            log.info("nothing_to_claim", job=job_id, **({"request_id": named.request_id} if named.request_id else {}))
            return None
        ending = attempt.run(worker, turn.job_id, most_held=turn.most_held, held_by=turn.held_by)
        if ending is not None or worker.shutdown.requested:
            _pass_on(worker, named.device)
            return ending
    return None


def _turn(session: Session, worker: Worker, device: str) -> Turn | None:
    """A job for the thread that takes messages: one that somebody posted; where none waits, a quick one.

    Of quick jobs it takes one of each owner at a time: somebody who uploads a hundred models that loop for ever is to
    hold the threads for quick jobs alone, and not what the next job is waiting for.
    """
    devices = worker.serving.devices
    most_running_jobs = most_running(session, worker.settings, _takes(worker))
    lanes: list[tuple[Lane, int, Sequence[str] | None]] = [("jobs", *most_running_jobs)]
    if "quick" in worker.settings.taken_queues:
        lanes.append(("quick", 1, None))
    for lane, most_held, held_by in lanes:
        chosen = next_in_turn(session, lane, devices, asked_for=device, most_held=most_held, held_by=held_by)
        if chosen is not None:
            return Turn(chosen, most_held, held_by)
    return None


def _pass_on(worker: Worker, device: str) -> None:
    """Send a message for a job that had to wait for this one's end: its own came while its owner had no room."""
    with worker.sessions() as session:
        if not most_running(session, worker.settings, _takes(worker))[0]:
            return
        turn = _turn(session, worker, device)
    if turn is not None:
        with suppress(Unavailable):  # the sweep sends it, later
            enqueue(turn.job_id, device)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def probe_machine(**_: Any) -> None:
    """Before anything is forked: probe the sandbox and the devices, and so choose the queues to listen to."""
    global _confinement, _serving, _sandbox_problem, _unprobed, _main_pid  # noqa: PLW0603 - inherited by the forked process
    tracing.require(settings())
    arm(settings().failpoints)
    _main_pid = os.getpid()
    configure_logging(settings().log_level)
    signal.signal(signal.SIGUSR2, _restart)
    sandbox.hide_from_others()
    close_to_others(settings())
    folder = settings().data_dir.resolve() / "scratch"
    cards = [] if settings().device == "cpu" else gpus.visible()
    try:
        probe = sandbox_probe.probe(folder, gpu=bool(cards))
    except OSError as error:
        # What a full disk refuses says nothing about the sandbox, so that its level is still to be found.
        nothing_shown = isinstance(error, sandbox_probe.NothingShown) or error.errno in FULL
        if nothing_shown or _condition.scratch_problem() is not None:
            _unprobed = f"The sandbox is yet to be probed: {error}."
        log.warning("sandbox_not_probed", reason=str(error), probed_again=_unprobed is not None)
    except Exception:
        # Celery would swallow it. What could not be shown to hold is not assumed to.
        log.exception("sandbox_not_probed")
    else:
        _confinement = probe.confinement
        log.info("sandbox_probed", level=_confinement.level, held=_confinement.in_words(), escaped=probe.escaped)
    _sandbox_problem = None if _unprobed else children_user.problem(_confinement, folder)
    if _sandbox_problem is not None:
        log.warning("children_are_root", problem=_sandbox_problem)
    if _confinement.level != "standard" and not _unprobed:
        log.warning("sandbox_weak", torchscript="allowed" if settings().allow_weak_sandbox else "refused")
    try:
        _serving = find_devices(settings().device, cards, folder, _confinement)
    except Exception as error:
        log.exception("devices_not_found")
        _serving = Serving(() if settings().device == "cuda" else ("cpu",), problem=f"No GPU could be tried: {error}")
    write = log.info if _serving.problem is None else log.warning
    write(
        "serving",
        devices=_serving.devices,
        on=_serving.in_words(_threads_of_a_job()),
        visible=[card.name for card in cards],
        problem=_serving.problem,
    )
    app.amqp.queues.select(queues_of(_serving.devices, settings().taken_queues))
    # What is loaded by now stays shared with the forked process: the collector writes to each object that it looks at.
    gc.freeze()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def start_working(**_: Any) -> None:
    """In the forked process: end with the main one, and start its threads."""
    sandbox.end_with_parent()
    if os.getppid() != _main_pid:
        os._exit(1)
    if _forked[0] and not _shutdown.requested:
        # The process before this one was killed, perhaps while it held the lock of the pipe that tasks come
        # through; then nobody can ever take it again, and the worker would look alive and do nothing.
        os.kill(_main_pid, signal.SIGUSR2)
        os._exit(1)
    _forked[0] = 1
    # A service manager may signal all processes of the group: this one too hands its job back first.
    signal.signal(signal.SIGTERM, lambda *_: _shutdown.request())
    tracing.start(settings(), "pared-worker")
    if _serving.devices:
        with suppress(OSError):  # the first job says why
            _worker().children.start()
    _start_threads()


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def leave(**_: Any) -> None:
    """A stopped worker is not a lost one: hand its quick job back too, and delete its row."""
    if "quick" in _threads and _threads["quick"] is not threading.current_thread():
        _threads["quick"].join(SHUTDOWN_TIMEOUT_S)
    waiting_results.join(SHUTDOWN_TIMEOUT_S)
    try:
        with _worker().sessions.begin() as session:
            session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.name == _worker().name))
    except (DBAPIError, PoolTimeout) as error:
        log.warning("database_away", reason=str(error))
    tracing.stop()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def begin_shutdown(**_: Any) -> None:
    """SIGTERM to the main process: the running job goes back to the queue, uncharged."""
    _shutdown.request()


def _restart(*_: object) -> None:
    """In the main process: become a new worker, with the same process id and the same parent."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # stays so across exec, until the new worker listens
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line


def _restart_without_device(ending: Ending | None) -> None:
    """After an attempt whose device is gone: hand back what else runs, and become a worker that probes it anew."""
    if not (isinstance(ending, Hindered) and isinstance(ending.error, DeviceUnavailable)):
        return
    log.warning("device_lost", reason=ending.error.detail)
    _become_a_new_worker()


def _become_a_new_worker() -> None:
    _shutdown.request()
    with _working:
        leave()
        os.kill(_main_pid, signal.SIGUSR2)
        os._exit(1)


def _probe_again() -> None:
    """Become a worker that probes the sandbox, once there is room for that."""
    if _condition.scratch_problem() is None:
        log.info("sandbox_probed_again")
        _become_a_new_worker()


def _threads_of_a_job() -> int:
    return settings().threads or len(os.sched_getaffinity(0))


@lru_cache(maxsize=1)
def _worker() -> Worker:
    """Made in the forked process, on first use."""
    return Worker(
        settings=settings(),
        sessions=make_sessions(make_engine(settings().effective_database_url)),
        store=open_store(settings()),
        children=ForkServer(
            CHILD,
            _confinement,
            threads=_threads_of_a_job(),
            gpu="" if _serving.card is None else _serving.card.token,
        ),
        name=f"{socket.gethostname()}:{os.getpid()}",
        shutdown=_shutdown,
        serving=_serving,
    )


def _start_threads() -> None:
    """Write the worker's row, sweep, and run quick jobs; each in its thread, so that none waits for another."""
    rounds: list[tuple[str, Callable[[], None], Callable[[], float]]] = [
        ("alive", _write_heartbeat, lambda: HEARTBEAT_S),
        ("sweep", _sweep, lambda: settings().sweep_s),
        ("clear", _clear_scratch, lambda: CLEAR_S),
    ]
    if _unprobed:
        rounds.append(("probe", _probe_again, lambda: QUICK_S))
    elif "quick" in settings().taken_queues:
        rounds.append(("quick", _run_quick_jobs, _pause_of_quick))
    for name, act, pause in rounds:
        thread = threading.Thread(target=_repeat, args=(name, act, pause), name=name, daemon=True)
        _threads[name] = thread
        thread.start()


def _pause_of_quick() -> float:
    return max(QUICK_S, _workers / LOOKS_A_S)


def _repeat(name: str, act: Callable[[], None], pause: Callable[[], float]) -> None:
    """Call `act` until the worker stops. No error ends it: the next round may do better."""
    while True:
        try:
            act()
        except (DBAPIError, PoolTimeout, OSError, ParedError) as error:
            log.warning("round_failed", thread=name, reason=str(error))
        except Exception:
            log.exception("round_failed", thread=name)
        if _shutdown.wait(pause()):
            return


def _write_heartbeat() -> None:
    global _workers  # noqa: PLW0603 - what the other threads' pauses follow
    worker = _worker()
    problem = _condition.problem() or _unprobed
    row = {
        "sandbox": worker.confinement.level,
        "sandbox_problem": _sandbox_problem,
        "device": worker.serving.in_words(worker.threads),
        "devices": _takes(worker) if problem is None else [],
        "device_problem": worker.serving.problem if problem is None else problem,
        "seen_at": db_now(),
    }
    with worker.sessions.begin() as session:
        known = update(WorkerHeartbeat).where(WorkerHeartbeat.name == worker.name).values(**row)
        if session.execute(known.returning(WorkerHeartbeat.name)).first() is None:
            session.add(WorkerHeartbeat(name=worker.name, **row))
            session.flush()
        _workers = count_living(session)


def _takes(worker: Worker) -> list[str]:
    """The devices on which it runs jobs that somebody posted; of one that takes those for no device alone, `cpu`."""
    taken, devices = worker.settings.taken_queues, worker.serving.devices
    asked_for: list[str] = [device for device in devices if device in taken]
    return asked_for or (["cpu"] if devices and "auto" in taken else [])


def _run_quick_jobs() -> None:
    """Run inspections and plans beside a job that takes hours: somebody waits for them, and they take seconds.

    Where the worker is idle their message may come first; whoever claims the job runs it.
    """
    worker = _worker()
    while not worker.shutdown.requested:
        with worker.sessions() as session:
            if not anything_waits(session):
                return  # as most often: this is asked twice a second
            most_held = _most_quick(session)
            job_id = next_in_turn(session, "quick", worker.serving.devices, most_held=most_held)
        if job_id is None or _cannot_start():
            return
        ending = attempt.run(worker, job_id, most_held=most_held)
        _condition.note(ending)
        _restart_without_device(ending)


def _cannot_start() -> bool:
    """Whether a job would find no folder, no room or no files now. It waits then, and no attempt is lost."""
    return _condition.scratch_problem() is not None or _condition.store_problem() is not None


def _most_quick(session: Session) -> int:
    """How many quick jobs of one owner may be under way: where there are others, one worker's thread is for them."""
    workers = count_living(session)
    return workers - 1 if workers > 1 and any_works(session) else 0


def _clear_scratch() -> None:
    """Remove what workers that died left, and what took longer than its job was given."""
    scratch.clear(settings().data_dir.resolve() / "scratch", limit_s=CLEAR_S)


def _sweep() -> None:
    workers = _workers
    if not workers:  # before the first heartbeat: of a thousand that start at once, not each is to list the store
        with _worker().sessions() as session:
            workers = count_living(session)
    _process_sweep()(max(workers, 1))


@lru_cache(maxsize=1)
def _process_sweep() -> Sweep:
    worker = _worker()
    return Sweep(worker.sessions, worker.settings, store=worker.store)
