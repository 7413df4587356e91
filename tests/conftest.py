"""Fixtures for every layer: real processes, started once a run, and gone when it ends however it ends."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Before torch is imported: the models here are small, several tests run at once, and threads that wait for each other
# cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Reports of tests need a latency, not a sound one: to look for it took a third of the time of many.
os.environ.setdefault("PARED_LATENCY_S", "0.02")

from tests.support.campaign import report_counts
from tests.support.processes import Processes
from tests.support.s3 import S3Server
from tests.support.servers import Servers
from tests.support.stack import Stack, new_stack


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Who starts and surely ends child processes."""
    started = Processes()
    yield started
    started.close()


@pytest.fixture(scope="session")
def scratch(processes: Processes) -> Path:
    """A folder for this run that any user can pass through (PostgreSQL runs as another one)."""
    folder = Path(tempfile.mkdtemp(prefix="pared-tests-"))
    folder.chmod(0o755)
    processes.remove_at_end(folder)
    return folder


@pytest.fixture(scope="session")
def servers(processes: Processes, scratch: Path) -> Servers:
    """A PostgreSQL and a Redis of this run's own."""
    folder = scratch / "servers"
    folder.mkdir(mode=0o755)
    return Servers(folder, processes)


@pytest.fixture(scope="session")
def s3(processes: Processes, scratch: Path) -> Iterator[S3Server]:
    """An S3-compatible server of this run's own, which this process and what it starts find by their environment."""
    folder = scratch / "s3"
    folder.mkdir()
    server = S3Server(folder, processes)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def embedded(processes: Processes, scratch: Path) -> Iterator[Stack]:
    """The service as `pared up` runs it: SQLite, the filesystem broker, and a worker."""
    stack = new_stack(scratch / "embedded", processes)
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def on_servers(processes: Processes, scratch: Path, servers: Servers) -> Iterator[Stack]:
    """The same service on PostgreSQL and Redis."""
    stack = new_stack(scratch / "on_servers", processes, servers)
    yield stack
    stack.stop()


@pytest.fixture(scope="session", params=["embedded", "on_servers"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Each backend in turn."""
    started: Stack = request.getfixturevalue(request.param)
    return started


_TOGETHER = (
    ("browser/",),
    (
        *("e2e/test_readme", "e2e/test_matrix", "e2e/test_programs", "e2e/test_goals", "e2e/test_pipelines"),
        "e2e/test_quantization",
    ),
    ("e2e/test_formats", "e2e/test_plans", "e2e/test_journey", "e2e/test_bad_input", "threats/test_uploads"),
    (
        *("integration/client/test_cli", "integration/test_setup", "e2e/test_files", "e2e/test_stories"),
        *("e2e/test_data_sets", "e2e/test_texts", "e2e/test_granularities", "e2e/test_device", "e2e/test_imports"),
        "e2e/test_examples",
    ),
    tuple(
        f"integration/worker/test_{name}" for name in ("attempt", "ranks", "recovery", "results", "sandbox", "tasks")
    ),
)
"""Files of tests that use the same services, which cost much to start and something to keep: one process of pytest runs
all of a row.
"""
_IN_PARTS = ("integration/worker/test_celery", "threats/test_parsers")
"""Long files whose tests share nothing: three processes of pytest may run parts of them."""
_LONGEST = (
    "tests/browser/",
    "tests/integration/worker/test_celery.py",
    "tests/integration/compression/test_methods.py",
    "tests/e2e/test_readme.py",
    "tests/e2e/test_formats.py",
    "tests/integration/client/test_cli.py",
    "tests/integration/worker/test_attempt.py",
    "tests/faults/",
    "tests/threats/",
    "tests/e2e/test_wheel.py",
    "tests/e2e/",
    "tests/integration/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first, so that none of them is left to run alone at the end."""

    def place(item: pytest.Item) -> int:
        return next((i for i, path in enumerate(_LONGEST) if item.nodeid.startswith(path)), len(_LONGEST))

    items.sort(key=place)


def pytest_configure() -> None:
    """No rounds of the garbage collector while tests are collected: they took a quarter of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of the garbage collector's rounds: they would take longer than tests.

    Rounds are fewer than usual, too: where graphs are analysed they took a thirtieth of the time.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20)
    gc.enable()


class _FilesOfOneService(LoadScopeScheduling):
    """Hands a process of pytest a file at a time, all files of a row of `_TOGETHER`, or a part of a long one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = file.removeprefix("tests/")
        if name.startswith(_IN_PARTS):
            return f"{file}, part {crc32(nodeid.encode()) % 3}"
        return next((row[0] for row in _TOGETHER if name.startswith(row)), file)

    def remove_node(self, node: WorkerController) -> str | None:
        """The test at which this process died, if it died at one; no other process runs that test again."""
        others = self.assigned_work
        self.assigned_work = {node: others.pop(node)}
        died_at: str | None = super().remove_node(node)
        self.assigned_work = others
        for scope, tests in list(self.workqueue.items()):
            if died_at in tests:
                tests[died_at] = True
                if all(tests.values()):
                    del self.workqueue[scope]
        for other in self.nodes:
            self._reschedule(other)
        return died_at

    def _reschedule(self, node: WorkerController) -> None:
        """Give no tests to a process that took a dead one's place and has not collected them yet; else two or all.

        A process that has one test waits for the next, or to be told that there is none, before it runs the one.
        """
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _FilesOfOneService:
    """How tests are shared out among the processes of pytest."""
    return _FilesOfOneService(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a campaign counted, a line a test."""
    if config.option.markexpr == "campaign":
        report_counts(terminalreporter)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the processes' logs with a test that failed on them."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Stack):
                report.sections.append((f"logs of {value.folder.name}", value.tails()))
    return report
