"""Who may see what, and that the documentation is true: an API of its own that demands keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.models import zoo
from tests.support.processes import Processes
from tests.support.stack import Stack, new_stack


@pytest.fixture(scope="module")
def locked(processes: Processes, scratch: Path) -> Iterator[Stack]:
    """An API that answers to keys only. No worker: what is asked here needs none."""
    stack = new_stack(scratch / "locked", processes, workers=0, require_keys="true")
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def ann(locked: Stack) -> httpx.Client:
    return client_with_key(locked, "ann")


@pytest.fixture(scope="module")
def bob(locked: Stack) -> httpx.Client:
    return client_with_key(locked, "bob")


def client_with_key(stack: Stack, name: str) -> httpx.Client:
    printed = re.search(r"pared_[0-9A-Za-z_-]+", stack.run("keys", "add", name))
    assert printed, "the key is shown once, when it is made"
    return httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {printed[0]}"}, timeout=30)


@pytest.fixture(scope="module")
def anns(ann: httpx.Client) -> dict[str, str]:
    """A model, a data set and a job of Ann's."""
    model = ann.post("/v1/models?filename=a.pt", content=zoo.upload("mlp", "scripted")).json()["id"]
    dataset = ann.post("/v1/datasets?filename=a.npz", content=zoo.dataset("mlp")).json()["id"]
    posted = ann.post("/v1/jobs", json={"type": "prune", "model": model, "dataset": dataset, "amount": 0.5})
    assert posted.status_code == 202, posted.text
    return {"model": model, "dataset": dataset, "job": posted.json()["id"]}


PRIVATE = [
    ("GET", "/v1/models/{model}"),
    ("DELETE", "/v1/models/{model}"),
    ("GET", "/v1/datasets/{dataset}"),
    ("DELETE", "/v1/datasets/{dataset}"),
    ("GET", "/v1/jobs/{job}"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("GET", "/v1/jobs/{job}/events"),
    ("GET", "/v1/jobs/{job}/report"),
    ("GET", "/v1/jobs/{job}/report/metrics.csv"),
    ("GET", "/v1/jobs/{job}/artifacts"),
    ("GET", "/v1/jobs/{job}/artifacts/model.pt"),
]
LISTS = [("GET", "/v1/models"), ("GET", "/v1/datasets"), ("GET", "/v1/jobs")]
POSTS = [("POST", "/v1/models"), ("POST", "/v1/datasets"), ("POST", "/v1/jobs")]


@pytest.mark.parametrize(("method", "path"), PRIVATE + LISTS + POSTS)
@pytest.mark.parametrize("key", [None, "pared_made_up"])
def test_no_route_answers_without_a_key(
    locked: Stack, anns: dict[str, str], method: str, path: str, key: str | None
) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = locked.http.request(method, path.format(**anns), headers=headers)
    assert answer.status_code == 401
    assert answer.json()["type"] == "/problems/unauthorized"
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize(("method", "path"), PRIVATE)
def test_another_keys_things_do_not_exist(bob: httpx.Client, anns: dict[str, str], method: str, path: str) -> None:
    answer = bob.request(method, path.format(**anns))
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


def test_a_job_on_another_keys_model_is_refused(bob: httpx.Client, anns: dict[str, str]) -> None:
    spec = {"type": "prune", "model": anns["model"], "dataset": anns["dataset"], "amount": 0.5}
    answer = bob.post("/v1/jobs", json=spec)
    assert answer.status_code == 404
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/model", "/dataset"}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/datasets", "/v1/jobs"])
def test_a_list_holds_only_ones_own(ann: httpx.Client, bob: httpx.Client, anns: dict[str, str], path: str) -> None:
    assert bob.get(path).json()["data"] == []
    assert {row["id"] for row in ann.get(path).json()["data"]} <= set(anns.values())
    assert ann.get(path).json()["data"]


def test_a_revoked_key_ends_at_once(locked: Stack) -> None:
    carol = client_with_key(locked, "carol")
    assert carol.get("/v1/jobs").status_code == 200
    (key,) = (row.id for row in locked.rows("SELECT id FROM api_keys WHERE name = 'carol'"))
    locked.run("keys", "revoke", key)
    assert carol.get("/v1/jobs").status_code == 401


def test_secrets_are_in_no_table_and_no_log(locked: Stack, ann: httpx.Client) -> None:
    secret = ann.headers["authorization"].removeprefix("Bearer ")
    assert ann.get("/v1/jobs").status_code == 200
    assert secret not in locked.api.log.read_text()
    assert secret.encode() not in (locked.data / "pared.db").read_bytes()


# -- the documentation --------------------------------------------------------------------------


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m, p, operation) for p, methods in description["paths"].items() for m, operation in methods.items()]


def test_every_operation_is_described_with_an_example(locked: Stack) -> None:
    description = locked.get("/openapi.json")
    assert description["openapi"].startswith("3.1")
    found = operations(description)
    assert len(found) >= 18
    for method, path, operation in found:
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert any(status[0] in "45" for status in operation["responses"]), f"{where} declares its errors"
        contents = [c for r in operation["responses"].values() for c in r.get("content", {}).values()]
        if contents:
            assert any("example" in c or "examples" in c for c in contents), f"{where} has an example"


def test_the_example_jobs_are_accepted_but_for_their_ids(locked: Stack, ann: httpx.Client) -> None:
    body = locked.get("/openapi.json")["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    examples = [example["value"] for example in body["examples"].values()]
    assert {example["type"] for example in examples} == {"prune", "distill", "quantize", "pipeline"}
    for example in examples:
        answer = ann.post("/v1/jobs", json=example)
        assert answer.status_code == 404, answer.text  # 422 would say that the spec itself is wrong
        ids = {"/model", "/dataset", "/teacher", "/teachers/0/model", "/student"}
        assert {error["pointer"] for error in answer.json()["errors"]} <= ids


def test_the_docs_page_asks_nobody_else(locked: Stack) -> None:
    page = locked.http.get("/docs").text
    assert re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page) == []
    files = re.findall(r"""(?:src|href)=["'](/[^"']+)["']""", page)
    assert any(file.endswith(".js") for file in files)
    for file in files:
        answer = locked.http.get(file)
        assert answer.status_code == 200, file
        if file.endswith(".css"):
            assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", answer.text)
