"""Whether this process lives, and whether the whole service can take and do work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from pared.errors import Unavailable
from pared.state.queue import messages_waiting
from pared.state.tables import WorkerHeartbeat, db_now
from service.deps import Parts, PartsOf
from service.openapi import answers
from service.problems import RETRY_AFTER_S, document

router = APIRouter(tags=["health"])

EXAMPLE_READY = {
    "status": "ready",
    "sandbox": "standard",
    "checks": {
        "database": {"status": "ok"},
        "queue": {"status": "ok", "messages": 0},
        "store": {"status": "ok"},
        "worker": {"status": "ok", "workers": [{"name": "host-1", "sandbox": "standard", "device": "cpu"}]},
    },
}
WORKER_SEEN_S = 30.0
_LEVELS = ["none", "weak", "standard"]


@router.get(
    "/healthz",
    summary="Is this process alive?",
    description="200 as long as the process answers; looks at nothing else.",
    responses=answers(200, {"status": "ok"}),
)
async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=dict[str, Any],
    summary="Can the service do work?",
    description="200 if the database, the queue and the store answer and a worker is alive; 503 with the state of "
    "each otherwise. `sandbox` is the weakest level among the workers.",
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
    writer = parts.store.writer()
    try:
        writer.write(b"ready?")
    finally:
        writer.abort()
    return {}


def _worker(parts: Parts) -> dict[str, Any]:
    since = db_now() - max(3 * parts.settings.heartbeat_s, WORKER_SEEN_S)
    with parts.sessions() as session:
        rows = session.scalars(
            select(WorkerHeartbeat).where(WorkerHeartbeat.seen_at > since).order_by(WorkerHeartbeat.name)
        ).all()
    if not rows:
        raise Unavailable("no worker has been seen lately; start one with `pared worker`")
    return {"workers": [{"name": row.name, "sandbox": row.sandbox, "device": row.device} for row in rows]}
