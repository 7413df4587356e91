"""The owner's data sets: their list, and the card of each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.errors import ParedError
from pared.report_page.sections import Table
from pared.specs import BUILTIN_DATASETS
from pared.state.inspections import preview_of
from pared.state.tables import Dataset
from pared.state.uploads import delete_upload, find_upload
from pared.state.workers import waits_for
from service.dependencies import CallerOf, Parts, PartsOf, check_id
from service.pages import inspected, lists
from service.pages.site import render, see_other
from service.pagination import After
from service.schemas import builtin_dataset_view, dataset_view

router = APIRouter(include_in_schema=False)

_JOBS = 10


@router.get("/datasets")
def list_datasets(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    q: lists.Text = "",
    status: lists.Status = "",
    after: After = None,
) -> Response:
    """The data sets, newest first."""
    context = lists.context_of(parts, caller.owner, Dataset, q, status or None, after)
    return render(request, "datasets.html.j2", context | {"builtin": BUILTIN_DATASETS})


@router.get("/datasets/{dataset_id}")
async def show_dataset(request: Request, parts: PartsOf, caller: CallerOf, dataset_id: str) -> Response:
    """The data set's page."""
    return render(request, "dataset.html.j2", await run_in_threadpool(_card, parts, caller.owner, dataset_id))


@router.get("/datasets/{dataset_id}/card")
async def show_card(request: Request, parts: PartsOf, caller: CallerOf, dataset_id: str) -> Response:
    """The part of the page that changes once the data set is inspected."""
    return render(request, "_dataset_card.html.j2", await run_in_threadpool(_card, parts, caller.owner, dataset_id))


@router.post("/datasets/{dataset_id}/delete")
async def delete_dataset(parts: PartsOf, caller: CallerOf, dataset_id: str) -> Response:
    """Delete the data set, and show those that are left."""
    if dataset_id not in BUILTIN_DATASETS:
        check_id(dataset_id, "dst")
    await run_in_threadpool(delete_upload, parts.sessions, caller.owner, Dataset, dataset_id)
    return see_other("/datasets")


def _card(parts: Parts, owner: str, dataset_id: str) -> dict[str, Any]:
    waits = created_at = None
    preview: dict[str, Any] = {"sheet": False, "rows": None}
    with parts.sessions() as session:
        if dataset_id in BUILTIN_DATASETS:
            dataset = builtin_dataset_view(dataset_id)
        else:
            check_id(dataset_id, "dst")
            row = find_upload(session, owner, Dataset, dataset_id)
            dataset, created_at = dataset_view(row), row.created_at
            if row.status == "inspecting":
                waits = waits_for(session, "auto", "the data set")
            elif row.status == "ready":
                preview = _preview(parts, row)
        jobs = lists.jobs_naming(session, owner, dataset_id, created_at, _JOBS)
    inspection = dataset.inspection or {}
    names, more_names = inspected.class_names(inspection)
    return {
        "dataset": dataset,
        "builtin": dataset_id in BUILTIN_DATASETS,
        "jobs": jobs,
        "waits": waits,
        "preview": preview,
        "facts": list(inspected.dataset_facts(dataset.size_bytes, inspection)),
        "splits": inspected.split_rows(inspection),
        "class_names": names,
        "more_names": more_names,
        "warnings": inspected.warnings_of(inspection),
    }


def _preview(parts: Parts, row: Dataset) -> dict[str, Any]:
    """Whether the preview is a sheet of images, and otherwise its rows, where there are any."""
    try:
        file = preview_of(row)
        if file.media_type == "image/png":
            return {"sheet": True, "rows": None}
        parts.verified.check(file.object_key, file.sha256)
    except ParedError:  # there is none, or it is damaged: the page shows the rest
        return {"sheet": False, "rows": None}
    rows: Table | None = inspected.preview_table(b"".join(parts.store.read(file.object_key)))
    return {"sheet": False, "rows": rows}
