"""Plans by real processes: the job's report says what its plan said, and a plan outlives the worker that began it."""

from __future__ import annotations

import time
from typing import Any

import pytest

import pared
from tests.support.campaign import each_nth
from tests.support.models import zoo
from tests.support.processes import wait_for
from tests.support.stack import Stack

SPECS: dict[str, tuple[str, zoo.Form, dict[str, Any]]] = {
    "channels": ("plain_cnn", "scripted", {"amount": 0.5, "outputs": ["torchscript", "onnx"]}),
    "a goal": ("resnet", "scripted", {"target": {"macs": 0.5}, "schedule": "iterative", "steps": 2}),
    "ranked together": ("resnet", "traced", {"scope": "global", "criterion": "taylor", "amount": 0.3}),
    "weights": ("mlp", "scripted", {"granularity": "weight", "amount": 0.9, "outputs": ["torchscript", "packed"]}),
    "state dict": ("mlp", "state_dict", {"amount": 0.5, "outputs": ["state_dict", "torchscript"]}),
    "program": ("signal_cnn", "program", {"amount": 0.5, "outputs": ["exported_program", "torchscript"]}),
}


@pytest.mark.parametrize("name", each_nth(SPECS, 2))
def test_the_report_says_what_the_plan_said(embedded: Stack, name: str) -> None:
    family, form, fields = SPECS[name]
    extra = {"architecture": zoo.architecture(family)} if form == "state_dict" else {}
    spec = {
        "type": "prune",
        "model": embedded.upload_model(zoo.upload(family, form), f"{family}.pt", **extra),
        "dataset": embedded.upload_dataset(zoo.dataset(family), f"{family}.npz"),
        "retrain": {"epochs": 1},
        **fields,
    }
    job = embedded.submit(spec)
    with pared.Client(embedded.url) as client:
        plan = client.jobs.plan(spec)
    report = embedded.succeeded(job)
    assert plan.exact
    assert (plan.after.parameters, plan.after.macs) == (report["after"]["parameters"], report["after"]["macs"])
    assert (plan.before.parameters, plan.before.file_bytes) == (
        report["before"]["parameters"],
        report["before"]["file_bytes"],
    )
    assert [(layer.name, layer.shape_after, layer.removed_units, layer.reason) for layer in plan.layers] == [
        (layer["name"], layer["shape_after"], len(layer["removed_units"] or []), layer["reason"])
        for layer in report["layers"]
    ]
    assert (plan.goal and plan.goal.model_dump()) == report["goal"]
    beside = ("report.json", "frontier.csv")
    written = {file["name"]: file["size_bytes"] for file in embedded.artifacts(job) if file["name"] not in beside}
    assert set(plan.files) == set(written)
    for file, planned in plan.files.items():
        assert planned.exact == (file != "model.packed")
        assert planned.size_bytes == (written[file] if planned.exact else pytest.approx(written[file], rel=0.2))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"exclude": ["*"]}, "No layer with removable channels matches"),
        ({"include": ["conv*"]}, "matches no layer"),
        ({"example_inputs": [{"shape": [2, 7]}]}, "does not run on inputs of the shape"),
    ],
)
def test_what_cannot_be_done_is_said_by_the_plan(stack: Stack, fields: dict[str, Any], says: str) -> None:
    model = stack.upload_model(zoo.upload("mlp", "scripted"), "mlp.pt")
    answer = stack.http.post("/v1/jobs:plan", json={"type": "prune", "model": model, "amount": 0.5, **fields})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


def test_a_plan_outlives_its_worker_and_does_not_wait_for_a_long_job(embedded: Stack) -> None:
    x, y = zoo.images(3, 8)(4000, 0)
    spec = {
        "type": "prune",
        "model": embedded.upload_model(zoo.upload("resnet", "scripted"), "resnet.pt"),
        "dataset": embedded.upload_dataset(zoo.npz(x, y), "images.npz"),
        "amount": 0.3,
        "retrain": {"epochs": 1000, "lr": 0.001},
    }
    worker = embedded.workers.pop()
    worker.pause(embedded.data / "pared.db")  # until both are there
    long = embedded.submit(spec)
    asked = embedded.http.post("/v1/jobs:plan", json=spec, headers={"Prefer": "wait=0"})
    assert asked.status_code == 202, asked.text
    plan_id, location = asked.json()["id"], asked.headers["location"]
    worker.go_on()
    wait_for(lambda: embedded.job_row(plan_id).status == "running", "the plan is being made", every_s=0.02)
    worker.kill()
    assert embedded.http.get(location).json()["status"] == "running"  # as far as anyone can know
    embedded.start_worker()

    def made() -> Any:
        answer = embedded.http.get(location, headers={"Prefer": "wait=20"})
        return answer.json() if answer.status_code == 200 else None

    plan = wait_for(made, "another worker made it")
    wait_for(lambda: embedded.job_row(long).checkpoint_step, "the long job is under way")
    began = time.monotonic()
    again = embedded.http.post("/v1/jobs:plan", json=spec)
    print(f"\na plan beside a long job: {time.monotonic() - began:.1f} s")
    assert (again.status_code, again.json()) == (200, plan)
    assert embedded.job(long)["status"] == "running"
    assert embedded.http.post(f"/v1/jobs/{long}/cancel").status_code == 202
    embedded.ended(long)
