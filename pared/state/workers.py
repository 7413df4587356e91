"""Owns which workers live, what they compute on, and whether a job that asks for a device can have it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Double, bindparam, func, select
from sqlalchemy.orm import Session

from pared.errors import DeviceUnavailable
from pared.state.tables import WorkerHeartbeat, db_now

SEEN_S = 30.0
"""A worker that wrote its row within so many seconds lives; each does every ten."""
_SEEN = (
    select(WorkerHeartbeat)
    .where(WorkerHeartbeat.seen_at > db_now() - bindparam("within_s", type_=Double()))
    .order_by(WorkerHeartbeat.name)
)
LATELY_S = 300.0
"""A job for a device is accepted so long after a worker that has it was last seen: it may be starting again."""


def living(session: Session, within_s: float = SEEN_S) -> Sequence[WorkerHeartbeat]:
    """Workers seen within so many seconds, those that take no jobs too, by name."""
    return session.scalars(_SEEN, {"within_s": within_s}).all()


def count_living(session: Session) -> int:
    """How many there are: of a thousand, the rows themselves take milliseconds to read."""
    return session.scalar(select(func.count()).where(WorkerHeartbeat.seen_at > db_now() - SEEN_S)) or 0


def serves(worker: WorkerHeartbeat, device: str) -> bool:
    """Whether a worker takes jobs that ask for this device, or for `auto`."""
    return bool(worker.devices) if device == "auto" else device in worker.devices


def confines(session: Session, device: str) -> bool:
    """Whether a living worker that would take such a job confines what runs code, as TorchScript does."""
    return any(worker.sandbox == "standard" and serves(worker, device) for worker in living(session))


def check_device(session: Session, device: str, pointer: str) -> None:
    """Refuse a job that no worker would take.

    Only for `cuda`: whatever worker is started next takes all else.

    Args:
        pointer: JSON pointer to the field that asks for the device.

    Raises:
        DeviceUnavailable: no worker with such a device has been seen lately.
    """
    if device != "cuda":
        return
    workers = living(session, LATELY_S)
    if any(serves(worker, device) for worker in workers):
        return
    why = f"no worker with a GPU that works has been seen in the last {LATELY_S / 60:g} minutes"
    raise DeviceUnavailable(
        f"The job asks for CUDA, and {why}.{_problems(workers)} Leave `{pointer[1:]}` out to compute on what there is, "
        "or start `pared worker` on a machine with an NVIDIA GPU; `pared worker --check` says there what it found.",
        errors=[{"pointer": pointer, "detail": why}],
    )


def waits_for(session: Session, device: str, what: str = "the job") -> str | None:
    """Why a queued job that asks for this device is not taken, where no living worker could; None: one could."""
    return reason_to_wait(living(session), device, what)


def reason_to_wait(workers: Sequence[WorkerHeartbeat], device: str, what: str = "the job") -> str | None:
    """The same, of living workers that are known."""
    if any(serves(worker, device) for worker in workers):
        return None
    kind = "worker with a GPU that works" if device == "cuda" else "worker that can run jobs"
    return f"No {kind} is alive, and {what} waits for one.{_problems(workers)}"


def _problems(workers: Sequence[WorkerHeartbeat]) -> str:
    """The GPU problems that up to three workers report, each a sentence."""
    problems = [f" {worker.name}: {worker.device_problem}" for worker in workers if worker.device_problem]
    return "".join(problems[:3])
