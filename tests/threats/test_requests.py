"""Hostile requests: without a key, for another owner's things, with paths for names, with addresses to be asked."""

from __future__ import annotations

import base64
import http.client
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from pared.state import webhooks
from pared.state.deliveries import EVENTS
from pared.state.keys import add_key, caller_of, create_key, revoke_key
from pared.state.owners import create_owner
from pared.state.tables import WebhookDelivery, new_id
from service.dependencies import ADMIN_PATH, METRICS_PATH
from tests.integration.service.conftest import Api, serving
from tests.support.campaign import counted

ASKED_BY_NOBODY = {"/healthz", "/readyz"}
"""What probes ask, without a key."""
CONTENT = b"of ann alone"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("threats")
    (folder / "secret.txt").write_text(SECRET)
    unlimited = {"max_requests_per_s": 0, "max_inspecting_uploads": 0, "max_webhooks": 0}
    with serving(folder / "data", require_keys=True, **unlimited) as api:
        yield api


@pytest.fixture(scope="module")
def keys(api: Api) -> dict[str, dict[str, str]]:
    """Of two owners, and some that do not work."""
    sessions = api.parts.sessions
    revoked = create_key(sessions, "revoked")
    revoke_key(sessions, caller_of(sessions, revoked).key_id)
    past = create_owner(sessions, "past")
    expired = add_key(sessions, past.id, "expired", valid_s=-1).secret
    ann = create_key(sessions, "ann")
    return {
        "ann": {"x-api-key": ann},
        "bob": {"x-api-key": create_key(sessions, "bob")},
        "none": {},
        "made up": {"x-api-key": "pared_" + "0" * 43},
        "revoked": {"authorization": f"Bearer {revoked}"},
        "expired": {"x-api-key": expired},
        "empty": {"x-api-key": ""},
        "cut off": {"x-api-key": ann[:-1]},
        "longer": {"x-api-key": ann + "0"},
        "of other case": {"x-api-key": ann.swapcase()},
        "a digest": {"x-api-key": "0" * 64},
        "another scheme": {"authorization": f"Basic {base64.b64encode(f'{ann}:'.encode()).decode()}"},
        "in a cookie": {"cookie": f"x-api-key={ann}"},
        "SQL": {"x-api-key": "' OR 1=1 --"},
    }


@pytest.fixture(scope="module")
def anns(api: Api, keys: dict[str, dict[str, str]]) -> dict[str, str]:
    """Ann's things, by the names that they have in paths."""
    made = made_by(api, keys["ann"], CONTENT)
    owner = caller_of(api.parts.sessions, keys["ann"]["x-api-key"])
    return made | {"owner_id": owner.owner, "key_id": str(owner.key_id)}


def made_by(api: Api, key: dict[str, str], content: bytes) -> dict[str, str]:
    """One of each thing that an owner may have."""
    model = api.post("/v1/models", content=content, headers=key).json()
    dataset = api.post("/v1/datasets", content=content, headers=key).json()["id"]
    spec = {"type": "prune", "model": model["id"], "amount": 0.5}
    job = api.post("/v1/jobs", json=spec, headers=key).json()["id"]
    api.finish(job, {"model.pt": content})
    plan = api.post("/v1/jobs:plan", json=spec, headers=key | {"prefer": "wait=0"})
    upload = api.post("/v1/uploads", headers=key | {"upload-length": "5", "upload-metadata": "kind bW9kZWw="}).json()
    # At an address that the server does not ask.
    sessions, owner = api.parts.sessions, caller_of(api.parts.sessions, key["x-api-key"]).owner
    webhook = webhooks.create(sessions, owner, "http://127.0.0.1:9/", EVENTS, None, api.parts.settings).id
    with sessions.begin() as session:
        delivery = WebhookDelivery(
            id=new_id("dlv"), webhook_id=webhook, event="job.failed", body="{}", status="delivered"
        )
        session.add(delivery)
    return {
        "webhook_id": webhook,
        "delivery_id": delivery.id,
        "model_id": model["id"],
        "dataset_id": dataset,
        "job_id": job,
        "name": "model.pt",
        "plan_id": plan.json()["id"],
        "upload_id": upload["id"],
        "digest": f"sha256:{model['sha256']}",
    }


def operations(api: Api) -> list[tuple[str, str]]:
    """Every method of every path in the API's description, and HEAD where there is GET."""
    paths = api.get("/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return found + [("HEAD", path) for method, path in found if method == "GET"]


# -- open to the world --------------------------------------------------------------------------


@counted(3, 12)
def test_every_operation_needs_a_key_that_works(api: Api, keys, anns, count: int) -> None:
    guarded = [(method, path) for method, path in operations(api) if path not in ASKED_BY_NOBODY]
    assert len(guarded) > 35
    refused = [name for name in keys if name not in ("ann", "bob")][:count]
    for name, (method, path) in itertools.product(refused, guarded):
        answer = api.request(method, path.format(**anns), headers=keys[name])
        if method == "HEAD" and answer.status_code == 405:
            continue
        assert answer.status_code == 401, (name, method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (method == "HEAD") or answer.json()["type"] == "/problems/unauthorized"
    print(f"\n{len(guarded)} operations with {len(refused)} keys that do not work: 401")


@counted(1, 3)
def test_another_owners_things_are_not_there(api: Api, keys, anns, count: int) -> None:
    """For others they are as what never was, also while their owner uses them."""
    mine = made_by(api, keys["bob"], b"of bob")
    tried = 0
    for _, (method, path) in itertools.product(range(count), operations(api)):
        if path.startswith(ADMIN_PATH) or path in ASKED_BY_NOBODY:
            continue
        named = re.findall(r"{(\w+)}", path)
        body: dict[str, Any] = {"headers": keys["bob"]}
        if method == "PATCH":
            piece = {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
            body = {"headers": keys["bob"] | piece, "content": b"x"}
        if named:  # a parameter that is new must be made above
            answer = api.request(method, path.format(**anns), **body)
            assert answer.status_code in ({404, 405} if method == "HEAD" else {404}), (method, path)
            tried += 1
            if method == "GET":
                assert api.get(path.format(**anns), headers=keys["ann"] | {"prefer": "wait=0"}).status_code != 404 or (
                    "preview" in path
                )
            for name in named:  # among what is mine, too
                if len(named) > 1 and name != "name":
                    assert api.request(method, path.format(**(mine | {name: anns[name]})), **body).status_code in (
                        404,
                        405,
                    )
        elif method == "GET":
            answer = api.get(path, headers=keys["bob"])
            assert answer.status_code == (403 if path == METRICS_PATH else 200)  # which asks for a scope of its own
            assert not any(value in answer.text for name, value in anns.items() if name != "name"), path
    spec = {"type": "prune", "model": anns["model_id"], "dataset": anns["dataset_id"], "amount": 0.5}
    for path in ("/v1/jobs", "/v1/jobs:plan"):
        assert api.post(path, json=spec, headers=keys["bob"]).status_code == 404
    for _, (method, path) in itertools.product(range(count), operations(api)):
        if path.startswith(ADMIN_PATH):
            answer = api.request(method, path.format(**anns), headers=keys["bob"])
            assert answer.status_code in ({403, 405} if method == "HEAD" else {403}), (method, path)
    print(f"\n{tried} times another owner's things were asked for by all operations: 404")


# -- paths --------------------------------------------------------------------------------------

SECRET = "the content of a file outside"
ENCODINGS = {
    "as it is": lambda text: text,
    "once": lambda text: text.replace(".", "%2e").replace("/", "%2f").replace("\\", "%5c"),
    "twice": lambda text: text.replace(".", "%252e").replace("/", "%252f").replace("\\", "%255c"),
    "overlong": lambda text: text.replace("/", "%c0%af").replace("\\", "%c1%9c"),
    "a NUL behind": lambda text: text + "%00.pt",
}
TARGETS = ("secret.txt", "data/pared.db", "etc/passwd", "proc/self/environ")
UPS = ("../", "../../", "../" * 12, "..\\", "..\\" * 12, "....//" * 6, "..;/" * 6, "/", "//", "./../", "file:///", "~/")
PAYLOADS = [encode(up + target) for target, up, encode in itertools.product(TARGETS, UPS, ENCODINGS.values())]


def raw(api: Api, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Sent as it is, which clients would tidy up before."""
    connection = http.client.HTTPConnection("127.0.0.1", api.parts.settings.port, timeout=30)
    try:
        connection.putrequest(method, path.replace(" ", "%20"), skip_accept_encoding=True)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@counted(5, 200)
def test_a_path_for_a_name_leads_nowhere(api: Api, keys, anns, count: int) -> None:
    folder = api.parts.settings.data_dir.parent
    everything = PAYLOADS[:: len(PAYLOADS) // count][:count]
    assert len(set(everything)) == count
    before = outside(folder)
    key = keys["ann"]
    for number, payload in enumerate(everything):
        for path in (
            f"/static/{payload}",
            f"/docs/{payload}",
            f"/v1/models/{payload}",
            f"/v1/jobs/{anns['job_id']}/artifacts/{payload}",
            f"/v1/jobs/{payload}/report",
            f"/v1/objects/{payload}",
            f"/{payload}",
        ):
            status, content = raw(api, "GET", path, key)
            assert not any(told in content for told in (SECRET.encode(), b"root:", b"SQLite format")), path
            assert status in (400, 404, 405, 422), (path, status)
        content = f"{number} {payload}".encode()
        shown = httpx.Response(201, content=raw(api, "POST", f"/v1/models?filename={payload}", key, content)[1]).json()
        form = (
            f'--b\r\ncontent-disposition: form-data; name="file"; filename="{payload}"\r\n\r\n'.encode()
            + content + b"form\r\n--b--\r\n"
        )  # fmt: skip
        kind = {"content-type": "multipart/form-data; boundary=b"}
        formed = httpx.Response(201, content=raw(api, "POST", "/v1/models", key | kind, form)[1]).json()
        metadata = f"kind bW9kZWw=,filename {base64.b64encode(payload.encode()).decode()}"
        tus = api.post("/v1/uploads", headers=key | {"upload-length": "5", "upload-metadata": metadata}).json()
        api.delete(f"/v1/uploads/{tus['id']}", headers=key)
        for answer in (shown, formed, tus):
            assert not re.search(r"[/\\\x00]", answer["filename"]), answer
    assert outside(folder) == before, "files only appear where the server makes their names"
    print(f"\n{count} paths for names, in each place of a request: none led anywhere")


def outside(folder: Path) -> set[str]:
    """All files but the database, the queue's messages and the objects, whose names the server makes."""
    named = re.compile(r"data/(pared\.db(-\w+)?|broker/messages/\w+\.pared\.msg|objects/(sha256/|\w+/)[0-9a-zA-Z_/-]+)")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not named.fullmatch(name)}


# -- addresses ----------------------------------------------------------------------------------

LOOKS_LIKE_AN_ADDRESS = re.compile(
    r"ur[il]|href|link|host|callback|webhook|endpoint|proxy|remote|source|domain", re.IGNORECASE
)
ADDRESSES = [
    f"{scheme}://{place}/x"
    for scheme, place in [
        *itertools.product(
            ("http", "https"),
            (
                *("127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "0.0.0.0:{port}", "2130706433:{port}"),
                *(
                    "169.254.169.254",
                    "metadata.google.internal",
                    "10.0.0.1",
                    "192.168.0.1",
                    "[::ffff:127.0.0.1]:{port}",
                ),
                *("user@127.0.0.1:{port}", "017700000001:{port}"),
            ),
        ),
        *[(scheme, "127.0.0.1:{port}") for scheme in ("ftp", "gopher", "s3", "hf", "redis", "file")],
    ]
]
FORMATS_OF_ADDRESSES = ("uri", "url", "uri-reference", "iri", "iri-reference", "hostname", "ipv4", "ipv6")
CONNECTED: list[str] = []
LOOKED_UP: list[str] = []
LISTENING: list[int] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if LISTENING and event == "socket.connect" and isinstance(arguments[1], tuple):
        if arguments[1][1] != LISTENING[0]:
            CONNECTED.append(str(arguments[1]))
    elif LISTENING and event == "socket.getaddrinfo" and arguments[1] not in LISTENING:
        LOOKED_UP.append(str(arguments[:2]))


def named_fields(description: dict[str, Any]) -> set[str]:
    """The names of all parameters, and of all properties of what bodies hold."""
    found: set[str] = set()
    seen: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, list):
            for each in value:
                look(each)
        elif isinstance(value, dict):
            found.update(value["properties"] if isinstance(value.get("properties"), dict) else ())
            assert value.get("format") not in FORMATS_OF_ADDRESSES, value
            reference = value.get("$ref", "")
            if reference and reference not in seen:
                seen.add(reference)
                look(description["components"]["schemas"][reference.rpartition("/")[2]])
            for name, each in value.items():
                if name not in ("example", "examples"):
                    look(each)

    for methods in description["paths"].values():
        for operation in methods.values():
            found.update(parameter["name"] for parameter in operation.get("parameters", []))
            look([operation.get("parameters", []), operation.get("requestBody", {})])
    return found


@counted(3, 30)
def test_only_webhooks_take_an_address_and_none_that_is_sent_is_asked(api: Api, keys, anns, count: int) -> None:
    """In every text of a request; where the process connects to is heard by the interpreter itself."""
    description = api.get("/openapi.json").json()
    fields = named_fields(description)
    assert len(fields) > 100
    assert {name for name in fields if LOOKS_LIKE_AN_ADDRESS.search(name)} == {"url", "webhook_id"}
    key, port = keys["ann"], api.parts.settings.port
    sys.addaudithook(_note)
    LISTENING.append(port)
    try:
        for address in [each.format(port=port + 1) for each in ADDRESSES[:count]]:
            where = quote(address, safe="")
            model = api.post(
                f"/v1/models?filename={where}&architecture={where}&weights={where}&prefix={where}",
                content=address.encode(), headers=key | {"host": urlsplit(address).netloc or "x", "referer": address},
            )  # fmt: skip
            assert model.status_code in (201, 422, 400), model.text
            for spec in (
                {"type": "prune", "model": address, "amount": 0.5},
                {"type": "prune", "model": anns["model_id"], "dataset": address, "amount": 0.5},
                {"type": "prune", "model": anns["model_id"], "architecture": address, "amount": 0.5},
                {"type": "prune", "model": anns["model_id"], "include": [address], "webhook": address, "amount": 0.5},
                {"type": "distill", "teacher": address, "student": address, "dataset": address},
            ):
                assert api.post("/v1/jobs", json=spec, headers=key).status_code in (202, 404, 422)
            metadata = ",".join(
                f"{name} {base64.b64encode(address.encode()).decode()}" for name in ("filename", "kind", "url")
            )
            api.post("/v1/uploads", headers=key | {"upload-length": "5", "upload-metadata": metadata})
            forwarded = {"x-forwarded-for": address, "x-forwarded-host": address, "forwarded": f"host={address}"}
            assert api.get("/v1/models", headers=key | forwarded | {"origin": address}).status_code == 200
            assert raw(api, "GET", address, key)[0] in (200, 400, 404)
            assert raw(api, "GET", f"/v1/models/{where}", key)[0] == 404
            assert LOOKED_UP == []
            refused = api.post("/v1/webhooks", json={"url": address}, headers=key)
            assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/url"), refused.text
            LOOKED_UP.clear()  # whether it is public, and no more
    finally:
        LISTENING.clear()
    assert CONNECTED == []
    print(
        f"\n{count} addresses in every text of a request, of which {len(fields)} names but one take none: no connection"
    )
