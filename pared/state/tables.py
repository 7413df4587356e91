"""The rows that must survive, and a job's legal transitions as statements that only succeed when legal.

Times are seconds since the epoch by the database's own clock (`db_now()`), the only clock: a worker
whose clock is wrong can then neither hold a lease too long nor take one too early. Each transition of
a job is one conditional UPDATE: when another process was first it changes no row, and the caller sees
that it lost. `fence` rises with every claim, so nothing a former owner writes can match.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Text,
    UniqueConstraint,
    Update,
    and_,
    case,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement

JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
ENDED = ("succeeded", "failed", "canceled")
HELD = ("running", "canceling")
DEVICES = ("auto", "cpu", "cuda")
"""What a job may ask for. One that asks for `auto` is for every worker that takes jobs."""
QUICK = ("inspect", "plan")
"""Types of jobs that the API makes for itself: never listed, over in seconds, and not kept waiting by the others."""

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


def new_id(prefix: Literal["mdl", "dst", "job", "art", "key"]) -> str:
    """A ULID with a prefix: 48 bits of milliseconds, 80 random bits; sorts by time of making."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


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


class ApiKey(Base):
    """A key, stored as the SHA-256 of its secret. Rows made without keys belong to owner `local`."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    revoked_at: Mapped[float | None] = mapped_column(Double)


class _Upload:
    """Columns that a stored model and a stored data set share."""

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(String(30), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str | None] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16), default="inspecting")  # inspecting | ready | rejected
    reason: Mapped[dict[str, Any] | None] = mapped_column(Json)  # ParedError.as_job_error()
    inspection: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    deleted_at: Mapped[float | None] = mapped_column(Double)


class Model(_Upload, Base):
    """A stored upload that claims to be a model. Only the sandbox ever opens it."""

    __tablename__ = "models"

    architecture: Mapped[Any | None] = mapped_column(Json)


class Dataset(_Upload, Base):
    """A stored upload that claims to be a data set."""

    __tablename__ = "datasets"


class Job(Base):
    """One job. The row is the truth; a Celery message is a doorbell.

    queued -> running -> succeeded | failed | canceled; running -> canceling -> canceled;
    running -> queued only through the sweep or a worker's orderly stop. Ended states never change.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status in ('queued', 'running', 'canceling', 'succeeded', 'failed', 'canceled')", name="status"
        ),
        Index("ix_jobs_owner_id", "owner", "id"),
        Index("ix_jobs_status_run_after", "status", "run_after"),
    )

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    owner: Mapped[str] = mapped_column(String(30))
    type: Mapped[str] = mapped_column(String(16))  # prune | distill | one of QUICK
    status: Mapped[str] = mapped_column(String(16), default="queued")
    stage: Mapped[str | None] = mapped_column(String(16))
    device: Mapped[str] = mapped_column(String(8), default="auto", server_default="auto")  # one of DEVICES
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)  # {fraction, epoch, epochs, eta_s}
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    report: Mapped[dict[str, Any] | None] = mapped_column(Json)
    sandbox: Mapped[str | None] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64))  # of the HTTP request that made it, for the logs
    created_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
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

    @classmethod
    def next_quick(cls, devices: Sequence[str]) -> Select[str]:
        """The id of the quick job that has waited longest, of those for a worker with these devices."""
        due = (cls.type.in_(QUICK), cls.status == "queued", cls.run_after <= db_now(), cls.is_for(devices))
        return select(cls.id).where(*due).order_by(cls.id).limit(1)

    @classmethod
    def is_for(cls, devices: Sequence[str]) -> Any:
        """WHERE clause: a worker that computes on these devices (`cpu`, `cuda`) may take it; without any, none."""
        return cls.device.in_(["auto", *devices] if devices else [])

    # Transitions. Execute, and look at rowcount (or RETURNING): 0 rows is "you were too late".

    @classmethod
    def claim(cls, job_id: str, owner: str, lease_s: float, devices: Sequence[str]) -> Update:
        """queued -> running, with a lease and the next fence. RETURNING the claimed fence and attempt.

        Args:
            devices: what the worker computes on; a job that asks for another one is not claimed.
        """
        return (
            update(cls)
            .where(
                cls.id == job_id,
                cls.status == "queued",
                cls.run_after <= db_now(),
                cls.cancel_requested_at.is_(None),
                cls.is_for(devices),
            )
            .values(
                status="running",
                fence=cls.fence + 1,
                attempt=cls.attempt + 1,
                lease_owner=owner,
                lease_expires_at=db_now() + lease_s,
                progress_at=db_now(),
                started_at=case((cls.started_at.is_(None), db_now()), else_=cls.started_at),
                updated_at=db_now(),
            )
            .returning(cls.fence, cls.attempt)
        )

    @classmethod
    def renew(cls, job_id: str, fence: int, lease_s: float) -> Update:
        """Keep the lease. RETURNING cancel_requested_at; no row means the lease is lost: stop at once."""
        return (
            update(cls)
            .where(cls.held(job_id, fence))
            .values(
                lease_expires_at=db_now() + lease_s,
                # The lease now ends later by just the time since it was last renewed.
                held_s=cls.held_s + db_now() + lease_s - cls.lease_expires_at,
            )
            .returning(cls.cancel_requested_at)
        )

    @classmethod
    def advance(cls, job_id: str, fence: int, **values: Any) -> Update:
        """Write stage, progress, sandbox or checkpoint columns while holding the lease."""
        return update(cls).where(cls.held(job_id, fence)).values(progress_at=db_now(), updated_at=db_now(), **values)

    @classmethod
    def succeed(cls, job_id: str, fence: int, report: dict[str, Any] | None) -> Update:
        """running -> succeeded, unless a cancel came first."""
        return (
            update(cls)
            .where(cls.id == job_id, cls.fence == fence, cls.status == "running", cls.cancel_requested_at.is_(None))
            .values(status="succeeded", report=report, stage=None, **cls._ending())
        )

    @classmethod
    def fail(cls, job_id: str, fence: int, error: dict[str, Any]) -> Update:
        """running -> failed with a reason, unless a cancel came first."""
        return (
            update(cls)
            .where(cls.id == job_id, cls.fence == fence, cls.status == "running", cls.cancel_requested_at.is_(None))
            .values(status="failed", error=error, **cls._ending())
        )

    @classmethod
    def end_canceled(cls, job_id: str, fence: int) -> Update:
        """canceling -> canceled, by the worker that holds it."""
        return (
            update(cls)
            .where(cls.held(job_id, fence), cls.cancel_requested_at.is_not(None))
            .values(status="canceled", **cls._ending())
        )

    @classmethod
    def cancel_queued(cls, job_id: str) -> Update:
        """queued -> canceled at once."""
        return (
            update(cls)
            .where(cls.id == job_id, cls.status == "queued")
            .values(status="canceled", cancel_requested_at=db_now(), **cls._ending())
        )

    @classmethod
    def request_cancel(cls, job_id: str) -> Update:
        """running -> canceling; the worker sees it at its next heartbeat."""
        return (
            update(cls)
            .where(cls.id == job_id, cls.status == "running")
            .values(status="canceling", cancel_requested_at=db_now(), updated_at=db_now())
        )

    @classmethod
    def give_back(
        cls, job_id: str, fence: int, *, charge: Literal["crash", "attempt"] | None, delay_s: float = 0.0
    ) -> Update:
        """running -> queued: after a crash, after an attempt that came to nothing, or uncharged by an orderly stop."""
        charges = {"crash": {"crash_count": cls.crash_count + 1}, "attempt": {}, None: {"attempt": cls.attempt - 1}}
        return (
            update(cls)
            .where(cls.id == job_id, cls.fence == fence, cls.status == "running")
            .values(
                status="queued",
                stage=None,
                lease_owner=None,
                lease_expires_at=None,
                last_rung_at=None,
                run_after=db_now() + delay_s,
                updated_at=db_now(),
                **charges[charge],
            )
        )

    @classmethod
    def reap(cls, max_lost_attempts: int, out_of_attempts: dict[str, Any]) -> list[Update]:
        """The sweep's three answers to a lease that ran out. Each may run in many processes at once."""
        lost = cls.lost()
        return [
            update(cls).where(lost, cls.cancel_requested_at.is_not(None)).values(status="canceled", **cls._ending()),
            update(cls)
            .where(lost, cls.attempt - cls.crash_count >= max_lost_attempts)
            .values(status="failed", error=out_of_attempts, **cls._ending()),
            update(cls)
            .where(lost)
            .values(
                status="queued",
                stage=None,
                lease_owner=None,
                lease_expires_at=None,
                last_rung_at=None,
                run_after=0.0,
                updated_at=db_now(),
            ),
        ]

    @classmethod
    def lost(cls) -> Any:
        """WHERE clause: held by a worker whose lease ran out."""
        return and_(cls.status.in_(HELD), cls.lease_expires_at < db_now())

    @classmethod
    def needs_ring(cls, ring_again_s: float) -> Any:
        """WHERE clause: queued and due, and not rung lately."""
        return and_(
            cls.status == "queued",
            cls.run_after <= db_now(),
            or_(cls.last_rung_at.is_(None), cls.last_rung_at < db_now() - ring_again_s),
        )

    @classmethod
    def held(cls, job_id: str, fence: int) -> Any:
        """WHERE clause: this claim still holds the job, canceling or not."""
        return and_(cls.id == job_id, cls.fence == fence, cls.status.in_(HELD))

    @staticmethod
    def _ending() -> dict[str, Any]:
        return {
            "finished_at": db_now(),
            "updated_at": db_now(),
            "lease_owner": None,
            "lease_expires_at": None,
        }


class Outbox(Base):
    """A doorbell owed: written in the job's own transaction, deleted once the broker has it."""

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
    kind: Mapped[str] = mapped_column(String(16))  # status | progress | metric | log | done
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
    seen_at: Mapped[float] = mapped_column(Double, insert_default=db_now())
