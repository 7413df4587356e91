"""Owns which workers live, what they compute on, and whether a job that asks for a device can have it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.errors import DeviceUnavailable
from pared.state.tables import WorkerHeartbeat, db_now

SEEN_S = 30.0
"""A worker that wrote its row within so many seconds lives; each does every ten."""
LATELY_S = 300.0
"""A job for a device is accepted so long after a worker that has it was last seen: it may be starting again."""


def living(session: Session, within_s: float = SEEN_S) -> Sequence[WorkerHeartbeat]:
    """Workers seen within so many seconds, those that take no jobs too, by name."""
    seen = WorkerHeartbeat.seen_at > db_now() - within_s
    return session.scalars(select(WorkerHeartbeat).where(seen).order_by(WorkerHeartbeat.name)).all()


def serves(worker: WorkerHeartbeat, device: str) -> bool:
    """Whether a worker takes jobs that ask for this device, or for `auto`."""
    return bool(worker.devices) if device == "auto" else device in worker.devices


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


def waits_for(session: Session, device: str) -> str | None:
    """Why a queued job that asks for this device is not taken, where no living worker could; None: one could."""
    workers = living(session)
    if any(serves(worker, device) for worker in workers):
        return None
    kind = "worker with a GPU that works" if device == "cuda" else "worker that can run jobs"
    return f"No {kind} is alive, and the job waits for one.{_problems(workers)}"


def _problems(workers: Sequence[WorkerHeartbeat]) -> str:
    """The GPU problems that up to three workers report, each a sentence."""
    problems = [f" {worker.name}: {worker.device_problem}" for worker in workers if worker.device_problem]
    return "".join(problems[:3])
