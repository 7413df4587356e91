"""`pared doctor` says what works, with the cure of all else, and changes nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from pared.cli import checks, doctor, server_checks
from pared.cli.checks import Check
from pared.client import reachability
from pared.state.keys import add_key
from pared.state.owners import create_owner
from pared.state.tables import WorkerHeartbeat
from tests.integration.service.conftest import Api
from tests.support.forks import run_pared
from tests.support.processes import environment
from tests.support.scripted_server import Answer, Scripted


def by_name(found: list[Check]) -> dict[str, Check]:
    assert all((check.cure is None) == (check.status == "ok") for check in found)
    return {check.name: check for check in found}


def test_the_command_exits_with_1_where_something_needs_a_cure(guarded: Api, tmp_path: Path):
    env = environment(PARED_URL=str(guarded.base_url), PARED_DATA_DIR=str(tmp_path / "d"), PARED_API_KEY="pared_no")
    done = run_pared(["doctor", "--json"], cwd=tmp_path, env=env)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    seen = {each["name"]: each for each in told["checks"]}
    assert told["ok"] is False
    assert seen["key"]["status"] == "wrong"
    assert seen["sandbox"]["detail"]
    assert seen["clock"]["status"] == seen["server version"]["status"] == "ok"
    assert not list(tmp_path.iterdir())


def test_each_line_has_its_cure_and_what_only_some_need_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = [Check("torch", "note", "not installed", "pip install it"), Check("gpu", "ok", "none")]
    monkeypatch.setattr(doctor, "_looks", lambda: [lambda: found])
    doctor.doctor()
    assert capsys.readouterr().out.splitlines()[:3] == ["– torch: not installed", "    → pip install it", "✓ gpu: none"]
    found.append(Check("key", "wrong", "revoked", "export PARED_API_KEY=pared_…"))
    with pytest.raises(typer.Exit) as left:
        doctor.doctor()
    assert left.value.exit_code == 1


def test_it_says_what_a_key_may_do_and_whether_the_server_is_ready(guarded: Api, monkeypatch: pytest.MonkeyPatch):
    owner = create_owner(guarded.parts.sessions, "somebody").id
    monkeypatch.setenv("PARED_URL", str(guarded.base_url))
    monkeypatch.setenv("PARED_API_KEY", add_key(guarded.parts.sessions, owner, "k", scopes=["read", "metrics"]).secret)
    seen = by_name(list(checks.server()))
    assert (seen["key"].status, seen["key"].detail) == ("ok", "PARED_API_KEY may read, metrics")
    assert "worker" in seen["server"].detail
    assert seen["server"].status == "wrong"
    with guarded.parts.sessions.begin() as session:
        session.add(WorkerHeartbeat(name="w", sandbox="standard", device="1 CPU", devices=["cpu"]))
    assert by_name(list(checks.server()))["server"].status == "ok"
    monkeypatch.delenv("PARED_API_KEY")
    assert "pared keys add" in by_name(list(checks.server()))["key"].detail


def test_another_version_and_a_clock_that_is_wrong_are_told(monkeypatch: pytest.MonkeyPatch):
    server = Scripted()
    server.say(
        Answer(body={"status": "ok"}),
        Answer(body={"info": {"version": "9.9"}}),
        Answer(404, body={}),  # a proxy does not pass /readyz on
        Answer(body={"scopes": ["read"]}),
    )
    monkeypatch.setenv("PARED_URL", server.url)
    monkeypatch.setattr(
        reachability, "time", SimpleNamespace(time=lambda: time.time() + 3600, monotonic=time.monotonic)
    )
    seen = by_name(list(checks.server()))
    assert (seen["server"].status, seen["server version"].cure) == ("ok", "pip install pared==9.9")
    assert "before the server's" in seen["clock"].detail
    assert seen["clock"].status == "wrong"
    server.say(Answer(body={"status": "ok"}), Answer(body={"info": []}), Answer(404), Answer(body={"scopes": None}))
    assert by_name(list(checks.server()))["server version"].status == "wrong"
    server.say(Answer(body=b"[" * 100_000))
    assert "no pared server" in by_name(list(checks.server()))["server"].detail
    monkeypatch.setenv("PARED_URL", "http://127.0.0.1:9")
    assert by_name(list(checks.server()))["server"].status == "wrong"


def test_folders_and_servers_that_the_settings_name_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("PARED_DATA_DIR", str(folder))
    monkeypatch.setenv("PARED_PORT", "47113")
    seen = by_name(list(server_checks.of_this_machine()))
    assert (seen["data directory"].status, seen["data directory"].cure) == ("wrong", f"chmod o= {folder}")
    assert (seen["database"].status, seen["broker"].status) == ("ok", "ok")
    folder.chmod(0o700)
    (folder / "pared.db").touch()
    monkeypatch.setenv("PARED_BROKER_URL", "redis://:sesame@127.0.0.1:9/0")
    seen = by_name(list(server_checks.of_this_machine()))
    assert seen["data directory"].status == "ok"
    assert (seen["database"].status, seen["database"].cure) == ("wrong", "pared migrate")
    assert seen["broker"].status == "wrong"
    monkeypatch.setenv("PARED_DATABASE_URL", "postgresql://pared:sesame@127.0.0.1:9/pared")
    monkeypatch.setenv("PARED_DATA_DIR", str(tmp_path / "data" / "pared.db" / "d"))
    seen = by_name(list(server_checks.of_this_machine()))
    assert (seen["database"].status, seen["data directory"].status) == ("wrong", "wrong")
    assert "sesame" not in str(seen)
    monkeypatch.setattr(server_checks, "LEAST_FREE_BYTES", 1 << 60)
    monkeypatch.setenv("PARED_DATA_DIR", str(folder))
    assert by_name(list(server_checks.of_this_machine()))["data directory"].status == "wrong"
    monkeypatch.setenv("PARED_PORT", "none")
    assert [check.name for check in server_checks.of_this_machine()] == ["settings"]
