"""What a person does, over real HTTP against real processes, on SQLite + files and on PostgreSQL + Redis.

What is computed and which bytes come of it depends on neither: that is tried on one of them.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
from typing import Any

import httpx
import pytest

from tests.support.models import zoo
from tests.support.processes import wait_for
from tests.support.stack import Stack

MISSING = {"job": "job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "model": "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"}


def prune_spec(stack: Stack, family: str = "mlp", form: zoo.Form = "scripted", **fields: Any) -> dict[str, Any]:
    """A job on a family's upload; without other fields: half of the channels, no retraining."""
    extra = {"architecture": zoo.architecture(family)} if form == "state_dict" else {}
    return {
        "type": "prune",
        "model": stack.upload_model(zoo.upload(family, form), f"{family}_{form}.pt", **extra),
        "dataset": stack.upload_dataset(zoo.dataset(family), f"{family}.npz"),
        "task": zoo.FAMILIES[family].task,
        "amount": 0.5,
        "retrain": None,
        **fields,
    }


def endless(stack: Stack) -> dict[str, Any]:
    """A job that does not end within a test."""
    return prune_spec(stack, "resnet", retrain={"epochs": 1000})


def running(stack: Stack, job: str) -> None:
    """Wait until a worker trains it."""
    wait_for(lambda: stack.job(job)["stage"] == "retrain", f"{job} retrains", every_s=0.2)


# -- upload, prune, follow, download ------------------------------------------------------------


def test_an_upload_is_named_by_its_digest_and_kept_once(stack: Stack) -> None:
    file = zoo.upload("plain_cnn", "traced")
    first = stack.post_model(file, "lenet.pt")
    assert first.status_code == 201
    model = first.json()
    assert first.headers["location"].endswith(f"/v1/models/{model['id']}")
    assert model["sha256"] == hashlib.sha256(file).hexdigest()
    assert model["size_bytes"] == len(file)
    assert model["status"] == "inspecting"
    again = stack.post_model(file, "lenet.pt")
    assert (again.status_code, again.json()["id"]) == (200, model["id"])
    form = stack.http.post("/v1/models", files={"file": ("form.pt", file)})
    assert form.status_code == 201, form.text
    assert form.json()["filename"] == "form.pt"
    assert form.json()["sha256"] == model["sha256"]


def test_an_inspection_says_what_can_be_pruned(embedded: Stack) -> None:
    model = embedded.upload_model(zoo.upload("resnet", "scripted"), "resnet.pt")
    response = embedded.http.get(f"/v1/models/{model}", headers={"Prefer": "wait=60"}, timeout=90)
    seen = response.json()
    assert seen["status"] == "ready", seen
    layers = {layer["name"]: layer for layer in seen["inspection"]["layers"]}
    assert layers["layer1.conv1"]["prunable_channels"]
    assert layers["layer1.conv1"]["channels"] == 16
    assert not layers["fc"]["prunable_channels"]
    assert layers["fc"]["reason"]
    assert seen["inspection"]["flavour"] == "scripted"


def test_from_upload_to_a_smaller_file(stack: Stack) -> None:
    spec = prune_spec(stack, "plain_cnn", retrain={"epochs": 8, "optimizer": "adam", "lr": 0.003})
    posted = stack.http.post("/v1/jobs", json=spec)
    assert posted.status_code == 202
    assert int(posted.headers["retry-after"]) >= 1
    job = posted.json()["id"]
    assert posted.headers["location"].endswith(f"/v1/jobs/{job}")

    # Followed by long poll: each answer comes at a change or after the wait.
    seen = []
    while not seen or seen[-1]["status"] not in {"succeeded", "failed", "canceled"}:
        answer = stack.http.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20"}, timeout=40)
        assert answer.status_code == 200
        seen.append(answer.json())
        assert len(seen) < 200
    assert seen[-1]["status"] == "succeeded", seen[-1]["error"]
    assert seen[-1]["progress"]["fraction"] == 1.0
    assert "retry-after" not in answer.headers
    unchanged = stack.http.get(f"/v1/jobs/{job}", headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304

    report = stack.report(job)
    assert report["after"]["parameters"] < report["before"]["parameters"] / 2
    assert report["after"]["quality"]["test"]["value"] > 0.8
    assert {latency["batch_size"] for latency in report["after"]["latency"]} == {1, 32}
    assert report["reproduce"]["spec"]["amount"] == 0.5
    assert report["verdict"]


def test_events_replay_from_where_a_follower_stopped(stack: Stack) -> None:
    job = stack.submit(prune_spec(stack, retrain={"epochs": 2}))
    events = list(stack.events(job))  # opened while the job runs, ends with the job
    assert [event["id"] for event in events] == list(range(events[0]["id"], events[0]["id"] + len(events)))
    assert events[-1]["event"] == "done"
    assert events[-1]["data"]["status"] == "succeeded"
    assert {"status", "progress", "metric"} <= {event["event"] for event in events}
    middle = events[len(events) // 2]["id"]
    assert list(stack.events(job, after=middle)) == [event for event in events if event["id"] > middle]


def test_a_broken_download_resumes_and_has_its_digest(embedded: Stack) -> None:
    job = embedded.submit(prune_spec(embedded, "plain_cnn"))
    embedded.succeeded(job)
    artifact = next(row for row in embedded.artifacts(job) if row["name"] == "model.pt")
    url = f"/v1/jobs/{job}/artifacts/model.pt"
    part = b""
    with embedded.http.stream("GET", url) as response:
        assert response.headers["etag"] == f'"{artifact["sha256"]}"'
        assert "attachment" in response.headers["content-disposition"]
        digest = base64.b64encode(bytes.fromhex(artifact["sha256"])).decode()
        assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
        for chunk in response.iter_bytes(1000):
            part += chunk
            if len(part) > artifact["size_bytes"] // 3:
                break  # the connection closes here
    headers = {"Range": f"bytes={len(part)}-", "If-Range": response.headers["etag"]}
    rest = embedded.http.get(url, headers=headers)
    assert rest.status_code == 206
    assert rest.headers["content-range"] == f"bytes {len(part)}-{artifact['size_bytes'] - 1}/{artifact['size_bytes']}"
    assert hashlib.sha256(part + rest.content).hexdigest() == artifact["sha256"]
    assert embedded.http.get(url, headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    head = embedded.http.head(url)
    assert (head.status_code, int(head.headers["content-length"])) == (200, artifact["size_bytes"])
    changed = embedded.http.get(url, headers={"Range": "bytes=5-", "If-Range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, artifact["size_bytes"])


def test_the_same_seed_gives_the_same_bytes(embedded: Stack) -> None:
    spec = prune_spec(embedded, "resnet", seed=7, retrain={"epochs": 2}, outputs=["torchscript", "state_dict"])
    first, second = embedded.submit(spec), embedded.submit(spec)
    other = embedded.submit({**spec, "seed": 8})
    digests = []
    for job in (first, second, other):
        embedded.succeeded(job)
        rows = embedded.artifacts(job)
        digests.append({row["name"]: row["sha256"] for row in rows if row["name"].startswith("model.")})
    assert {"model.pt", "model.safetensors"} <= digests[0].keys()
    assert digests[0] == digests[1]
    assert digests[0]["model.pt"] != digests[2]["model.pt"]


# -- distill ------------------------------------------------------------------------------------


def distill_spec(stack: Stack, family: str = "mlp", **fields: Any) -> dict[str, Any]:
    return {
        "type": "distill",
        "teacher": stack.upload_model(zoo.upload(family, "scripted"), f"{family}_scripted.pt"),
        "dataset": stack.upload_dataset(zoo.dataset(family), f"{family}.npz"),
        "task": zoo.FAMILIES[family].task,
        "train": {"epochs": 8, "optimizer": "adam", "lr": 0.005},
        **fields,
    }


def test_distilling_outputs_into_a_layer_list(embedded: Stack) -> None:
    layers = [["Linear", {"in_features": 16, "out_features": 12}], ["ReLU"]]
    layers += [["Linear", {"in_features": 12, "out_features": 4}]]
    job = embedded.submit(distill_spec(embedded, student={"layers": layers}, loss={"kind": "output_mse"}))
    report = embedded.succeeded(job)
    assert report["after"]["parameters"] == 16 * 12 + 12 + 12 * 4 + 4
    assert report["after"]["quality"]["test"]["value"] > 0.6


def test_distilling_knowledge_into_an_uploaded_student(embedded: Stack) -> None:
    student = embedded.upload_model(zoo.upload("shared", "scripted"), "student.pt")
    loss = {"kind": "knowledge", "alpha": 0.3, "features": [["net.4", "inputs"]], "labels": 0.1}
    job = embedded.submit(distill_spec(embedded, student=student, loss=loss))
    report = embedded.succeeded(job)
    assert report["after"]["quality"]["test"]["value"] > 0.8
    assert report["after"]["parameters"] == sum(p.numel() for p in zoo.trained("shared").parameters())


def test_distilling_into_half_of_the_teacher(embedded: Stack) -> None:
    spec = distill_spec(embedded, "resnet", student={"from_teacher": {"width": 0.5}}, compare_with_labels_only=True)
    report = embedded.succeeded(embedded.submit(spec))
    assert report["after"]["parameters"] < report["before"]["parameters"] / 2
    assert report["labels_only"]["samples"] == report["after"]["quality"]["samples"]


# -- submitting ---------------------------------------------------------------------------------


def test_a_hundred_posts_with_one_key_make_one_job(stack: Stack) -> None:
    spec = prune_spec(stack, amount=0.25)
    before = stack.rows("SELECT count(*) FROM jobs")[0][0]

    def post(_: int) -> httpx.Response:
        return client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "once"})

    with httpx.Client(base_url=stack.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(post, range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert stack.rows("SELECT count(*) FROM jobs")[0][0] == before + 1
    other = stack.http.post("/v1/jobs", json={**spec, "amount": 0.3}, headers={"Idempotency-Key": "once"})
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-mismatch")


def test_a_list_is_walked_page_by_page(stack: Stack) -> None:
    spec = endless(stack)
    posted = [stack.submit(spec) for _ in range(5)]
    for job in posted:
        assert stack.http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    walked: list[str] = []
    page = stack.get("/v1/jobs", limit=2)
    while True:
        assert len(page["data"]) <= 2
        walked += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        page = stack.get("/v1/jobs", limit=2, after=page["next_cursor"])
    assert len(walked) == len(set(walked))
    assert walked[:5] == posted[::-1]
    for job in posted:
        stack.ended(job)
    canceled = stack.get("/v1/jobs", status="canceled", type="prune", limit=100)["data"]
    assert {job["status"] for job in canceled} == {"canceled"}
    assert set(posted) <= {job["id"] for job in canceled}
    assert all(job["type"] == "distill" for job in stack.get("/v1/jobs", type="distill")["data"])


# -- cancelling and deleting --------------------------------------------------------------------


def test_cancelling_running_and_queued_jobs(stack: Stack) -> None:
    spec = endless(stack)
    busy = [stack.submit(spec) for _ in stack.workers]
    for job in busy:
        running(stack, job)
    waiting = stack.submit(spec)
    assert stack.job(waiting)["queue_position"] == 1
    answer = stack.http.post(f"/v1/jobs/{waiting}/cancel")
    assert (answer.status_code, stack.job(waiting)["status"]) == (202, "canceled")
    for job in busy:
        assert stack.http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    for job in busy:
        assert stack.ended(job)["status"] == "canceled"
        assert stack.artifacts(job) == []
        assert stack.job(job)["attempt"] == 1
    assert stack.rows("SELECT attempt FROM jobs WHERE id = :id", id=waiting)[0][0] == 0


def test_cancelling_what_has_ended_conflicts(stack: Stack) -> None:
    job = stack.submit(prune_spec(stack))
    stack.succeeded(job)
    answer = stack.http.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
    assert stack.job(job)["status"] == "succeeded"


def test_a_model_in_use_is_not_deleted(stack: Stack) -> None:
    spec = endless(stack)
    spec["model"] = stack.upload_model(zoo.upload("resnet", "traced"), "to_delete.pt")
    job = stack.submit(spec)
    model = f"/v1/models/{spec['model']}"
    in_use = stack.http.delete(model)
    assert (in_use.status_code, in_use.json()["type"]) == (409, "/problems/conflict")
    assert stack.http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    stack.ended(job)
    assert stack.http.delete(model).status_code == 204
    assert stack.http.get(model).status_code == 404
    assert stack.http.post("/v1/jobs", json=spec).status_code == 404
    assert spec["model"] not in {row["id"] for row in stack.get("/v1/models", limit=100)["data"]}


# -- the pages ----------------------------------------------------------------------------------


def test_the_pages_find_what_was_done(stack: Stack) -> None:
    spec = prune_spec(stack)
    model, data = spec["model"], spec["dataset"]
    jobs = [stack.submit(spec | {"amount": amount}) for amount in (0.5, 0.25)]
    for job in jobs:
        stack.succeeded(job)
    html = {"Accept": "text/html"}
    for path, found in {
        "/": "mlp_scripted.pt",
        "/models?q=MLP_scr&status=ready": model,
        f"/models/{model}": jobs[0],
        f"/datasets/{data}": "mlp.npz",
        f"/jobs?text=MLP_SCRIPTED.pt&type=prune&status=succeeded&model={model}&dataset={data}": jobs[0],
        f"/jobs/{jobs[0]}": "model.pt",
        f"/jobs/{jobs[0]}/log": "",
        f"/jobs/compare?job={jobs[0]}&job={jobs[1]}": "2 jobs side by side",
        f"/jobs/new?from={jobs[0]}": model,
    }.items():
        answer = stack.http.get(path, headers=html)
        assert answer.status_code == 200, f"{path}\n{answer.text}"
        assert found in answer.text, f"{path}\n{answer.text}"
    assert "No job is like that" in stack.http.get("/jobs?text=nothing+like+that", headers=html).text
    key = json.loads(stack.run("keys", "add", "operator", "--scope", "admin", "--json"))["secret"]
    whole = stack.http.get("/admin", headers=html | {"X-API-Key": key})
    assert (whole.status_code, "prune" in whole.text) == (200, True), whole.text


# -- what a reader of the documentation finds ---------------------------------------------------


def test_the_service_says_that_it_is_ready(stack: Stack) -> None:
    assert stack.http.get("/healthz").status_code == 200
    assert stack.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/nothing", f"/v1/jobs/{MISSING['job']}", f"/v1/models/{MISSING['model']}"])
def test_what_is_absent_is_a_problem_document(stack: Stack, path: str) -> None:
    answer = stack.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
