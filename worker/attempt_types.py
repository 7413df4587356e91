"""Owns the types that an attempt is described in: what a worker has, what it claimed, and how the attempt can end."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pared.errors import ParedError
from pared.job_types import JobType
from pared.state.objects import ObjectStore
from pared.state.session import Sessions
from pared.state.settings import Settings
from worker.devices import CPU_ALONE, Serving
from worker.forkserver import ForkServer
from worker.kept_answers import KeptAnswers
from worker.kept_plans import KeptPlans
from worker.lease import Lease, LeaseLost
from worker.sandbox import Confinement
from worker.shutdown import Shutdown
from worker.spans import AttemptSpan


@dataclass(frozen=True)
class Worker:
    """What a worker process has to run jobs with."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    children: ForkServer
    name: str
    shutdown: Shutdown
    serving: Serving = CPU_ALONE

    @cached_property
    def answers(self) -> KeptAnswers:
        """What jobs on this machine keep of teachers."""
        folder = self.settings.data_dir.resolve() / "teacher-answers"
        return KeptAnswers(folder, self.settings.teacher_answers_bytes)

    @cached_property
    def plans(self) -> KeptPlans:
        """The plans that this machine has made."""
        return KeptPlans(self.settings.data_dir.resolve() / "plans")

    @property
    def confinement(self) -> Confinement:
        """What children are held to."""
        return self.children.confinement

    @property
    def threads(self) -> int:
        """Threads of one job."""
        return self.children.threads


@dataclass(frozen=True)
class Claim:
    """A job that this worker has claimed."""

    job_id: str
    owner: str
    fence: int
    attempt: int
    crash_count: int
    type: JobType
    spec: dict[str, Any]
    device: str
    """What it asks to compute on: `cpu`, `cuda` or `auto`."""
    checkpoints: list[tuple[str, str]]
    """(key, sha256), newest first."""
    checkpoint_step: int
    held_s: float
    """How long earlier attempts took together; they count towards the time limit."""
    claimed_at: float
    span: AttemptSpan = field(default_factory=AttemptSpan)


@dataclass(frozen=True)
class Quota:
    """What one child may use up."""

    memory_bytes: int
    file_bytes: int
    """Of all that it writes, and so of what is copied from it."""


# How an attempt can end. (A lost lease is no ending: it is an exception, for nothing may be written then.)


@dataclass(frozen=True)
class Succeeded:
    """The child sent a report; its files lie in `out`."""

    report: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Another attempt would end the same way."""

    error: ParedError


@dataclass(frozen=True)
class Crashed:
    """The child ended without an answer. Another attempt may fare better; the error is for when none is left."""

    error: ParedError


@dataclass(frozen=True)
class Canceled:
    """Somebody canceled the job."""


@dataclass(frozen=True)
class HandedBack:
    """The worker was stopped: the attempt is not charged."""


@dataclass(frozen=True)
class Hindered:
    """Something failed that is not the job's fault: another worker, or a later hour, may do better.

    Charged like an attempt that was lost with its worker, or it would go round for ever; the error is for when none
    is left.
    """

    error: ParedError


Ending = Succeeded | Failed | Crashed | Canceled | HandedBack | Hindered


def early_ending(worker: Worker, lease: Lease) -> Canceled | HandedBack | None:
    """How an attempt ends that was canceled, or whose worker shuts down; None: it goes on.

    Raises:
        LeaseLost: the job is no longer this worker's.
    """
    if lease.lost:
        raise LeaseLost
    if lease.cancel_requested:
        return Canceled()
    if worker.shutdown.requested:
        return HandedBack()
    return None
