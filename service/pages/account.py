"""What an owner may use, and has used; how long their things are kept; their keys and webhooks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from pared.errors import Conflict
from pared.report_page import numbers
from pared.state import webhooks
from pared.state.deliveries import TEST
from pared.state.keys import list_keys
from pared.state.limits import Limit, usage
from pared.state.owners import LOCAL_OWNER
from pared.state.tables import ApiKey, Owner, Webhook, WebhookDelivery
from service.dependencies import CallerOf, PartsOf, check_id
from service.pages.site import render, see_other
from service.pages.words import ago, moment

router = APIRouter(include_in_schema=False)

_MOST_WEBHOOKS = 100
_ENDS = {"job.succeeded": "succeeded", "job.failed": "failed", "job.canceled": "was canceled"}


@dataclass(frozen=True)
class LimitRow:
    """A limit, in words."""

    meaning: str
    of: str
    used: str
    most: str
    share: float | None
    """How much of it is used up, 0 to 1; None: that is not counted, or there is no limit."""


@dataclass(frozen=True)
class KeyRow:
    """A key, in words."""

    name: str
    id: str
    scopes: str
    made: str
    last_used: str
    state: str
    here: bool
    """Whether this browser uses it."""


@dataclass(frozen=True)
class WebhookRow:
    """A webhook, in words."""

    url: str
    id: str
    description: str
    events: str
    tone: str
    state: str
    why: str
    last: str
    """What became of the newest notice."""
    tested: bool
    """Whether a test is under way."""


@router.get("/account")
def account(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """The limits, keys and webhooks of the owner."""
    with parts.sessions() as session:
        rows = [_limit_row(*each) for each in usage(session, caller.owner, parts.settings)]
        owner = session.get(Owner, caller.owner)
        hooks = _webhook_rows(session, caller.owner)
    own_days = None if owner is None else owner.retention_days
    keys = list_keys(parts.sessions, caller.owner, all_=True) if caller.owner != LOCAL_OWNER else []
    context = {
        "name": caller.owner if owner is None else owner.name,
        "counted": [row for row in rows if row.used],
        "others": [row for row in rows if not row.used],
        "days": parts.settings.retention_days if own_days is None else own_days,
        "keys": _key_rows(keys, caller.key_id),
        "local": caller.owner == LOCAL_OWNER,
        "webhooks": hooks,
        "may_test": "submit" in caller.scopes,
    }
    return render(request, "account.html.j2", context)


@router.post("/account/webhooks/{webhook_id}/test")
def test_webhook(parts: PartsOf, caller: CallerOf, webhook_id: str) -> Response:
    """Send a webhook a test, unless one is under way, and show what is known of it."""
    check_id(webhook_id, "whk")
    with contextlib.suppress(Conflict):
        webhooks.send_test(parts.sessions, caller.owner, webhook_id)
    parts.webhooks.wake()
    return see_other("/account")


def _limit_row(limit: Limit, value: float | None, used: int | None) -> LimitRow:
    share = min(1.0, used / value) if used is not None and value else None
    most = "no limit" if value is None else _amount(value, limit.unit)
    return LimitRow(limit.meaning, limit.of, "" if used is None else _amount(used, limit.unit), most, share)


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return numbers.size(value)
    if unit == "seconds":
        return numbers.seconds(value)
    return f"{value:,g}" + (" a second" if unit == "requests a second" else "")  # what is counted, its meaning says


def _key_rows(keys: Sequence[ApiKey], here: str | None) -> list[KeyRow]:
    now = time.time()
    rows = []
    for key in reversed(keys):
        if key.revoked_at is not None:
            state = f"revoked {moment(key.revoked_at)}"
        elif key.expires_at is not None:
            state = f"{'expired' if key.expires_at <= now else 'works until'} {moment(key.expires_at)}"
        else:
            state = "works until it is revoked"
        scopes = ", ".join(key.scopes.split())
        used = ago(key.last_used_at, now)
        rows.append(KeyRow(key.name, key.id, scopes, moment(key.created_at), used, state, key.id == here))
    return rows


def _webhook_rows(session: Session, owner: str) -> list[WebhookRow]:
    newest_first = webhooks.webhooks_of(owner).order_by(Webhook.id.desc()).limit(_MOST_WEBHOOKS)
    now, rows = time.time(), []
    for hook in session.scalars(newest_first):
        last = session.scalar(webhooks.deliveries_of(hook.id).order_by(WebhookDelivery.id.desc()).limit(1))
        if hook.disabled_at is not None:
            tone, state, why = "bad", f"disabled {moment(hook.disabled_at)}", hook.disabled_reason or ""
        elif hook.failing_since is not None:
            tone, state, why = "bad", f"fails since {moment(hook.failing_since)}", "It is tried again for a day."
        else:
            tone, state, why = "good", "works" if last is not None else "nothing was sent yet", ""
        events = ", ".join(_ENDS.get(name, name) for name in hook.events)
        testing = last is not None and last.event == TEST and last.status == "pending"
        text = hook.description or ""
        rows.append(WebhookRow(hook.url, hook.id, text, events, tone, state, why, _became(last, now), testing))
    return rows


def _became(delivery: WebhookDelivery | None, now: float) -> str:
    if delivery is None:
        return ""
    what = "a test" if delivery.job_id is None else f"of a job that {_ENDS.get(delivery.event, 'ended')}"
    if delivery.attempted_at is None:
        return f"{what}: on its way"
    when = ago(delivery.attempted_at, now)
    if delivery.status == "delivered":
        return f"{what}: delivered {when}"
    words = "not taken yet" if delivery.status == "pending" else "not delivered"
    return f"{what}: {words}, tried {when}. {delivery.problem or 'The answer is awaited'}."
