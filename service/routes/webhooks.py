"""Webhooks: where owners are told of the ends of their jobs, and what was sent there."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic import ValidationError as Invalid

from pared.errors import ValidationError
from pared.state import webhooks
from pared.state.deliveries import EVENTS, EventName
from pared.state.tables import Webhook, WebhookDelivery
from pared.statuses import DeliveryStatus
from service.checked_routes import CheckedRoute
from service.dependencies import Owner, PartsOf, check_id
from service.json_bodies import json_body, object_in
from service.openapi import JOB_ID, answers, page
from service.pagination import After, Limit, json_page
from service.problems import invalid
from service.public_addresses import NotReachable
from service.receivers import checked_url
from service.schemas import Links, Page, timestamp, timestamp_or_none

router = APIRouter(tags=["webhooks"], route_class=CheckedRoute)

WEBHOOK_ID = "whk_01K9Q6A1B3D5F7H9K2M4P6R8T0"
DELIVERY_ID = "dlv_01K9Q6B2C4E6G8J0M3P5R7T9V1"
HERE = f"/v1/webhooks/{WEBHOOK_ID}"
ASKED = {"url": "https://ci.example.org/pared", "events": ["job.succeeded", "job.failed"], "description": "our CI"}
EXAMPLE = ASKED | {
    "id": WEBHOOK_ID,
    "created_at": "2026-01-15T09:00:00.000Z",
    "failing_since": None,
    "disabled_at": None,
    "disabled_reason": None,
    "links": {"self": HERE},
}
EXAMPLE_DELIVERY = {
    "id": DELIVERY_ID,
    "event": "job.succeeded",
    "job": JOB_ID,
    "status": "delivered",
    "attempts": 2,
    "created_at": "2026-01-15T09:31:10.000Z",
    "attempted_at": "2026-01-15T09:31:15.200Z",
    "next_at": None,
    "ended_at": "2026-01-15T09:31:15.300Z",
    "response_status": 204,
    "problem": None,
    "links": {"self": f"{HERE}/deliveries/{DELIVERY_ID}"},
}
EXAMPLE_PENDING = EXAMPLE_DELIVERY | {
    "status": "pending",
    "attempts": 0,
    "attempted_at": None,
    "next_at": "2026-01-15T09:31:10.000Z",
    "ended_at": None,
    "response_status": None,
}


class NewWebhook(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="Where notices are posted: https:// or http://, at a public address.")
    events: list[EventName] = Field(default=[*EVENTS], min_length=1, description="Of which ends of jobs it is told.")
    description: str | None = Field(None, max_length=200, description="A text to tell it by.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        return str(checked_url(text))


class WebhookView(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str
    events: list[EventName]
    description: str | None
    created_at: str
    failing_since: str | None = Field(description="The first failure since the last notice that was delivered.")
    disabled_at: str | None = Field(description="Since when nothing but tests is sent.")
    disabled_reason: str | None
    links: Links


class NewWebhookView(WebhookView):
    """A webhook that was just made."""

    secret: str = Field(description="With which its notices are signed. Shown this once.")


class DeliveryView(BaseModel):
    """One notice to one webhook."""

    id: str = Field(description="The header `webhook-id`, the same at every attempt.")
    event: str
    job: str | None = Field(description="Null: it is a test.")
    status: DeliveryStatus
    attempts: int = Field(description="Since it was made, or replayed last.")
    created_at: str
    attempted_at: str | None = Field(description="The last attempt.")
    next_at: str | None = Field(description="The next attempt, of one that is pending.")
    ended_at: str | None
    response_status: int | None = Field(description="Of the last attempt's answer. Null: there was none.")
    problem: str | None = Field(description="Why the last attempt failed.")
    links: Links


async def _new_webhook(request: Request, parts: PartsOf) -> NewWebhook:
    body = object_in(
        await json_body(request, parts.settings.max_json_bytes, "a webhook"),
        'A webhook is a JSON object, such as {"url": "https://…"}.',
    )
    try:
        return NewWebhook.model_validate(body)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), body, {}) from None


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": NewWebhook.model_json_schema(), "example": ASKED}},
    }
}


@router.post(
    "/v1/webhooks",
    status_code=201,
    response_model=NewWebhookView,
    summary="Make a webhook",
    description="From now on the ends of your jobs are posted to its URL, signed with the secret that is in this "
    "answer and nowhere else ([Standard Webhooks](https://www.standardwebhooks.com): the headers `webhook-id`, "
    "`webhook-timestamp` and `webhook-signature`). An answer with a status of 2xx within ten seconds is a delivery; "
    "redirects are not followed. Anything else is tried again for a day. A notice may come twice, with the same "
    "`webhook-id`. Loopback and private addresses are refused unless whoever runs this server allows them.",
    openapi_extra=_BODY,
    responses=answers(201, EXAMPLE | {"secret": "whsec_…"}, 413),
)
async def post_webhook(
    response: Response, parts: PartsOf, owner: Owner, asked: Annotated[NewWebhook, Depends(_new_webhook)]
) -> NewWebhookView:
    """Check the address, make the webhook, answer with its secret."""
    url = checked_url(asked.url)
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        await parts.resolver.addresses_of(url.raw_host.decode(), port)
    except NotReachable as error:
        raise ValidationError(f"/url {error}.", errors=[{"pointer": "/url", "detail": str(error)}]) from None
    made = await run_in_threadpool(
        webhooks.create, parts.sessions, owner, asked.url, asked.events, asked.description, parts.settings
    )
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    return NewWebhookView(**_webhook(made), secret=made.secret)


@router.get(
    "/v1/webhooks",
    response_model=Page[WebhookView],
    summary="List webhooks",
    description="Newest first.",
    responses=answers(200, page(EXAMPLE)),
)
def get_webhooks(parts: PartsOf, owner: Owner, after: After = None, limit: Limit = 20) -> Response:
    """A page of the owner's."""
    with parts.sessions() as session:
        query = webhooks.webhooks_of(owner)
        return json_page(
            session, query, Webhook.id, after, limit, lambda rows: [WebhookView(**_webhook(row)) for row in rows]
        )


@router.get(
    "/v1/webhooks/{webhook_id}",
    response_model=WebhookView,
    summary="Look at a webhook",
    description="One that fails for days is disabled, and `disabled_reason` says why; a test that is delivered enables "
    "it again, and what waited is sent.",
    responses=answers(200, EXAMPLE, 404),
)
def get_webhook(parts: PartsOf, owner: Owner, webhook_id: str) -> WebhookView:
    """One of the owner's."""
    check_id(webhook_id, "whk")
    with parts.sessions() as session:
        return WebhookView(**_webhook(webhooks.find_webhook(session, owner, webhook_id)))


@router.delete(
    "/v1/webhooks/{webhook_id}",
    status_code=204,
    summary="Delete a webhook",
    description="Nothing more is sent to it, and its deliveries are forgotten. An attempt under way may still arrive.",
    responses=answers(204, None, 404),
)
def delete_webhook(parts: PartsOf, owner: Owner, webhook_id: str) -> None:
    """Delete."""
    check_id(webhook_id, "whk")
    webhooks.delete(parts.sessions, owner, webhook_id)


@router.post(
    "/v1/webhooks/{webhook_id}/test",
    status_code=202,
    response_model=DeliveryView,
    summary="Test a webhook",
    description="Sends a notice of the type `webhook.test`, once. Look at the delivery to see what became of it. "
    "Delivered, it enables a webhook that was disabled. 409 while the test before is not over.",
    responses=answers(202, EXAMPLE_PENDING | {"event": "webhook.test", "job": None}, 404, 409),
)
def post_test(response: Response, parts: PartsOf, owner: Owner, webhook_id: str) -> DeliveryView:
    """Owe it a test, and have it sent."""
    check_id(webhook_id, "whk")
    return _sent(response, parts, webhooks.send_test(parts.sessions, owner, webhook_id))


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries",
    response_model=Page[DeliveryView],
    summary="List what was sent to a webhook",
    description="Newest first. Deliveries are kept for 30 days, and no longer than their job.",
    responses=answers(200, page(EXAMPLE_DELIVERY), 404),
)
def get_deliveries(
    parts: PartsOf,
    owner: Owner,
    webhook_id: str,
    status: Annotated[DeliveryStatus | None, Query(description="Only deliveries in this state.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> Response:
    """A page of one webhook's."""
    check_id(webhook_id, "whk")
    with parts.sessions() as session:
        webhooks.find_webhook(session, owner, webhook_id)
        query = webhooks.deliveries_of(webhook_id)
        if status:
            query = query.where(WebhookDelivery.status == status)
        return json_page(session, query, WebhookDelivery.id, after, limit, lambda rows: map(_delivery, rows))


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}",
    response_model=DeliveryView,
    summary="Look at a delivery",
    description="Its status, what the receiver answered last, and when it is tried again.",
    responses=answers(200, EXAMPLE_DELIVERY, 404),
)
def get_delivery(parts: PartsOf, owner: Owner, webhook_id: str, delivery_id: str) -> DeliveryView:
    """One of a webhook's."""
    check_id(webhook_id, "whk")
    check_id(delivery_id, "dlv")
    with parts.sessions() as session:
        return _delivery(webhooks.find_delivery(session, owner, webhook_id, delivery_id))


@router.post(
    "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay",
    status_code=202,
    response_model=DeliveryView,
    summary="Send a delivery again",
    description="At once, whatever became of it, with the same `webhook-id`; if it fails, it is tried again for a day. "
    "409 where the webhook is disabled.",
    responses=answers(202, EXAMPLE_PENDING, 404, 409),
)
def post_replay(response: Response, parts: PartsOf, owner: Owner, webhook_id: str, delivery_id: str) -> DeliveryView:
    """Owe it again, and have it sent."""
    check_id(webhook_id, "whk")
    check_id(delivery_id, "dlv")
    return _sent(response, parts, webhooks.replay(parts.sessions, owner, webhook_id, delivery_id))


def _sent(response: Response, parts: PartsOf, delivery: WebhookDelivery) -> DeliveryView:
    parts.webhooks.wake()
    view = _delivery(delivery)
    response.headers["Location"] = view.links.self
    response.headers["Retry-After"] = "1"
    return view


def _webhook(row: Webhook) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "events": row.events,
        "description": row.description,
        "created_at": timestamp(row.created_at),
        "failing_since": timestamp_or_none(row.failing_since),
        "disabled_at": timestamp_or_none(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "links": Links(self=f"/v1/webhooks/{row.id}"),
    }


def _delivery(row: WebhookDelivery) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event=row.event,
        job=row.job_id,
        status=row.status,
        attempts=row.attempts,
        created_at=timestamp(row.created_at),
        attempted_at=timestamp_or_none(row.attempted_at),
        next_at=timestamp(row.next_at) if row.status == "pending" else None,
        ended_at=timestamp_or_none(row.ended_at),
        response_status=row.response_status,
        problem=row.problem,
        links=Links(self=f"/v1/webhooks/{row.webhook_id}/deliveries/{row.id}"),
    )
