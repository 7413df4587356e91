"""Owns the numbers that Prometheus reads: what this API process counts, and what the database says of the service.

The database is looked at when somebody asks, and not again while the last look is young, so asking often costs nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.types import Scope

from pared.errors import Unavailable
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.statistics import Ended, EndedJobs, Statistics, read_statistics
from pared.version import __version__
from service.process_numbers import Siblings
from service.processes import COUNTS

KEPT_S = 5.0
"""So long the database is not looked at again."""
_SHARE = 50
"""Nor for so many times as long as the last look took: looking takes at most a fiftieth of the time."""
NO_ROUTE = "none"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_JOB_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0, 36000.0, 86400.0)

log = structlog.get_logger()
disable_created_metrics()  # type: ignore[no-untyped-call] # a second series beside each counter, which nobody asks for


class Metrics:
    """The numbers of one API process, or of all that serve one port. All methods may be called by several threads."""

    def __init__(self, sessions: Sessions, settings: Settings) -> None:
        """Count from zero, or on from what the process counted in whose place this one is (`service.processes`)."""
        counts = CollectorRegistry()
        own: dict[str, Any] = {"registry": counts}
        requests = Counter("pared_http_requests", "Requests.", ["method", "route", "status"], **own)
        request_s = Histogram(
            "pared_http_request_seconds",
            "From the end of a request's headers to the end of its answer; without event streams and long polls.",
            ["method", "route"],
            buckets=_REQUEST_S,
            **own,
        )
        # To look a label up takes longer than to count.
        self._count_of = lru_cache(maxsize=None)(requests.labels)
        self._duration_of = lru_cache(maxsize=None)(request_s.labels)
        own["multiprocess_mode"] = "livesum"
        self._streams = Gauge("pared_open_streams", "Event streams and long polls that are open.", **own)
        self._streams.set(0)
        own["multiprocess_mode"] = "max"
        Gauge("pared_build_info", "1, with the version.", ["version"], **own).labels(__version__).set(1)
        folder = os.environ.get(COUNTS) if settings.api_processes > 1 else None
        self._database = _OfTheDatabase(sessions, settings, counts, Path(folder) if folder else None)
        if folder:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, folder)  # type: ignore[no-untyped-call]
            self._registry.register(Siblings())
        else:
            self._registry = counts
            ProcessCollector(registry=counts)
        self._registry.register(self._database)

    def set_open_streams(self, count: int) -> None:
        """Say how many event streams and long polls this process has open."""
        self._streams.set(count)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered; `status` 0: its client left before."""
        route, method = route_of(scope), method_of(scope)
        self._count_of(method, route, str(status)).inc()
        if status and "follower" not in scope.get("state", {}):
            self._duration_of(method, route).observe(seconds)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All numbers in the format that this `Accept` header prefers, and its media type."""
        self._database.look()
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


def method_of(scope: Scope) -> str:
    """The method of a request, or `other`: names that clients make up are as many as anybody likes."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def route_of(scope: Scope) -> str:
    """The template of the route that a request took: of raw paths there are as many as anybody likes."""
    path = getattr(scope.get("route"), "path", None)
    if path is not None:
        return str(path)
    # A folder of files is no route; all that is neither leads nowhere.
    return "/static" if scope["path"].startswith("/static/") else NO_ROUTE


class _OfTheDatabase(Collector):
    """What is the same in every API process, save for how long ago each looked."""

    def __init__(
        self, sessions: Sessions, settings: Settings, registry: CollectorRegistry, shared: Path | None
    ) -> None:
        self._sessions, self._settings = sessions, settings
        self._lock = threading.Lock()
        self._ended = EndedJobs()
        self._shared = shared
        self._seen: Statistics | None = None
        self._look_again_at = 0.0
        labels: dict[str, Any] = {"buckets": _JOB_S, "registry": registry}
        self._stage_s = Histogram(
            "pared_job_stage_seconds", "Stages of jobs that have ended.", ["type", "stage"], **labels
        )
        self._job_s = Histogram(
            "pared_job_seconds", "Jobs that have ended, from their first start.", ["type", "status"], **labels
        )
        self._wait_s = Histogram(
            "pared_job_wait_seconds", "Jobs that have ended, until their first start.", ["type", "device"], **labels
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        seen = self._seen
        yield _gauge("pared_database_up", "Whether the database answered.", [], [([], seen is not None)])
        yield from _disks(self._settings)
        if seen is not None:
            yield from _families(seen)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing, so that to register it looks at no database."""
        return iter(())

    def look(self) -> None:
        """Look at the database, unless what was seen last is young."""
        with self._lock:
            if time.monotonic() >= self._look_again_at:
                self._look()

    def _look(self) -> None:
        begun = time.monotonic()
        try:
            with self._sessions() as session:
                ended = self._ended.read(session) if self._shared is None else _ended_of_all(self._shared, session)
                self._seen = read_statistics(session)
        except (SQLAlchemyError, Unavailable) as error:
            log.warning("database_away", reason=str(error))
            self._seen, ended = None, []
        for job in ended:
            if job.waited_s is not None:
                self._wait_s.labels(job.type, job.device).observe(job.waited_s)
            if job.seconds is not None:
                self._job_s.labels(job.type, job.status).observe(job.seconds)
            for stage, seconds in job.stages:
                self._stage_s.labels(job.type, stage).observe(seconds)
        now = time.monotonic()
        self._look_again_at = now + max(KEPT_S, _SHARE * (now - begun))


def _ended_of_all(folder: Path, session: Session) -> list[Ended]:
    """The jobs that ended since any of the processes looked; each of them adds to the sum what it finds first."""
    ended: list[Ended] = []
    try:
        with (folder / "ended_jobs").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            jobs = EndedJobs.of(file.read())
            ended = jobs.read(session)
            file.truncate(0)
            file.write(jobs.state)
    except OSError as error:  # the disk is full: the next look begins anew
        log.warning("ended_jobs_not_kept", reason=str(error))
    return ended


def _families(seen: Statistics) -> Iterator[GaugeMetricFamily]:
    yield _gauge("pared_jobs", "Jobs that there are.", ["type", "status"], seen.jobs.items())
    waiting = {(lane, device): (0, 0.0) for lane in ("jobs", "quick") for device in ("auto", "cpu", "cuda")}
    waiting |= {key: (group.count, group.oldest_s) for key, group in seen.waiting.items()}
    of_lane = ["lane", "device"]
    counts = [(key, count) for key, (count, _) in waiting.items()]
    yield _gauge("pared_jobs_waiting", "Jobs that wait, by the device that they ask for.", of_lane, counts)
    ages = [(key, oldest_s) for key, (_, oldest_s) in waiting.items()]
    yield _gauge("pared_oldest_waiting_job_seconds", "How long the first of them has waited.", of_lane, ages)
    yield _gauge("pared_jobs_running", "Jobs under way, by stage.", ["type", "stage"], seen.stages.items())
    alive = [((each.name, each.device, ",".join(each.devices) or "none", each.sandbox), 1) for each in seen.workers]
    yield _gauge("pared_worker_info", "1 for a worker that lives.", ["worker", "device", "runs_on", "sandbox"], alive)
    busy = [((each.name, lane), each.holds[lane]) for each in seen.workers for lane in ("jobs", "quick")]
    yield _gauge("pared_worker_jobs", "Jobs that a worker has under way.", ["worker", "lane"], busy)
    problems = [
        ((each.name, kind), found)
        for each in seen.workers
        for kind, found in (("device", each.device_problem), ("sandbox", each.sandbox_problem))
    ]
    yield _gauge("pared_worker_problem", "Whether a worker reports one; /readyz has words.", ["worker", "of"], problems)
    stored = [([kind], size) for kind, size in seen.stored_bytes.items()]
    yield _gauge("pared_stored_bytes", "Bytes of what rows name.", ["what"], stored)
    yield _gauge("pared_outbox_messages", "Messages owed to the broker.", [], [([], seen.outbox)])


@dataclass(frozen=True)
class Disk:
    """Where a folder lies, in bytes."""

    total: int
    free: int


def disks(settings: Settings) -> dict[str, Disk]:
    """The disks of the folders `data` and `objects`, as far as they are on this machine."""
    folders = {"data": settings.data_dir, "objects": settings.objects_place}
    usage = {
        name: shutil.disk_usage(folder)
        for name, folder in folders.items()
        if isinstance(folder, Path) and folder.is_dir()
    }
    return {name: Disk(found.total, found.free) for name, found in usage.items()}


def _disks(settings: Settings) -> Iterator[GaugeMetricFamily]:
    found = disks(settings)
    free = [([name], disk.free) for name, disk in found.items()]
    yield _gauge("pared_disk_free_bytes", "Room on the disk of a folder.", ["folder"], free)
    size = [([name], disk.total) for name, disk in found.items()]
    yield _gauge("pared_disk_size_bytes", "Size of the disk of a folder.", ["folder"], size)


def _gauge(name: str, words: str, labels: list[str], values: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=labels)
    for of, value in values:
        family.add_metric([str(each) for each in of], float(value))
    return family
