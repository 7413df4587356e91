"""Whoever is to be told of a job's end is told at least once, whichever process dies and however receivers fail."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import TextClause, func, select, text, update

from pared.errors import Conflict, NotFound, OverLimit
from pared.specs import InspectSpec
from pared.state import deliveries, failpoints, lifecycle, webhooks
from pared.state.deliveries import CLAIM_S, EVENTS, RETRY_S, Claimed, Outcome
from pared.state.retention import collect
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Job, Owner, Webhook, WebhookDelivery, db_now, new_id
from service.webhook_sender import OF_WEBHOOK, WebhookSender
from tests.support.campaign import counted
from tests.support.job_specs import MODEL_ID, PRUNE
from tests.support.processes import wait_for
from tests.support.proxies import certificate
from tests.support.receiver import TAKES, WAYS, Receiver

DAY_S = 86_400.0
ERROR = {"code": "diverged", "title": "Training diverged", "detail": "The loss was NaN in layer secret."}
BAD = Outcome(500, "It answered with status 500")
GOOD = Outcome(204, None)


@pytest.fixture
def hook(sessions: Sessions, settings: Settings) -> Webhook:
    return webhooks.create(sessions, "local", "http://127.0.0.1:1/x", EVENTS, None, settings)


def ended(sessions: Sessions, status: str = "succeeded", owner: str = "local") -> str:
    with sessions.begin() as session:
        job_id = lifecycle.create(session, owner, PRUNE).id
    with sessions.begin() as session:
        if status == "canceled":
            assert lifecycle.cancel(session, job_id)
            return job_id
        fence = lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"]).fence
        if status == "failed":
            assert lifecycle.fail(session, job_id, fence, ERROR)
        else:
            assert lifecycle.succeed(session, job_id, fence, {"verdict": "4.0× smaller."})
    return job_id


def owed(sessions: Sessions) -> list[WebhookDelivery]:
    with sessions() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all())


def pass_time(sessions: Sessions, seconds: float) -> None:
    """Move all that is written down of webhooks into the past."""
    with sessions.begin() as session:
        for table, names in (
            (WebhookDelivery, ("next_at", "created_at", "attempted_at")),
            (Webhook, ("created_at", "failing_since")),
        ):
            session.execute(update(table).values({name: getattr(table, name) - seconds for name in names}))


def attempt(sessions: Sessions, webhook_id: str, outcome: Outcome) -> list[Claimed]:
    """Claim what is due, and settle it so."""
    with sessions.begin() as session:
        claimed = deliveries.claim(session, webhook_id, 100)
    for each in claimed:
        with sessions.begin() as session:
            deliveries.settle(session, each, outcome)
    return claimed


def looked_at(sessions: Sessions, webhook_id: str) -> Webhook:
    with sessions() as session:
        return session.get_one(Webhook, webhook_id)


# -- what is owed ---------------------------------------------------------------------------------


def test_a_jobs_end_is_owed_to_those_who_want_it_in_its_own_transaction(sessions, settings, hook):
    failures = webhooks.create(sessions, "local", "http://127.0.0.1:1/f", ["job.failed"], None, settings)
    jobs = [ended(sessions, status) for status in ("succeeded", "failed", "canceled")]
    rows = owed(sessions)
    told = {(row.job_id, row.event, row.webhook_id): row.body for row in rows}
    assert len(rows) == 4
    assert set(told) == {
        (jobs[0], "job.succeeded", hook.id),
        (jobs[1], "job.failed", hook.id),
        (jobs[1], "job.failed", failures.id),
        (jobs[2], "job.canceled", hook.id),
    }
    assert '"verdict":"4.0\\u00d7 smaller."' in told[jobs[0], "job.succeeded", hook.id]
    failure = told[jobs[1], "job.failed", failures.id]
    assert '"error":{"code":"diverged","title":"Training diverged"}' in failure
    assert "secret" not in failure
    assert all(len(row.body) < 500 for row in rows)
    with sessions.begin() as session:
        lifecycle.cancel(session, lifecycle.create(session, "local", PRUNE).id)
        assert len(session.scalars(select(WebhookDelivery)).all()) == 5
        session.rollback()
    assert len(owed(sessions)) == 4


def test_what_the_api_makes_for_itself_and_others_jobs_are_told_nobody(sessions, hook):
    with sessions.begin() as session:
        session.add(Owner(id="own_other", name="other"))
        job = lifecycle.create(session, "local", InspectSpec(type="inspect", subject=MODEL_ID))
        lifecycle.cancel(session, job.id)
    ended(sessions, owner="own_other")
    assert owed(sessions) == []


def test_a_webhook_is_seen_and_used_by_its_owner_alone(sessions, settings, hook):
    ended(sessions)
    [row] = owed(sessions)
    with sessions() as session:
        for call in (
            lambda: webhooks.find_webhook(session, "own_other", hook.id),
            lambda: webhooks.find_delivery(session, "own_other", hook.id, row.id),
            lambda: webhooks.delete(sessions, "own_other", hook.id),
            lambda: webhooks.send_test(sessions, "own_other", hook.id),
            lambda: webhooks.replay(sessions, "own_other", hook.id, row.id),
        ):
            with pytest.raises(NotFound):
                call()
        assert session.scalars(webhooks.webhooks_of("own_other")).all() == []
    few = settings.model_copy(update={"max_webhooks": 1})
    with pytest.raises(OverLimit, match="1 of your webhooks"):
        webhooks.create(sessions, "local", "http://127.0.0.1:1/", EVENTS, None, few)


def test_deliveries_go_with_their_webhook_with_their_job_or_with_time(sessions, settings, store, hook):
    jobs = [ended(sessions), ended(sessions)]
    with sessions.begin() as session:
        session.delete(session.get_one(Job, jobs[0]))
    assert [row.job_id for row in owed(sessions)] == [jobs[1]]
    attempt(sessions, hook.id, GOOD)
    pass_time(sessions, 29 * DAY_S)
    collect(sessions, store, settings)
    assert len(owed(sessions)) == 1
    pass_time(sessions, 2 * DAY_S)
    collect(sessions, store, settings)
    assert owed(sessions) == []
    ended(sessions)
    webhooks.delete(sessions, "local", hook.id)
    assert owed(sessions) == []
    ended(sessions)  # nobody is left to be told


# -- when it is sent ------------------------------------------------------------------------------


def test_a_delivery_is_tried_for_a_day_with_growing_pauses_and_then_has_failed(sessions, hook):
    ended(sessions)
    pauses = []
    while attempt(sessions, hook.id, BAD):
        [row] = owed(sessions)
        with sessions() as session:
            pauses.append(row.next_at - session.scalar(select(db_now())))
        if row.status == "pending":
            pass_time(sessions, pauses[-1] / 2)
            if pauses[-1] > 60:  # half of a shorter one may pass by itself on a busy machine
                assert attempt(sessions, hook.id, BAD) == []
            pass_time(sessions, pauses[-1] / 2)
    assert (row.status, row.attempts, row.response_status) == ("failed", len(RETRY_S) + 1, 500)
    for pause, usual in zip(pauses, RETRY_S, strict=False):
        assert 0.9 * usual - 2 <= pause <= 1.1 * usual
    assert DAY_S * 0.85 < sum(pauses[:-1]) < DAY_S * 1.1
    assert looked_at(sessions, hook.id).disabled_at is None, "a day is not days"
    webhooks.replay(sessions, "local", hook.id, row.id)
    [again] = attempt(sessions, hook.id, GOOD)
    assert (again.id, again.body, again.attempts) == (row.id, row.body, 1)
    assert looked_at(sessions, hook.id).failing_since is None


def test_a_webhook_that_fails_for_days_is_disabled_until_a_test_is_delivered(sessions, hook):
    ended(sessions)
    attempt(sessions, hook.id, BAD)
    pass_time(sessions, 4 * DAY_S)
    attempt(sessions, hook.id, BAD)
    assert looked_at(sessions, hook.id).disabled_at is None, "it is tried for a day first"
    for _ in RETRY_S:
        pass_time(sessions, DAY_S)
        attempt(sessions, hook.id, BAD)
    disabled = looked_at(sessions, hook.id)
    assert disabled.disabled_reason.startswith("Nothing was delivered since ")
    assert "It answered with status 500" in disabled.disabled_reason
    [row] = owed(sessions)
    with pytest.raises(Conflict, match="disabled"):
        webhooks.replay(sessions, "local", hook.id, row.id)
    ended(sessions)
    assert len(owed(sessions)) == 1, "a disabled one is owed nothing more"

    made = webhooks.send_test(sessions, "local", hook.id)
    with pytest.raises(Conflict, match="not over"):
        webhooks.send_test(sessions, "local", hook.id)
    assert [each.id for each in attempt(sessions, hook.id, BAD)] == [made.id]
    assert [(each.event, each.status) for each in owed(sessions)][1:] == [("webhook.test", "failed")], "tried once"
    webhooks.send_test(sessions, "local", hook.id)
    attempt(sessions, hook.id, GOOD)
    assert looked_at(sessions, hook.id).disabled_at is None
    ended(sessions)
    assert [each.event for each in attempt(sessions, hook.id, Outcome(410, "It answered with status 410"))] == [
        "job.succeeded"
    ]
    assert "gone" in looked_at(sessions, hook.id).disabled_reason


def test_a_claim_is_one_senders_until_it_runs_out_and_a_late_answer_changes_nothing(sessions, hook):
    ended(sessions)
    with sessions.begin() as session:
        [first] = deliveries.claim(session, hook.id, 100)
    with sessions.begin() as session:
        assert deliveries.claim(session, hook.id, 100) == []
    pass_time(sessions, CLAIM_S)
    with sessions.begin() as session:
        [second] = deliveries.claim(session, hook.id, 100)
    for claimed, status in ((first, None), (second, "delivered"), (second, None)):
        with sessions.begin() as session:
            assert deliveries.settle(session, claimed, GOOD) == status
    assert (first.id, first.body) == (second.id, second.body)


def test_a_job_ends_while_its_webhook_is_being_deleted(sessions, settings, hook):
    job_id = []
    with sessions.begin() as session:
        session.delete(session.get_one(Webhook, hook.id))
        session.flush()
        ending = threading.Thread(target=lambda: job_id.append(ended(sessions, "canceled")))
        ending.start()
        if settings.database_url:
            waits = text("select count(*) from pg_locks where not granted")
            wait_for(lambda: _count(sessions, waits), "the job's end waits for the webhook", every_s=0.02)
    ending.join(60)
    with sessions() as session:
        assert session.get_one(Job, job_id[0]).status == "canceled"
    assert owed(sessions) == []


def _count(sessions: Sessions, query: TextClause) -> int:
    with sessions() as session:
        return session.scalar(query)


def test_nothing_is_sent_for_an_owner_who_is_disabled(sessions, hook):
    ended(sessions)
    for disabled_at, webhooks_due in ((1.0, 0), (None, 1)):
        with sessions.begin() as session:
            session.execute(update(Owner).values(disabled_at=disabled_at))
        with sessions() as session:
            assert len(deliveries.due(session)) == webhooks_due


# -- against receivers that fail ------------------------------------------------------------------


@pytest.fixture
def receivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Receiver]]:
    """One that refuses connections at first, one with TLS that is not trusted at first, and one for all other ways."""
    made = {"plain": Receiver(2), "absent": Receiver(), "tls": Receiver(certificate=certificate(tmp_path))}
    made["plain"].listen()
    made["tls"].listen()
    yield made
    for each in made.values():
        each.close()


class Sending:
    """A sender that runs as long as the block lasts, with a short time limit."""

    def __init__(self, sessions: Sessions, settings: Settings, time_limit_s: float = 1.0) -> None:
        self.sessions = sessions
        allowed = settings.model_copy(update={"allow_private_webhooks": True})
        self.sender = WebhookSender(sessions, allowed, time_limit_s=time_limit_s)

    def __enter__(self) -> Self:
        self.sender.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.sender.stop()

    def all_that_is_due(self) -> None:
        """Wait until nothing is due and nothing is under way."""
        self.sender.wake()
        wait_for(self._idle, "nothing is due", limit_s=1200, every_s=0.02)

    def _idle(self) -> bool:
        # A claim is committed a moment before the sender counts it as under way.
        claimed = (
            WebhookDelivery.status == "pending",
            func.abs(WebhookDelivery.next_at - WebhookDelivery.attempted_at - CLAIM_S) < 1,
        )
        with self.sessions() as session:
            if deliveries.due(session) or session.scalar(select(func.count()).where(*claimed)):
                return False
        return self.sender._open.total() == 0


def all_next_in_s(sessions: Sessions) -> float | None:
    """Until all that is pending is due; None: nothing is."""
    with sessions() as session:
        pending = WebhookDelivery.status == "pending"
        return session.scalar(select(func.max(WebhookDelivery.next_at) - db_now()).where(pending))


def registered(sessions: Sessions, settings: Settings, receivers: dict[str, Receiver]) -> dict[str, str]:
    """A webhook for each way of failing and of taking. Way -> its id."""
    ways = dict.fromkeys((*WAYS, *TAKES), receivers["plain"]) | {
        "absent": receivers["absent"],
        "untrusted": receivers["tls"],
    }
    ids = {}
    for way, receiver in ways.items():
        scheme = "https" if way == "untrusted" else "http"
        path = f"/{way.replace(' ', '%20')}"
        url = f"{scheme}://127.0.0.1:{receiver.port}{path}"
        made = webhooks.create(sessions, "local", url, EVENTS, None, settings)
        receiver.secrets[path] = made.secret
        ids[way] = made.id
    return ids


def kill(sessions: Sessions, settings: Settings, name: str) -> None:
    """Send in a process of its own, which dies at the failpoint."""
    sessions.engine.dispose()

    def run() -> None:
        failpoints.arm(name)
        Sending(sessions, settings).sender.run()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{name} was not reached"


def tell(sessions: Sessions, count: int) -> int:
    """End a job, and owe what comes of it so often that it is so many notices at least. Returns how many."""
    ended(sessions)
    with sessions.begin() as session:
        first = session.scalars(select(WebhookDelivery)).all()
        names = ("webhook_id", "job_id", "event", "body")
        again = [{name: getattr(row, name) for name in names} for row in first] * (-(-count // len(first)) - 1)
        session.add_all(WebhookDelivery(id=new_id("dlv"), **columns) for columns in again)
    return len(first) + len(again)


def test_a_receiver_that_hangs_holds_up_nobody_else(sessions, settings, receivers):
    receiver = receivers["plain"]
    for way in ("hangs", "well"):
        webhooks.create(sessions, "local", f"{receiver.url}/{way}", EVENTS, None, settings)
    tell(sessions, 24)
    with Sending(sessions, settings, 60.0):
        delivered = text("select count(*) from webhook_deliveries where status = 'delivered'")
        wait_for(lambda: _count(sessions, delivered) == 12, "all that can be is delivered", every_s=0.05)
        assert Counter(row.attempts for row in owed(sessions)) == {1: 12 + OF_WEBHOOK, 0: 12 - OF_WEBHOOK}
        receiver.close()


@counted(1, 1000, limit_s=3600)
def test_each_notice_arrives_within_a_day_whichever_way_receivers_fail_and_senders_die(
    sessions, settings, receivers, monkeypatch, tmp_path, count
):
    ids = registered(sessions, settings, receivers)
    total = tell(sessions, count)
    kills = ["webhook.claimed", "webhook.sent"] * (1 if count < 1000 else 10)
    for name in kills:
        kill(sessions, settings, name)
        pass_time(sessions, CLAIM_S)
    passed = len(kills) * CLAIM_S
    with Sending(sessions, settings, 3.0) as sending:
        sending.all_that_is_due()
        receivers["absent"].listen()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with Sending(sessions, settings, 3.0) as sending:
        while (pause := all_next_in_s(sessions)) is not None:
            passed += max(pause, 0)
            pass_time(sessions, max(pause, 0))
            sending.all_that_is_due()
    rows = owed(sessions)
    assert all("SSH" not in (row.problem or "") for row in rows)
    taken: Counter[str] = Counter()
    for receiver in receivers.values():
        taken.update({delivery: len(bodies) for delivery, bodies in receiver.taken.items()})
    ways = {webhook: way for way, webhook in ids.items()}
    assert [(ways[row.webhook_id], row.problem) for row in rows if row.status != "delivered"] == []
    assert set(taken) == {row.id for row in rows}
    assert len(rows) == total
    assert passed < DAY_S
    for receiver in receivers.values():
        assert all(set(bodies) == {row.body.encode()} for row in rows for bodies in [receiver.taken[row.id]] if bodies)
    assert "/elsewhere" not in receivers["plain"].paths, "no redirect is followed"
    print(
        f"{total:,} notices to {len(ids)} webhooks that failed in {len(WAYS) + 2} ways, {len(kills)} kills: each "
        f"arrived, {sum(taken.values()) - total} of them again, within {passed / 3600:.2f} simulated hours"
    )
