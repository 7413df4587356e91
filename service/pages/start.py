"""The page to start from: drop a model, drop data, go on to a job; and what was done lately."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.state.tables import Dataset, Model
from service.dependencies import CallerOf, PartsOf, RequestId
from service.new_uploads import receive_dataset, receive_model
from service.pages import lists
from service.pages.site import render, see_other

router = APIRouter(include_in_schema=False)

_LATEST = 5


@router.get("/")
async def start(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """Two files to drop, and the next step."""

    def read() -> dict[str, Any]:
        with parts.sessions() as session:
            return {
                "jobs": lists.latest_jobs(session, caller.owner, _LATEST),
                "models": lists.uploads(session, caller.owner, Model, most=_LATEST).rows,
                "datasets": lists.uploads(session, caller.owner, Dataset, most=_LATEST).rows,
            }

    found = await run_in_threadpool(read)
    ready = {kind: next((row for row in found[kind] if row.status == "ready"), None) for kind in ("models", "datasets")}
    context = found | {
        "model": ready["models"],
        "dataset": ready["datasets"],
        "most_bytes": parts.settings.max_upload_bytes,
        "scripts": ["upload"],
    }
    return render(request, "start.html.j2", context)


@router.post("/models")
async def upload_model(request: Request, parts: PartsOf, caller: CallerOf, request_id: RequestId) -> Response:
    """What the form of a browser without JavaScript sends: store the file, show the model."""
    model, _ = await receive_model(request, parts, caller.owner, request_id, {})
    return see_other(f"/models/{model.id}")


@router.post("/datasets")
async def upload_dataset(request: Request, parts: PartsOf, caller: CallerOf, request_id: RequestId) -> Response:
    """The same for a data set."""
    dataset, _ = await receive_dataset(request, parts, caller.owner, request_id, None)
    return see_other(f"/datasets/{dataset.id}")
