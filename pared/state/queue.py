"""Owns the messages to workers: the Celery app, and sending a message for each job whose row is committed.

A message carries a job's id and nothing else, and says that there is something to claim: the worker that gets one
claims the job whose turn it is (`pared.state.turns`) among those that ask for the same device. Losing, repeating or
reordering messages is safe, for a queued row that nobody took another is sent. Jobs that ask for a device have a queue
of its own, which only workers that have it listen to.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import ChannelError, KombuError
from sqlalchemy import ColumnElement, Double, Integer, and_, bindparam, delete, exists, func, or_, select, update

from pared.errors import Unavailable
from pared.state.failpoints import failpoint
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.settings import settings as process_settings
from pared.state.tables import Job, Outbox, by_id_of_few, db_now

QUEUES = {"auto": "pared", "cpu": "pared.cpu", "cuda": "pared.cuda"}
"""Device that jobs ask for -> the queue with their messages."""
NO_QUEUE = "pared.none"
"""Where nobody sends: what a worker listens to that takes no jobs."""
TASK = "run_job"
_OWED = (  # asked every second, and quicker asked than built
    select(Outbox.id, Outbox.job_id, Job.device)
    .join(Job, Job.id == Outbox.job_id)
    .where(Outbox.created_at <= db_now() - bindparam("older_than_s", type_=Double()))
    .order_by(Outbox.id)
    .limit(bindparam("most", type_=Integer()))
)

log = structlog.get_logger()


def make_app(settings: Settings) -> Celery:
    """A Celery app for these settings."""
    app = Celery("pared", set_as_current=False)
    app.conf.update(
        # kombu warns of a URL without a host, though a folder has none.
        broker_url=re.sub(r"^filesystem://$", "filesystem://localhost", settings.effective_broker_url),
        task_default_queue=QUEUES["auto"],
        task_acks_late=False,
        task_ignore_result=True,
        task_publish_retry=False,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # Celery would put its own prefix before each JSON line, and drop it where its level is above a warning.
        worker_redirect_stdouts=False,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        broker_transport_options=_server_options(),
    )
    if settings.effective_broker_url.startswith("filesystem:"):
        app.conf.update(broker_transport="pared.state.broker:Transport", broker_transport_options=_folders(settings))
    else:
        app.conf.update(worker_disable_prefetch=True)
    return app


@lru_cache(maxsize=1)
def process_app() -> Celery:
    """The app of this process, by its own settings."""
    return make_app(process_settings())


def queues_of(devices: Sequence[str], taken: Container[str] = tuple(QUEUES)) -> list[str]:
    """What a worker with these devices listens to.

    Args:
        taken: what jobs may ask for that it is to take.
    """
    asked_for = [device for device in ("auto", *devices) if device in taken] if devices else []
    return [QUEUES[device] for device in asked_for] or [NO_QUEUE]


def enqueue(job_id: str, device: str = "auto", *, queue: Celery | None = None) -> None:
    """Send one message for this job, to where workers listen that have its device. Only after its row is committed.

    Raises:
        Unavailable: the broker does not take messages now; the outbox will send it later.
    """
    celery = queue or process_app()
    try:
        # Unlike send_task, a signature honours task_always_eager.
        celery.signature(TASK, args=[job_id]).apply_async(queue=QUEUES[device], retry=False)
    except _outages(celery) as error:
        raise Unavailable("The job queue does not take messages now; the job starts when it does.") from error


def relay(sessions: Sessions, *, limit: int = 100, older_than_s: float = 0.0, queue: Celery | None = None) -> int:
    """Send the messages that are owed. Returns how many were sent; 0 also when the broker is down.

    Two relays at once may send one twice, never not at all: a row goes only after the broker has its message.
    """
    with sessions() as session:
        owed = session.execute(_OWED, {"older_than_s": older_than_s, "most": limit}).all()
    if owed:
        failpoint("job.created")
    sent: list[tuple[int, str]] = []
    for row_id, job_id, device in owed:
        try:
            enqueue(job_id, device, queue=queue)
        except Unavailable as error:
            log.warning("broker_down", owed=len(owed) - len(sent), reason=str(error.__cause__))
            break
        sent.append((row_id, job_id))
    if sent:
        failpoint("outbox.sent")
        with sessions.begin() as session:
            these = Job.id.in_([job_id for _, job_id in sent])
            # In order, or two relays at once may each wait for a row that the other holds.
            session.execute(select(Job.id).where(these).order_by(Job.id).with_for_update())
            session.execute(update(Job).where(these).values(last_rung_at=db_now()))
            session.execute(delete(Outbox).where(Outbox.id.in_([row_id for row_id, _ in sent])))
    return len(sent)


def send_again(sessions: Sessions, after_s: float, *, limit: int = 100, queue: Celery | None = None) -> int:
    """Send messages for queued jobs whose own may be lost. Returns how many were sent.

    A job is sent for again where its last message is older than `after_s`.

    While a queue holds at least as many messages as jobs wait for it, none is missing, so a long queue
    behind a busy worker does not fill the broker. Each queue is judged by itself: messages that nobody takes for want
    of a GPU are no reason to leave another job without one.
    """
    return sum(_send_again(sessions, device, after_s, limit, queue) for device in QUEUES)


def _send_again(sessions: Sessions, device: str, after_s: float, limit: int, queue: Celery | None) -> int:
    with sessions() as session:
        waits = (Job.device == device, Job.status == "queued", Job.run_after <= db_now())
        waiting = session.scalar(select(func.count()).where(*waits)) or 0
        candidates = session.scalars(
            select(Job.id)
            .where(Job.device == device, _is_overdue(after_s), ~exists().where(Outbox.job_id == Job.id))
            .order_by(by_id_of_few())
            .limit(limit)
        ).all()
    sent = 0
    try:
        if not candidates or messages_waiting([device], queue=queue) >= waiting:
            return 0
        for job_id in candidates:
            with sessions.begin() as session:
                marked = session.execute(
                    update(Job)
                    .where(Job.id == job_id, _is_overdue(after_s))
                    .values(last_rung_at=db_now())
                    .returning(Job.id)
                ).first()
            if marked:
                enqueue(job_id, device, queue=queue)
                sent += 1
    except Unavailable as error:
        log.warning("broker_down", owed=len(candidates) - sent, reason=str(error.__cause__))
    return sent


def _is_overdue(after_s: float) -> ColumnElement[bool]:
    """WHERE clause: queued and due, and no message was sent lately."""
    return and_(
        Job.status == "queued",
        Job.run_after <= db_now(),
        or_(Job.last_rung_at.is_(None), Job.last_rung_at < db_now() - after_s),
    )


def messages_waiting(devices: Iterable[str] = QUEUES, *, queue: Celery | None = None) -> int:
    """How many messages the broker holds for these devices. Raises Unavailable when it does not answer."""
    celery = queue or process_app()
    with celery.connection_for_write() as connection:
        try:
            channel = connection.ensure_connection(max_retries=1, interval_start=0, timeout=5).default_channel
            return sum(_messages_in(channel, QUEUES[device]) for device in devices)
        except _outages(celery) as error:
            raise Unavailable("The job queue does not answer.") from error


def _messages_in(channel: Any, name: str) -> int:
    try:
        return int(channel.queue_declare(name, passive=True).message_count)
    except ChannelError:
        return 0  # Redis has no such thing as an empty queue


def _outages(celery: Celery) -> tuple[type[Exception], ...]:
    return (*celery.connection_for_write().connection_errors, KombuError, OSError)


def _server_options() -> dict[str, Any]:
    return {
        # Messages are acknowledged when a job starts, so this is only about messages fetched and not begun.
        "visibility_timeout": 3600,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
        # For publishing: give up at once, the outbox tries again.
        "max_retries": 1,
        "interval_start": 0,
        "interval_max": 0.5,
    }


def _folders(settings: Settings) -> dict[str, Any]:
    broker = settings.data_dir.resolve() / "broker"
    return {
        "data_folder_in": str(broker / "messages"),
        "data_folder_out": str(broker / "messages"),
        "processed_folder": str(broker / "taken"),
        "control_folder": str(broker / "control"),
        "store_processed": True,
        "polling_interval": 0.2,
    }
