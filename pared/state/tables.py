"""The tables: what must survive, column by column. How a job's row changes is in `pared.state.lifecycle`.

Times are seconds since the epoch by the database's own clock (`db_now()`), the only clock: a worker
whose clock is wrong can then neither hold a lease too long nor take one too early.
"""

from __future__ import annotations

import os
import time
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from pared.statuses import DeliveryStatus, JobStatus, UploadStatus

UploadTable = Literal["models", "datasets"]

# None is SQL's NULL, not JSON's null, so that `is_(None)` means what it says.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """Seconds since the epoch by the database's clock."""

    inherit_cache = True
    type = Double()


@compiles(db_now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    # Not now(), which stands still inside a transaction.
    return "extract(epoch from clock_timestamp())::double precision"


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id(prefix: Literal["mdl", "dst", "job", "art", "key", "own", "upl", "whk", "dlv"]) -> str:
    """A ULID with a prefix: 48 bits of milliseconds, 80 random bits; sorts by time of making.

    Also within a millisecond, for one process: jobs that are posted together are taken in their order.
    """
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    if _newest[0] >> 80 == number >> 80:
        # At random, for other threads and a process that was forked a moment ago may go on from the same one.
        number = _newest[0] + 1 + int.from_bytes(os.urandom(5))
    _newest[0] = number
    return f"{prefix}_{_ulid(number)}"


_newest = [0]


def first_job_id(at: float) -> str:
    """Before every job's id that is made from this time on, in seconds since the epoch."""
    return f"job_{_ulid(int(at * 1000) << 80)}"


def _ulid(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


class Base(DeclarativeBase):
    """Base of all tables, with constraint names that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Owner(Base):
    """Whose models, data sets and jobs are: rows have this id as `owner`. What is made without a key is `local`'s.

    Whoever admits something for an owner, or claims a job of theirs, locks this row before any other, so that they
    count right and none waits for another in a circle.
    """

    __tablename__ = "owners"

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    disabled_at: Mapped[float | None] = mapped_column(Double)
    served_at: Mapped[float | None] = mapped_column(Double)  # when a job of theirs was claimed last
    quick_served_at: Mapped[float | None] = mapped_column(Double)  # the same of inspections and plans
    retention_days: Mapped[float | None] = mapped_column(Double)  # None: the service's; 0: their things stay


class ApiKey(Base):
    """A key of an owner, stored as the SHA-256 of its secret."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(64))  # of `pared.state.keys.Scope`, with a space between them
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    expires_at: Mapped[float | None] = mapped_column(Double)
    last_used_at: Mapped[float | None] = mapped_column(Double)  # to the minute
    revoked_at: Mapped[float | None] = mapped_column(Double)


class AuditEntry(Base):
    """Something that somebody did. Rows are only ever added."""

    __tablename__ = "audit_log"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    actor: Mapped[str] = mapped_column(String(30), index=True)  # an owner's id, or `command line`
    key_id: Mapped[str | None] = mapped_column(String(30))
    action: Mapped[str] = mapped_column(String(80))
    subject: Mapped[str | None] = mapped_column(String(80))  # the id of what it was done to
    detail: Mapped[dict[str, Any] | None] = mapped_column(Json)
    request_id: Mapped[str | None] = mapped_column(String(64))


class _Upload:
    """Columns that a stored model and a stored data set share."""

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(String(30), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str | None] = mapped_column(String(32))
    status: Mapped[UploadStatus] = mapped_column(String(16), default="inspecting")
    reason: Mapped[dict[str, Any] | None] = mapped_column(Json)  # ParedError.as_job_error()
    inspection: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    deleted_at: Mapped[float | None] = mapped_column(Double)


class Model(_Upload, Base):
    """A stored upload that claims to be a model. Only the sandbox ever opens it."""

    __tablename__ = "models"

    architecture: Mapped[Any | None] = mapped_column(Json)
    weights: Mapped[str | None] = mapped_column(String(255))  # which state dict of a checkpoint is meant
    prefix: Mapped[str | None] = mapped_column(String(255))  # of the names of the tensors that are meant


class Dataset(_Upload, Base):
    """A stored upload that claims to be a data set."""

    __tablename__ = "datasets"

    preview_key: Mapped[str | None] = mapped_column(String(255))  # of the object that its inspection left
    preview_sha256: Mapped[str | None] = mapped_column(String(64))
    preview_bytes: Mapped[int | None] = mapped_column(BigInteger)


class PartialUpload(Base):
    """An upload that is sent in pieces: what was said of it, and how far it is on disk.

    It is *receiving* until all bytes are there, then *sealed* (`digest` is set: no byte changes any more), and *done*
    once it became a model or a data set (`result_id`).
    """

    __tablename__ = "partial_uploads"

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(String(30), index=True)
    kind: Mapped[UploadTable] = mapped_column(String(16))
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))  # as announced by the client
    architecture: Mapped[Any | None] = mapped_column(Json)
    weights: Mapped[str | None] = mapped_column(String(255))
    prefix: Mapped[str | None] = mapped_column(String(255))
    upload_metadata: Mapped[str] = mapped_column(Text)  # the header as it was sent
    received_bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # that are surely on disk
    fence: Mapped[int] = mapped_column(Integer, default=0)  # rises with each request that sends bytes
    digest: Mapped[str | None] = mapped_column(String(64))
    result_id: Mapped[str | None] = mapped_column(String(30))
    request_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    expires_at: Mapped[float] = mapped_column(Double, index=True)


class Job(Base):
    """One job. The row is the truth; a Celery message only says that there is something to claim."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status in ({', '.join(map(repr, get_args(JobStatus)))})", name="status"),
        Index("ix_jobs_owner_id", "owner", "id"),
        Index("ix_jobs_status_run_after", "status", "run_after"),
        # For `pared.state.turns`: who waits, and the first job of each.
        Index("ix_jobs_status_owner_type_device_id", "status", "owner", "type", "device", "id"),
        # For what an owner's results take up.
        Index("ix_jobs_owner_result_bytes", "owner", "result_bytes"),
        # For the jobs of a key that is revoked.
        Index("ix_jobs_key_id", "key_id"),
    )

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(String(30))
    key_id: Mapped[str | None] = mapped_column(String(30))  # with which it was submitted
    type: Mapped[str] = mapped_column(String(16))  # a name in `pared.job_types`
    status: Mapped[JobStatus] = mapped_column(String(16), default="queued")
    stage: Mapped[str | None] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(String(8), default="auto", server_default="auto")  # a `pared.specs.Device`
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)  # {fraction, epoch, epochs, eta_s}
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    report: Mapped[dict[str, Any] | None] = mapped_column(Json)
    # {verdict, failed_outputs} of the report, which may be megabytes; null where an older worker ended the job
    outcome: Mapped[dict[str, Any] | None] = mapped_column(Json)
    result_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # of its artifacts together
    sandbox: Mapped[str | None] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64))  # of the HTTP request that made it, for the logs
    traceparent: Mapped[str | None] = mapped_column(String(55))  # of its span, as W3C writes it
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
    pinned_at: Mapped[float | None] = mapped_column(Double)  # since when it is kept whatever its age
    updated_at: Mapped[float] = mapped_column(Double, insert_default=db_now())

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    crash_count: Mapped[int] = mapped_column(Integer, default=0)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[float | None] = mapped_column(Double)
    held_s: Mapped[float] = mapped_column(Double, default=0.0)  # by all workers so far, counted at each heartbeat
    progress_at: Mapped[float | None] = mapped_column(Double)
    run_after: Mapped[float] = mapped_column(Double, default=0.0)
    cancel_requested_at: Mapped[float | None] = mapped_column(Double)
    last_rung_at: Mapped[float | None] = mapped_column(Double)
    checkpoint_key: Mapped[str | None] = mapped_column(String(255))
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    checkpoint_step: Mapped[int | None] = mapped_column(Integer)
    previous_checkpoint_key: Mapped[str | None] = mapped_column(String(255))
    previous_checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))


def by_id_of_few() -> ColumnElement[str]:
    """ORDER BY for the first of few jobs among many: they are found by another index, and then sorted.

    By the id alone PostgreSQL reads all jobs there are in the order of their ids until it has found enough of the few.
    """
    return Job.id.concat("")


class Outbox(Base):
    """A message owed to the broker: written in the job's own transaction, deleted once the broker has it."""

    __tablename__ = "outbox"
    # No id is used twice: a relay that is late then cannot delete a newer job's row.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())


class JobEvent(Base):
    """One event of a job's stream; `seq` rises by one within a job, and is the SSE id."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))  # a `pared.state.events.EventKind`
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())


class Artifact(Base):
    """A file that a job made. Rows appear only in the transaction that ends the job."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(100))
    object_key: Mapped[str] = mapped_column(String(255), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())


class IdempotencyKey(Base):
    """The job that a client's key already made, kept a day."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(30), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())


class Webhook(Base):
    """Where an owner is told of the ends of their jobs.

    The secret is as it was given: whoever signs with it needs it whole.
    """

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str]] = mapped_column(Json)  # of `pared.state.deliveries.EventName`
    description: Mapped[str | None] = mapped_column(String(200))
    secret: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    failing_since: Mapped[float | None] = mapped_column(Double)  # the first failure since the last success
    disabled_at: Mapped[float | None] = mapped_column(Double)
    disabled_reason: Mapped[str | None] = mapped_column(Text)


class WebhookDelivery(Base):
    """One notice that a webhook is owed: written in the transaction of what it tells of, sent at least once."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_status_next_at", "status", "next_at"),
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    event: Mapped[str] = mapped_column(String(32))
    body: Mapped[str] = mapped_column(Text)  # as it is sent and signed
    status: Mapped[DeliveryStatus] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(Integer, default=0)  # since it was made, or replayed
    fence: Mapped[int] = mapped_column(Integer, default=0)  # rises with each claim
    next_at: Mapped[float] = mapped_column(Double, insert_default=db_now())  # while claimed: when the claim runs out
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    attempted_at: Mapped[float | None] = mapped_column(Double)
    ended_at: Mapped[float | None] = mapped_column(Double)
    response_status: Mapped[int | None] = mapped_column(Integer)  # of the last attempt, where there was an answer
    problem: Mapped[str | None] = mapped_column(Text)  # why the last attempt failed


class WorkerHeartbeat(Base):
    """A worker that is alive, with what it found it can do: `pared.state.workers` looks here."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    sandbox: Mapped[str] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(Text)  # in words
    devices: Mapped[list[str]] = mapped_column(Json, default=lambda: ["cpu"], server_default='["cpu"]')
    """Those that it runs jobs on, of `cpu` and `cuda`; empty: it takes none."""
    device_problem: Mapped[str | None] = mapped_column(Text)
    """Why it uses no GPU, or takes no jobs."""
    sandbox_problem: Mapped[str | None] = mapped_column(Text)
    """Why its jobs run as root, where they do."""
    seen_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
