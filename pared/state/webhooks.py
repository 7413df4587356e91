"""Owns webhooks: where owners are told of the ends of their jobs. What each is owed is in `pared.state.deliveries`."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound
from pared.state.deliveries import EVENTS, SECRET_PREFIX, TEST, owed
from pared.state.limits import WEBHOOKS, check_room
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Webhook, WebhookDelivery, db_now, new_id
from pared.state.turns import lock_owner


def create(
    sessions: Sessions, owner: str, url: str, events: Collection[str], description: str | None, settings: Settings
) -> Webhook:
    """Have an owner's job ends told to a URL that was checked. Its secret is shown once. Raises OverLimit."""
    with sessions.begin() as session:
        lock_owner(session, owner)
        check_room(session, owner, WEBHOOKS, settings)
        webhook = Webhook(
            id=new_id("whk"),
            owner=owner,
            url=url,
            events=[name for name in EVENTS if name in events],
            description=description,
            secret=SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode(),
        )
        session.add(webhook)
        session.flush()
        session.refresh(webhook)
    return webhook


def webhooks_of(owner: str) -> Select[Webhook]:
    """The query for an owner's webhooks."""
    return select(Webhook).where(Webhook.owner == owner)


def find_webhook(session: Session, owner: str, webhook_id: str) -> Webhook:
    """One of the owner's. Raises NotFound."""
    return _found(session.scalar(webhooks_of(owner).where(Webhook.id == webhook_id)), webhook_id)


def delete(sessions: Sessions, owner: str, webhook_id: str) -> None:
    """Forget a webhook and what it is owed. Raises NotFound."""
    with sessions.begin() as session:
        session.delete(find_webhook(session, owner, webhook_id))


def deliveries_of(webhook_id: str) -> Select[WebhookDelivery]:
    """The query for what a webhook was and is owed."""
    return select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)


def find_delivery(session: Session, owner: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """One of a webhook's. Raises NotFound."""
    find_webhook(session, owner, webhook_id)
    delivery = session.scalar(deliveries_of(webhook_id).where(WebhookDelivery.id == delivery_id))
    if delivery is None:
        raise NotFound(f"{webhook_id} has no delivery {delivery_id}; deliveries go with their job, or after 30 days.")
    return delivery


def send_test(sessions: Sessions, owner: str, webhook_id: str) -> WebhookDelivery:
    """Owe a webhook a notice of no job, which is sent once. Delivered, it enables a webhook that was disabled.

    Raises:
        NotFound: there is no such webhook.
        Conflict: the test before is not over.
    """
    with sessions.begin() as session:
        _locked(session, owner, webhook_id)
        under_way = (WebhookDelivery.event == TEST, WebhookDelivery.status == "pending")
        if session.scalar(deliveries_of(webhook_id).where(*under_way).limit(1)):
            raise Conflict("The last test of this webhook is not over. Look at its deliveries in a few seconds.")
        now = session.scalar(select(db_now())) or 0.0
        made = owed(webhook_id, None, TEST, now, {"id": webhook_id, "type": "webhook", "status": "test"})
        session.add(made)
        session.flush()
        session.refresh(made)
    return made


def replay(sessions: Sessions, owner: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Send a delivery again at once, with the same id, whatever became of it; it is tried for a day again.

    Raises:
        NotFound: there is no such delivery.
        Conflict: the webhook is disabled.
    """
    with sessions.begin() as session:
        webhook = _locked(session, owner, webhook_id)
        delivery = find_delivery(session, owner, webhook_id, delivery_id)
        if webhook.disabled_at is not None and delivery.event != TEST:
            raise Conflict(f"This webhook is disabled: {webhook.disabled_reason} A test that is delivered enables it.")
        again = update(WebhookDelivery).where(WebhookDelivery.id == delivery_id)
        session.execute(again.values(status="pending", attempts=0, next_at=db_now(), ended_at=None))
        session.refresh(delivery)
    return delivery


def _locked(session: Session, owner: str, webhook_id: str) -> Webhook:
    query = webhooks_of(owner).where(Webhook.id == webhook_id).with_for_update(key_share=True)
    return _found(session.scalar(query), webhook_id)


def _found(webhook: Webhook | None, webhook_id: str) -> Webhook:
    if webhook is None:
        raise NotFound(f"There is no webhook {webhook_id}.")
    return webhook
