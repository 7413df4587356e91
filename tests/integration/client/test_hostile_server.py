"""A server is not believed: not the names and texts that it sends, not where it points, not how much it sends."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
import typer

import pared
from pared.cli.app import app
from pared.client import UntrustedAnswer, operations
from pared.terminal import printable, printable_json
from service.openapi import DATASET, JOB_ID, MODEL, PLAN, SUCCEEDED
from service.routes.limits import EXAMPLE as LIMITS
from service.routes.results import EXAMPLE_REPORT
from service.routes.webhooks import DELIVERY_ID, EXAMPLE_DELIVERY, WEBHOOK_ID
from service.routes.webhooks import EXAMPLE as WEBHOOK
from tests.support.forks import run_pared
from tests.support.processes import environment
from tests.support.scripted_server import Answer, Asked, Scripted

HOSTILE = "\x1b]0;pwned\x1b\\\x1b[31mRED\x1b[8m\x9b31m\x07\r\u202e\u2028[link=http://evil]x[/link][/oops]\x7f"
SHOWN = ("verdict", "reason", "filename", "detail", "title", "text", "name", "stage", "architecture", "message",
         "url", "secret", "description", "disabled_reason", "problem")  # fmt: skip
LISTS_SHOWN = ("notes", "warnings")
# What rich itself writes: styles, and moves of the cursor by the bar of a job.
STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\d*[AKG]|\x1b\[2K|\x1b\[\?25[lh]|\r")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
FILE = bytes(range(256))
REPRODUCE = {"spec": {}, "seed": 0, "versions": {}, "device": "cpu", "threads": 1, "inputs": {}}
REPORT = EXAMPLE_REPORT | {"reproduce": REPRODUCE}


def hostile(value: Any, key: str = "") -> Any:
    """The value with commands to the terminal in every text that is shown."""
    if isinstance(value, dict):
        return {name: hostile(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [f"{HOSTILE}{part}" if key in LISTS_SHOWN else hostile(part, key) for part in value]
    return f"{HOSTILE}{value}" if key in SHOWN and isinstance(value, str) else value


ARTIFACT = {"name": "model.pt", "sha256": hashlib.sha256(FILE).hexdigest(), "size_bytes": len(FILE)}
REJECTED = {"status": "rejected", "reason": {"code": "invalid-data", "title": "No", "detail": "bad"}}
INSPECTED = {
    "inspection": {
        "format": "torchscript",
        "parameters": 7,
        "inputs": [{"name": "x", "shape": [1], "dtype": "float32"}],
        "layers": [{"name": "fc", "kind": HOSTILE, "parameters": 7, "reason": "its outputs are the model's"}],
        "warnings": ["old"],
    }
}
EVENTS = [
    ("status", {"status": "running", "stage": "retrain"}),
    ("log", {"text": "epoch 1"}),
    ("metric", {"phase": HOSTILE, "step": 1, "name": "loss", "value": 0.5}),
    ("done", {"status": "failed", "error": {"code": HOSTILE, "detail": "diverged"}}),
]


def answers(asked: Asked) -> Answer:
    """A service that works, and whose every text is hostile."""
    path = asked.path.partition("?")[0]
    job = hostile(SUCCEEDED) | {"id": JOB_ID, "links": {}}
    broken = {"description": "mine", "disabled_at": "2026-01-15T09:00:00.000Z", "disabled_reason": "It failed."}
    rows = {
        "/v1/jobs": job,
        "/v1/models": hostile(MODEL | INSPECTED),
        "/v1/datasets": hostile(DATASET | INSPECTED),
        f"/v1/webhooks/{WEBHOOK_ID}/deliveries": hostile(EXAMPLE_DELIVERY | {"problem": "It hung up."}),
        "/v1/webhooks": hostile(WEBHOOK | broken | {"secret": "whsec_x"}),
    }
    if asked.method == "DELETE":
        return Answer(204, b"")
    if path == "/healthz":
        return Answer(body={"status": "ok"})
    if path == "/openapi.json":
        return Answer(body={"info": {"version": HOSTILE}})
    if path == "/readyz":
        return Answer(503, {"detail": HOSTILE})
    if path == "/v1/jobs:plan":
        return Answer(body=hostile(PLAN))
    if path.endswith("/events"):
        lines = [
            f"id: {number}\nevent: {kind}\ndata: {json.dumps(hostile(data))}\n\n"
            for number, (kind, data) in enumerate(EVENTS, 1)
        ]
        return Answer(body="".join(lines).encode())
    if path.endswith("/report"):
        return Answer(body=hostile(copy.deepcopy(REPORT)))
    if path == "/v1/limits":
        return Answer(body=hostile({**LIMITS, "limits": [row | {"meaning": HOSTILE} for row in LIMITS["limits"]]}))
    if path.endswith("/preview"):
        return Answer(body=b"{}", headers={"Content-Type": "application/json"})
    if path.endswith("/artifacts"):
        return Answer(body={"data": [ARTIFACT]})
    if path.endswith("/model.pt"):
        return Answer(body=FILE)
    if path in rows and asked.method == "GET":
        return Answer(body={"data": [rows[path]], "has_more": False, "next_cursor": None})
    if path in rows:
        sha256 = hashlib.sha256(asked.body).hexdigest()
        return Answer(202 if path == "/v1/jobs" else 201, rows[path] | ({} if "hooks" in path else {"sha256": sha256}))
    if path.endswith(("/test", "/replay")):
        return Answer(202, rows[f"/v1/webhooks/{WEBHOOK_ID}/deliveries"])
    if path.startswith("/v1/datasets/"):
        return Answer(body=hostile(DATASET | REJECTED))
    found = next((row for prefix, row in rows.items() if path.startswith(f"{prefix}/")), None)
    return Answer(404, hostile({"title": "No", "detail": path})) if found is None else Answer(body=found)


PRUNE = "prune m.pt --channels 50% -o out.pt"
COMMANDS = {
    "prune": [PRUNE, f"{PRUNE} --json"],
    "plan": ["plan m.pt --channels 50%"],
    "distill": ["distill --teacher m.pt --width 50%"],
    "quantize": ["quantize m.pt"],
    "compress": ["compress m.pt --target file_bytes=50%"],
    "run": ["run spec.json"],
    "doctor": ["doctor"],
    "jobs ls": ["jobs ls", "jobs ls --json", "jobs ls --quiet"],
    "jobs show": [f"jobs show {JOB_ID}"],
    "jobs watch": [f"jobs watch {JOB_ID}"],
    "jobs cancel": [f"jobs cancel {JOB_ID}"],
    "jobs pin": [f"jobs pin {JOB_ID}"],
    "jobs unpin": [f"jobs unpin {JOB_ID}"],
    "jobs logs": [f"jobs logs {JOB_ID}", f"jobs logs {JOB_ID} --json"],
    "jobs download": [f"jobs download {JOB_ID} -o all"],
    "limits": ["limits", "limits --json"],
    "report": [f"report {JOB_ID}", f"report {JOB_ID} --json"],
    "open": [f"open {JOB_ID}", f"open {JOB_ID} --json"],
    "models ls": ["models ls"],
    "models show": [f"models show {MODEL['id']}", f"models show {MODEL['id']} --json"],
    "models rm": [f"models rm {MODEL['id']}"],
    "datasets ls": ["datasets ls"],
    "datasets show": [f"datasets show {DATASET['id']}"],
    "datasets rm": [f"datasets rm {DATASET['id']}"],
    "datasets preview": [f"datasets preview {DATASET['id']}"],
    "webhooks add": ["webhooks add https://a.b", "webhooks add https://a.b --json"],
    "webhooks ls": ["webhooks ls", "webhooks ls --json"],
    "webhooks rm": [f"webhooks rm {WEBHOOK_ID}"],
    "webhooks test": [f"webhooks test {WEBHOOK_ID}"],
    "webhooks deliveries": [f"webhooks deliveries {WEBHOOK_ID}"],
    "webhooks replay": [f"webhooks replay {WEBHOOK_ID} {DELIVERY_ID}"],
}
"""What asks a server, by the command's name; an error of the server is shown by the same function in all."""
WITHOUT_SERVER = {
    "unpack",
    "prune-file",
    "up",
    "api",
    "worker",
    "migrate",
    "demo",
    "gc",
    "fsck",
    "backup",
    "restore",
    "audit",
}
"""And all of the groups `keys` and `owners`, which work on the database."""


def command_names(command: Any, before: str = "") -> Iterator[str]:
    for name, each in command.commands.items():
        if isinstance(each, click.Group) or hasattr(each, "commands"):
            yield from command_names(each, f"{before}{name} ")
        else:
            yield f"{before}{name}"


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


def test_every_command_is_shown_to_be_harmless_or_asks_no_server() -> None:
    names = set(command_names(typer.main.get_command(app)))
    assert {name for name in names if name.split()[0] not in ("keys", "owners")} == set(COMMANDS) | WITHOUT_SERVER


@pytest.mark.parametrize("name", COMMANDS)
def test_no_text_of_the_server_commands_the_terminal(server: Scripted, tmp_path: Path, name: str) -> None:
    (tmp_path / "m.pt").write_bytes(b"a model")
    (tmp_path / "spec.json").write_text('{"type": "prune", "model": "m.pt", "amount": 0.5}')
    env = environment(PARED_URL=server.url, FORCE_COLOR="1", TERM="xterm", COLUMNS="200")
    for line in COMMANDS[name]:
        server.answers[:] = [answers] * 20
        done = run_pared(line.split(), cwd=tmp_path, env=env)
        assert "Traceback" not in done.stderr, done.stderr
        assert server.asked, line
        for stream in (done.stdout, done.stderr):
            assert CONTROLS.findall(STYLES.sub("", stream)) == [], (line, stream)
            assert "\x1b]" not in stream
        if "--json" in line and name != "jobs logs":
            json.loads(done.stdout)


def test_what_a_hostile_error_says_is_harmless(server: Scripted, tmp_path: Path) -> None:
    env = environment(PARED_URL=server.url, FORCE_COLOR="1", TERM="xterm")
    server.say(Answer(404, {"title": HOSTILE, "detail": HOSTILE, "errors": [{"pointer": HOSTILE, "detail": HOSTILE}]}))
    server.say(Answer(body={"id": HOSTILE, "status": HOSTILE}))  # pydantic quotes what it does not understand
    for _ in range(2):
        done = run_pared(["jobs", "show", JOB_ID], cwd=tmp_path, env=env)
        assert done.returncode == 2
        assert CONTROLS.findall(STYLES.sub("", done.stderr)) == []


def test_what_is_printed_in_python_is_harmless() -> None:
    job = pared.Job.model_validate(hostile(SUCCEEDED) | {"status": "failed", "error": {"code": "x", "detail": HOSTILE}})
    report = pared.Report.model_validate(hostile(copy.deepcopy(REPORT)))
    plan = pared.Plan.model_validate(hostile(PLAN))
    for thing in (job, report, plan, pared.APIError(404, {"title": HOSTILE}), pared.JobFailed(job)):
        assert CONTROLS.findall(str(thing)) == []
        assert "[/oops]" in str(thing) or "pwned" in str(thing)  # square brackets are text, and stay


def test_signs_take_the_place_of_commands_and_json_keeps_its_value() -> None:
    assert printable("a\tb\nc\x1bd\x7fe\x9bf\ud800") == "a\tb\nc␛d␡e\ufffdf\ufffd"
    assert json.loads(printable_json(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


# -- where the server points ----------------------------------------------------------------------


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a client of either kind with a key."""

    def blocking(url: str, do: Callable[[Any], Any]) -> Any:
        with pared.Client(url, "secret") as client:
            return do(client)

    def awaited(url: str, do: Callable[[Any], Any]) -> Any:
        async def run() -> Any:
            async with pared.AsyncClient(url, "secret") as client:
                return await do(client)

        return anyio.run(run)

    return blocking if request.param == "blocking" else awaited


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_to_no_other_server_by_a_redirect(server: Scripted, ask: Callable[..., Any], status: int) -> None:
    other = Scripted()
    for location in (f"{other.url}/v1/jobs/job_1", "https://127.0.0.1/", f"//{other.url[7:]}/v1"):
        server.say(Answer(status, b"", {"Location": location}))
        with pytest.raises(pared.APIError, match="PARED_URL"):
            ask(server.url, lambda client: client.jobs.get("job_1"))
    other.close()
    assert not other.asked


def test_the_place_of_a_plan_is_not_taken_from_the_server(server: Scripted, ask: Callable[..., Any]) -> None:
    other = Scripted()
    server.say(Answer(202, {"id": "job_1", "status": "queued"}, {"Location": f"{other.url}/v1/plans/job_1"}))
    server.say(Answer(body=PLAN))
    ask(server.url, lambda client: client.plan("mdl_1", amount=0.5))
    assert [asked.path for asked in server.asked] == ["/v1/jobs:plan", "/v1/plans/job_1"]
    other.close()
    assert not other.asked


@pytest.mark.parametrize("path", ["http://a/v1", "//a/v1", "v1/jobs", "/v1/../x", "/v1/jobs/x?y", "/v1/a\\b", "/", ""])
def test_what_is_no_path_of_the_server_is_not_asked_for(path: str) -> None:
    with pytest.raises(UntrustedAnswer):
        operations.check_path(path)
    operations.check_path(f"/v1/jobs/{operations.segment('a/../b?c#d')}")


NAMES = ["/etc/x.pt", "../x.pt", "a/b.pt", "..", ".", "", ".profile", "a\\b.pt", "a\0.pt", "a\x1b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_written_nowhere_but_where_the_user_says(server: Scripted, tmp_path: Path, name: str) -> None:
    artifacts = Answer(body={"data": [ARTIFACT | {"name": name}]})
    with pared.Client(server.url) as client:
        server.say(Answer(body=SUCCEEDED), artifacts)
        job = client.jobs.get("job_1")
        with pytest.raises(UntrustedAnswer, match="no name to write a file under"):
            job.download(tmp_path, name=name)
    server.say(Answer(body=SUCCEEDED), artifacts)
    done = run_pared(["jobs", "download", JOB_ID, "-o", "x"], cwd=tmp_path, env=environment(PARED_URL=server.url))
    assert done.returncode == 1
    assert not list(tmp_path.rglob("*"))


# -- how much the server sends --------------------------------------------------------------------


def test_no_more_of_a_file_is_read_than_was_announced(server: Scripted, tmp_path: Path) -> None:
    with pared.Client(server.url) as client:
        server.say(Answer(body=SUCCEEDED), Answer(body={"data": [ARTIFACT]}), Answer(body=FILE + bytes(1 << 20)))
        job = client.jobs.get("job_1")
        with pytest.raises(UntrustedAnswer, match="256 bytes"):
            job.download(tmp_path / "model.pt")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= len(FILE)


@pytest.mark.parametrize("status", [200, 404])
def test_an_answer_has_a_size(
    server: Scripted, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(operations, "MAX_ANSWER_BYTES", 1 << 16)
    monkeypatch.setattr(operations, "_MAX_PROBLEM_BYTES", 1 << 16)
    server.say(Answer(status, {"id": "x" * (1 << 17)}))
    with pytest.raises(UntrustedAnswer, match="65,536 bytes"):
        ask(server.url, lambda client: client.jobs.get("job_1"))
    server.say(Answer(body=b"data: " + b"x" * (1 << 17)))
    with pytest.raises(UntrustedAnswer, match="65,536 bytes"), pared.Client(server.url) as client:
        list(client.iterate(operations.events("/v1/jobs/job_1", 0)))
