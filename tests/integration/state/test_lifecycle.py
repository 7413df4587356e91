"""Every transition leaves its event and is told to subscribers, and none is made anywhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sqlalchemy import select, update

import pared
from pared.specs import InspectSpec
from pared.state import lifecycle
from pared.state.lifecycle import Transition
from pared.state.session import Sessions
from pared.state.tables import Job, JobEvent, Model, db_now, new_id
from tests.support.job_specs import PRUNE

ERROR = {"code": "diverged", "title": "Training diverged", "detail": "The loss was NaN."}


@pytest.fixture
def told(monkeypatch) -> list[Transition]:
    heard: list[Transition] = []
    monkeypatch.setattr(lifecycle, "SUBSCRIBERS", [heard.append])
    return heard


def created(sessions: Sessions) -> str:
    with sessions.begin() as session:
        return lifecycle.create(session, "local", PRUNE).id


def running(sessions: Sessions, *, canceling: bool = False) -> str:
    job_id = created(sessions)
    with sessions.begin() as session:
        assert lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"], "standard")
        assert not canceling or lifecycle.cancel(session, job_id)
    return job_id


def events(sessions: Sessions, job_id: str) -> list[tuple[str, dict]]:
    with sessions() as session:
        rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)).all()
        return [(row.kind, row.data) for row in rows]


def run_out(session, job_id):
    session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=db_now() - 1))
    return lifecycle.expire(session, 2, ERROR)


TRANSITIONS = {
    "claim": (created, lambda session, job: lifecycle.claim(session, job, "w", 45.0, ["cpu"]), "running"),
    "succeed": (running, lambda session, job: lifecycle.succeed(session, job, 1, {"verdict": "fine"}), "succeeded"),
    "fail": (running, lambda session, job: lifecycle.fail(session, job, 1, ERROR), "failed"),
    "release": (running, lambda session, job: lifecycle.release(session, job, 1, charge="crash"), "queued"),
    "cancel a queued one": (created, lifecycle.cancel, "canceled"),
    "cancel a running one": (running, lifecycle.cancel, "canceling"),
    "finish a cancel": (
        lambda sessions: running(sessions, canceling=True),
        lambda session, job: lifecycle.finish_cancel(session, job, 1),
        "canceled",
    ),
    "expire": (running, run_out, "queued"),
    "expire a canceling one": (lambda sessions: running(sessions, canceling=True), run_out, "canceled"),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_each_transition_leaves_its_event_and_is_told_once_committed(sessions, told, name):
    prepare, act, status = TRANSITIONS[name]
    job_id = prepare(sessions)
    before = events(sessions, job_id)
    told.clear()
    with sessions.begin() as session:
        assert act(session, job_id)
        assert told == []
    with sessions() as session:
        job = session.get_one(Job, job_id)
    assert job.status == status
    done = [("done", {"status": status, "error": job.error})] if job.finished_at else []
    assert events(sessions, job_id)[len(before) :] == [
        ("status", {"status": status, "attempt": job.attempt}),
        *done,
    ]
    assert told == [Transition(job_id, "local", "prune", status, job.attempt, job.error)]
    told.clear()
    with sessions.begin() as session:
        assert not act(session, job_id) or status == "queued"  # too late, save that a queued one may run out of lease


def test_what_is_rolled_back_is_told_to_nobody(sessions, told):
    job_id = running(sessions)
    told.clear()
    with pytest.raises(ZeroDivisionError), sessions.begin() as session:
        _ = lifecycle.fail(session, job_id, 1, ERROR) / 0
    assert told == []
    with sessions.begin() as session:
        lifecycle.release(session, job_id, 1, charge=None)
    assert [one.status for one in told] == ["queued"]


def test_a_subscriber_that_fails_takes_nothing_along(sessions, told, monkeypatch):
    monkeypatch.setattr(lifecycle, "SUBSCRIBERS", [lambda transition: 1 / 0, told.append])
    job_id = created(sessions)
    assert [(one.job_id, one.status) for one in told] == [(job_id, "queued")]


def test_why_a_job_is_tried_again_is_said_before_it_is_queued(sessions):
    job_id = running(sessions)
    with sessions.begin() as session:
        lifecycle.release(session, job_id, 1, charge="crash", reason="It fell over. It is tried again.")
    assert events(sessions, job_id)[-2:] == [
        ("log", {"text": "It fell over. It is tried again."}),
        ("status", {"status": "queued", "attempt": 1}),
    ]


def test_what_an_inspection_found_is_its_uploads_and_not_the_jobs(sessions):
    model_id = new_id("mdl")
    with sessions.begin() as session:
        session.add(Model(id=model_id, owner="local", filename="m", sha256="0" * 64, size_bytes=1))
        job_id = lifecycle.create(session, "local", InspectSpec(type="inspect", subject=model_id)).id
        assert lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"])
        assert lifecycle.succeed(session, job_id, 1, {"format": "torchscript", "parameters": 3})
    with sessions() as session:
        upload, job = session.get_one(Model, model_id), session.get_one(Job, job_id)
    assert (upload.status, upload.format, upload.inspection["parameters"]) == ("ready", "torchscript", 3)
    assert (job.status, job.report) == ("succeeded", None)


def test_a_job_of_a_type_that_only_a_newer_release_knows_waits_for_it(sessions):
    with sessions.begin() as session:
        job = Job(id=new_id("job"), owner="local", type="of_tomorrow", spec={"type": "of_tomorrow"})
        session.add(job)
    with sessions.begin() as session:
        assert lifecycle.claim(session, job.id, "worker", 45.0, ["cpu"]) is None
        assert lifecycle.cancel(session, job.id)


def test_no_other_module_changes_the_status_of_a_job():
    root = Path(pared.__file__).parents[1]
    sources = [path for name in ("pared", "service", "worker") for path in (root / name).rglob("*.py")]
    texts = {path: path.read_text() for path in sources}
    suspects = {path: text for path, text in texts.items() if "status" in text and ("update(" in text or "." in text)}
    found = {path.relative_to(root).as_posix() for path, text in suspects.items() if _changes_a_job(ast.parse(text))}
    assert found == {"pared/state/lifecycle.py"}


def _changes_a_job(tree: ast.Module) -> bool:
    """Whether there is `update(Job)…values(status=…)`, or an assignment to `job.status`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
            named = {keyword.arg for keyword in node.keywords}
            open_ended = bool(node.args) or None in named
            if "update(Job)" in ast.unparse(node.func) and ("status" in named or open_ended):
                return True
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named_so = [target for target in targets if isinstance(target, ast.Attribute) and target.attr == "status"]
            if any(ast.unparse(target) in {"job.status", "row.status"} for target in named_so):
                return True
    return False
