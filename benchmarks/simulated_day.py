"""A day of owners, jobs and workers on the real state code, in virtual time, and whether each job ended once.

Nothing computes: a job is a time that passes. All else is the code of the service: jobs are submitted, sent for,
chosen, claimed, renewed, written about and ended by `pared.state`. Workers are killed, stand still past their lease
and come back to write, and are stopped in an orderly way.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from sqlalchemy import ARRAY, String, any_, func, literal, select, update
from virtual_time import VirtualDatabase

from pared.errors import Conflict, OverLimit
from pared.specs import PlanSpec, PruneSpec
from pared.state import lifecycle, queue
from pared.state.jobs import Idempotency, cancel, submit, submit_plan
from pared.state.keys import any_works
from pared.state.limits import most_running
from pared.state.queue import QUEUES, queues_of, relay
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.tables import Artifact, Job, JobEvent, Outbox, WorkerHeartbeat, db_now, new_id
from pared.state.turns import anything_waits, next_in_turn
from pared.state.workers import count_living
from pared.statuses import ENDED

DAY_S = 86_400.0
OF_LARGEST = "submit, of the owner with most jobs"
LARGEST = 0.38
"""Of the jobs, this owner's."""
STAGES = ("validate", "baseline", "compress", "retrain", "evaluate", "export")
REPORT = {
    "format": "torchscript",
    "verdict": "smaller",
    "layers": [{"name": f"layer{n}", "params": n} for n in range(200)],
}
ERROR = {"code": "out-of-memory", "title": "Out of memory", "detail": "The job needed more memory than it may have."}


@dataclass(frozen=True)
class Plan:
    """What the day is like; a shortened one has the same rates for less time."""

    jobs: int
    workers: int
    jobs_a_day: int = 100_000
    mean_s: float = 480.0
    """How long a job runs."""
    peak: float = 1.6
    """Arrivals at the day's peak, in means."""
    plans: float = 0.2
    """Plans for each job."""
    deaths_a_day: float = 1.0
    """Of each worker; a tenth of these only stand still past their lease, and then go on."""
    stops_a_day: float = 1.0
    """Of each worker, in an orderly way."""
    owners: int = 50
    gpus: float = 0.1
    """Of the workers, and of the jobs that ask for one."""
    seed: int = 0

    @property
    def span_s(self) -> float:
        """How long jobs arrive."""
        return DAY_S * self.jobs / self.jobs_a_day


@dataclass(eq=False)
class Worker:
    """A worker process."""

    name: str
    devices: tuple[str, ...]
    alive: bool = True
    still: bool = False
    held: Held | None = None


@dataclass(eq=False)
class Held:
    """A claim, as its worker believes in it."""

    job: str
    fence: int
    worker: Worker
    crashes: int
    until: float
    """When its lease runs out."""
    over: bool = False


@dataclass
class Tally:
    """What was done and seen."""

    submitted: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    """Job -> how often it was told that it ended."""
    counts: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    most_waiting: int = 0
    most_held: int = 0


class Day:
    """Runs it."""

    def __init__(
        self, database: VirtualDatabase, plan: Plan, settings: Settings, store: Any, owners: list[str]
    ) -> None:
        """Args: settings: with heartbeats as they are simulated. owners: each has a model and data of its number."""
        self.database, self.plan, self.settings, self.owners = database, plan, settings, owners
        self.random = random.Random(plan.seed)
        self.celery: Celery = queue.make_app(settings.model_copy(update={"broker_url": "memory://"}))
        self.channel = self.celery.connection_for_write().default_channel
        for name in QUEUES.values():
            self.channel.queue_declare(name)
        self.sweep = Sweep(database.sessions, settings, store=store, queue=self.celery)
        self.begun = database.now
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.idle: dict[tuple[str, ...], deque[Worker]] = {("cpu",): deque(), ("cuda", "cpu"): deque()}
        self.workers: list[Worker] = []
        self.holds: dict[str, Held] = {}
        self.open: set[str] = set()
        self.queued: set[str] = set()
        self.tally = Tally()
        self.owed = False
        lifecycle.SUBSCRIBERS.append(self._told)

    def run(self, report: Callable[[str], None]) -> Tally:
        """The whole day, and on until the last job has ended."""
        for n in range(self.plan.workers):
            self._new_worker(("cuda", "cpu") if n < self.plan.gpus * self.plan.workers else ("cpu",))
        for at in self._arrivals():
            self._at(at, self._submit)
        self._at(self.begun, self._each_second)
        self._at(self.begun, self._each_sweep)
        self._at(self.begun, self._each_ten_seconds)
        told_at = 0
        while self.agenda:
            at, _, act = heapq.heappop(self.agenda)
            self.database.now = max(self.database.now, at)
            act()
            if len(self.tally.submitted) >= told_at:
                told_at += max(1, self.plan.jobs // 20)
                report(
                    f"{(at - self.begun) / 3600:.2f} h: {len(self.tally.submitted)} submitted, {len(self.open)} open"
                )
        lifecycle.SUBSCRIBERS.remove(self._told)
        return self.tally

    # -- what happens by itself -------------------------------------------------------------------

    def _arrivals(self) -> list[float]:
        """Times by day and night: the rate is a sine around its mean; an eighth comes at few moments, many at once."""
        span, peak, taken = self.plan.span_s, self.plan.peak, []
        while len(taken) < self.plan.jobs * 7 // 8:
            share = self.random.random()
            if self.random.random() * peak < 1 + (peak - 1) * math.sin(2 * math.pi * (share - 0.25)):
                taken.append(self.begun + share * span)
        while len(taken) < self.plan.jobs:
            moment = self.begun + self.random.random() * span
            taken += [moment] * min(200, self.plan.jobs - len(taken))
        return sorted(taken)

    def _each_second(self) -> None:
        """The API's dispatcher, and workers that take messages."""
        if self.owed:
            self.owed = False
            while True:
                with self.database.measured("send messages"):
                    sent = relay(self.database.sessions, queue=self.celery, limit=100)
                if sent < 100:
                    break
        self._take_messages()
        self._again(1.0, self._each_second)

    def _each_sweep(self) -> None:
        with self.database.measured("sweep"):
            self.sweep()
        self._again(self.settings.sweep_s, self._each_sweep)

    def _each_ten_seconds(self) -> None:
        """Workers write their rows: five as they do, the rest in one statement."""
        self._write_rows()
        self.tally.most_waiting = max(self.tally.most_waiting, len(self.queued))
        self.tally.most_held = max(self.tally.most_held, len(self.open) - len(self.queued))
        for worker in self.random.sample(self.workers, min(5, len(self.workers))):
            with self.database.measured("write a worker's row"), self.database.sessions.begin() as session:
                session.execute(
                    update(WorkerHeartbeat)
                    .where(WorkerHeartbeat.name == worker.name)
                    .values(seen_at=db_now(), sandbox="standard", device="a processor", devices=list(worker.devices))
                    .returning(WorkerHeartbeat.name)
                ).first()
        self._poll(self.random.choice(self.workers))
        self._again(10.0, self._each_ten_seconds)

    def _again(self, pause: float, act: Callable[[], None]) -> None:
        if self.open or self.database.now < self.begun + self.plan.span_s:
            self._at(self.database.now + pause, act)

    def _write_rows(self) -> None:
        names = [worker.name for worker in self.workers if worker.alive and not worker.still]
        with self.database.sessions.begin() as session:
            alive = update(WorkerHeartbeat).where(WorkerHeartbeat.name == any_(literal(names, ARRAY(String))))
            session.execute(alive.values(seen_at=db_now()), execution_options={"synchronize_session": False})

    # -- owners -----------------------------------------------------------------------------------

    def _submit(self) -> None:
        # A few owners have most.
        number = min(int(self.random.paretovariate(0.7)) - 1, 10**6) % len(self.owners)
        owner = self.owners[number]
        kind = self.random.random()
        device = "cuda" if kind < self.plan.gpus else "cpu" if kind < self.plan.gpus + 0.05 else "auto"
        model, dataset = f"mdl_{number:026d}", f"dst_{number:026d}"
        spec = PruneSpec(type="prune", model=model, dataset=dataset, amount=0.5, device=device)
        key = Idempotency(new_id("job"), "0" * 64)
        try:
            with self.database.measured("submit" if number else OF_LARGEST):
                job, new = submit(self.database.sessions, owner, spec, key, settings=self.settings)
        except OverLimit:
            self.tally.counts["submits answered 429, and tried again"] += 1
            self._at(self.database.now + self.random.uniform(60, 180), self._submit)
            return
        assert new
        self._made(job.id)
        if self.random.random() < 0.005:
            self._at(self.database.now + self.random.uniform(1, 600), lambda: self._cancel(owner, job.id))
        if self.random.random() < self.plan.plans:
            self._at(self.database.now, lambda: self._plan(owner, spec))

    def _plan(self, owner: str, spec: PruneSpec) -> None:
        with suppress(OverLimit):
            plan = PlanSpec(type="plan", job=spec.model_copy(update={"device": "auto"}))
            with self.database.measured("submit a plan"):
                plan_id = submit_plan(self.database.sessions, owner, plan, settings=self.settings)
            self._made(plan_id)
            self._at(
                self.database.now + self.random.uniform(0, 0.5), lambda: self._poll(self.random.choice(self.workers))
            )

    def _made(self, job_id: str) -> None:
        self.tally.submitted.add(job_id)
        self.open.add(job_id)
        self.owed = True

    def _cancel(self, owner: str, job_id: str) -> None:
        with suppress(Conflict), self.database.measured("cancel"), self.database.sessions.begin() as session:
            cancel(session, owner, job_id)

    # -- workers ----------------------------------------------------------------------------------

    def _new_worker(self, devices: tuple[str, ...]) -> None:
        worker = Worker(f"host:{next(self.numbers)}", devices)
        self.workers.append(worker)
        with self.database.sessions.begin() as session:
            session.add(_row(worker))
        self.idle[devices].append(worker)
        for a_day, act in ((self.plan.deaths_a_day, self._die), (self.plan.stops_a_day, self._stop)):
            if a_day:
                pause = self.random.expovariate(a_day / DAY_S)
                self._at(self.database.now + pause, lambda act=act: act(worker))  # type: ignore[misc]

    def _leave(self, worker: Worker) -> None:
        """Gone; another takes its place in half a minute."""
        worker.alive = False
        self.workers.remove(worker)
        with suppress(ValueError):
            self.idle[worker.devices].remove(worker)
        self._at(self.database.now + 30, lambda: self._new_worker(worker.devices))

    def _die(self, worker: Worker) -> None:
        if not worker.alive or worker.still or not self.open:
            return
        if self.random.random() < 0.1 and worker.held is not None:
            self.tally.counts["workers that stood still past their lease"] += 1
            worker.still = True
            self._at(self.database.now + 2 * self.settings.lease_s + 60, lambda: self._wake(worker))
            return
        self.tally.counts["workers killed"] += 1
        self.tally.counts["jobs lost with their worker"] += worker.held is not None
        self._leave(worker)

    def _wake(self, worker: Worker) -> None:
        """It goes on as if nothing had been, and each of its writes must be refused."""
        held, worker.still = worker.held, False
        assert held is not None
        writes: tuple[Callable[[Any], Any], ...] = (
            lambda session: lifecycle.renew(session, held.job, held.fence, self.settings.lease_s) is not None,
            lambda session: lifecycle.advance(session, held.job, held.fence, {"stage": "export"}),
            lambda session: lifecycle.succeed(session, held.job, held.fence, REPORT, []),
        )
        for write in writes:
            with self.database.sessions.begin() as session:
                assert not write(session), f"{held.job} was written by a worker that had lost it"
            self.tally.counts["late writes refused"] += 1
        self._free(held)

    def _stop(self, worker: Worker) -> None:
        """SIGTERM: the job goes back, and its attempt is not counted."""
        if not worker.alive or worker.still or not self.open:
            return
        self.tally.counts["workers stopped"] += 1
        held = worker.held
        if held is not None:
            with self.database.measured("hand back"), self.database.sessions.begin() as session:
                lifecycle.release(session, held.job, held.fence, charge=None, reason="The worker stops.")
            self._let_go(held)
        self._leave(worker)

    def _take_messages(self) -> None:
        """Each worker that does nothing takes a message, until there are none."""
        for devices, idle in self.idle.items():
            names = queues_of(devices)
            for name in reversed(names):  # those that are for its device alone first
                while idle and (message := self.channel.basic_get(name, no_ack=True)):
                    worker = idle.popleft()
                    if not self._begin(worker, next(device for device, at in QUEUES.items() if at == name)):
                        idle.append(worker)
                    del message

    def _begin(self, worker: Worker, device: str) -> bool:
        """As `worker.tasks` does with a message."""
        sessions = self.database.sessions
        with self.database.measured("choose"), sessions() as session:
            most_held, by = most_running(session, self.settings, worker.devices)
            limits = {"most_held": most_held, "held_by": by}
            chosen = next_in_turn(session, "jobs", worker.devices, asked_for=device, **limits)
        if chosen is None:
            self._poll(worker)  # as quick jobs have messages too
            return False
        return self._claim(worker, chosen, "claim", **limits)

    def _claim(self, worker: Worker, job_id: str, name: str, **limits: Any) -> bool:
        with self.database.measured(name), self.database.sessions.begin() as session:
            lease_s = self.settings.lease_s
            job = lifecycle.claim(session, job_id, worker.name, lease_s, worker.devices, "standard", **limits)
        if job is None:
            return False
        now = self.database.now
        earlier = self.holds.get(job_id)
        assert earlier is None or earlier.over or earlier.until < now, f"{job_id} is held twice"
        held = self.holds[job_id] = Held(job_id, job.fence, worker, job.crash_count, now + lease_s)
        if job.attempt == 1 and job.fence == 1 and name == "claim":
            self.tally.waits.append(now - job.created_at)
        if name == "claim":
            worker.held = held
            self._run(held)
        else:
            self._at(now + self.random.uniform(1, 5), lambda: self._end(held, "succeed a plan"))
        return True

    def _poll(self, worker: Worker) -> None:
        """One look of a worker's thread for quick jobs."""
        if worker.still or not worker.alive:
            return
        # Apart by what there is, for that decides what it costs.
        before = bool(self.queued)
        name = f"look for quick jobs{', while jobs wait' if before else ''}"
        with self.database.measured(name), self.database.sessions() as session:
            if not anything_waits(session):
                return
            most_held = count_living(session) - 1 if any_works(session) else 0
            job_id = next_in_turn(session, "quick", worker.devices, most_held=most_held)
        if job_id is not None:
            self._claim(worker, job_id, "claim a plan", most_held=most_held)

    def _run(self, held: Held) -> None:
        """What its worker will do about a job, unless something comes between."""
        now, seconds = self.database.now, self.random.uniform(0.1, 1.9) * self.plan.mean_s
        for n, stage in enumerate(STAGES):
            self._at(now + seconds * n / len(STAGES), lambda stage=stage: self._advance(held, stage))  # type: ignore[misc]
        beats = int(seconds / self.settings.heartbeat_s)
        for n in range(1, beats + 1):
            self._at(now + n * self.settings.heartbeat_s, lambda: self._renew(held))
        draw = self.random.random()
        how = "crash" if draw < 0.02 else "fail" if draw < 0.05 else "cancel" if draw < 0.06 else "succeed"
        self._at(now + seconds, lambda: self._end(held, how))

    def _acts(self, held: Held) -> bool:
        return not held.over and held.worker.alive and not held.worker.still

    def _renew(self, held: Held) -> None:
        if not self._acts(held):
            return
        with self.database.measured("renew"), self.database.sessions.begin() as session:
            canceling = lifecycle.renew(session, held.job, held.fence, self.settings.lease_s)
        assert canceling is not None, f"{held.job}: a lease was lost that was renewed in time"
        held.until = self.database.now + self.settings.lease_s
        if self.random.random() < 0.1:
            with self.database.measured("look for a cancel"), self.database.sessions() as session:
                lifecycle.cancel_requested(session, held.job, held.fence)
        if canceling:
            self._end(held, "canceled")

    def _advance(self, held: Held, stage: str) -> None:
        if not self._acts(held):
            return
        with self.database.measured("write progress"), self.database.sessions.begin() as session:
            events = [("status", {"status": "running", "stage": stage}), ("progress", {"fraction": 0.5})]
            assert lifecycle.advance(session, held.job, held.fence, {"stage": stage}, events)  # type: ignore[arg-type]

    def _end(self, held: Held, how: str) -> None:
        if not self._acts(held):
            return
        job_id, fence = held.job, held.fence
        if how == "cancel":
            with self.database.sessions.begin() as session:
                lifecycle.cancel(session, job_id)
            how = "canceled"
        name = f"end: {how}" if how != "succeed a plan" else how
        files = _files(job_id) if how == "succeed" else []
        crashes_left = held.crashes + 1 < self.settings.max_attempts
        with self.database.measured(name), self.database.sessions.begin() as session:
            if how.startswith("succeed"):
                ended = lifecycle.succeed(session, job_id, fence, REPORT, files)
            elif how == "crash" and crashes_left:
                ended = lifecycle.release(session, job_id, fence, charge="crash", delay_s=15, reason="It crashed.")
            else:
                ended = how != "canceled" and lifecycle.fail(session, job_id, fence, ERROR)
            if not ended:
                ended = lifecycle.finish_cancel(session, job_id, fence)
        assert ended, f"{job_id} could not be ended by the worker that holds it"
        if how == "succeed a plan":
            held.over = True
        else:
            self._free(held)

    def _let_go(self, held: Held) -> None:
        held.over = True
        held.worker.held = None

    def _free(self, held: Held) -> None:
        self._let_go(held)
        self.idle[held.worker.devices].append(held.worker)

    # -- what is told -----------------------------------------------------------------------------

    def _told(self, transition: lifecycle.Transition) -> None:
        self.tally.counts[f"to {transition.status}"] += 1
        if transition.status == "queued":
            self.queued.add(transition.job_id)
        else:
            self.queued.discard(transition.job_id)
        if transition.status in ENDED:
            self.tally.ends[transition.job_id] += 1
            self.open.discard(transition.job_id)
            self.holds.pop(transition.job_id, None)

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (at, next(self.numbers), act))


def check(database: VirtualDatabase, tally: Tally, history: int) -> str:
    """Every job that was submitted is there, ended, and was told so once; a sentence says what was compared."""
    with database.sessions() as session:
        rows = dict(session.execute(select(Job.id, Job.status).where(~Job.id.startswith("job_0000000000"))).all())
        numbering = select(JobEvent.job_id, func.count(), func.min(JobEvent.seq), func.max(JobEvent.seq))
        numbers = session.execute(numbering.group_by(JobEvent.job_id)).all()
        ends = dict(
            session.execute(
                select(JobEvent.job_id, func.max(JobEvent.seq)).where(JobEvent.kind == "done").group_by(JobEvent.job_id)
            )
            .tuples()
            .all()
        )
        done = session.scalar(select(func.count()).where(JobEvent.kind == "done"))
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0, "messages are owed"
        assert session.scalar(select(func.count()).where(Job.id.startswith("job_0000000000"))) == history
        named = Job.status == "succeeded", Job.type == "prune", ~Job.id.startswith("job_0000000000")
        succeeded = session.scalar(select(func.count()).where(*named))
        files = session.scalar(select(func.count()).select_from(Artifact))
        owners = session.scalar(select(func.count(Artifact.job_id.distinct())))
    assert set(rows) == tally.submitted, "a job is lost, or was made twice"
    assert all(status in ENDED for status in rows.values()), "a job has not ended"
    assert tally.ends == Counter(rows.keys()), "a job was told to have ended twice, or not at all"
    assert done == len(rows) == len(ends), "a stream of events ends twice, or not at all"
    assert all((first, last) == (1, count) and ends[job] == last for job, count, first, last in numbers)
    assert (files, owners) == (3 * (succeeded or 0), succeeded), "files were published twice, or by nobody"
    statuses = Counter(rows.values())
    told = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
    return (
        f"{len(rows):,} jobs and plans were submitted; each ended once ({told}), its events are numbered without gaps, "
        "and no job was held by two workers"
    )


def _row(worker: Worker) -> WorkerHeartbeat:
    row = {"sandbox": "standard", "device": "a processor", "devices": list(worker.devices)}
    return WorkerHeartbeat(name=worker.name, **row)


def _files(job_id: str) -> list[Artifact]:
    columns = {"media_type": "application/octet-stream", "object_key": "x", "sha256": "0" * 64, "size_bytes": 1 << 20}
    return [Artifact(id=new_id("art"), job_id=job_id, name=f"{n}", **columns) for n in range(3)]
