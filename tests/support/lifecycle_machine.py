"""A Hypothesis machine with the tables and a model of the life of jobs in it, and what of both is compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import delete, select

from pared.errors import ParedError, Unauthorized
from pared.state import lifecycle, queue
from pared.state.jobs import jobs_of
from pared.state.keys import caller_of
from pared.state.objects import DirectoryStore
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Base, Job, JobEvent, Model, Outbox
from pared.state.tables import Owner as OwnerRow
from pared.state.uploads import owned_uploads
from tests.support import lifecycle_model as model


class Died(Exception):
    """The process is gone before it committed."""


class Beside(RuleBasedStateMachine):
    """The real thing, the model beside it, and what has to be the same; subclasses bring the rules and the database."""

    sessions: ClassVar[Sessions]
    store: ClassVar[DirectoryStore]
    where: ClassVar[Settings]
    steps: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        with self.sessions.begin() as session:
            for table in reversed(Base.metadata.sorted_tables):
                rows = delete(table)
                session.execute(rows.where(OwnerRow.id != "local") if table.name == "owners" else rows)
        for key in self.store.list_older_than(-1):
            self.store.delete(key)
        self.life = model.Lifecycle()
        self.holds: list[model.Hold] = []
        self.queue = queue.make_app(self.where)
        self.empty_the_queues()
        self.heard: list[tuple[str, str]] = []
        self.subscribers, lifecycle.SUBSCRIBERS = lifecycle.SUBSCRIBERS, [self._hear]

    def empty_the_queues(self) -> None:
        with self.queue.connection_for_write() as connection:
            for name in queue.QUEUES.values():
                connection.default_channel.queue_declare(name)
                connection.default_channel.queue_purge(name)

    def teardown(self) -> None:
        lifecycle.SUBSCRIBERS = self.subscribers

    def _hear(self, transition: lifecycle.Transition) -> None:
        self.heard.append((transition.job_id, transition.status))

    def things(self, kind: str) -> list[Any]:
        if kind == "holds":
            return self.holds
        if kind == "live holds":
            return [hold for hold in self.holds if self.life.holds(hold)] or self.holds
        return list(getattr(self.life, kind).values())

    @contextmanager
    def transaction(self, dies: bool) -> Iterator[Any]:
        """A transaction of a process that may die just before it commits."""
        with self.sessions.begin() as session:
            yield session
            if dies:
                raise Died

    def attempt(self, dies: bool, act: Any) -> Any:
        """What `act(session)` says; None where the process died."""
        try:
            with self.transaction(dies) as session:
                return act(session)
        except Died:
            self.steps["deaths"] += 1
            return None

    def refused(self, what: type[ParedError], act: Any) -> None:
        self.steps["refusals"] += 1
        with pytest.raises(what):
            act()

    def admitted(self, owner: model.Owner, key: model.Key) -> bool:
        """Whether a request with this key comes through; the service has to think the same."""
        if key.works and not owner.disabled:
            caller = caller_of(self.sessions, key.secret)
            assert (caller.owner, caller.key_id) == (owner.id, key.id)
            return True
        self.refused(Unauthorized, lambda: caller_of(self.sessions, key.secret))
        return False

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def no_job_is_lost_and_none_is_there_twice(self) -> None:
        self.steps["steps"] += 1
        with self.sessions() as session:
            jobs = session.scalars(select(Job)).all()
            owed = session.scalars(select(Outbox.job_id)).all()
            files = session.execute(select(Artifact.job_id, Artifact.object_key)).all()
        assert sorted(job.id for job in jobs) == sorted(self.life.jobs)
        for job in jobs:
            known = self.life.jobs[job.id]
            checkpoints = [key for key in (job.checkpoint_key, job.previous_checkpoint_key) if key]
            assert (job.owner, job.type, job.status) == (known.owner, known.type, known.status)
            assert (job.attempt, job.crash_count, job.fence) == (known.attempt, known.crashes, known.fence)
            assert job.attempt + job.crash_count <= 2 * job.fence
            assert (job.lease_owner is not None) == (job.lease_expires_at is not None) == (job.status in model.HELD)
            assert (job.finished_at is not None) == (job.status in model.ENDED)
            assert (job.cancel_requested_at is not None) == known.cancel_asked
            assert checkpoints == known.checkpoints
            assert (job.report is not None) == (job.status == "succeeded" and known.listed)
        assert sorted(owed) == sorted(self.life.owed)
        expected = sorted((job.id, key) for job in self.life.jobs.values() for key in job.artifacts)
        assert sorted(map(tuple, files)) == expected

    @invariant()
    def events_and_subscribers_tell_the_transitions(self) -> None:
        assert sorted(self.heard) == sorted(self.life.told)
        self.heard.clear()
        self.life.told.clear()
        with self.sessions() as session:
            rows = session.scalars(select(JobEvent).order_by(JobEvent.job_id, JobEvent.seq)).all()
        told: dict[str, list[tuple[str, str, int]]] = {}
        for row in rows:
            events = told.setdefault(row.job_id, [])
            assert row.seq == len(events) + 1, "numbered without gaps"
            events.append((row.kind, row.data.get("status", ""), row.data.get("attempt", 0)))
        assert told == {job.id: job.events for job in self.life.jobs.values()}

    @invariant()
    def owners_see_their_own_and_all_of_it(self) -> None:
        with self.sessions() as session:
            for owner in self.life.owners:
                seen = {job.id for job in session.scalars(jobs_of(owner))}
                assert seen == {job.id for job in self.life.jobs.values() if job.owner == owner and job.listed}
                theirs = {upload.id: upload.status for upload in session.scalars(owned_uploads(owner, Model))}
                uploads = [upload for upload in self.life.uploads.values() if upload.owner == owner]
                assert theirs == {upload.id: upload.status for upload in uploads if not upload.deleted}

    def write(self, statement: Any) -> None:
        with self.sessions.begin() as session:
            session.execute(statement)
