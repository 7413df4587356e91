"""The life of jobs in plain Python: what the database must say after each step, without SQL, transactions or clocks.

Time is a matter of flags here: a lease has run out or not, a job's pause after a crash is over or not, a row is past
its age or not. A test sets the same in the database.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_LOST_ATTEMPTS = 3
MAX_WAITING_JOBS = 5
ENDED = ("succeeded", "failed", "canceled")
HELD = ("running", "canceling")


@dataclass
class Key:
    """A key of an owner; `works` unless it was revoked or replaced."""

    id: str
    secret: str
    works: bool = True


@dataclass
class Owner:
    """Somebody with keys."""

    id: str
    keys: list[Key] = field(default_factory=list)
    disabled: bool = False


@dataclass
class Upload:
    """A model that an owner sent."""

    id: str
    owner: str
    sha256: str
    status: str = "inspecting"
    deleted: bool = False
    aged: bool = False


@dataclass(frozen=True)
class Hold:
    """A worker's claim on a job, which it may go on believing in for ever."""

    job: str
    fence: int


@dataclass
class Job:
    """A job, and the events that its transitions left."""

    id: str
    owner: str
    key: str | None
    type: str
    upload: str
    status: str = "queued"
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    cancel_asked: bool = False
    due: bool = True
    lease_out: bool = False
    pinned: bool = False
    aged: bool = False
    checkpoints: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    events: list[tuple[str, str, int]] = field(default_factory=list)
    """(kind, status, attempt); of a line or a number, its kind alone."""

    @property
    def listed(self) -> bool:
        return self.type != "inspect"

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def claimable(self) -> bool:
        return self.status == "queued" and self.due

    @property
    def past_its_age(self) -> bool:
        return self.status in ENDED and self.aged and not self.pinned


class Lifecycle:
    """All owners, uploads and jobs, and what was told of them."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}
        self.uploads: dict[str, Upload] = {}
        self.jobs: dict[str, Job] = {}
        self.owed: set[str] = set()
        """Jobs whose message was not sent yet."""
        self.sent_with: dict[tuple[str, str], tuple[str, str]] = {}
        """(owner, idempotency key) -> (body, job)."""
        self.told: list[tuple[str, str]] = []
        """(job, status) of each transition, since somebody looked."""

    # -- what holds -------------------------------------------------------------------------------

    def holds(self, hold: Hold) -> bool:
        """Whether a worker's claim is still the job's."""
        job = self.jobs.get(hold.job)
        return job is not None and job.fence == hold.fence and job.status in HELD

    def may_end(self, hold: Hold) -> bool:
        """Whether the worker may end the job, or hand it back: nobody asked to cancel it."""
        return self.holds(hold) and self.jobs[hold.job].status == "running"

    def in_use(self, upload: Upload) -> bool:
        """Whether an unfinished job that its owner posted names it."""
        return any(job.upload == upload.id and job.listed and job.status not in ENDED for job in self.jobs.values())

    def waiting(self, owner: str) -> int:
        """Posted jobs of an owner that are queued."""
        return sum(job.owner == owner and job.listed and job.status == "queued" for job in self.jobs.values())

    def under_way(self, owner: str, *, listed: bool) -> int:
        """Jobs of an owner and a lane that are held."""
        return sum(job.owner == owner and job.listed == listed and job.status in HELD for job in self.jobs.values())

    def objects(self) -> set[str]:
        """The keys of all objects that a row names."""
        kept = {f"sha256/{upload.sha256[:2]}/{upload.sha256}" for upload in self.uploads.values() if not upload.deleted}
        for job in self.jobs.values():
            kept |= set(job.artifacts)
            if job.status not in ENDED:
                kept |= set(job.checkpoints)
        return kept

    # -- what happens -----------------------------------------------------------------------------

    def create(self, job: Job) -> None:
        """A job is queued."""
        self.jobs[job.id] = job
        self.owed.add(job.id)
        self._come_to(job, "queued")

    def claim(self, job: Job) -> Hold:
        """A worker takes a queued job."""
        job.fence, job.attempt, job.lease_out = job.fence + 1, job.attempt + 1, False
        self._come_to(job, "running")
        return Hold(job.id, job.fence)

    def end(self, job: Job, status: str, artifacts: list[str] | None = None) -> None:
        """A job ends; an inspection decides about its upload."""
        job.artifacts = (artifacts or []) if job.listed else []
        self._come_to(job, status)
        upload = self.uploads[job.upload]
        if not job.listed and upload.status == "inspecting":
            upload.status = "ready" if status == "succeeded" else "rejected"

    def requeue(self, job: Job, *, due: bool) -> None:
        """A held job goes back to the queue."""
        job.due, job.lease_out = due, False
        self._come_to(job, "queued")

    def cancel(self, job: Job) -> bool:
        """Somebody asks to cancel it; whether that changed anything."""
        if job.status not in ("queued", "running"):
            return False
        job.cancel_asked = True
        if job.status == "queued":
            self.end(job, "canceled")
        else:
            self._come_to(job, "canceling")
        return True

    def reap(self) -> list[str]:
        """A sweep finds the jobs whose lease ran out. Returns their ids."""
        lost = [job for job in self.jobs.values() if job.status in HELD and job.lease_out]
        for job in lost:
            if job.cancel_asked:
                self.end(job, "canceled")
            elif job.attempt - job.crashes >= MAX_LOST_ATTEMPTS:
                self.end(job, "failed")
            else:
                self.requeue(job, due=True)
        return sorted(job.id for job in lost)

    def collect(self) -> tuple[list[str], list[str]]:
        """Retention. Returns the ids of the jobs and the uploads that go."""
        jobs = sorted(job.id for job in self.jobs.values() if job.past_its_age)
        for job_id in jobs:
            del self.jobs[job_id]
            self.owed.discard(job_id)
        self.sent_with = {key: made for key, made in self.sent_with.items() if made[1] in self.jobs}
        named = {job.upload for job in self.jobs.values()}
        uploads = sorted(
            upload.id
            for upload in self.uploads.values()
            if upload.aged and not upload.deleted and upload.status != "inspecting" and upload.id not in named
        )
        for upload_id in uploads:
            self.uploads[upload_id].deleted = True
        return jobs, uploads

    def _come_to(self, job: Job, status: str) -> None:
        job.status = status
        job.events.append(("status", status, job.attempt))
        if status in ENDED:
            job.events.append(("done", status, 0))
        self.told.append((job.id, status))
