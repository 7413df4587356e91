"""The owner's models: their list, and the card of each."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.report_page import texts
from pared.state.tables import Model
from pared.state.uploads import delete_upload, find_upload
from pared.state.workers import waits_for
from service.dependencies import CallerOf, Parts, PartsOf, check_id
from service.pages import inspected, lists
from service.pages.inspected import Show, Sort
from service.pages.site import render, see_other
from service.pagination import After
from service.schemas import model_view

router = APIRouter(include_in_schema=False)

_JOBS = 10

Number = Annotated[int, Query(ge=1, le=100_000)]


@router.get("/models")
def list_models(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    q: lists.Text = "",
    status: lists.Status = "",
    after: After = None,
) -> Response:
    """The models, newest first."""
    context = lists.context_of(parts, caller.owner, Model, q, status or None, after)
    return render(request, "models.html.j2", context)


@router.get("/models/{model_id}")
async def show_model(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    model_id: str,
    q: lists.Text = "",
    sort: Sort = "order",
    show: Show = "all",
    page: Number = 1,
) -> Response:
    """The model's page."""
    context = await run_in_threadpool(_card, parts, caller.owner, model_id, q, sort, show, page)
    return render(request, "model.html.j2", context)


@router.get("/models/{model_id}/card")
async def show_card(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    model_id: str,
) -> Response:
    """The part of the page that changes once the model is inspected."""
    context = await run_in_threadpool(_card, parts, caller.owner, model_id, "", "order", "all", 1)
    return render(request, "_model_card.html.j2", context)


@router.post("/models/{model_id}/delete")
async def delete_model(parts: PartsOf, caller: CallerOf, model_id: str) -> Response:
    """Delete the model, and show those that are left."""
    check_id(model_id, "mdl")
    await run_in_threadpool(delete_upload, parts.sessions, caller.owner, Model, model_id)
    return see_other("/models")


def _card(parts: Parts, owner: str, model_id: str, q: str, sort: Sort, show: Show, page: int) -> dict[str, Any]:
    check_id(model_id, "mdl")
    with parts.sessions() as session:
        row = find_upload(session, owner, Model, model_id)
        jobs = lists.jobs_naming(session, owner, model_id, row.created_at, _JOBS)
        waits = waits_for(session, "auto", "the model") if row.status == "inspecting" else None
        model = model_view(row)
    inspection = model.inspection or {}
    layers = inspected.layers_of(inspection)
    architecture = model.architecture or inspection.get("architecture")
    stays, more_stays = inspected.what_stays(layers)
    return {
        "model": model,
        "jobs": jobs,
        "waits": waits,
        "tiles": list(inspected.model_tiles(row.size_bytes, inspection, layers)),
        "inputs": inspected.inputs_of(inspection),
        "warnings": inspected.warnings_of(inspection),
        "stays": stays,
        "more_stays": more_stays,
        "between_layers": inspected.between_layers(inspection, layers),
        "layers": inspected.layer_page(layers, lists.printed(q), sort, show, page),
        "architecture": texts.spec_json(architecture) if architecture else None,
        "q": lists.printed(q),
        "sort": sort,
        "show": show,
    }
