"""Pipelines by real processes: killed in each step, planned, and chosen by `pared compress`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import psutil

import pared
from tests.support.forks import run_pared
from tests.support.models import zoo
from tests.support.processes import wait_for
from tests.support.stack import Stack
from worker.forkserver import CHILD_NAME

STEPS = [{"prune": {"amount": 0.3, "retrain": {"epochs": 4, "lr": 0.001}}}, {"distill": {"train": {"epochs": 4}}}]


def spec_of(stack: Stack, samples: int = 1200, **fields: Any) -> dict[str, Any]:
    """Epochs of about a tenth of a second."""
    x, y = zoo.images(3, 8)(samples, 0)
    return {
        "type": "pipeline",
        "model": stack.upload_model(zoo.upload("resnet", "scripted"), "resnet.pt"),
        "dataset": stack.upload_dataset(zoo.npz(x, y), "images.npz"),
        "steps": STEPS,
    } | fields


def child_of(stack: Stack) -> psutil.Process:
    """The sandboxed process of the one job that runs."""

    def look() -> psutil.Process | None:
        for worker in stack.workers:
            for process in worker.tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() == CHILD_NAME:
                        return process
        return None

    found: psutil.Process = wait_for(look, "the child of the job")
    return found


def epochs_of(stack: Stack, job: str) -> list[str]:
    """The training epochs so far: their phases, in order."""
    rows = stack.rows("SELECT data FROM job_events WHERE job_id = :id AND kind = 'metric' ORDER BY seq", id=job)
    found = [json.loads(row.data) if isinstance(row.data, str) else row.data for row in rows]
    return [metric["phase"] for metric in found if metric["name"] == "train_loss"]


def test_a_pipeline_killed_in_each_step_goes_on_in_it(embedded: Stack) -> None:
    spec = spec_of(embedded, 2500)  # epochs long enough to be killed in
    undisturbed = embedded.submit(spec)
    expected = embedded.succeeded(undisturbed)

    job = embedded.submit(spec)
    for phase in ("1-prune: retrain", "2-distill: distill"):
        wait_for(lambda phase=phase: phase in epochs_of(embedded, job), f"an epoch of {phase}", every_s=0.02)
        before = int(embedded.job_row(job).checkpoint_step or 0)
        wait_for(
            lambda before=before: embedded.job_row(job).checkpoint_step > before, "a checkpoint after it", every_s=0.02
        )
        fence = embedded.job_row(job).fence
        child_of(embedded).kill()
        wait_for(lambda fence=fence: embedded.job_row(job).fence > fence, "another attempt")
    report = embedded.succeeded(job)

    assert embedded.job_row(job).attempt == 3
    logs = [event["data"]["text"] for event in embedded.events(job) if event["event"] == "log"]
    begun = [line for line in logs if line.startswith("step ")]
    assert begun == ["step 1 of 2: prune", "step 1 of 2: prune", "step 2 of 2: distill", "step 2 of 2: distill"]
    trained = epochs_of(embedded, job)
    for phase in ("1-prune: retrain", "2-distill: distill"):
        assert 4 <= trained.count(phase) <= 5, "at most the epoch under way is trained again"
    fractions = [event["data"]["fraction"] for event in embedded.events(undisturbed) if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert [record["phase"] for record in report["history"]] == [record["phase"] for record in expected["history"]]
    digests = [{file["name"]: file["sha256"] for file in embedded.artifacts(each)} for each in (job, undisturbed)]
    for name in ("model.pt", "1-prune.model.pt"):
        assert digests[0][name] == digests[1][name], "as if nothing had happened"


def test_the_report_of_a_pipeline_says_what_its_plan_said(embedded: Stack) -> None:
    spec = {
        "type": "pipeline",
        "model": embedded.upload_model(zoo.upload("mlp", "state_dict"), "mlp.pt", architecture=zoo.architecture("mlp")),
        "dataset": embedded.upload_dataset(zoo.dataset("mlp"), "mlp.npz"),
        "steps": [{"prune": {"amount": 0.5, "retrain": {"epochs": 1}}}, {"distill": {"train": {"epochs": 1}}}],
        "outputs": ["state_dict", "torchscript"],
    }
    job = embedded.submit(spec)
    with pared.Client(embedded.url) as client:
        plan = client.jobs.plan(spec)
        report = client.jobs.get(job).wait(timeout=600).report()
    assert plan.exact
    assert plan.after.model_dump() == {name: getattr(report.after, name) for name in plan.after.model_dump()}
    sizes = {file["name"]: file["size_bytes"] for file in embedded.artifacts(job)}
    assert {name: file.size_bytes for name, file in plan.files.items()} == {name: sizes[name] for name in plan.files}
    assert {"1-prune.model.safetensors", "1-prune.architecture.json", "2-distill.report.json"} <= sizes.keys()
    assert [row.file_bytes for row in plan.steps] == [row.file_bytes for row in report.steps]

    misplaced = spec | {"steps": [{"prune": {"amount": 0.5, "dataset": "builtin:digits"}}]}
    answer = embedded.http.post("/v1/jobs", json=misplaced)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/steps/0/prune/dataset"]
    timed = embedded.http.post("/v1/jobs:plan", json=spec | {"steps": [{"prune": {}}], "target": {"latency": 0.5}})
    assert [error["pointer"] for error in timed.json()["errors"]] == ["/target"]


def test_a_pipeline_is_chosen_for_a_target(embedded: Stack, tmp_path: Path) -> None:
    (tmp_path / "cnn.pt").write_bytes(zoo.upload("plain_cnn", "scripted"))
    (tmp_path / "data.npz").write_bytes(zoo.dataset("plain_cnn"))
    line = "compress cnn.pt --data data.npz --target params=30% --max-quality-drop 99% --epochs 1"

    def compress(more: str) -> Any:
        env = embedded.env | {"COLUMNS": "140"}
        return run_pared(f"{line} {more}".split(), cwd=tmp_path, env=env)

    planned = compress("--plan")
    assert planned.returncode == 0, planned.stderr
    assert "prune → distill" in planned.stderr
    assert "1 prune" in planned.stdout
    done = compress("-o small.pt")
    assert done.returncode == 0, done.stderr
    assert "Goal met" in done.stdout
    assert "2 distill" in done.stdout
    assert (tmp_path / "small.pt").stat().st_size < (tmp_path / "cnn.pt").stat().st_size
    nothing = run_pared(["compress", "cnn.pt", "--data", "data.npz"], cwd=tmp_path, env=embedded.env)
    assert nothing.returncode == 2
    assert "--target file_bytes=10%" in nothing.stderr
