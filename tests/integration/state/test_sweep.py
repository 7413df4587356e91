"""The sweep: lost jobs go on or end with a reason, nothing needed is thrown away, and all else is."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from pared.specs import InspectSpec
from pared.state.jobs import cancel
from pared.state.lifecycle import claim, create
from pared.state.objects import DirectoryStore
from pared.state.queue import make_app
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.sweep import AT_ONCE, Sweep
from pared.state.tables import Artifact, IdempotencyKey, Job, JobEvent, Model, Outbox, WorkerHeartbeat, db_now, new_id
from pared.state.workers import count_living, living
from tests.support.job_specs import PRUNE


@pytest.fixture
def sweep(sessions: Sessions, settings: Settings, store: DirectoryStore) -> Sweep:
    return new_sweep(sessions, settings, store)


def new_sweep(sessions: Sessions, settings: Settings, store: DirectoryStore) -> Sweep:
    return Sweep(sessions, settings, store=store, queue=make_app(settings))


def lost_job(sessions: Sessions, spec=PRUNE) -> str:
    """A job whose worker died: claimed, and its lease over."""
    with sessions.begin() as session:
        job = create(session, "local", spec)
        claim(session, job.id, "dead worker", -1.0, ["cpu"])
    return job.id


def read(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        return session.get(Job, job_id)


def last_event(sessions: Sessions, job_id: str) -> tuple[str, str | None]:
    with sessions() as session:
        event = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq.desc())).first()
        return event.kind, event.data.get("status")


def test_a_lost_job_is_queued_again_and_told(sessions, sweep):
    job_id = lost_job(sessions)
    assert sweep.expire() == [job_id]
    job = read(sessions, job_id)
    assert (job.status, job.lease_owner, job.attempt) == ("queued", None, 1)
    assert last_event(sessions, job_id) == ("status", "queued")
    assert sweep.expire() == []


def test_a_living_lease_is_left_alone(sessions, sweep):
    with sessions.begin() as session:
        job = create(session, "local", PRUNE)
        claim(session, job.id, "worker", 45.0, ["cpu"])
    assert sweep.expire() == []
    assert read(sessions, job.id).status == "running"


def test_a_lost_job_that_was_to_be_canceled_is_canceled(sessions, sweep):
    job_id = lost_job(sessions)
    with sessions.begin() as session:
        cancel(session, "local", job_id)
    sweep.expire()
    assert read(sessions, job_id).status == "canceled"
    assert last_event(sessions, job_id) == ("done", "canceled")


def test_a_job_lost_too_often_fails_with_a_reason(sessions, settings, store):
    sweep = new_sweep(sessions, settings.model_copy(update={"max_lost_attempts": 2}), store)
    job_id = lost_job(sessions)
    sweep.expire()
    with sessions.begin() as session:
        claim(session, job_id, "dead worker", -1.0, ["cpu"])
    sweep.expire()
    job = read(sessions, job_id)
    assert (job.status, job.error["code"]) == ("failed", "out-of-attempts")
    assert last_event(sessions, job_id) == ("done", "failed")


def test_an_inspection_lost_too_often_rejects_the_upload(sessions, settings, store):
    sweep = new_sweep(sessions, settings.model_copy(update={"max_lost_attempts": 1}), store)
    model_id = new_id("mdl")
    with sessions.begin() as session:
        session.add(Model(id=model_id, owner="local", filename="m", sha256="0" * 64, size_bytes=1))
    lost_job(sessions, InspectSpec(type="inspect", subject=model_id))
    sweep.expire()
    with sessions() as session:
        assert session.get(Model, model_id).status == "rejected"


def test_an_upload_that_no_inspection_is_about_is_rejected(sessions, sweep):
    inspected, forgotten = new_id("mdl"), new_id("mdl")
    with sessions.begin() as session:
        for model_id in (inspected, forgotten):
            session.add(
                Model(
                    id=model_id, owner="local", filename="m", sha256="0" * 64, size_bytes=1, created_at=db_now() - 600
                )
            )
        create(session, "local", InspectSpec(type="inspect", subject=inspected))
    sweep.collect()
    with sessions() as session:
        assert session.get(Model, inspected).status == "inspecting"
        assert session.get(Model, forgotten).status == "rejected"


def test_sweeps_at_once_tell_each_change_once(sessions, settings, store):
    ids = [lost_job(sessions) for _ in range(10)]
    sweeps = [new_sweep(sessions, settings, store) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        expired = [one for got in pool.map(lambda sweep: sweep.expire(), sweeps) for one in got]
    assert sorted(expired) == sorted(ids)
    with sessions() as session:
        told = session.scalar(select(func.count()).where(JobEvent.kind == "status"))
    assert told == 30  # queued when submitted, running, queued when the lease ran out


def test_after_an_outage_living_workers_get_one_lease(sessions, sweep):
    assert sweep.expire() == []
    sweep._looked_at -= 3600  # as if the database had not answered for an hour
    job_id = lost_job(sessions)
    assert sweep.expire() == []
    assert read(sessions, job_id).status == "running"
    sweep._patient_until -= 60  # as if the lease were over
    assert sweep.expire() == [job_id]


def test_sweeps_that_are_as_far_apart_as_they_should_be_are_no_outage(sessions, settings, store):
    rare = settings.model_copy(update={"sweep_s": 30.0, "lease_s": 45.0, "heartbeat_s": 10.0})
    sweep = new_sweep(sessions, rare, store)
    assert sweep.expire() == []
    sweep._looked_at -= 30.0
    job_id = lost_job(sessions)
    assert sweep.expire() == [job_id]


def test_sweeps_that_would_outlast_a_lease_are_refused():
    with pytest.raises(ValueError, match=r"PARED_LEASE_S \(20\) must be above PARED_HEARTBEAT_S"):
        Settings(lease_s=20, heartbeat_s=10, sweep_s=10)


def test_a_whole_round_rings_for_what_was_never_delivered(sessions, sweep):
    with sessions.begin() as session:
        create(session, "local", PRUNE)
        session.execute(update(Outbox).values(created_at=db_now() - 60))
    sweep()
    with sessions() as session:
        assert session.scalars(select(Outbox)).all() == []
        assert session.scalars(select(Job.last_rung_at)).one() is not None


def test_of_many_processes_few_sweep_and_each_looks_at_the_clock(sessions, sweep):
    job_id = lost_job(sessions)
    sweep(10**12)
    assert read(sessions, job_id).status == "running"
    assert sweep._looked_at is not None
    sweep(AT_ONCE)
    assert read(sessions, job_id).status == "queued"


def test_workers_that_were_seen_lately_are_counted(sessions):
    row = {"sandbox": "standard", "device": "x", "devices": ["cpu"]}
    with sessions.begin() as session:
        session.add_all([WorkerHeartbeat(name=f"{n}", **row, seen_at=db_now() - 20 * n) for n in range(4)])
    with sessions() as session:
        assert count_living(session) == len(living(session)) == 2


def test_only_old_objects_that_nothing_names_are_collected(sessions, sweep, store):
    def put(text: str, key: str | None = None) -> str:
        stored = store.put([text.encode()], key=key)
        os.utime(store.path(stored.key), (1, 1))
        return stored.key

    model, gone, fresh = put("model"), put("deleted model"), store.put([b"fresh"]).key
    artifact = put("artifact", "job_1/1/model.pt")
    living, former, ended = (put(name, f"job_{name}/1/5") for name in ("living", "former", "ended"))
    orphan = put("orphan", "job_1/1/half.pt")
    with sessions.begin() as session:
        for key, deleted_at in ((model, None), (gone, 1.0)):
            digest = key.rpartition("/")[2]
            columns = {"filename": "m", "sha256": digest, "size_bytes": 1, "status": "ready", "deleted_at": deleted_at}
            session.add(Model(id=new_id("mdl"), owner="local", **columns))
        for status, newest, previous in (("running", living, former), ("succeeded", ended, None)):
            session.add(
                Job(
                    id=new_id("job"),
                    owner="local",
                    type="prune",
                    spec={},
                    status=status,
                    lease_expires_at=db_now() + 60,
                    checkpoint_key=newest,
                    previous_checkpoint_key=previous,
                )
            )
        job = create(session, "local", PRUNE)
        session.add(
            Artifact(
                id=new_id("art"),
                job_id=job.id,
                name="model.pt",
                media_type="x",
                object_key=artifact,
                sha256="0" * 64,
                size_bytes=1,
            )
        )
    sweep.collect()
    kept = {key for key in (model, gone, fresh, artifact, living, former, ended, orphan) if store.exists(key)}
    assert kept == {model, fresh, artifact, living, former}


def test_old_keys_and_workers_are_forgotten(sessions, sweep):
    with sessions.begin() as session:
        job = create(session, "local", PRUNE)
        session.flush()
        for key, age_s in (("old", 90_000), ("new", 80_000)):
            session.add(
                IdempotencyKey(owner="local", key=key, body_sha256="0" * 64, job_id=job.id, created_at=db_now() - age_s)
            )
        for name, age_s in (("old", 4_000), ("new", 10)):
            session.add(WorkerHeartbeat(name=name, sandbox="standard", device="cpu", seen_at=db_now() - age_s))
    sweep.collect()
    with sessions() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]
        assert session.scalars(select(WorkerHeartbeat.name)).all() == ["new"]


def test_a_job_that_waits_for_a_worker_that_is_not_there_is_told_so_once(sessions, settings, store):
    with sessions.begin() as session:
        session.add(WorkerHeartbeat(name="a", sandbox="standard", device="", devices=["cpu"]))
        spec = PRUNE.model_copy(update={"device": "cuda"})
        waits, young, served = (create(session, "local", each).id for each in (spec, spec, PRUNE))
        session.execute(update(Job).where(Job.id != young).values(updated_at=db_now() - 3600))
    sweeps = [new_sweep(sessions, settings, store) for _ in range(4)]
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda sweep: sweep.explain_waiting(), sweeps))
    with sessions() as session:
        logs = session.execute(select(JobEvent.job_id, JobEvent.data).where(JobEvent.kind == "log")).all()
    assert [job_id for job_id, _ in logs] == [waits]
    assert "No worker with a GPU that works is alive" in logs[0].data["text"]
    assert {last_event(sessions, job_id) for job_id in (young, served)} == {("status", "queued")}
