"""Models and data sets: stored as they came, looked into only by the sandbox."""

from __future__ import annotations

import re
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import TypeAdapter
from pydantic import ValidationError as Invalid
from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound, ValidationError
from pared.specs import BUILTIN_DATASETS, Architecture, InspectSpec
from pared.state import lifecycle
from pared.state.references import job_using
from pared.state.tables import Dataset, Model, db_now, new_id
from service import strangers_json
from service.conditional import json_with_tag, wait_headers, wanted_wait_s
from service.deps import Owner, Parts, PartsOf, check_id
from service.openapi import DATASET, MODEL, UNCHANGED, UPLOAD_BODY, answers, page
from service.paging import After, Limit, as_page, fetch_page
from service.receive import Received, receive
from service.views import Links, ModelView, Page, UploadView, view_dataset, view_model
from service.waiting import wait_until

router = APIRouter()

_architecture: TypeAdapter[Any] = TypeAdapter(Architecture)

Filename = Annotated[str | None, Query(max_length=1024, description="What the file is called; shown, never used.")]
Architectural = Annotated[
    str | None,
    Query(description="For a state dict: an architecture's name, or its JSON. It can also be set on the job."),
]


@router.post(
    "/v1/models",
    status_code=201,
    response_model=ModelView,
    tags=["models"],
    summary="Upload a model",
    description="TorchScript (`.pt`), a torch.export program (`.pt2`), or a state dict (`.pt`, `.safetensors`) with "
    "its architecture. The file is recognised by its content, in a sandbox: `status` goes from `inspecting` to `ready` "
    "or `rejected`. The same file under the same name answers 200 with the model that is already there.",
    openapi_extra=UPLOAD_BODY,
    responses=answers(201, MODEL, 413, 507)
    | {200: {"description": "This file was uploaded before.", "model": ModelView}},
)
@router.put("/v1/models", status_code=201, response_model=ModelView, include_in_schema=False)  # what curl -T sends
async def upload_model(
    request: Request,
    response: Response,
    parts: PartsOf,
    owner: Owner,
    filename: Filename = None,
    architecture: Architectural = None,
) -> ModelView:
    """Store, write the row with its inspection job, answer."""
    declared = _parse_architecture(architecture)
    received = await receive(request, parts.store, parts.settings.max_upload_bytes)
    declared = declared or _parse_architecture(received.fields.get("architecture"))
    row, new = await run_in_threadpool(_keep_model, parts, owner, received, _display_name(filename, received), declared)
    view = view_model(row)
    _created(parts, response, view.links.self, new=new)
    return view


@router.post(
    "/v1/datasets",
    status_code=201,
    response_model=UploadView,
    tags=["data sets"],
    summary="Upload a data set",
    description="`.npz` or `.safetensors` with arrays `x` (or `x0, x1, …`) and `y`, also as `x_train`, `x_val`, "
    "`x_test`; `.csv` whose last column is `y`; a `.zip` of image folders. `builtin:digits` needs no upload.",
    openapi_extra=UPLOAD_BODY,
    responses=answers(201, DATASET, 413, 507)
    | {200: {"description": "This file was uploaded before.", "model": UploadView}},
)
@router.put("/v1/datasets", status_code=201, response_model=UploadView, include_in_schema=False)
async def upload_dataset(
    request: Request, response: Response, parts: PartsOf, owner: Owner, filename: Filename = None
) -> UploadView:
    """Store, write the row with its inspection job, answer."""
    received = await receive(request, parts.store, parts.settings.max_upload_bytes)
    row, new = await run_in_threadpool(_keep_dataset, parts, owner, received, _display_name(filename, received))
    view = view_dataset(row)
    _created(parts, response, view.links.self, new=new)
    return view


@router.get(
    "/v1/models",
    response_model=Page[ModelView],
    tags=["models"],
    summary="List models",
    description="Newest first.",
    responses=answers(200, page(MODEL)),
)
def list_models(parts: PartsOf, owner: Owner, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """A page of the owner's models."""
    with parts.sessions() as session:
        query = select(Model).where(Model.owner == owner, Model.deleted_at.is_(None))
        return as_page([view_model(row) for row in fetch_page(session, query, Model.id, after, limit)], limit)


@router.get(
    "/v1/datasets",
    response_model=Page[UploadView],
    tags=["data sets"],
    summary="List data sets",
    description="Newest first. `builtin:digits` is always there and not listed.",
    responses=answers(200, page(DATASET)),
)
def list_datasets(parts: PartsOf, owner: Owner, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """A page of the owner's data sets."""
    with parts.sessions() as session:
        query = select(Dataset).where(Dataset.owner == owner, Dataset.deleted_at.is_(None))
        return as_page([view_dataset(row) for row in fetch_page(session, query, Dataset.id, after, limit)], limit)


@router.get(
    "/v1/models/{model_id}",
    response_model=ModelView,
    tags=["models"],
    summary="Look at a model",
    description="`Prefer: wait=30` answers once the model is inspected, or after so many seconds.",
    responses=answers(200, MODEL, 404) | UNCHANGED,
)
async def get_model(request: Request, parts: PartsOf, owner: Owner, model_id: str) -> Response:
    """The model, at once or once inspected."""
    check_id(model_id, "mdl")

    def look() -> ModelView:
        with parts.sessions() as session:
            return view_model(cast("Model", _find(session, Model, owner, model_id)))

    return await _when_inspected(request, look)


@router.get(
    "/v1/datasets/{dataset_id}",
    response_model=UploadView,
    tags=["data sets"],
    summary="Look at a data set",
    description="`Prefer: wait=30` answers once the data set is inspected, or after so many seconds.",
    responses=answers(200, DATASET, 404) | UNCHANGED,
)
async def get_dataset(request: Request, parts: PartsOf, owner: Owner, dataset_id: str) -> Response:
    """The data set, at once or once inspected."""
    if dataset_id in BUILTIN_DATASETS:
        return json_with_tag(request, _builtin(dataset_id), {})
    check_id(dataset_id, "dst")

    def look() -> UploadView:
        with parts.sessions() as session:
            return view_dataset(cast("Dataset", _find(session, Dataset, owner, dataset_id)))

    return await _when_inspected(request, look)


@router.delete(
    "/v1/models/{model_id}",
    status_code=204,
    tags=["models"],
    summary="Delete a model",
    description="Jobs that used it keep their reports and artifacts. A model that an unfinished job uses stays: 409.",
    responses=answers(204, None, 404, 409),
)
def delete_model(parts: PartsOf, owner: Owner, model_id: str) -> None:
    """Delete the owner's model."""
    check_id(model_id, "mdl")
    _delete(parts, Model, owner, model_id)


@router.delete(
    "/v1/datasets/{dataset_id}",
    status_code=204,
    tags=["data sets"],
    summary="Delete a data set",
    description="Jobs that used it keep their reports and artifacts. One that an unfinished job uses stays: 409.",
    responses=answers(204, None, 404, 409),
)
def delete_dataset(parts: PartsOf, owner: Owner, dataset_id: str) -> None:
    """Delete the owner's data set."""
    if dataset_id in BUILTIN_DATASETS:
        raise Conflict(f"{dataset_id} is part of pared and cannot be deleted.")
    check_id(dataset_id, "dst")
    _delete(parts, Dataset, owner, dataset_id)


def _parse_architecture(text: str | None) -> Any | None:
    if not text:
        return None
    value: Any = text
    if text.lstrip().startswith("{"):
        try:
            value = strangers_json.parse(text)
        except ValueError as error:
            raise ValidationError(
                "The architecture is not valid JSON.", errors=[{"pointer": "/query/architecture", "detail": str(error)}]
            ) from None
    elif not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise ValidationError('An architecture is a name such as lenet5, or JSON such as {"layers": [["Linear", …]]}.')
    try:
        _architecture.validate_python(value)
    except Invalid as error:
        detail = "; ".join(one["msg"] for one in error.errors()[:3])
        raise ValidationError(
            'An architecture is a name, {"name": …, "kwargs": {…}} or {"layers": [[kind, {…}], …]}.',
            errors=[{"pointer": "/query/architecture", "detail": detail}],
        ) from None
    return value


def _display_name(filename: str | None, received: Received) -> str:
    name = filename or received.fields.get("filename") or "upload"
    name = re.split(r"[/\\]", name.encode("utf-8", "replace").decode())[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", name).strip()[:255] or "upload"


def _keep_model(
    parts: Parts, owner: str, received: Received, filename: str, architecture: Any | None
) -> tuple[Model, bool]:
    with parts.sessions.begin() as session:
        for known in _same_file(session, Model, owner, received, filename):
            if cast("Model", known).architecture == architecture:
                return cast("Model", known), False
        row = Model(**_columns("mdl", owner, received, filename), architecture=architecture)
        session.add(row)
        lifecycle.create(session, owner, InspectSpec(type="inspect", subject=row.id, architecture=architecture))
        session.refresh(row)
        return row, True


def _keep_dataset(parts: Parts, owner: str, received: Received, filename: str) -> tuple[Dataset, bool]:
    with parts.sessions.begin() as session:
        for known in _same_file(session, Dataset, owner, received, filename):
            return cast("Dataset", known), False
        row = Dataset(**_columns("dst", owner, received, filename))
        session.add(row)
        lifecycle.create(session, owner, InspectSpec(type="inspect", subject=row.id))
        session.refresh(row)
        return row, True


def _same_file(
    session: Session, table: type[Model | Dataset], owner: str, received: Received, filename: str
) -> list[Model | Dataset]:
    # A rejected one is no answer: whoever sends it again wants it tried again.
    rows = session.scalars(
        select(table).where(
            table.owner == owner,
            table.sha256 == received.stored.sha256,
            table.filename == filename,
            table.status != "rejected",
            table.deleted_at.is_(None),
        )
    )
    return list(cast("Any", rows))


def _columns(prefix: Any, owner: str, received: Received, filename: str) -> dict[str, Any]:
    stored = received.stored
    return {
        "id": new_id(prefix),
        "owner": owner,
        "filename": filename,
        "sha256": stored.sha256,
        "size_bytes": stored.size_bytes,
    }


def _created(parts: Parts, response: Response, location: str, *, new: bool) -> None:
    response.headers["Location"] = location
    if new:
        parts.bell.ring()
    else:
        response.status_code = 200


def _find(session: Session, table: type[Model | Dataset], owner: str, upload_id: str) -> Model | Dataset:
    row = session.scalar(select(table).where(table.id == upload_id, table.owner == owner, table.deleted_at.is_(None)))
    if row is None:
        raise NotFound(f"There is no {'model' if table is Model else 'data set'} {upload_id}.")
    return cast("Model | Dataset", row)


async def _when_inspected(request: Request, look: Any) -> Response:
    wait_s = wanted_wait_s(request)
    view = await wait_until(request, look, lambda seen: seen.status != "inspecting", wait_s)
    headers = wait_headers(wait_s)
    if view.status == "inspecting":
        headers["Retry-After"] = "1"
    return json_with_tag(request, view, headers)


def _delete(parts: Parts, table: type[Model | Dataset], owner: str, upload_id: str) -> None:
    with parts.sessions.begin() as session:
        # Locked against `check_references`: a job that is being submitted now is seen here, or sees the row gone.
        session.execute(select(table.id).where(table.id == upload_id).with_for_update())
        row = _find(session, table, owner, upload_id)
        user = job_using(session, owner, upload_id)
        if user:
            raise Conflict(f"Job {user} still uses it. Cancel the job or wait until it has ended.")
        row.deleted_at = session.scalar(select(db_now()))


def _builtin(dataset_id: str) -> UploadView:
    return UploadView(
        id=dataset_id,
        filename=dataset_id,
        sha256=None,
        size_bytes=None,
        format="builtin",
        status="ready",
        reason=None,
        inspection={
            "format": "builtin",
            "inputs": [{"shape": [1, 8, 8], "dtype": "float32"}],
            "samples": {"all": 1797},
            "splits": "by_seed",
            "target": {"dtype": "int64", "classes": 10},
            "warnings": [],
        },
        created_at=None,
        links=Links(self=f"/v1/datasets/{dataset_id}"),
    )
