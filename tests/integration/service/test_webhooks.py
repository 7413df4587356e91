"""Webhooks over HTTP, from the client and from the command line, with a real receiver that checks signatures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError
from typer.testing import CliRunner

import pared
from pared.cli.app import app
from pared.state.audit import entries
from pared.state.deliveries import sign
from pared.state.keys import create_key
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for
from tests.support.receiver import Receiver


@pytest.fixture(scope="module")
def open_to_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("webhooks")
    with serving(folder, require_keys=True, allow_private_webhooks=True, max_webhooks=3) as api:
        yield api


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.listen()
    yield receiver
    receiver.close()


@pytest.fixture
def mine(open_to_private: Api) -> dict[str, str]:
    return {"x-api-key": create_key(open_to_private.parts.sessions, "ann")}


def made(api: Api, headers: dict[str, str], **asked: Any) -> dict[str, Any]:
    answer = api.post("/v1/webhooks", json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == answer.json()["links"]["self"]
    return answer.json()


def ended(api: Api, path: str, headers: dict[str, str]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        row = api.get(path, headers=headers).json()
        return None if row["status"] == "pending" else row

    return wait_for(look, "the delivery has ended", every_s=0.05)


def test_the_end_of_a_job_is_posted_signed_and_can_be_sent_again(open_to_private: Api, receiver: Receiver, mine):
    api = open_to_private
    hook = made(api, mine, url=f"{receiver.url}/well?a=b", events=["job.succeeded"], description="our CI")
    receiver.secrets["/well?a=b"] = hook["secret"]
    model = api.post("/v1/models", content=b"m", headers=mine).json()["id"]
    spec = {"type": "prune", "model": model, "amount": 0.5}
    job = api.post("/v1/jobs", json=spec, headers=mine).json()["id"]
    api.finish(job, report={"verdict": "4.0× smaller."})
    deliveries = f"/v1/webhooks/{hook['id']}/deliveries"
    [row] = wait_for(lambda: api.get(f"{deliveries}?status=delivered", headers=mine).json()["data"], "it is delivered")
    assert (row["job"], row["event"], row["attempts"], row["response_status"]) == (job, "job.succeeded", 1, 204)
    [body] = receiver.taken[row["id"]]
    told = json.loads(body)
    assert told["type"] == "job.succeeded"
    assert told["data"] == {
        "id": job,
        "type": "prune",
        "status": "succeeded",
        "url": f"/v1/jobs/{job}",
        "verdict": "4.0× smaller.",
    }

    again = api.post(f"{deliveries}/{row['id']}/replay", headers=mine)
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    ended(api, again.headers["location"], mine)
    assert receiver.taken[row["id"]] == [body, body]

    test = api.post(f"/v1/webhooks/{hook['id']}/test", headers=mine)
    assert test.status_code == 202
    assert ended(api, test.headers["location"], mine)["status"] == "delivered"
    with api.parts.sessions() as session:
        actions = {(row.action, row.subject) for row in entries(session)}
    assert ("POST /v1/webhooks", hook["id"]) in actions
    assert api.delete(f"/v1/webhooks/{hook['id']}", headers=mine).status_code == 204
    assert api.get(deliveries, headers=mine).status_code == 404
    with api.parts.sessions() as session:
        assert entries(session)[0].action == "DELETE /v1/webhooks/{webhook_id}"


def test_no_owner_sees_anothers_webhooks_or_their_secrets_again(open_to_private: Api, receiver: Receiver, mine):
    api = open_to_private
    hook = made(api, mine, url=f"{receiver.url}/well")
    here = f"/v1/webhooks/{hook['id']}"
    assert hook["events"] == ["job.succeeded", "job.failed", "job.canceled"]
    sent = api.post(f"{here}/test", headers=mine).json()["links"]["self"]
    other = {"x-api-key": create_key(api.parts.sessions, "bob")}
    assert api.get("/v1/webhooks", headers=other).json()["data"] == []
    for method, path in [
        ("GET", here),
        ("DELETE", here),
        ("POST", f"{here}/test"),
        ("GET", f"{here}/deliveries"),
        ("GET", sent),
        ("POST", f"{sent}/replay"),
    ]:
        assert api.request(method, path, headers=other).status_code == 404, (method, path)
    for path in ("/v1/webhooks", here, f"{here}/deliveries", sent):
        answer = api.get(path, headers=mine)
        assert answer.status_code == 200, path
        assert hook["secret"] not in answer.text
    for _ in range(2):
        made(api, mine, url=f"{receiver.url}/well")
    over = api.post("/v1/webhooks", json={"url": receiver.url}, headers=mine)
    assert (over.status_code, over.json()["limit"]) == (429, "webhooks")
    used = {row["name"]: row["used"] for row in api.get("/v1/limits", headers=mine).json()["limits"]}
    assert used["webhooks"] == 3


@pytest.mark.parametrize(
    ("asked", "pointer", "says"),
    [
        ({"url": "http://127.0.0.1:8000/"}, "/url", "not a public address"),
        ({"url": "http://localhost/"}, "/url", "PARED_ALLOW_PRIVATE_WEBHOOKS=1"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/url", "not a public address"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "/url", "not a public address"),
        ({"url": "http://2130706433/"}, "/url", "not a public address"),
        ({"url": "https://nobody.invalid/"}, "/url", "has no address"),
        ({"url": "ftp://example.org/"}, "/url", "must begin with https:// or http://"),
        ({"url": "http://ann:word@8.8.8.8/"}, "/url", "user name"),
        ({"url": 7}, "/url", "must be a valid string"),
        ({}, "/url", "is required"),
        ({"url": "http://8.8.8.8/", "events": ["job.started"]}, "/events/0", "job.succeeded"),
        ({"url": "http://8.8.8.8/", "events": []}, "/events", "at least 1"),
        ({"url": "http://8.8.8.8/", "secret": "mine"}, "/secret", "is not a known field"),
        ({"url": "http://8.8.8.8/", "description": "x" * 201}, "/description", "at most 200"),
        ([], "", "must be an object"),
    ],
)
def test_what_is_wrong_with_a_webhook_is_pointed_at(api: Api, asked: Any, pointer: str, says: str):
    answer = api.post("/v1/webhooks", json=asked)
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert says in error["detail"]
    assert api.get("/v1/webhooks").json()["data"] == []


def test_the_signature_is_that_of_the_standard(monkeypatch: pytest.MonkeyPatch):
    secret, body, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", '{"test": 2432232314}', 1_614_265_330
    known = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, body) == known, "as the scheme's own example"
    headers = {"webhook-id": "dlv_1", "webhook-timestamp": str(int(time.time()))}
    headers["webhook-signature"] = sign(secret, "dlv_1", int(headers["webhook-timestamp"]), body)
    assert Verifier(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body + " ", headers)


PAGE = (Path(__file__).parents[3] / "docs/webhooks.md").read_text()


def signed(body: bytes, *, at: int | None = None) -> tuple[str, dict[str, str], bytes]:
    """A secret, headers and a body, as a receiver has them."""
    secret, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", at or int(time.time())
    signature = sign(secret, "dlv_1", at, body.decode())
    headers = {"webhook-id": "dlv_1", "webhook-timestamp": str(at), "webhook-signature": f"v1,bm8= {signature}"}
    return secret, headers, body


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_python_of_the_page_takes_what_is_signed_and_nothing_else(code: str):
    names: dict[str, Any] = {}
    exec(code, names)
    secret, headers, body = signed(b'{"type":"webhook.test"}')
    assert names["notice_of"](secret, headers, body) == {"type": "webhook.test"}
    for wrong in (
        (secret, headers, b"{}"),
        (secret[:-4] + "BBBB", headers, body),
        signed(body, at=int(time.time()) - 400),
    ):
        with pytest.raises((ValueError, WebhookVerificationError)):
            names["notice_of"](*wrong)


def test_the_javascript_of_the_page_takes_what_is_signed_and_nothing_else():
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    [code] = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)
    secret, headers, body = signed(b'{"type":"webhook.test"}')
    cases = [(secret, headers, body), (secret, headers, b"{}"), signed(body, at=int(time.time()) - 400)]
    asked = json.dumps([(secret, headers, body.decode()) for secret, headers, body in cases])
    code += f"for (const [s, h, b] of {asked}) try {{ console.log(noticeOf(s, h, Buffer.from(b)).type) }} "
    code += "catch (error) { console.log(error.message) }"
    printed = subprocess.run(["node", "-e", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert printed == ["webhook.test", "the signature is not the service's", "the notice is old"]


def test_the_command_line_makes_tries_lists_replays_and_removes_them(
    open_to_private: Api, receiver: Receiver, mine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PARED_URL", f"http://127.0.0.1:{open_to_private.parts.settings.port}")
    monkeypatch.setenv("PARED_API_KEY", mine["x-api-key"])

    def run(line: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["webhooks", *line.split()])
        assert result.exit_code == code, (result.output, result.exception)
        # The server logs in this process too.
        return "\n".join(line for line in result.stdout.splitlines() if not line.startswith('{"'))

    hook, secret = run(f"add {receiver.url}/well --event job.failed --description CI").split()
    assert secret.startswith("whsec_")
    receiver.secrets["/well"] = secret
    listed = run("ls")
    assert hook in listed
    assert "works" in listed
    assert secret not in listed + run("ls --json")
    assert run("ls --quiet") == hook
    assert "delivered" in run(f"test {hook}")
    [sent] = json.loads(run(f"deliveries {hook} --json"))
    assert "webhook.test" in run(f"deliveries {hook} --status delivered")
    assert run(f"deliveries {hook} --quiet") == sent["id"]
    assert sent["id"] in run(f"replay {hook} {sent['id']}")
    wait_for(lambda: len(receiver.taken[sent["id"]]) == 2, "it came again")
    receiver.close()
    assert json.loads(run(f"test {hook} --json", 1))["problem"].startswith("No connection")
    assert run(f"rm {hook}").split() == ["deleted", hook]
    assert json.loads(run("ls --json")) == []


def test_the_async_client_has_the_same(open_to_private: Api, receiver: Receiver, mine):
    async def use() -> SimpleNamespace:
        url = f"http://127.0.0.1:{open_to_private.parts.settings.port}"
        async with pared.AsyncClient(url, mine["x-api-key"]) as client:
            hook = await client.webhooks.add(f"{receiver.url}/well", ["job.failed"], "CI")
            assert (await client.webhooks.get(hook.id)).secret is None
            sent = await client.webhooks.test(hook.id)
            again = await client.webhooks.replay(hook.id, sent.id)
            assert [row.id async for row in client.webhooks.deliveries(hook.id)] == [sent.id]
            assert [row.id async for row in client.webhooks.list()] == [hook.id]
            await client.webhooks.delete(hook.id)
            return SimpleNamespace(hook=hook, sent=sent, again=again)

    done = anyio.run(use)
    assert (done.sent.status, done.again.id) == ("delivered", done.sent.id)
    assert done.hook.secret not in str(done.hook)


def test_a_lost_answer_makes_no_second_webhook(receiver: Receiver):
    receiver.close()
    with pared.Client(receiver.url, "pared_x") as client:
        client._answered = True  # it was there a moment ago
        tries = []
        client._http.event_hooks["request"] = [tries.append]
        with pytest.raises((pared.client.ServerUnreachable, httpx.TransportError)):
            client.webhooks.add("https://example.org/")
    assert len(tries) == 1
