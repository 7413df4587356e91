"""Owns what webhooks are owed: one row for each notice, who sends it now, and when it is sent again.

What is owed is a row, written in the transaction that ends the job. Whoever sends claims it for a while, and says what
became of it; a row whose sender died is claimed again. So each notice is sent at least once, and may come twice with
the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import structlog
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from pared.job_types import UNLISTED
from pared.state import tracing
from pared.state.tables import Job, Owner, Webhook, WebhookDelivery, db_now, new_id
from pared.statuses import DeliveryStatus, JobStatus

EventName = Literal["job.succeeded", "job.failed", "job.canceled"]
EVENTS: tuple[EventName, ...] = get_args(EventName)
TEST = "webhook.test"
SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with

RETRY_S = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
"""Seconds between an attempt and the next, a day in all; after the last attempt the delivery has failed."""
JITTER = 0.1
"""By so much of itself a pause is shorter or longer, so that what failed together does not come again together."""
CLAIM_S = 60.0
"""How long a delivery is its sender's: much longer than an attempt may take."""
GIVE_UP_S = 3 * 86_400.0
"""A webhook is disabled when a delivery has failed for good and none succeeded for so long."""
GONE = 410
"""A receiver that answers so is not there any more, and its webhook is disabled at once."""
_VERDICT_CHARACTERS = 2000

log = structlog.get_logger()


@dataclass(frozen=True)
class Claimed:
    """A delivery that is the caller's to send now."""

    id: str
    webhook_id: str
    owner: str
    event: str
    url: str
    secret: str
    body: str
    fence: int
    attempts: int
    """With this one."""
    at: float
    """The time that is signed."""
    job_id: str | None = None
    traceparent: str | None = None
    """Of the job, where spans are sent."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt."""

    status: int | None
    """Of the answer; None: there was none."""
    problem: str | None
    """Why it failed, in a sentence; None: it was delivered."""


# -- what a job's end makes -----------------------------------------------------------------------


def owe(
    session: Session, owner: str, job_id: str, job_type: str, status: JobStatus, error: dict[str, Any] | None
) -> None:
    """Owe each webhook that wants it the notice of a job's end, in the transaction that ends the job."""
    if job_type in UNLISTED:
        return
    event = f"job.{status}"
    # Locked as the new rows' foreign key locks it: one that is being deleted now is waited for, and then not there.
    wanting = (
        select(Webhook.id, Webhook.events, db_now().label("now"))
        .where(Webhook.owner == owner, Webhook.disabled_at.is_(None))
        .order_by(Webhook.id)
        .with_for_update(read=True, key_share=True)
    )
    rows = [row for row in session.execute(wanting).all() if event in row.events]
    if not rows:
        return
    data: dict[str, Any] = {"id": job_id, "type": job_type, "status": status, "url": f"/v1/jobs/{job_id}"}
    if status == "succeeded":
        verdict = session.scalar(select(Job.outcome["verdict"].as_string()).where(Job.id == job_id))
        data |= {"verdict": verdict[:_VERDICT_CHARACTERS]} if verdict else {}
    if error is not None:
        data["error"] = {name: str(error.get(name, ""))[:200] for name in ("code", "title")}
    session.add_all(owed(row.id, job_id, event, row.now, data) for row in rows)


def owed(webhook_id: str, job_id: str | None, event: str, now: float, data: dict[str, Any]) -> WebhookDelivery:
    """A notice to a webhook, to be added by the caller."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = json.dumps({"type": event, "timestamp": at, "data": data}, separators=(",", ":"))
    return WebhookDelivery(id=new_id("dlv"), webhook_id=webhook_id, job_id=job_id, event=event, body=body)


# -- sending --------------------------------------------------------------------------------------

_IS_DUE = and_(
    WebhookDelivery.status == "pending",
    WebhookDelivery.next_at <= db_now(),
    or_(Webhook.disabled_at.is_(None), WebhookDelivery.event == TEST),
)
"""WHERE clause over deliveries joined with their webhooks. A disabled one is owed tests alone; the rest waits."""
_OWED = select(WebhookDelivery.webhook_id).join(Webhook, Webhook.id == WebhookDelivery.webhook_id).where(_IS_DUE)
_DUE = (  # asked every second, and quicker asked than built
    select(Webhook.id, Webhook.owner, Webhook.failing_since)
    .join(Owner, Owner.id == Webhook.owner)
    .where(Webhook.id.in_(_OWED), Owner.disabled_at.is_(None))
)


def due(session: Session) -> Sequence[tuple[str, str, bool]]:
    """The webhooks that something can be sent to now: id, owner, whether the last attempt failed."""
    return [(row.id, row.owner, row.failing_since is not None) for row in session.execute(_DUE)]


def claim(session: Session, webhook_id: str, most: int) -> list[Claimed]:
    """Take up to so many of a webhook's deliveries that are due, for `CLAIM_S`; others pass over them."""
    webhook = session.get(Webhook, webhook_id)
    if webhook is None:
        return []
    ids = session.scalars(
        select(WebhookDelivery.id)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.webhook_id == webhook_id, _IS_DUE)
        .order_by(WebhookDelivery.next_at, WebhookDelivery.id)
        .limit(most)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    ).all()
    rows = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(
            fence=WebhookDelivery.fence + 1,
            attempts=WebhookDelivery.attempts + 1,
            attempted_at=db_now(),
            next_at=db_now() + CLAIM_S,
        )
        .returning(
            WebhookDelivery.id,
            WebhookDelivery.event,
            WebhookDelivery.body,
            WebhookDelivery.fence,
            WebhookDelivery.attempts,
            WebhookDelivery.attempted_at,
            WebhookDelivery.job_id,
        )
    ).all()
    traces: dict[str | None, str | None] = {}
    if tracing.on():
        jobs = select(Job.id, Job.traceparent).where(Job.id.in_({row.job_id for row in rows if row.job_id}))
        traces = {job.id: job.traceparent for job in session.execute(jobs)}
    return [
        Claimed(
            id=row.id,
            webhook_id=webhook_id,
            owner=webhook.owner,
            event=row.event,
            url=webhook.url,
            secret=webhook.secret,
            body=row.body,
            fence=row.fence,
            attempts=row.attempts,
            at=row.attempted_at,
            job_id=row.job_id,
            traceparent=traces.get(row.job_id),
        )
        for row in rows
    ]


def settle(session: Session, claimed: Claimed, outcome: Outcome) -> DeliveryStatus | None:
    """Write down what became of an attempt, and when the next one is.

    Returns:
        The delivery's status; None: it is not the caller's any more, and nothing was written.
    """
    # The webhook before its delivery, as whoever deletes it locks them.
    webhook = session.scalar(select(Webhook).where(Webhook.id == claimed.webhook_id).with_for_update(key_share=True))
    if webhook is None:
        return None
    now = session.scalar(select(db_now())) or 0.0
    status: DeliveryStatus = "delivered" if outcome.problem is None else "pending"
    if status == "pending" and (claimed.event == TEST or claimed.attempts > len(RETRY_S)):
        status = "failed"
    values: dict[str, Any] = {"status": status, "response_status": outcome.status, "problem": outcome.problem}
    if status == "pending":
        pause = RETRY_S[claimed.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        values["next_at"] = db_now() + pause
    else:
        values["ended_at"] = db_now()
    mine = (WebhookDelivery.id == claimed.id, WebhookDelivery.fence == claimed.fence)
    written = update(WebhookDelivery).where(*mine, WebhookDelivery.status == "pending").values(values)
    if session.execute(written.returning(WebhookDelivery.id)).first() is None:
        return None
    if outcome.problem is None:
        webhook.failing_since = webhook.disabled_at = webhook.disabled_reason = None
    elif claimed.event != TEST:
        _note_failure(webhook, outcome, now, for_good=status == "failed")
    return status


def sign(secret: str, delivery_id: str, timestamp: int, body: str) -> str:
    """The header `webhook-signature` of the Standard Webhooks scheme."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, f"{delivery_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _note_failure(webhook: Webhook, outcome: Outcome, now: float, *, for_good: bool) -> None:
    webhook.failing_since = webhook.failing_since or now
    too_long = for_good and now - webhook.failing_since >= GIVE_UP_S
    if webhook.disabled_at is not None or not (too_long or outcome.status == GONE):
        return
    since = datetime.fromtimestamp(webhook.failing_since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    why = f"nothing was delivered since {since}" if too_long else "the receiver says that it is gone"
    webhook.disabled_at = now
    webhook.disabled_reason = f"{why[0].upper()}{why[1:]} ({outcome.problem})."
    log.warning("webhook_disabled", webhook=webhook.id, owner=webhook.owner, reason=webhook.disabled_reason)
