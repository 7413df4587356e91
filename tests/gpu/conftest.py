"""What tests on a card share: the service, the jobs that were posted to it, and a JSON line for each finding.

The files run in the order of their names: first those whose jobs share the card, then, from `test_interruptions` on,
those that need it alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.card import DEVICE, Card, card, say
from tests.gpu.jobs import BASICS, DEVICES, FAMILIES, Posted
from tests.gpu.up import WORKERS, Up
from tests.support.clean_process import CleanProcess
from tests.support.processes import Processes

DETAILS = pytest.StashKey[dict[str, Any]]()
RESULTS = pytest.StashKey[dict[str, list[str]]]()
_AMISS = ('"level": "warning"', '"level": "error"', "ERROR", "CRITICAL", "Error:")


@pytest.fixture
def finding(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a test adds to its line."""
    details: dict[str, Any] = {}
    request.node.stash[DETAILS] = details
    return details


@pytest.fixture(scope="session")
def before() -> Card | None:
    """The card before anything was started on it; None where the tests themselves are tried without one."""
    if DEVICE != "cuda":
        return None
    try:
        return card()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.exit(f"There is no card here ({error}). PARED_TEST_DEVICE=cpu tries these tests without one.", 2)


@pytest.fixture(scope="session")
def up(processes: Processes, scratch: Path, before: Card | None, request: pytest.FixtureRequest) -> Iterator[Up]:
    """A running `pared up`."""
    folder = scratch / "gpu"
    try:
        started = Up(folder, processes)
    except AssertionError:
        _show(request.config, [*folder.glob("*.log"), *folder.glob("data/logs/*.log")])
        raise
    yield started
    if request.config.stash[RESULTS]["failed"]:
        _show(request.config, started.logs())
    _keep(started.logs())
    started.stop()


@pytest.fixture(scope="session")
def posted(up: Up) -> Posted:
    """All jobs that share the card, and enough workers for them."""
    _serves_it(up)
    for _ in range(WORKERS - 1):
        up.start_worker()
    return Posted(up, BASICS | DEVICES | FAMILIES)


@pytest.fixture(scope="session")
def alone(request: pytest.FixtureRequest, up: Up) -> Up:
    """The service with the card to itself: what was posted before has ended."""
    _serves_it(up)
    if up.workers:
        request.getfixturevalue("posted").all_ended()
        up.send_workers_home()
    return up


def _serves_it(up: Up) -> None:
    """Fail at once where no job can run, and not once for each."""
    workers = up.get("/readyz")["checks"]["worker"]["workers"]
    problems = [worker["device_problem"] for worker in workers]
    assert any(DEVICE in worker["devices"] for worker in workers), f"no worker serves {DEVICE}: {problems}"


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanProcess]:
    """A process that has torch and not this repository."""
    yield from _process(tmp_path_factory.mktemp("clean"), "cpu")


@pytest.fixture(scope="module")
def on_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanProcess]:
    """The same, where the jobs run."""
    yield from _process(tmp_path_factory.mktemp("clean-device"), DEVICE)


def _process(folder: Path, device: str) -> Iterator[CleanProcess]:
    started = CleanProcess(folder, device)
    yield started
    started.process.kill()
    started.process.wait()


# -- lines --------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Room for what was found."""
    config.stash[RESULTS] = {"passed": [], "failed": [], "skipped": []}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print the test's line as soon as it is known."""
    report = yield
    if report.when != "call" and report.outcome == "passed":
        return report
    name = item.name.removeprefix("test_").replace("_", " ").replace("[", ": ").rstrip("]")
    item.config.stash[RESULTS][report.outcome].append(name)
    fields: dict[str, Any] = {"finding": name, "ok": report.outcome == "passed"}
    if report.outcome == "skipped":
        fields["ok"] = None
    elif report.outcome == "failed":
        words = str(call.excinfo.value).partition("\n---")[0] if call.excinfo else ""  # beyond it: logs
        fields["error"] = f"{call.excinfo.typename if call.excinfo else '?'}: {words.strip()[:500]}"
    _print(item.config, **fields, **item.stash.get(DETAILS, {}))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last line."""
    results = session.config.stash[RESULTS]
    if any(results.values()):
        counts = {outcome: len(names) for outcome, names in results.items()}
        _print(
            session.config, finding="all of test-gpu", ok=not results["failed"], **counts, failures=results["failed"]
        )


def _show(config: pytest.Config, logs: list[Path]) -> None:
    """What each log says is amiss, as lines like the findings'."""
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        if told := "\n".join(line for line in lines if any(words in line for words in _AMISS))[-900:]:
            _print(config, log=log.stem, tail=told)


def _keep(logs: list[Path]) -> None:
    """All logs as one file in the folder that OUT names, if it does."""
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "test-gpu-service.log").open("wb") as kept:
            for log in logs:
                kept.write(f"\n--- {log.stem} ---\n".encode() + log.read_bytes()[-4_000_000:])


def _print(config: pytest.Config, **fields: Any) -> None:
    with _uncaptured(config)():
        say(**fields)


def _uncaptured(config: pytest.Config) -> Callable[[], Any]:
    disabled: Callable[[], Any] = config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled
    return disabled
