"""What commands print and exit with, asked of a real server whose jobs are ended by hand."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pared.cli.missed_goals import told_of_missed_goal
from pared.reports import Report
from pared.state.keys import add_key
from pared.state.owners import create_owner
from service.routes.results import EXAMPLE_REPORT
from tests.integration.service.conftest import Api
from tests.support.forks import run_pared
from tests.support.processes import environment

INFEASIBLE = EXAMPLE_REPORT["goal"] | {"status": "infeasible", "sentence": "Goal infeasible: 30 % of the parameters."}
REPRODUCE = {"spec": {}, "seed": 0, "versions": {}, "device": "cpu", "threads": 1, "inputs": {}}
FAILED_OUTPUT = {"format": "onnx", "code": "export-failed", "detail": "ONNX cannot hold this model."}


def pared(api: Api, folder: Path, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_pared(line.split(), cwd=folder, env=environment(PARED_URL=str(api.base_url), COLUMNS="100") | env)


def ended(api: Api, **report: Any) -> str:
    job_id = api.submit()["id"]
    api.finish(job_id, {"model.pt": b"smaller"}, EXAMPLE_REPORT | {"reproduce": REPRODUCE} | report)
    return job_id


@pytest.mark.parametrize(
    ("report", "code"),
    [
        ({}, 0),
        ({"goal": INFEASIBLE}, 3),
        ({"failed_outputs": [FAILED_OUTPUT]}, 4),
        ({"goal": INFEASIBLE, "failed_outputs": [FAILED_OUTPUT]}, 3),
    ],
)
def test_a_missed_goal_exits_with_3_and_a_missing_format_alone_with_4(
    api: Api, tmp_path: Path, report: dict[str, Any], code: int
):
    done = pared(api, tmp_path, f"jobs watch {ended(api, **report)} -o small.pt --json")
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["files"] == ["small.pt"]
    assert ("Goal infeasible: 30 %" in done.stderr) == ("goal" in report)
    assert ("onnx was not written" in done.stderr) == ("failed_outputs" in report)


@pytest.mark.parametrize(
    ("typed", "following"),
    [
        (
            ["compress", "m.pt", "--target", "params=10%", "--data", "my data.npz", "--max-quality-drop", "1%"],
            "pared compress m.pt --target params=31.3% --data 'my data.npz' --max-quality-drop 2%",
        ),
        (
            ["prune", "m.pt", "--target=params=0.1", "--max-quality-drop=0.01"],
            "pared prune m.pt --target=params=31.3% --max-quality-drop=2%",
        ),
        (["jobs", "watch", "job_1"], "ask for what it reaches, --target params=31.3% --max-quality-drop 2%"),
    ],
)
def test_a_missed_goal_is_told_with_the_nearest_result_and_the_line_to_type_next(typed: list[str], following: str):
    target, reached = (
        {"params": 0.1, "macs": 0.5, "max_quality_drop": 0.01},
        {"params": 0.3121, "max_quality_drop": 0.02},
    )
    goal = INFEASIBLE | {"target": target, "reached": reached | {"macs": 0.4}, "amount": 0.44}
    report = Report.model_validate(EXAMPLE_REPORT | {"reproduce": REPRODUCE, "goal": goal})
    told = told_of_missed_goal(report, "job_1", typed)
    assert told is not None
    first, download, following_line = told.splitlines()
    assert first == f"{INFEASIBLE['sentence']} The result, 44 % removed, is the nearest that was found."
    assert download == "  to have it all the same: pared jobs download job_1"
    assert following_line == f"  next: {following}"
    met = Report.model_validate(EXAMPLE_REPORT | {"reproduce": REPRODUCE})
    assert told_of_missed_goal(met) is None


def test_quiet_prints_nothing_but_errors_and_lists_are_ids(api: Api, tmp_path: Path):
    good, missed = ended(api), ended(api, goal=INFEASIBLE)
    done = pared(api, tmp_path, f"jobs watch {good} -o small.pt --quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "small.pt").read_bytes() == b"smaller"
    done = pared(api, tmp_path, f"jobs watch {missed} -q")
    assert (done.returncode, done.stdout, "Goal infeasible" in done.stderr) == (3, "", True)
    assert pared(api, tmp_path, "jobs ls --quiet --limit 2").stdout.split() == [missed, good]


def test_what_prints_one_thing_prints_it_as_json_too(api: Api, tmp_path: Path):
    assert json.loads(pared(api, tmp_path, f"jobs pin {ended(api)} --json").stdout)["pinned"] is True
    made = pared(api, tmp_path, "keys add laptop --scope read --json", PARED_DATA_DIR=str(api.parts.settings.data_dir))
    key = json.loads(made.stdout)
    assert (key["name"], key["scopes"], key["secret"][:6]) == ("laptop", ["read"], "pared_")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_ids_that_the_server_lists_and_run_nothing_that_others_wrote(
    api: Api, tmp_path: Path, shell: str
):
    model = api.upload(b"named badly", filename="$(touch bad)`touch bad`'\"; touch bad #.pt")["id"]
    job = ended(api)

    def completed(line: str, **env: str) -> str:
        words = {
            "COMP_WORDS": line.replace(" ", "\n"),
            "COMP_CWORD": str(line.count(" ")),
            "_TYPER_COMPLETE_ARGS": line,
        }
        env = {"_PARED_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args", **words, **env}
        done = pared(api, tmp_path, "", **env)
        assert done.stderr == ""
        return done.stdout

    assert job in completed("pared jobs show job_")
    (tmp_path / "mdl-cnn.pt").touch()
    (tmp_path / "m$(touch bad).pt").touch()
    told = completed("pared prune md")
    assert model in told
    assert "mdl-cnn.pt" in told
    assert not set("$`;#'\"") & set(told.replace("_arguments '*: :((", "").replace("))'", "").replace('"', ""))
    assert "job_" not in completed("pared jobs show job_", PARED_URL="http://127.0.0.1:9")


def test_errors_end_with_the_line_to_type_next(api: Api, tmp_path: Path):
    waits, failed = (api.submit()["id"] for _ in range(2))
    api.fail(failed)
    for line, code, following in (
        ("jobs show job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", 2, "pared jobs ls"),
        (f"report {waits}", 1, f"pared jobs watch {waits}"),
        (f"jobs watch {failed}", 1, f"pared jobs logs {failed}"),
    ):
        done = pared(api, tmp_path, line)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (code, f"  next: {following}")
    done = pared(api, tmp_path, "jobs ls", PARED_API_KEY="pared_no")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "  next: export PARED_API_KEY=pared_…")


def test_a_page_is_opened_and_its_address_printed(api: Api, tmp_path: Path):
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > opened\n')
    browser.chmod(0o755)
    model = api.upload(b"has a page")["id"]
    job = api.submit(model=model)
    base = str(api.base_url).rstrip("/")
    env = {"BROWSER": f"{browser} %s", "DISPLAY": ""}
    for of, address in (
        (job["id"], base + job["links"]["web"]),
        (model, f"{base}/models/{model}"),
        ("builtin:digits", f"{base}/datasets/builtin:digits"),
    ):
        done = pared(api, tmp_path, f"open {of}", **env)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, address, "")
        assert (tmp_path / "opened").read_text().strip() == address
    done = pared(api, tmp_path, f"open {model} --json --quiet", **env)
    assert json.loads(done.stdout) == {"url": f"{base}/models/{model}", "opened": True}
    done = pared(api, tmp_path, f"open {model}", BROWSER=str(tmp_path / "none"), DISPLAY="", PATH="/nowhere")
    assert (done.returncode, done.stdout.strip()) == (1, f"{base}/models/{model}")
    assert "open the address yourself" in done.stderr
    for wrong, says in (("job_1", "no id"), ("job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "next: pared jobs ls")):
        done = pared(api, tmp_path, f"open {wrong}", **env)
        assert done.returncode == 2
        assert says in done.stderr


def test_in_a_narrow_terminal_ids_stay_whole(api: Api, tmp_path: Path):
    upload = api.upload(b"with a long name", filename="a-rather-long-name-of-a-model-from-some-folder.pt")["id"]
    key = add_key(api.parts.sessions, create_owner(api.parts.sessions, "an owner of models").id, "build machine").key.id
    narrow = {"COLUMNS": "80", "FORCE_COLOR": "1", "PARED_DATA_DIR": str(api.parts.settings.data_dir)}
    for line, whole in (("models ls", upload), ("keys ls", key), ("limits", "upload_bytes")):
        done = pared(api, tmp_path, line, **narrow)
        assert whole in done.stdout
        assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", row)) <= 80 for row in done.stdout.splitlines())


def test_commands_of_who_runs_the_server_print_json_and_keep_quiet(tmp_path: Path):
    env = environment(PARED_DATA_DIR=str(tmp_path))

    def run(line: str, code: int = 0) -> str:
        done = run_pared(line.split(), cwd=tmp_path, env=env)
        assert done.returncode == code, done.stderr
        return done.stdout

    assert json.loads(run("migrate --json"))["revision"] in run("migrate")
    assert run("migrate --quiet") == ""
    assert json.loads(run("worker --check --json", 1)) == {"ok": False, "workers": []}
    assert run("worker --check --quiet", 1) == ""
    run("worker --json", 2)
    owner = json.loads(run("owners add lab --json"))["id"]
    key = json.loads(run("keys add ci --owner lab --json"))["id"]
    disabled = json.loads(run("owners disable lab --cancel-jobs --json"))
    assert (disabled["id"], disabled["keys"], disabled["jobs_canceled"]) == (owner, 0, 0)
    assert disabled["disabled_at"] is not None
    enabled = json.loads(run("owners enable lab --json"))
    assert (enabled["keys"], enabled["disabled_at"]) == (1, None)
    assert json.loads(run("owners retain lab --days 30 --json"))["retention_days"] == 30
    assert run("owners retain lab --as-service") == f"what {owner} made is kept as long as PARED_RETENTION_DAYS says\n"
    assert run("owners disable lab -q") + run("owners enable lab -q") + run("owners retain lab --days 0 -q") == ""
    assert json.loads(run(f"keys revoke {key} --json")) == {"revoked": key}
