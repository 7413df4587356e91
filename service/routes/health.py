"""Health: whether this process lives, and whether the whole service can take and do work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from pared.errors import Unavailable
from pared.state.queue import messages_waiting
from pared.state.tables import db_now
from pared.state.workers import living
from service.dependencies import Parts, PartsOf
from service.openapi import KEYLESS, answers
from service.problems import RETRY_AFTER_S, document

router = APIRouter(tags=["health"])

EXAMPLE_READY = {
    "status": "ready",
    "sandbox": "standard",
    "checks": {
        "database": {"status": "ok"},
        "queue": {"status": "ok", "messages": 0},
        "store": {"status": "ok"},
        "worker": {
            "status": "ok",
            "workers": [
                {
                    "name": "host:71",
                    "sandbox": "standard",
                    "sandbox_problem": None,
                    "device": "16 CPUs, NVIDIA H100 80GB HBM3",
                    "devices": ["cpu", "cuda"],
                    "device_problem": None,
                }
            ],
        },
    },
}
_LEVELS = ["none", "weak", "standard"]


@router.get(
    "/healthz",
    summary="Is this process alive?",
    description="200 as long as the process answers; looks at nothing else.",
    openapi_extra=KEYLESS,
    responses=answers(200, {"status": "ok"}),
)
async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=dict[str, Any],
    summary="Can the service do work?",
    description="200 if the database, the queue and the store answer and a worker is alive that can run jobs; 503 with "
    "the state of each otherwise. Of each worker, `devices` are those that it has shown to run jobs on, and "
    "`device_problem` says why it uses no GPU, or takes no jobs, such as for want of room on its disk; "
    "`sandbox_problem` why its jobs run as root, and what to do. `sandbox` is the weakest level among the workers.",
    openapi_extra=KEYLESS,
    responses=answers(200, EXAMPLE_READY),
)
def readyz(request: Request, parts: PartsOf) -> Response:
    """Ready, or what is missing."""
    checks = {
        "database": _checked(lambda: _database(parts)),
        "queue": _checked(lambda: {"messages": messages_waiting(queue=parts.queue)}),
        "store": _checked(lambda: _store(parts)),
        "worker": _checked(lambda: _worker(parts)),
    }
    bad = [name for name, check in checks.items() if check["status"] != "ok"]
    levels = [worker["sandbox"] for worker in checks["worker"].get("workers", [])]
    sandbox = min(levels, key=lambda level: _LEVELS.index(level) if level in _LEVELS else 0, default=None)
    if bad:
        error = Unavailable(f"Not ready: {'; '.join(name + ': ' + checks[name]['detail'] for name in bad)}")
        members = {**error.problem(), "request_id": request.state.request_id, "sandbox": sandbox, "checks": checks}
        return document(members, {"Retry-After": str(RETRY_AFTER_S)})
    return JSONResponse({"status": "ready", "sandbox": sandbox, "checks": checks})


def _checked(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": "ok", **check()}
    except Unavailable as error:
        return {"status": "failed", "detail": error.detail}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to the question
        return {"status": "failed", "detail": f"{type(error).__name__}; see the log of the API process"}


def _database(parts: Parts) -> dict[str, Any]:
    with parts.sessions() as session:
        session.execute(select(db_now()))
    return {}


def _store(parts: Parts) -> dict[str, Any]:
    parts.store.check()
    writer = parts.store.writer()
    try:
        writer.write(b"ready?")
    finally:
        writer.abort()
    return {}


def _worker(parts: Parts) -> dict[str, Any]:
    with parts.sessions() as session:
        rows = living(session)
    workers = [
        {
            "name": row.name,
            "sandbox": row.sandbox,
            "sandbox_problem": row.sandbox_problem,
            "device": row.device,
            "devices": row.devices,
            "device_problem": row.device_problem,
        }
        for row in rows
    ]
    if not workers:
        detail = "no worker has been seen lately; start one with `pared worker`"
    elif not any(row.devices for row in rows):
        detail = "no worker can run jobs: " + " ".join(f"{row.name}: {row.device_problem}" for row in rows)
    else:
        return {"workers": workers}
    return {"status": "failed", "detail": detail, "workers": workers}
