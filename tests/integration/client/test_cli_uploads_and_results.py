"""Commands on what a server keeps: models and data sets, and the events and files of jobs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pared import client as pared_client
from tests.support.forks import run_pared
from tests.support.processes import environment
from tests.support.scripted_server import Answer, Scripted
from tests.support.stack import Stack

JOB = {"id": "job_1", "type": "prune", "spec": {}, "links": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3))
    torch.jit.script(model).save(str(folder / "kept.pt"))
    x = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    np.savez(folder / "kept.npz", x=x, y=x[:, :3].argmax(1))
    return folder


def pared(folder: Path, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = environment(COLUMNS="160") | env
    return run_pared(line.split(), cwd=folder, env=env)


def asked(server: Scripted, folder: Path, line: str, *answers: Answer) -> subprocess.CompletedProcess[str]:
    server.say(*answers)
    return pared(folder, line, PARED_URL=server.url)


@pytest.fixture
def server() -> Scripted:
    return Scripted()


def test_events_and_files_of_a_job_are_there_after_it(embedded: Stack, folder: Path) -> None:
    done = pared(folder, "prune kept.pt --data kept.npz --channels 50% --epochs 1 --json", **embedded.env)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]["id"]

    logs = pared(folder, f"jobs logs {job}", **embedded.env)
    assert logs.returncode == 0, logs.stderr
    lines = [line.split(maxsplit=2) for line in logs.stdout.splitlines()]
    assert [kind for _, kind, _ in lines][:2] == ["status", "status"]
    assert any(kind == "log" and text.startswith("retrain: epoch 1") for _, kind, text in lines)
    assert any(kind == "metric" and text.startswith("retrain, step 1: train_loss") for _, kind, text in lines)
    assert lines[-1][1:] == ["done", "succeeded"]
    events = [json.loads(line) for line in pared(folder, f"jobs logs {job} --json", **embedded.env).stdout.splitlines()]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert "progress" in {event["event"] for event in events}

    fetched = pared(folder, f"jobs download {job}", **embedded.env)
    assert fetched.returncode == 0, fetched.stderr
    assert {path.name for path in (folder / job).iterdir()} == {"model.pt", "report.json"}
    assert f"{job}/model.pt" in fetched.stdout
    again = pared(folder, f"jobs download {job} -o again.pt -o all --json", **embedded.env)
    assert json.loads(again.stdout) == {"files": ["again.pt", "all/model.pt", "all/report.json"]}
    assert (folder / "again.pt").read_bytes() == (folder / job / "model.pt").read_bytes()


def test_uploads_are_listed_shown_and_removed(embedded: Stack, folder: Path) -> None:
    model = embedded.upload_model((folder / "kept.pt").read_bytes(), "shown.pt")
    long_name = "shown-" + 60 * "x" + ".npz"
    data = embedded.upload_dataset((folder / "kept.npz").read_bytes(), long_name)
    embedded.inspected(model)
    embedded.inspected(data)

    rows = json.loads(pared(folder, "models ls --json", **embedded.env).stdout)
    assert (rows[0]["id"], rows[0]["filename"]) == (model, "shown.pt")
    assert len(json.loads(pared(folder, "datasets ls --limit 1 --json", **embedded.env).stdout)) == 1
    listed = pared(folder, "datasets ls", **embedded.env).stdout
    assert data in listed
    assert long_name in listed

    shown = pared(folder, f"models show {model}", **embedded.env)
    assert shown.returncode == 0, shown.stderr
    assert "parameters: 291 (291 trainable)" in shown.stdout
    assert ["0", "linear", "192", "32", "yes"] in [line.split() for line in shown.stdout.splitlines()]
    assert "no: " in shown.stdout  # the outputs of the last layer stay, and why
    assert json.loads(pared(folder, f"models show {model} --json", **embedded.env).stdout)["id"] == model
    assert "samples: " in pared(folder, f"datasets show {data}", **embedded.env).stdout

    assert pared(folder, f"models rm {model}", **embedded.env).stdout == f"deleted {model}\n"
    removed = pared(folder, f"datasets rm {data} --json", **embedded.env)
    assert json.loads(removed.stdout) == {"deleted": [data]}
    gone = pared(folder, f"models show {model}", **embedded.env)
    assert gone.returncode == 2
    assert f"There is no model {model}" in gone.stderr
    builtin = pared(folder, "datasets rm builtin:digits", **embedded.env)
    assert builtin.returncode == 1
    assert "cannot be deleted" in builtin.stderr


def test_a_rejected_upload_is_shown_with_its_reason(server: Scripted, folder: Path) -> None:
    reason = {"code": "unsupported-model", "title": "No", "detail": "This is a [bold] pickled module."}
    row = {"id": "mdl_1", "filename": "m.pt", "size_bytes": 1234, "status": "rejected", "reason": reason}
    done = asked(server, folder, "models show mdl_1", Answer(body=row))
    server.close()
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["mdl_1 m.pt (1,234 bytes, rejected)", reason["detail"]]


@pytest.mark.parametrize(
    ("status", "advice"), [("running", "; `pared jobs watch job_1 -o …` waits for its files"), ("failed", "")]
)
def test_a_job_without_files_says_so(server: Scripted, folder: Path, status: str, advice: str) -> None:
    done = asked(server, folder, "jobs download job_1", Answer(body=JOB | {"status": status}))
    server.close()
    assert done.returncode == 1
    assert done.stderr == f"pared: job_1 has made no files: it is {status}{advice}\n"
    assert not (folder / "job_1").exists()


def test_logs_end_with_the_error_of_a_job_that_failed(server: Scripted, folder: Path) -> None:
    error = {"code": "diverged", "title": "Training diverged", "detail": "Lower [lr]."}
    stream = 'id: 1\nevent: metric\ndata: {"name": "train_loss", "value": null, "step": 3, "phase": "retrain"}\n\n'
    stream += f"id: 2\nevent: done\ndata: {json.dumps({'status': 'failed', 'error': error})}\n\n"
    done = asked(
        server, folder, "jobs logs job_1", Answer(body=JOB | {"status": "failed"}), Answer(body=stream.encode())
    )
    server.close()
    assert done.returncode == 0, done.stderr
    assert [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()] == [
        ["metric", "retrain, step 3: train_loss not finite"],
        ["done", "failed (diverged): Lower [lr]."],
    ]


def test_a_report_is_written_as_a_page_and_opened(server: Scripted, tmp_path: Path) -> None:
    report = json.loads((Path(__file__).parents[2] / "support/reports/infeasible.json").read_text())
    job, answer = Answer(body=JOB | {"status": "succeeded"}), Answer(body=report)
    page = pared_client.Report.model_validate(report).to_html()

    as_json = asked(server, tmp_path, "report job_1 --json --html .", job, answer)
    assert json.loads(as_json.stdout) == report, as_json.stderr
    assert (tmp_path / "job_1.html").read_text() == page
    refused = asked(server, tmp_path, "report job_1 --html job_1.html/out.html")
    assert (refused.returncode, "cannot be written" in refused.stderr) == (2, True)

    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > "$(dirname "$0")/opened"\nexit "$(cat "$(dirname "$0")/exit")"\n')
    browser.chmod(0o755)
    env = {"PARED_URL": server.url, "BROWSER": f"{browser} %s", "PATH": "/usr/bin:/bin", "DISPLAY": ""}
    (tmp_path / "exit").write_text("0")
    server.say(job, answer, job, answer)
    opened = pared(tmp_path, "report job_1 --html new/out.html --open", **env)
    assert (opened.returncode, opened.stdout) == (0, f"new/out.html ({len(page.encode()):,} bytes)\n"), opened.stderr
    assert (tmp_path / "opened").read_text() == f"file://{tmp_path}/new/out.html\n"
    assert (tmp_path / "new/out.html").read_text() == page

    (tmp_path / "exit").write_text("3")
    unseen = pared(tmp_path, "report job_1 --open", **env)
    file = Path((tmp_path / "opened").read_text().strip().removeprefix("file://"))
    assert (unseen.returncode, file.read_text()) == (1, page)
    assert file.parent.stat().st_mode & 0o077 == 0
    assert f"no browser could be started; open {file} yourself" in unseen.stderr
    file.unlink()
    file.parent.rmdir()
