"""Lists: every one in the API's description has a bound of its size, whatever its rows hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from pared.state import inspection_size, lifecycle
from pared.state.audit import COMMAND_LINE, Actor, record
from pared.state.deliveries import EVENTS
from pared.state.keys import add_key
from pared.state.owners import create_owner
from pared.state.session import to_json
from pared.state.tables import ApiKey, Artifact, Dataset, Job, Model, Owner, Webhook, WebhookDelivery, new_id
from service.dependencies import ADMIN_PATH
from service.pagination import PAGE_BYTES
from tests.integration.service.conftest import Api

# The largest that a row may hold: the body of a job, and a child's own words.
MEGABYTE = "x" * (1 << 20)
LARGE_INSPECTION = {"format": "state_dict", "layers": [{"name": "n" * 150, "kind": "linear"} for _ in range(15_000)]}


@cache
def large_inspection() -> dict[str, Any]:
    """As large as one is kept."""
    return inspection_size.fitted(LARGE_INSPECTION)


def large_uploads(table: type[Model | Dataset], prefix: Any) -> Callable[[Api], dict[str, str]]:
    def fill(api: Api) -> dict[str, str]:
        with api.parts.sessions.begin() as session:
            shown = large_inspection()
            for number in range(6):
                row = table(id=new_id(prefix), owner="local", filename=f"{number}.pt", sha256="0" * 64, size_bytes=1)
                row.status, row.inspection = "ready", shown
                if isinstance(row, Model):
                    row.architecture = {"name": MEGABYTE}
                session.add(row)
        return {}

    return fill


def large_jobs(api: Api) -> dict[str, str]:
    with api.parts.sessions.begin() as session:
        for _ in range(6):
            job = Job(id=new_id("job"), owner="local", type="prune", status="succeeded", spec={"include": [MEGABYTE]})
            job.report = {"verdict": MEGABYTE, "failed_outputs": [{"format": "onnx", "code": "x", "detail": MEGABYTE}]}
            session.add(job)
    return {}


def many_files(api: Api) -> dict[str, str]:
    """As many as a worker keeps of a job."""
    job = api.submit()["id"]
    with api.parts.sessions.begin() as session:
        for number in range(100):
            name, kind = f"{number:03}".ljust(255, "n"), "application/octet-stream"
            row = {"name": name, "media_type": kind, "object_key": "k", "sha256": "0" * 64, "size_bytes": 1}
            session.add(Artifact(id=new_id("art"), job_id=job, **row))
    return {"job_id": job}


def many_owners(api: Api) -> dict[str, str]:
    with api.parts.sessions.begin() as session:
        for number in range(120):
            owner = Owner(id=new_id("own"), name=f"{number}".ljust(200, "n"))
            session.add(owner)
    return {"owner_id": owner.id}


def many_keys(api: Api) -> dict[str, str]:
    named = many_owners(api)
    with api.parts.sessions.begin() as session:
        for number in range(120):
            key = {"name": "n" * 200, "secret_sha256": f"{number:064}", "scopes": "read"}
            session.add(ApiKey(id=new_id("key"), owner_id=named["owner_id"], **key))
    return named


def many_entries(api: Api) -> dict[str, str]:
    with api.parts.sessions.begin() as session:
        for _ in range(120):
            record(session, Actor("local", None, "r" * 64), "POST /v1/jobs", "s" * 64, {"status": 202})
    return {}


def many_webhooks(api: Api) -> dict[str, str]:
    with api.parts.sessions.begin() as session:
        for _ in range(120):
            hook = Webhook(id=new_id("whk"), owner="local", url=f"https://a.b/{'u' * 4000}", events=[*EVENTS],
                           description="d" * 200, secret="s" * 80, disabled_reason="r" * 1000)  # fmt: skip
            session.add(hook)
    return {"webhook_id": hook.id}


def many_deliveries(api: Api) -> dict[str, str]:
    named = many_webhooks(api)
    with api.parts.sessions.begin() as session:
        for _ in range(120):
            made = {"event": "job.failed", "body": "b" * 1000, "status": "failed", "problem": "p" * 4000}
            session.add(WebhookDelivery(id=new_id("dlv"), **named, **made))
    return named


FILLED = {
    "/v1/models": large_uploads(Model, "mdl"),
    "/v1/datasets": large_uploads(Dataset, "dst"),
    "/v1/jobs": large_jobs,
    "/v1/jobs/{job_id}/artifacts": many_files,
    "/v1/webhooks": many_webhooks,
    "/v1/webhooks/{webhook_id}/deliveries": many_deliveries,
    "/v1/admin/owners": many_owners,
    "/v1/admin/owners/{owner_id}/keys": many_keys,
    "/v1/admin/audit": many_entries,
}


def lists_of(description: dict[str, Any]) -> set[str]:
    """The paths whose GET answers an object with a list in `data`."""
    schemas = description["components"]["schemas"]

    def is_list(operation: dict[str, Any]) -> bool:
        content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        schema = content.get("schema", {})
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        listed = schema.get("type") == "array" or schema.get("properties", {}).get("data", {}).get("type") == "array"
        return listed or isinstance(content.get("example", {}).get("data"), list)

    return {path for path, methods in description["paths"].items() if "get" in methods and is_list(methods["get"])}


def test_every_list_of_the_description_is_tried(api: Api):
    assert lists_of(api.get("/openapi.json").json()) == set(FILLED), "say above how to fill each list"


@pytest.mark.parametrize("path", FILLED)
def test_a_list_has_a_size_whatever_its_rows_hold(api: Api, path: str):
    named = FILLED[path](api)
    headers = {}
    if path.startswith(ADMIN_PATH):
        administrator = create_owner(api.parts.sessions, "administrator", COMMAND_LINE)
        headers = {"x-api-key": add_key(api.parts.sessions, administrator.id, "k", scopes=["admin"]).secret}
    queries = (
        ["?limit=100", "?limit=100&expand=inspection"] if path in {"/v1/models", "/v1/datasets"} else ["?limit=100"]
    )
    for query in queries if path != "/v1/jobs/{job_id}/artifacts" else [""]:
        answer = api.get(path.format(**named) + query, headers=headers)
        assert answer.status_code == 200
        assert len(answer.content) < PAGE_BYTES + (3 << 20)
        assert answer.json()["data"]


def test_pages_that_end_early_skip_nothing(api: Api):
    large_jobs(api)
    with api.parts.sessions() as session:
        there = [id_ for (id_,) in session.query(Job.id).filter_by(owner="local", type="prune").order_by(Job.id.desc())]
    listed, cursor = [], None
    while True:
        page = api.get("/v1/jobs", params={"limit": 100, **({"after": cursor} if cursor else {})}).json()
        listed += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert listed == there
    assert cursor is None


def test_inspections_are_in_lists_when_asked_for(api: Api):
    model = api.upload(b"inspected", "inspected.pt")["id"]
    api.inspected(model, inspection={"format": "torchscript", "layers": [1, 2, 3]})
    assert api.get("/v1/models", params={"limit": 1}).json()["data"][0]["inspection"] is None
    (row,) = api.get("/v1/models", params={"limit": 1, "expand": "inspection"}).json()["data"]
    assert row["inspection"] == api.get(f"/v1/models/{model}").json()["inspection"]
    for number in range(11):
        api.upload(b"many", f"{number}.csv", "datasets")
    page = api.get("/v1/datasets", params={"limit": 100, "expand": "inspection"}).json()
    assert (len(page["data"]), page["has_more"]) == (10, True)
    assert api.get("/v1/models", params={"expand": "everything"}).status_code == 422


@pytest.mark.parametrize(
    "large",
    [
        LARGE_INSPECTION,
        {"format": "npz", "target": {f"class {number}": MEGABYTE for number in range(3)}},
        {"format": "npz", "inputs": [[["a" * 90] * 40] * 40] * 40},
        {"format": "npz", MEGABYTE: 1, "parameters": 7},
    ],
)
def test_an_inspection_has_a_size_and_says_what_it_leaves_out(api: Api, large: dict[str, Any]):
    model = api.upload(str(len(to_json(large))).encode(), "large.pt")["id"]
    with api.parts.sessions.begin() as session:
        (job,) = session.query(Job).filter(
            Job.type == "inspect", Job.status == "queued", Job.spec["subject"].as_string() == model
        )
        claimed = lifecycle.claim(session, job.id, "worker", 60.0, ["cpu"])
        assert claimed is not None
        assert lifecycle.succeed(session, job.id, claimed.fence, large)
    shown = api.get(f"/v1/models/{model}").json()
    assert (shown["status"], shown["format"]) == ("ready", large["format"])
    assert len(to_json(shown["inspection"])) <= inspection_size.MAX_INSPECTION_BYTES
    assert "more in this file" in shown["inspection"]["warnings"][0]
