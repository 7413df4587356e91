"""How the whole service does, for whoever runs it: workers, queues, disks, and jobs that failed."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from pared.report_page import numbers, texts
from pared.state.statistics import read_failures, read_statistics
from pared.state.tables import Job, by_id_of_few
from pared.state.workers import SEEN_S, living
from pared.statuses import HELD
from service.dependencies import ADMIN_PAGE, CallerOf, PartsOf
from service.metrics import disks
from service.pages.job_page import STAGES
from service.pages.site import render
from service.pages.words import ago, lasting, moment

router = APIRouter(include_in_schema=False)

REMEMBERED_S = 3_600.0
"""So long a worker that is gone is shown."""
FAILURES_DAYS, MOST_FAILURES = 7, 20


@dataclass(frozen=True)
class WorkerRow:
    """A worker, in words."""

    name: str
    seen: str
    lives: bool
    device: str
    takes: str
    sandbox: str
    holds: list[str]
    problems: list[str]


@router.get(ADMIN_PAGE)
def admin(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """The page."""
    return render(request, "admin.html.j2", _context(parts))


@router.get(f"{ADMIN_PAGE}/live")
def admin_live(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """The part of the page that changes."""
    return render(request, "_admin_live.html.j2", _context(parts))


def _context(parts: PartsOf) -> dict[str, Any]:
    now = time.time()
    with parts.sessions() as session:
        numbers_now = read_statistics(session)
        failures = read_failures(session, FAILURES_DAYS * 86_400, MOST_FAILURES)
        held: dict[str | None, list[str]] = defaultdict(list)
        columns = (Job.lease_owner, Job.id, Job.type, Job.stage)
        for row in session.execute(select(*columns).where(Job.status.in_(HELD)).order_by(by_id_of_few()).limit(1000)):
            stage = STAGES.get(row.stage or "", texts.name(row.stage or "begins"))
            held[row.lease_owner].append(f"{row.type} {row.id}: {stage}")
        workers = [
            WorkerRow(
                row.name,
                ago(row.seen_at, now),
                row.seen_at > now - SEEN_S,
                row.device,
                ", ".join(row.devices) or "takes no jobs",
                row.sandbox,
                held[row.name],
                [problem for problem in (row.device_problem, row.sandbox_problem) if problem],
            )
            for row in living(session, REMEMBERED_S)
        ]
    by_type: dict[str, dict[str, int]] = defaultdict(dict)
    for (job_type, status), count in sorted(numbers_now.jobs.items()):
        by_type[job_type][status] = count
    return {
        "workers": workers,
        "waiting": [
            (lane, device, f"{group.count:,}", lasting(group.oldest_s))
            for (lane, device), group in sorted(numbers_now.waiting.items())
        ],
        "outbox": numbers_now.outbox,
        "by_type": by_type,
        "statuses": ("queued", "running", "canceling", "succeeded", "failed", "canceled"),
        "stored": [(kind.replace("_", " "), numbers.size(size)) for kind, size in numbers_now.stored_bytes.items()],
        "disks": [
            (name, numbers.size(disk.free), numbers.size(disk.total), 1 - disk.free / (disk.total or 1))
            for name, disk in disks(parts.settings).items()
        ],
        "days": FAILURES_DAYS,
        "reasons": failures.counts,
        "failures": [
            (
                job.id,
                job.owner,
                job.type,
                moment(job.finished_at),
                (job.error or {}).get("code", "?"),
                texts.sentence((job.error or {}).get("detail")),
            )
            for job in failures.latest
        ],
        "seen_at": moment(now),
    }
