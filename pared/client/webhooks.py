"""Webhooks of the API: where an owner is told of the ends of jobs, and what was sent there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from pared.client import operations
from pared.client.operations import Operation
from pared.statuses import DeliveryStatus
from pared.terminal import printable

TEST_S = 30.0
_LOOK_S = 0.2


class Webhook(BaseModel):
    """Where the ends of jobs are told, as of the last look."""

    model_config = ConfigDict(extra="allow")  # a newer service may say more than this client knows

    id: str
    url: str
    events: list[str]
    description: str | None = None
    created_at: datetime | None = None
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    secret: str | None = None
    """With which notices are signed; only of one that was just made."""

    def __str__(self) -> str:
        """One line, without the secret."""
        return printable(f"{self.id} {self.url} ({', '.join(self.events)})")


class Delivery(BaseModel):
    """One notice to one webhook, as of the last look."""

    model_config = ConfigDict(extra="allow")

    id: str
    event: str
    job: str | None = None
    status: DeliveryStatus
    attempts: int = 0
    created_at: datetime | None = None
    attempted_at: datetime | None = None
    next_at: datetime | None = None
    ended_at: datetime | None = None
    response_status: int | None = None
    problem: str | None = None

    def __str__(self) -> str:
        """One line."""
        return printable(f"{self.id} {self.event} {self.status}" + (f": {self.problem}" if self.problem else ""))


class _Webhooks:
    """The operations, whichever client carries them out."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def _add(self, url: str, events: Sequence[str] | None, description: str | None) -> Operation[Webhook]:
        asked = {"url": url, "events": None if events is None else list(events), "description": description}
        body = {name: value for name, value in asked.items() if value is not None}
        # Never sent twice: there would be two.
        request = operations.Request("POST", "/v1/webhooks", json=body)
        answer = yield from operations.call(request, patience_s=0.0)
        return Webhook.model_validate(answer.json())

    def _get(self, webhook_id: str) -> Operation[Webhook]:
        return Webhook.model_validate((yield from operations.get_json(_path(webhook_id))))

    def _delete(self, webhook_id: str) -> Operation[None]:
        yield from operations.call(operations.Request("DELETE", _path(webhook_id)))

    def _test(self, webhook_id: str, timeout: float) -> Operation[Delivery]:
        answer = yield from operations.call(operations.Request("POST", f"{_path(webhook_id)}/test"))
        delivery = Delivery.model_validate(answer.json())
        give_up_at = time.monotonic() + timeout
        while delivery.status == "pending":
            if time.monotonic() >= give_up_at:
                raise TimeoutError(f"the test {delivery.id} is still being sent")
            yield operations.Sleep(_LOOK_S)
            row = yield from operations.get_json(_path(webhook_id, delivery.id))
            delivery = Delivery.model_validate(row)
        return delivery

    def _deliveries(self, webhook_id: str, status: str | None) -> Operation[None]:
        return operations.pages(f"{_path(webhook_id)}/deliveries", {"status": status} if status else {})

    def _replay(self, webhook_id: str, delivery_id: str) -> Operation[Delivery]:
        request = operations.Request("POST", f"{_path(webhook_id, delivery_id)}/replay")
        answer = yield from operations.call(request)
        return Delivery.model_validate(answer.json())


class Webhooks(_Webhooks):
    """`client.webhooks`."""

    def add(self, url: str, events: Sequence[str] | None = None, description: str | None = None) -> Webhook:
        """Have the ends of your jobs posted to a URL.

        Args:
            url: https:// or http://, at a public address.
            events: of `job.succeeded`, `job.failed`, `job.canceled`; None: all of them.
            description: a text to tell it by.

        Returns:
            The webhook, with the secret that its notices are signed with: it is shown this once.
        """
        made: Webhook = self._client.run(self._add(url, events, description))
        return made

    def get(self, webhook_id: str) -> Webhook:
        """One of them, by id."""
        found: Webhook = self._client.run(self._get(webhook_id))
        return found

    def list(self) -> Iterator[Webhook]:
        """All of them, newest first."""
        for row in self._client.iterate(operations.pages("/v1/webhooks", {})):
            yield Webhook.model_validate(row)

    def delete(self, webhook_id: str) -> None:
        """Delete one, with its deliveries."""
        self._client.run(self._delete(webhook_id))

    def test(self, webhook_id: str, timeout: float = TEST_S) -> Delivery:
        """Send a notice of the type `webhook.test`, and wait for what becomes of it.

        Raises:
            TimeoutError: it is still being sent after `timeout` seconds.
        """
        sent: Delivery = self._client.run(self._test(webhook_id, timeout))
        return sent

    def deliveries(self, webhook_id: str, status: DeliveryStatus | None = None) -> Iterator[Delivery]:
        """What was sent to one, newest first, fetched page by page as you iterate."""
        for row in self._client.iterate(self._deliveries(webhook_id, status)):
            yield Delivery.model_validate(row)

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again at once, with the same id."""
        again: Delivery = self._client.run(self._replay(webhook_id, delivery_id))
        return again


class AsyncWebhooks(_Webhooks):
    """As `Webhooks`, awaited."""

    async def add(self, url: str, events: Sequence[str] | None = None, description: str | None = None) -> Webhook:
        """As `Webhooks.add`."""
        made: Webhook = await self._client.run(self._add(url, events, description))
        return made

    async def get(self, webhook_id: str) -> Webhook:
        """As `Webhooks.get`."""
        found: Webhook = await self._client.run(self._get(webhook_id))
        return found

    async def list(self) -> AsyncIterator[Webhook]:
        """As `Webhooks.list`."""
        async for row in self._client.iterate(operations.pages("/v1/webhooks", {})):
            yield Webhook.model_validate(row)

    async def delete(self, webhook_id: str) -> None:
        """As `Webhooks.delete`."""
        await self._client.run(self._delete(webhook_id))

    async def test(self, webhook_id: str, timeout: float = TEST_S) -> Delivery:
        """As `Webhooks.test`."""
        sent: Delivery = await self._client.run(self._test(webhook_id, timeout))
        return sent

    async def deliveries(self, webhook_id: str, status: DeliveryStatus | None = None) -> AsyncIterator[Delivery]:
        """As `Webhooks.deliveries`."""
        async for row in self._client.iterate(self._deliveries(webhook_id, status)):
            yield Delivery.model_validate(row)

    async def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """As `Webhooks.replay`."""
        again: Delivery = await self._client.run(self._replay(webhook_id, delivery_id))
        return again


def _path(webhook_id: str, delivery_id: str | None = None) -> str:
    here = f"/v1/webhooks/{operations.segment(webhook_id)}"
    return here if delivery_id is None else f"{here}/deliveries/{operations.segment(delivery_id)}"
