"""The API describes itself fully, and the page that shows it asks nobody else."""

from __future__ import annotations

import base64
import hashlib
import re

import jsonschema
import pytest

from pared.job_types import listed_spec
from pared.state.tables import WorkerHeartbeat, db_now
from tests.integration.service.conftest import Api


@pytest.fixture(scope="module")
def description(api: Api) -> dict:
    return api.get("/openapi.json").json()


def operations(description: dict):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_operation_is_described_with_an_example_and_its_problems(description: dict):
    assert description["openapi"].startswith("3.1")
    names = [name for name, _ in operations(description)]
    assert len(names) >= 32
    for name, operation in operations(description):
        assert operation["summary"], name
        assert operation["description"], name
        good = {status: answer for status, answer in operation["responses"].items() if status < "300"}
        assert good, name
        if "204" not in good:
            shown = [c for a in good.values() for c in a.get("content", {}).values()]
            assert any("example" in content for content in shown), name
        for status, answer in operation["responses"].items():
            if status >= "400":
                (media_type,) = answer["content"]
                assert media_type == "application/problem+json", (name, status)
        assert {"401", "422", "500", "503"} <= set(operation["responses"]), name


def test_what_answers_304_says_so(description: dict):
    for path in ("/v1/models/{model_id}", "/v1/datasets/{dataset_id}", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/report"):
        assert "304" in description["paths"][path]["get"]["responses"], path


def test_no_parameter_is_said_to_take_null(description: dict):
    parameters = [
        (name, each) for name, operation in operations(description) for each in operation.get("parameters", ())
    ]
    assert len(parameters) > 50
    for name, parameter in parameters:
        assert not jsonschema.Draft202012Validator(parameter["schema"]).is_valid(None), (name, parameter["name"])


def test_every_reference_leads_somewhere(description: dict, api: Api):
    text = api.get("/openapi.json").text
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in description["components"]["schemas"], name


def test_the_examples_are_valid(description: dict):
    for name, operation in operations(description):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content.get("examples", {}).values():
                listed_spec.validate_python(example["value"])
                _validate(description, content["schema"], example["value"], name)
        for status, answer in operation["responses"].items():
            for media_type, content in answer.get("content", {}).items():
                if "example" in content and "json" in media_type and "/report" not in name:
                    _validate(description, content["schema"], content["example"], f"{name} {status}")


def _validate(description: dict, schema: dict, example, name: str) -> None:
    whole = {**schema, "components": description["components"]}
    errors = list(jsonschema.Draft202012Validator(whole).iter_errors(example))
    assert not errors, (name, errors[0].message)


def test_the_documentation_page_asks_no_other_server(api: Api):
    page = api.get("/docs")
    assert page.status_code == 200
    links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(links) >= 4
    for link in links:
        assert link.startswith("/"), link
        assert api.get(link).status_code == 200, link
    assert '"validatorUrl": null' in page.text
    assert not re.search(r"https?://", page.text)


def test_every_answer_tells_browsers_what_not_to_do_with_it(api: Api):
    for path in (
        "/healthz",
        "/v1/models",
        "/v1/nothing",
        "/openapi.json",
        "/static/swagger-ui/swagger-ui.css",
        "/docs",
    ):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "default-src 'none'" in headers["content-security-policy"], path


def test_the_documentation_page_may_run_its_own_scripts_and_no_others(api: Api):
    page = api.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    (inline,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["connect-src"] == "'self'"
    assert not re.search(r"""\son[a-z]+\s*=|javascript:""", page.text), "no handler in the page itself"


def test_ready_says_what_is_missing_and_what_serves(api: Api):
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert "pared worker" in answer.json()["detail"]
    checks = answer.json()["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        "database": "ok",
        "queue": "ok",
        "store": "ok",
        "worker": "failed",
    }
    problem = "No NVIDIA GPU is visible to this process."
    with api.parts.sessions.begin() as session:
        session.add(WorkerHeartbeat(name="0", sandbox="standard", device="", devices=[], device_problem=problem))
    answer = api.get("/readyz")
    worker = answer.json()["checks"]["worker"]
    assert (answer.status_code, worker["status"]) == (503, "failed")
    assert worker["detail"] == f"no worker can run jobs: 0: {problem}"
    assert [(one["name"], one["devices"], one["device_problem"]) for one in worker["workers"]] == [("0", [], problem)]
    assert problem in answer.json()["detail"]
    row = {"device": "1 CPU, H100", "devices": ["cpu", "cuda"]}
    with api.parts.sessions.begin() as session:
        session.add(WorkerHeartbeat(name="a", sandbox="standard", **row))
        session.add(WorkerHeartbeat(name="b", sandbox="weak", device="cpu"))
        session.add(WorkerHeartbeat(name="dead", sandbox="none", device="cpu", seen_at=db_now() - 3600))
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["sandbox"]) == (200, "weak")
    workers = {worker["name"]: worker for worker in answer.json()["checks"]["worker"]["workers"]}
    assert set(workers) == {"0", "a", "b"}
    assert workers["a"] == {"name": "a", "sandbox": "standard", "sandbox_problem": None, "device_problem": None, **row}
