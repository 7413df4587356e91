"""A job's legal transitions, whoever races for them, and what followers are told of each."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from pared.errors import Conflict, DeviceUnavailable, IdempotencyMismatch, InvalidArchitecture, NotFound, OverLimit
from pared.specs import DistillSpec, InspectSpec, PlanSpec, PruneSpec
from pared.state import jobs, lifecycle
from pared.state.events import add_event, add_events, events_after
from pared.state.jobs import (
    Idempotency,
    Submission,
    Submitted,
    cancel,
    find_job,
    submit,
    submit_all,
    submit_plan,
)
from pared.state.lifecycle import NewJob
from pared.state.limits import MuchRoom
from pared.state.references import job_using, uploads_of
from pared.state.session import Sessions
from pared.state.tables import (
    Dataset,
    IdempotencyKey,
    Job,
    JobEvent,
    Model,
    Outbox,
    WorkerHeartbeat,
    db_now,
    new_id,
)
from pared.state.turns import next_in_turn
from pared.state.workers import LATELY_S, SEEN_S, waits_for
from pared.statuses import ENDED
from tests.support.job_specs import MODEL_ID, PRUNE


@pytest.fixture(autouse=True)
def model(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Model(id=MODEL_ID, owner="local", filename="m.pt", sha256="0" * 64, size_bytes=1, status="ready"))


def rows(sessions: Sessions, table: type) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table))


def status_of(sessions: Sessions, job_id: str) -> str:
    with sessions() as session:
        return session.get(Job, job_id).status


def events_of(sessions: Sessions, job_id: str) -> list[tuple[int, str, str | None]]:
    with sessions() as session:
        return [(event.seq, event.kind, event.data.get("status")) for event in events_after(session, job_id, 0)]


def claim(sessions: Sessions, job_id: str, lease_s: float = 45.0, devices=("cpu",)) -> tuple[int, int] | None:
    with sessions.begin() as session:
        claimed = lifecycle.claim(session, job_id, "worker", lease_s, devices)
        return (claimed.fence, claimed.attempt) if claimed else None


def test_submitting_writes_job_event_and_message_together(sessions):
    job, new = submit(sessions, "local", PRUNE)
    assert new
    assert status_of(sessions, job.id) == "queued"
    assert events_of(sessions, job.id) == [(1, "status", "queued")]
    assert rows(sessions, Outbox) == 1


def test_a_job_remembers_the_request_that_made_it(sessions):
    job, _ = submit(sessions, "local", PRUNE, Idempotency("k", "digest"), request_id="first")
    again, new = submit(sessions, "local", PRUNE, Idempotency("k", "digest"), request_id="second")
    assert (again.id, again.request_id, new) == (job.id, "first", False)
    plan_id = submit_plan(sessions, "local", PlanSpec(type="plan", job=PRUNE), request_id="third")
    with sessions() as session:
        assert session.get(Job, plan_id).request_id == "third"


def test_one_key_makes_one_job_however_often_it_is_sent_at_once(sessions):
    key = Idempotency("k", "digest")
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: submit(sessions, "local", PRUNE, key), range(100)))
    assert len({job.id for job, _ in made}) == 1
    assert sum(new for _, new in made) == 1
    assert (rows(sessions, Job), rows(sessions, Outbox), rows(sessions, IdempotencyKey)) == (1, 1, 1)


def test_of_jobs_that_are_submitted_together_one_that_is_refused_holds_up_no_other(sessions, settings):
    absent = PruneSpec(type="prune", model="mdl_" + "1" * 26, amount=0.5)
    key, other = Idempotency("k", "digest"), Idempotency("k", "other")
    posted = [
        Submission("local", NewJob(spec, request_id=str(number)), idempotency)
        for number, (spec, idempotency) in enumerate(
            [(PRUNE, None), (absent, None), (PRUNE, key), (PRUNE, key), (PRUNE, other), (PRUNE, None), (PRUNE, None)]
        )
    ]
    outcomes = submit_all(sessions, posted, settings.model_copy(update={"max_waiting_jobs": 3}))
    came = [outcomes[each] for each in posted]
    assert [type(each) for each in came] == [
        *(Submitted, NotFound, Submitted, Submitted, IdempotencyMismatch, Submitted, OverLimit)
    ]
    made = [each.job for each in came if isinstance(each, Submitted) and each.new]
    assert [job.request_id for job in made] == ["0", "2", "5"]
    assert [job.id for job in made] == sorted(job.id for job in made), "in the order in which they came"
    assert came[3].job.id == made[1].id
    assert (rows(sessions, Job), rows(sessions, Outbox), rows(sessions, IdempotencyKey)) == (3, 3, 1)
    assert all(events_of(sessions, job.id) == [(1, "status", "queued")] for job in made)


def test_what_an_owner_stores_is_added_up_again_where_little_room_is_left_or_some_time_has_passed(
    sessions, settings, monkeypatch
):
    limited = settings.model_copy(update={"max_stored_bytes": 1000})

    def stores(results: int) -> None:
        with sessions.begin() as session:
            session.execute(update(Job).values(result_bytes=results))

    def refused(room: MuchRoom) -> bool:
        posted = Submission("local", NewJob(PRUNE))
        return isinstance(submit_all(sessions, [posted], limited, room)[posted], OverLimit)

    with sessions.begin() as session:
        session.execute(update(Model).values(size_bytes=0))
    room = MuchRoom()
    assert not refused(room)
    stores(2000)
    assert not refused(room), "there was much room a moment ago"
    monkeypatch.setattr(MuchRoom, "LOOK_AGAIN_S", 0.0)
    assert refused(MuchRoom())
    later = MuchRoom()
    stores(0)
    assert not refused(later)
    stores(2000)
    assert refused(later)
    monkeypatch.undo()
    stores(0)
    with sessions.begin() as session:
        session.execute(update(Model).where(Model.id == MODEL_ID).values(size_bytes=990))
    nearly = MuchRoom()
    assert not refused(nearly)
    stores(2000)
    assert refused(nearly), "little room was left"


def test_a_key_that_another_process_uses_at_the_same_moment_makes_no_second_job(sessions, settings, monkeypatch):
    key = Idempotency("k", "digest")
    theirs, _ = submit(sessions, "local", PRUNE, key)
    look = jobs._made_by

    def looks_too_early(*args):
        monkeypatch.setattr(jobs, "_made_by", look)

    monkeypatch.setattr(jobs, "_made_by", looks_too_early)
    posted = [Submission("local", NewJob(PRUNE), key), Submission("local", NewJob(PRUNE))]
    outcomes = submit_all(sessions, posted, settings)
    first, second = (outcomes[each] for each in posted)
    assert (first.job.id, first.new, second.new) == (theirs.id, False, True)
    assert rows(sessions, Job) == 2


def test_a_key_belongs_to_its_owner_and_its_body(sessions):
    submit(sessions, "local", PRUNE, Idempotency("k", "digest"))
    with pytest.raises(IdempotencyMismatch):
        submit(sessions, "local", PRUNE, Idempotency("k", "other"))
    with sessions.begin() as session:
        session.add(Model(id=new_id("mdl"), owner="b", filename="m", sha256="0" * 64, size_bytes=1, status="ready"))
        other = session.scalar(select(Model.id).where(Model.owner == "b"))
    _, new = submit(sessions, "b", PruneSpec(type="prune", model=other, amount=0.5), Idempotency("k", "other"))
    assert new


def test_what_a_job_names_must_be_there_and_usable(sessions):
    absent = "mdl_" + "1" * 26
    spec = DistillSpec(type="distill", teacher=absent, student=MODEL_ID, dataset="dst_" + "1" * 26)
    with pytest.raises(NotFound) as missing:
        submit(sessions, "local", spec)
    assert [error["pointer"] for error in missing.value.errors] == ["/teacher", "/dataset"]
    with pytest.raises(NotFound):
        submit(sessions, "somebody else", PRUNE)
    with sessions.begin() as session:
        row = session.get(Model, MODEL_ID)
        row.status, row.reason = "rejected", {"code": "x", "title": "x", "detail": "it is a picture"}
    with pytest.raises(Conflict) as rejected:
        submit(sessions, "local", PRUNE)
    assert "it is a picture" in rejected.value.errors[0]["detail"]
    assert rows(sessions, Job) == 0


def test_weights_alone_are_refused_where_the_job_has_to_run_them(sessions):
    with sessions.begin() as session:
        weights = {"format": "state_dict", "layers": [{"name": "fc", "kind": "weights"}], "architecture": None}
        session.get(Model, MODEL_ID).inspection = weights
    for post in (
        lambda: submit(sessions, "local", PRUNE),
        lambda: submit_plan(sessions, "local", PlanSpec(type="plan", job=PRUNE.model_dump(exclude_unset=True))),
    ):
        with pytest.raises(InvalidArchitecture) as refused:
            post()
        assert refused.value.errors[0]["pointer"] == "/architecture"
        assert all(text in refused.value.errors[0]["detail"] for text in ("torch.jit.trace", ".pt2", "ONNX", "layers"))
    assert rows(sessions, Job) == 0
    named = PruneSpec.model_validate(PRUNE.model_dump(exclude_unset=True) | {"architecture": "lenet5"})
    zeros = PruneSpec(type="prune", model=MODEL_ID, granularity="weight", amount=0.5)
    for spec in (named, zeros):
        submit(sessions, "local", spec)
    assert rows(sessions, Job) == 2


def test_references_are_the_uploads_alone():
    spec = DistillSpec.model_validate(
        {"type": "distill", "teacher": MODEL_ID, "student": {"name": "lenet5"}, "dataset": "builtin:digits"}
    )
    assert [(reference.pointer, reference.id) for reference in uploads_of(spec)] == [("/teacher", MODEL_ID)]
    other = MODEL_ID[:-1] + "Z"
    several = DistillSpec.model_validate(spec.model_dump() | {"teachers": [{"model": other}]})
    found = [(reference.pointer, reference.role, reference.id) for reference in uploads_of(several)]
    assert found == [("/teacher", "teacher", MODEL_ID), ("/teachers/0/model", "teachers.0.model", other)]


def test_an_upload_is_in_use_while_a_job_of_its_owner_names_it_that_has_not_ended(sessions):
    other = MODEL_ID[:-1] + "Z"

    def user_of(upload_id, owner="local"):
        with sessions() as session:
            return job_using(session, owner, upload_id)

    with sessions.begin() as session:
        lifecycle.create(session, "local", InspectSpec(type="inspect", subject=MODEL_ID))
        lifecycle.create(session, "local", PlanSpec(type="plan", job=PRUNE))
    assert user_of(MODEL_ID) is None  # their owner could not cancel these
    job, _ = submit(sessions, "local", PRUNE.model_copy(update={"include": [other]}))
    assert (user_of(MODEL_ID), user_of(other), user_of(MODEL_ID, "somebody else")) == (job.id, None, None)
    with sessions.begin() as session:
        lifecycle.cancel(session, job.id)
    assert user_of(MODEL_ID) is None


def test_one_of_many_claimants_gets_the_job(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    with ThreadPoolExecutor(16) as pool:
        claims = [one for one in pool.map(lambda _: claim(sessions, job.id), range(50)) if one]
    assert claims == [(1, 1)]


def test_a_former_owner_can_write_nothing(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    claim(sessions, job.id)
    with sessions.begin() as session:
        lifecycle.release(session, job.id, 1, charge="crash")
    assert claim(sessions, job.id) == (2, 2)
    stale = [
        lambda session: lifecycle.renew(session, job.id, 1, 45.0),
        lambda session: lifecycle.advance(session, job.id, 1, {"stage": "export"}),
        lambda session: lifecycle.succeed(session, job.id, 1, {}),
        lambda session: lifecycle.fail(session, job.id, 1, {}),
        lambda session: lifecycle.release(session, job.id, 1, charge=None),
        lambda session: lifecycle.finish_cancel(session, job.id, 1),
    ]
    events = events_of(sessions, job.id)
    for act in stale:
        with sessions.begin() as session:
            assert not act(session)
    assert events_of(sessions, job.id) == events
    assert status_of(sessions, job.id) == "running"


def test_a_queued_job_is_canceled_at_once(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    with sessions.begin() as session:
        assert cancel(session, "local", job.id).status == "canceled"
    assert events_of(sessions, job.id) == [(1, "status", "queued"), (2, "status", "canceled"), (3, "done", "canceled")]
    assert claim(sessions, job.id) is None


def test_a_running_job_is_canceling_until_its_worker_stopped_it(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    claim(sessions, job.id)
    for _ in range(2):  # asking again changes nothing
        with sessions.begin() as session:
            assert cancel(session, "local", job.id).status == "canceling"
    assert events_of(sessions, job.id)[1:] == [(2, "status", "running"), (3, "status", "canceling")]
    with sessions.begin() as session:
        # Too late to succeed, and not to be queued again.
        assert not lifecycle.succeed(session, job.id, 1, {})
        assert not lifecycle.release(session, job.id, 1, charge=None)
        assert lifecycle.finish_cancel(session, job.id, 1)
    assert events_of(sessions, job.id)[-1] == (5, "done", "canceled")


def test_an_ended_job_cannot_be_canceled(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    claim(sessions, job.id)
    with sessions.begin() as session:
        lifecycle.succeed(session, job.id, 1, {"verdict": "fine"})
    canceled, _ = submit(sessions, "local", PRUNE)
    with sessions.begin() as session:
        cancel(session, "local", canceled.id)
    for job_id, status in ((job.id, "succeeded"), (canceled.id, "canceled")):
        with pytest.raises(Conflict, match=status), sessions.begin() as session:
            cancel(session, "local", job_id)


def test_cancel_against_completion_ends_in_one_state(sessions):
    ended = []
    for _ in range(12):
        job, _ = submit(sessions, "local", PRUNE)
        claim(sessions, job.id)

        def finish(job_id=job.id):
            with sessions.begin() as session:
                if lifecycle.succeed(session, job_id, 1, {}):
                    return
            with sessions.begin() as session:
                lifecycle.finish_cancel(session, job_id, 1)

        def stop(job_id=job.id):
            try:
                with sessions.begin() as session:
                    cancel(session, "local", job_id)
            except Conflict:
                pass

        both = [finish, stop]
        random.shuffle(both)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda act: act(), both))
        done = [status for _, kind, status in events_of(sessions, job.id) if kind == "done"]
        assert done == [status_of(sessions, job.id)]
        assert done[0] in ENDED
        ended += done
    assert set(ended) <= {"succeeded", "canceled"}


def test_an_orderly_stop_is_not_charged_and_all_else_is(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    for charge, expected in [(None, (0, 0)), ("crash", (1, 1)), ("attempt", (2, 1))]:
        fence, _ = claim(sessions, job.id)
        with sessions.begin() as session:
            lifecycle.release(session, job.id, fence, charge=charge)
            row = session.get(Job, job.id)
            assert (row.attempt, row.crash_count) == expected


def test_the_time_that_a_job_is_held_is_counted_over_its_attempts(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    held = [0.0]
    for _ in range(2):
        fence, _ = claim(sessions, job.id)
        with sessions.begin() as session:
            session.execute(update(Job).values(lease_expires_at=db_now() + 45.0 - 10.0))  # renewed ten seconds ago
            lifecycle.renew(session, job.id, fence, 45.0)
            lifecycle.renew(session, job.id, fence, 45.0)  # again at once: nothing to add
            lifecycle.release(session, job.id, fence, charge="crash")
            held.append(session.get(Job, job.id).held_s)
    assert held == pytest.approx([0, 10, 20], abs=1)


def test_a_failed_inspection_rejects_its_upload(sessions):
    for prefix, table in (("mdl", Model), ("dst", Dataset)):
        upload = table(id=new_id(prefix), owner="local", filename="f", sha256="0" * 64, size_bytes=1)
        with sessions.begin() as session:
            session.add(upload)
            job = lifecycle.create(session, "local", InspectSpec(type="inspect", subject=upload.id))
        claim(sessions, job.id)
        error = {"code": "unsupported-model", "title": "Not a model we open", "detail": "This is a picture."}
        with sessions.begin() as session:
            lifecycle.fail(session, job.id, 1, error)
        with sessions() as session:
            row = session.get(table, upload.id)
            assert (row.status, row.reason) == ("rejected", error)


def test_jobs_are_found_by_their_owner_alone_and_inspections_by_nobody(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    with sessions.begin() as session:
        inspection = lifecycle.create(session, "local", InspectSpec(type="inspect", subject=MODEL_ID))
    with sessions() as session:
        assert find_job(session, "local", job.id).id == job.id
        for owner, job_id in [("other", job.id), ("local", inspection.id), ("local", "job_x")]:
            with pytest.raises(NotFound):
                find_job(session, owner, job_id)


def test_events_are_numbered_without_gaps_though_many_write(sessions):
    job, _ = submit(sessions, "local", PRUNE)

    def write(number):
        with sessions.begin() as session:
            add_events(session, job.id, [("log", {"text": f"{number}.{part}"}) for part in range(3)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(20)))
    with sessions() as session:
        events = events_after(session, job.id, 0)
        assert [event.seq for event in events] == list(range(1, 62))
        texts = [event.data["text"] for event in events[1:]]
        # What was written together stays together.
        assert all(texts[i].split(".")[0] == texts[i + 2].split(".")[0] for i in range(0, 60, 3))
        assert [event.seq for event in events_after(session, job.id, 58, limit=2)] == [59, 60]


def test_an_event_of_a_transaction_that_fails_was_never_there(sessions):
    job, _ = submit(sessions, "local", PRUNE)
    with pytest.raises(ZeroDivisionError), sessions.begin() as session:
        _ = add_event(session, job.id, "log", {"text": "x"}) / 0
    assert rows(sessions, JobEvent) == 1


# -- devices --------------------------------------------------------------------------------------


def a_worker(sessions: Sessions, name: str, *devices: str, problem: str | None = None, age_s: float = 0.0) -> None:
    with sessions.begin() as session:
        session.add(
            WorkerHeartbeat(
                name=name,
                sandbox="standard",
                device="",
                devices=list(devices),
                device_problem=problem,
                seen_at=db_now() - age_s,
            )
        )


@pytest.mark.parametrize(
    ("asks_for", "devices", "taken"),
    [
        ({}, ["cpu"], True),
        ({}, ["cpu", "cuda"], True),
        ({}, [], False),
        ({"device": "cpu"}, ["cpu"], True),
        ({"device": "cpu"}, ["cpu", "cuda"], True),
        ({"device": "cuda"}, ["cpu"], False),
        ({"device": "cuda"}, ["cpu", "cuda"], True),
        ({"device": "cuda"}, [], False),
        ({"latency_device": "cuda"}, ["cpu"], False),
        ({"latency_device": "cuda"}, ["cpu", "cuda"], True),
        ({"device": "cuda", "latency_device": "cpu"}, ["cpu"], False),
    ],
)
def test_a_job_is_claimed_by_a_worker_that_has_its_device_alone(sessions, asks_for, devices, taken):
    """Whatever message came to whom: the row decides."""
    a_worker(sessions, "gpu", "cpu", "cuda")
    spec = PruneSpec.model_validate(PRUNE.model_dump(exclude_unset=True) | asks_for)
    job, _ = submit(sessions, "local", spec)
    assert (claim(sessions, job.id, devices=devices) is not None) == taken
    assert status_of(sessions, job.id) == ("running" if taken else "queued")


def test_a_plan_is_for_a_worker_that_has_its_device_and_times_nothing(sessions):
    a_worker(sessions, "gpu", "cpu", "cuda")

    def planned(**fields) -> str:
        return submit_plan(sessions, "local", PlanSpec(type="plan", job=PRUNE.model_copy(update=fields)))

    def next_one(*devices: str) -> str | None:
        with sessions() as session:
            return next_in_turn(session, "quick", devices)

    on_cuda, anywhere = planned(device="cuda"), planned(latency_device="cuda")
    assert (next_one(), next_one("cpu"), next_one("cpu", "cuda")) == (None, anywhere, on_cuda)


def test_cuda_is_refused_where_no_worker_has_it_and_says_what_the_workers_found(sessions):
    a_worker(sessions, "a", "cpu", problem="NVIDIA H100 cannot be used: error 304.")
    a_worker(sessions, "gone", "cpu", "cuda", age_s=LATELY_S + 5)
    for field in ("device", "latency_device"):
        with pytest.raises(DeviceUnavailable, match="error 304") as refused:
            submit(sessions, "local", PRUNE.model_copy(update={field: "cuda"}))
        assert [error["pointer"] for error in refused.value.errors] == [f"/{field}"]
        assert "pared worker" in refused.value.detail
    with pytest.raises(DeviceUnavailable):
        submit_plan(sessions, "local", PlanSpec(type="plan", job=PRUNE.model_copy(update={"device": "cuda"})))
    assert rows(sessions, Job) == 0
    for device in ("auto", "cpu"):  # whatever worker is started next takes these
        submit(sessions, "local", PRUNE.model_copy(update={"device": device}))


def test_a_job_that_was_accepted_waits_for_a_worker_that_is_gone_and_says_so(sessions):
    a_worker(sessions, "b", "cpu")
    a_worker(sessions, "gpu", "cpu", "cuda", age_s=SEEN_S + 5)  # starting again, perhaps
    job, _ = submit(sessions, "local", PRUNE.model_copy(update={"device": "cuda"}))
    with sessions() as session:
        assert waits_for(session, job.device) == (
            "No worker with a GPU that works is alive, and the job waits for one."
        )
        assert waits_for(session, "auto") is None
    a_worker(sessions, "another", "cpu", "cuda")
    with sessions() as session:
        assert waits_for(session, job.device) is None


def test_a_worker_that_takes_no_jobs_is_none_that_a_job_could_wait_for(sessions):
    a_worker(sessions, "b", problem="No NVIDIA GPU is visible.")
    with sessions() as session:
        assert "b: No NVIDIA GPU is visible." in waits_for(session, "auto")
