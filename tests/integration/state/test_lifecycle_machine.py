"""Random lives of jobs, step by step against a model in plain Python: the database says the same after each step.

Whoever may act does: owners with keys that are rotated and revoked, workers that die, pause and come back with claims
that are no longer theirs, sweeps, collectors, and processes that die before they commit.
"""

from __future__ import annotations

import hashlib
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase
from hypothesis import settings as how
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, update
from structlog.testing import capture_logs

from pared.errors import Conflict, IdempotencyMismatch, NotFound, OverLimit
from pared.specs import PruneSpec
from pared.state import lifecycle, queue
from pared.state.jobs import Idempotency, cancel, submit
from pared.state.keys import add_key, create_key, list_keys, revoke_key, rotate_key
from pared.state.objects import DirectoryStore
from pared.state.owners import disable_owner, enable_owner
from pared.state.retention import collect, set_pinned
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.tables import Artifact, Job, Model, db_now, new_id
from pared.state.turns import TYPES, next_in_turn
from pared.state.uploads import add_model, delete_upload
from tests.support import lifecycle_model as model
from tests.support.campaign import counted, size_of
from tests.support.lifecycle_machine import Beside

ERROR = {"code": "diverged", "title": "Training diverged", "detail": "The loss was NaN."}
STEPS_OF_ONE = 50
LONG_S = 1e7
"""What only ends because the test says so, however slow the machine is."""
DAY_S = 86_400.0


def one_of(kind: str, condition: str = "") -> Any:
    """One of the machine's things of a kind, those first for which the condition holds."""

    def choose(machine: JobLives) -> Any:
        things = machine.things(kind)
        wanted = [each for each in things if getattr(each, condition)] if condition else []
        # Mostly what can be acted on, now and then what must be refused.
        return st.sampled_from(things if not wanted else wanted * 3 + things)

    return st.runner().flatmap(choose)


dies = st.sampled_from([False, False, False, True])


class JobLives(Beside):
    """What may happen, in any order."""

    # -- owners and their keys --------------------------------------------------------------------

    @initialize()
    def two_owners_with_jobs(self) -> None:
        for name in ("ann", "bob"):
            secret = create_key(self.sessions, name)
            [row] = [key for key in list_keys(self.sessions) if key.name == name]
            self.life.owners[row.owner_id] = model.Owner(row.owner_id, [model.Key(row.id, secret)])

        for owner in self.life.owners.values():
            self.send_a_model(owner, 0, b"one")
            [upload] = [each for each in self.life.uploads.values() if each.owner == owner.id]
            for _ in range(2):
                self.submit(owner, upload, 0, None, 0.5)
            self.claim_whose_turn_it_is(listed=True, most_held=1)

    @rule(
        what=st.sampled_from(["rotate", "one key more", "revoke", "disable or enable"]),
        owner=one_of("owners"),
        pick=st.integers(0, 99),
        yes=st.booleans(),
    )
    def administer(self, what: str, owner: model.Owner, pick: int, yes: bool) -> None:
        if what == "rotate":
            self.rotate(owner, yes, pick)
        elif what == "one key more":
            self.one_key_more(owner)
        elif what == "revoke":
            self.revoke(owner, pick, yes)
        else:
            self.disable_or_enable(owner, yes)

    def rotate(self, owner: model.Owner, old_works: bool, pick: int) -> None:
        old = owner.keys[pick % len(owner.keys)]
        new = rotate_key(self.sessions, old.id, old_works_s=LONG_S if old_works else 0.0)
        assert (new is not None) == (old.works and not owner.disabled)
        if new is not None:
            old.works = old_works
            owner.keys.append(model.Key(new.key.id, new.secret))

    def one_key_more(self, owner: model.Owner) -> None:
        new = add_key(self.sessions, owner.id, "another")
        owner.keys.append(model.Key(new.key.id, new.secret))

    def revoke(self, owner: model.Owner, pick: int, cancel_jobs: bool) -> None:
        key = owner.keys[pick % len(owner.keys)]
        if not key.works:
            return
        assert revoke_key(self.sessions, key.id, cancel_jobs=cancel_jobs)
        key.works = False
        for job in list(self.life.jobs.values()) if cancel_jobs else ():
            if job.key == key.id:
                self.life.cancel(job)

    def disable_or_enable(self, owner: model.Owner, cancel_jobs: bool) -> None:
        if owner.disabled:
            assert enable_owner(self.sessions, owner.id)
            owner.disabled = False
            return
        canceled = disable_owner(self.sessions, owner.id, cancel_jobs=cancel_jobs)
        owner.disabled = True
        theirs = [job for job in self.life.jobs.values() if job.owner == owner.id] if cancel_jobs else []
        assert canceled == sum([self.life.cancel(job) for job in theirs])

    # -- what owners do ---------------------------------------------------------------------------

    @rule(owner=one_of("owners"), pick=st.integers(0, 3), content=st.sampled_from([b"one", b"two", b"three"]))
    def send_a_model(self, owner: model.Owner, pick: int, content: bytes) -> None:
        if not self.admitted(owner, owner.keys[-1 - pick % len(owner.keys)]):
            return
        stored = self.store.put([content])
        known = [
            upload
            for upload in self.life.uploads.values()
            if (upload.owner, upload.sha256) == (owner.id, stored.sha256)
            and not upload.deleted
            and upload.status != "rejected"
        ]
        row, new = add_model(self.sessions, owner.id, stored, "m.pt", settings=self.where)
        assert new == (not known)
        if not new:
            assert row.id in [upload.id for upload in known]
            return
        self.life.uploads[row.id] = model.Upload(row.id, owner.id, stored.sha256)
        with self.sessions() as session:
            job_id = session.scalar(select(Job.id).where(Job.id.not_in(self.life.jobs)))
        self.life.create(model.Job(job_id, owner.id, None, "inspect", row.id))

    @precondition(lambda self: self.life.uploads)
    @rule(
        owner=one_of("owners"),
        upload=one_of("uploads"),
        pick=st.integers(0, 3),
        sent_as=st.sampled_from([None, None, None, "a", "b"]),
        amount=st.sampled_from([0.25, 0.5]),
    )
    def submit(self, owner: model.Owner, upload: model.Upload, pick: int, sent_as: str | None, amount: float) -> None:
        key = owner.keys[-1 - pick % len(owner.keys)]
        if not self.admitted(owner, key):
            return
        spec = PruneSpec(type="prune", model=upload.id, amount=amount)
        body = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        idempotency = None if sent_as is None else Idempotency(sent_as, body)

        def post() -> tuple[Job, bool]:
            return submit(self.sessions, owner.id, spec, idempotency, key_id=key.id, settings=self.where)

        earlier = None if sent_as is None else self.life.sent_with.get((owner.id, sent_as))
        if earlier is not None:
            if earlier[0] != body:
                self.refused(IdempotencyMismatch, post)
                return
            job, new = post()
            assert (job.id, new) == (earlier[1], False)
        elif upload.owner != owner.id or upload.deleted:
            self.refused(NotFound, post)
        elif upload.status == "rejected":
            self.refused(Conflict, post)
        elif self.life.waiting(owner.id) >= model.MAX_WAITING_JOBS:
            self.refused(OverLimit, post)
        else:
            job, new = post()
            assert new
            self.life.create(model.Job(job.id, owner.id, key.id, "prune", upload.id))
            if sent_as is not None:
                self.life.sent_with[owner.id, sent_as] = (body, job.id)

    @precondition(lambda self: self.life.jobs)
    @rule(owner=one_of("owners"), job=one_of("jobs", "listed"), dies=dies)
    def cancel(self, owner: model.Owner, job: model.Job, dies: bool) -> None:
        def ask() -> Any:
            return self.attempt(dies, lambda session: cancel(session, owner.id, job.id))

        if job.owner != owner.id or not job.listed:
            self.refused(NotFound, ask)
        elif job.status in model.ENDED:
            self.refused(Conflict, ask)
        else:
            ask()
            if not dies:
                self.life.cancel(job)

    @precondition(lambda self: self.life.uploads)
    @rule(owner=one_of("owners"), upload=one_of("uploads"))
    def delete_a_model(self, owner: model.Owner, upload: model.Upload) -> None:
        def remove() -> None:
            delete_upload(self.sessions, owner.id, Model, upload.id)

        if upload.owner != owner.id or upload.deleted:
            self.refused(NotFound, remove)
        elif self.life.in_use(upload):
            self.refused(Conflict, remove)
        else:
            remove()
            upload.deleted = True

    @precondition(lambda self: self.life.jobs)
    @rule(owner=one_of("owners"), job=one_of("jobs", "listed"), pinned=st.booleans())
    def pin(self, owner: model.Owner, job: model.Job, pinned: bool) -> None:
        if job.owner != owner.id or not job.listed:
            self.refused(NotFound, lambda: set_pinned(self.sessions, owner.id, job.id, pinned=pinned))
        else:
            set_pinned(self.sessions, owner.id, job.id, pinned=pinned)
            job.pinned = pinned

    # -- what workers do --------------------------------------------------------------------------

    @precondition(lambda self: self.life.jobs)
    @rule(job=one_of("jobs", "claimable"), dies=dies)
    def claim(self, job: model.Job, dies: bool) -> None:
        claimed = self.attempt(dies, lambda session: lifecycle.claim(session, job.id, "worker", LONG_S, ["cpu"]))
        if dies:
            return
        assert (claimed is not None) == job.claimable
        if claimed is not None:
            self.holds.append(self.life.claim(job))

    @rule(listed=st.booleans(), most_held=st.sampled_from([0, 1, 2]))
    def claim_whose_turn_it_is(self, listed: bool, most_held: int) -> None:
        lane = "jobs" if listed else "quick"
        first: dict[str, str] = {}
        for job in self.life.jobs.values():
            room = not most_held or self.life.under_way(job.owner, listed=listed) < most_held
            if job.claimable and job.listed == listed and room:
                first[job.owner] = min(job.id, first.get(job.owner, job.id))
        with self.sessions() as session:
            chosen = next_in_turn(session, lane, ["cpu"], most_held=most_held)
        if not first:
            assert chosen is None
            return
        job = self.life.jobs[chosen]
        assert first[job.owner] == chosen
        assert job.type in TYPES[lane]
        fewest = min(self.life.under_way(owner, listed=listed) for owner in first)
        assert self.life.under_way(job.owner, listed=listed) == fewest
        claimed = self.attempt(
            False, lambda session: lifecycle.claim(session, chosen, "worker", LONG_S, ["cpu"], most_held=most_held)
        )
        assert claimed is not None
        self.holds.append(self.life.claim(job))

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), dies=dies)
    def renew(self, hold: model.Hold, dies: bool) -> None:
        told = self.attempt(dies, lambda session: lifecycle.renew(session, *_of(hold), LONG_S))
        if dies:
            return
        assert told == (self.life.jobs[hold.job].cancel_asked if self.life.holds(hold) else None)
        if told is not None:
            self.life.jobs[hold.job].lease_out = False

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), dies=dies)
    def make_progress(self, hold: model.Hold, dies: bool) -> None:
        fraction = {"fraction": 0.5, "epoch": 1, "epochs": 2, "eta_s": None}
        told = self.attempt(
            dies,
            lambda session: lifecycle.advance(
                session, *_of(hold), {"progress": fraction, "stage": "retrain"}, [("progress", fraction)]
            ),
        )
        if not dies:
            assert told == self.life.holds(hold)
            if told:
                self.life.jobs[hold.job].events.append(("progress", "", 0))

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), dies=dies)
    def keep_a_checkpoint(self, hold: model.Hold, dies: bool) -> None:
        job = self.life.jobs.get(hold.job)
        kept = list(job.checkpoints) if job is not None else []
        stored = self.store.put([b"weights"], key=f"checkpoints/{hold.job}/{hold.fence}/{self.steps['steps']}")
        keys = [stored.key, *kept][:2]
        values = {
            "checkpoint_key": keys[0],
            "checkpoint_sha256": stored.sha256,
            "checkpoint_step": self.steps["steps"],
            "previous_checkpoint_key": keys[1] if len(keys) > 1 else None,
            "previous_checkpoint_sha256": stored.sha256 if len(keys) > 1 else None,
        }
        told = self.attempt(dies, lambda session: lifecycle.advance(session, *_of(hold), values))
        if not dies:
            assert told == self.life.holds(hold)
            if told:
                job.checkpoints = keys

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), charge=st.sampled_from(["crash", "attempt", None]), dies=dies, later=st.booleans())
    def hand_back(self, hold: model.Hold, charge: Any, dies: bool, later: bool) -> None:
        """A child crashed, a machine was in the way, or a worker stops in an orderly way."""
        told = self.attempt(
            dies,
            lambda session: lifecycle.release(
                session, *_of(hold), charge=charge, delay_s=LONG_S if later else 0.0, reason="It is tried again."
            ),
        )
        if dies:
            return
        assert told == self.life.may_end(hold)
        if told:
            job = self.life.jobs[hold.job]
            job.crashes += charge == "crash"
            job.attempt -= charge is None
            job.events.append(("log", "", 0))
            self.life.requeue(job, due=not later)

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), dies=dies, how_=st.sampled_from(["succeed", "succeed", "fail", "cancel"]))
    def finish(self, hold: model.Hold, dies: bool, how_: str) -> None:
        """The results are stored first; whether they are the job's, the transition decides."""
        key = f"jobs/{hold.job}/{hold.fence}/model.pt"
        stored = self.store.put([b"smaller"], key=key)
        file = Artifact(
            id=new_id("art"),
            job_id=hold.job,
            name="model.pt",
            media_type="application/octet-stream",
            object_key=key,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )
        report = {"format": "torchscript", "verdict": "fine"}
        acts = {
            "succeed": lambda session: lifecycle.succeed(session, *_of(hold), report, [file]),
            "fail": lambda session: lifecycle.fail(session, *_of(hold), ERROR),
            "cancel": lambda session: lifecycle.finish_cancel(session, *_of(hold)),
        }
        told = self.attempt(dies, acts[how_])
        if dies:
            return
        job = self.life.jobs.get(hold.job)
        canceling = self.life.holds(hold) and job.cancel_asked
        assert told == (canceling if how_ == "cancel" else self.life.may_end(hold))
        if told:
            status = {"succeed": "succeeded", "fail": "failed", "cancel": "canceled"}[how_]
            self.life.end(job, status, [key] if how_ == "succeed" else None)

    @precondition(lambda self: self.holds)
    @rule(hold=one_of("live holds"), again=st.booleans())
    def stand_still_past_the_lease(self, hold: model.Hold, again: bool) -> None:
        """A worker stops, its job goes on elsewhere, and it comes back with a claim that is no longer its own."""
        self.lose_the_worker(hold)
        self.reap()
        job = self.life.jobs.get(hold.job)
        if again and job is not None and job.claimable:
            self.claim(job, False)
        self.come_back_too_late(hold)

    def come_back_too_late(self, hold: model.Hold) -> None:
        late = _of(hold)
        writes = (
            lambda session: lifecycle.renew(session, *late, LONG_S) is not None,
            lambda session: lifecycle.cancel_requested(session, *late) is not None,
            lambda session: lifecycle.advance(session, *late, {"stage": "export"}, [("log", {"text": "late"})]),
            lambda session: lifecycle.succeed(session, *late, {"format": "late"}),
            lambda session: lifecycle.fail(session, *late, ERROR),
            lambda session: lifecycle.release(session, *late, charge="crash"),
            lambda session: lifecycle.finish_cancel(session, *late),
        )
        for write in writes:
            assert not self.attempt(False, write)
            self.steps["refusals"] += 1

    # -- what time does ---------------------------------------------------------------------------

    @precondition(lambda self: any(self.life.holds(hold) for hold in self.holds))
    @rule(hold=one_of("live holds"))
    def lose_the_worker(self, hold: model.Hold) -> None:
        """It died, or stands still: nobody renews the lease."""
        if self.life.holds(hold):
            self.write(update(Job).where(Job.id == hold.job).values(lease_expires_at=db_now() - 1))
            self.life.jobs[hold.job].lease_out = True

    @rule()
    def reap(self) -> None:
        assert sorted(Sweep(self.sessions, self.where, store=self.store).expire()) == self.life.reap()

    @precondition(lambda self: any(not job.due for job in self.life.jobs.values()))
    @rule()
    def wait_until_jobs_are_due(self) -> None:
        self.write(update(Job).values(run_after=0.0))
        for job in self.life.jobs.values():
            job.due = True

    @precondition(lambda self: self.life.jobs)
    @rule(job=one_of("jobs", "ended"), upload=one_of("uploads"))
    def let_rows_grow_old(self, job: model.Job, upload: model.Upload) -> None:
        if job.status in model.ENDED:
            self.write(update(Job).where(Job.id == job.id).values(finished_at=Job.finished_at - 2 * DAY_S))
            job.aged = True
        self.write(update(Model).where(Model.id == upload.id).values(created_at=Model.created_at - 2 * DAY_S))
        upload.aged = True

    @rule(look_first=st.booleans())
    def collect(self, look_first: bool) -> None:
        foreseen = collect(self.sessions, self.store, self.where, dry_run=True) if look_first else None
        gone = collect(self.sessions, self.store, self.where)
        assert foreseen in (None, gone)
        assert (gone.jobs, gone.uploads) == self.life.collect()
        assert set(self.store.list_older_than(-1)) == self.life.objects()

    # -- messages ---------------------------------------------------------------------------------

    @rule()
    def lose_messages(self) -> None:
        self.empty_the_queues()

    @rule()
    def ring(self) -> None:
        """After a round of the sweep there is a message for each job that waits."""
        assert queue.relay(self.sessions, queue=self.queue) == len(self.life.owed)
        self.life.owed.clear()
        queue.send_again(self.sessions, -1.0, queue=self.queue)
        waiting = sum(job.claimable for job in self.life.jobs.values())
        assert queue.messages_waiting(queue=self.queue) >= waiting


def _of(hold: model.Hold) -> tuple[str, int]:
    return hold.job, hold.fence


@counted(60, size_of("LIFECYCLE_STEPS", 10_000))
def test_whatever_happens_to_jobs_the_database_says_what_the_model_says(
    settings: Settings, sessions: Sessions, store: DirectoryStore, count: int
) -> None:
    limits = {"max_lost_attempts": model.MAX_LOST_ATTEMPTS, "max_waiting_jobs": model.MAX_WAITING_JOBS}
    where = settings.model_copy(
        update={**limits, "broker_url": "memory://", "retention_days": 1.0, "keep_unreferenced_s": -1.0}
    )
    steps = {"steps": 0, "deaths": 0, "refusals": 0}
    attributes = {"sessions": sessions, "store": store, "where": where, "steps": steps}
    lives = type("JobLivesHere", (JobLives,), attributes)
    while steps["steps"] < count:
        with capture_logs():
            run_state_machine_as_test(
                lives,
                settings=how(
                    max_examples=max(3, (count - steps["steps"]) // STEPS_OF_ONE),
                    stateful_step_count=STEPS_OF_ONE,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],  # ids and moments are others each time: there is nothing to shrink
                ),
            )
    backend = sessions.engine.dialect.name
    print(
        f"\n{backend}: {steps['steps']:,} steps of jobs' lives, {steps['deaths']:,} processes dead before a commit, "
        f"{steps['refusals']:,} writes and requests refused: the database always said what the model said"
    )
