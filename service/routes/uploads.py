"""Models and data sets: uploaded, listed, looked at and deleted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import defer

from pared.errors import NotFound
from pared.specs import BUILTIN_DATASETS, NAMES_HELP
from pared.state.inspections import preview_of
from pared.state.tables import Dataset, Model
from pared.state.uploads import (
    delete_upload,
    find_upload,
    owned_uploads,
)
from service.checked_routes import CheckedRoute
from service.dependencies import Owner, Parts, PartsOf, RequestId, check_id
from service.downloads import file_response
from service.etags import json_with_tag
from service.long_polling import requested_wait_s, wait_headers, wait_until
from service.new_uploads import receive_dataset, receive_model
from service.openapi import DATASET, MODEL, PREVIEW, UNCHANGED, UPLOAD_BODY, answers, page
from service.pagination import EXPANDED_ROWS, After, Limit, json_page
from service.schemas import ModelView, Page, PreviewRows, UploadView, builtin_dataset_view, dataset_view, model_view

router = APIRouter(route_class=CheckedRoute)

Upload = TypeVar("Upload", Model, Dataset)

Filename = Annotated[
    str | None, Query(max_length=1024, description="The file's name, to be shown; never used as a path.")
]
ArchitectureText = Annotated[
    str | None,
    Query(
        description="For a state dict: an architecture's name, or its JSON, such as "
        '`{"name": "resnet50", "kwargs": {"num_classes": 10}}`. It can also be set on the job. ' + NAMES_HELP,
        examples=["resnet50"],
    ),
]
Expand = Annotated[
    Literal["inspection"] | None,
    Query(description=f"With `inspection` each row has its own, and a page has at most {EXPANDED_ROWS} rows."),
]
WeightsName = Annotated[
    str | None,
    Query(
        max_length=255,
        description="Of a checkpoint with several state dicts the one that is meant, by the keys that lead to it: "
        "`ema`, or `generator.state_dict`.",
        examples=["ema"],
    ),
]
Prefix = Annotated[
    str | None,
    Query(
        max_length=255,
        description="Of a state dict only the tensors whose names begin so, by the rest of their names: `student.`.",
        examples=["student."],
    ),
]


@router.post(
    "/v1/models",
    status_code=201,
    response_model=ModelView,
    tags=["models"],
    summary="Upload a model",
    description="TorchScript (`.pt`), a torch.export program (`.pt2`), ONNX (`.onnx`, or a zip of it with its data), "
    "or a state dict (`.pt`, `.safetensors`) with its architecture, or a checkpoint that has one at any depth. The "
    "file is recognised by its content, in a sandbox: `status` goes from `inspecting` to `ready` or `rejected`. The "
    "same file under the same name answers 200 with the model that is already there.",
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
    request_id: RequestId,
    filename: Filename = None,
    architecture: ArchitectureText = None,
    weights: WeightsName = None,
    prefix: Prefix = None,
) -> ModelView:
    """Store the file, keep the model, answer."""
    named = {"filename": filename, "architecture": architecture, "weights": weights, "prefix": prefix}
    model, new = await receive_model(request, parts, owner, request_id, named)
    view = model_view(model)
    _say_where(response, view, new=new)
    return view


@router.post(
    "/v1/datasets",
    status_code=201,
    response_model=UploadView,
    tags=["data sets"],
    summary="Upload a data set",
    description="`.npz` or `.safetensors` with arrays `x` (or `x0, x1, …`, or inputs by the names of the model's "
    "arguments) and `y`, also as `x_train`, `x_val`, `x_test`; `.csv` whose last column is `y`; `.jsonl` and "
    "`.parquet`; a `.zip` of one of these two with texts and the model's `tokenizer.json`; a `.zip` with a folder of "
    "images for each class, with `images/` and `masks/` (PNG; the value of a pixel is its class, 255 is ignored), "
    "or with images alone. Without targets the data set has no labels. `builtin:digits` needs no upload.",
    openapi_extra=UPLOAD_BODY,
    responses=answers(201, DATASET, 413, 507)
    | {200: {"description": "This file was uploaded before.", "model": UploadView}},
)
@router.put("/v1/datasets", status_code=201, response_model=UploadView, include_in_schema=False)
async def upload_dataset(
    request: Request, response: Response, parts: PartsOf, owner: Owner, request_id: RequestId, filename: Filename = None
) -> UploadView:
    """Store the file, keep the data set, answer."""
    dataset, new = await receive_dataset(request, parts, owner, request_id, filename)
    view = dataset_view(dataset)
    _say_where(response, view, new=new)
    return view


@router.get(
    "/v1/models",
    response_model=Page[ModelView],
    tags=["models"],
    summary="List models",
    description="Newest first. `inspection` is null here, unless `expand=inspection` asks for it.",
    responses=answers(200, page(MODEL | {"inspection": None})),
)
def list_models(
    parts: PartsOf, owner: Owner, after: After = None, limit: Limit = 20, expand: Expand = None
) -> Response:
    """A page of the owner's models."""
    return _page(parts, owner, Model, model_view, after, limit, expand)


@router.get(
    "/v1/datasets",
    response_model=Page[UploadView],
    tags=["data sets"],
    summary="List data sets",
    description="Newest first. `builtin:digits` is always there and not listed. `inspection` is null here, unless "
    "`expand=inspection` asks for it.",
    responses=answers(200, page(DATASET | {"inspection": None})),
)
def list_datasets(
    parts: PartsOf, owner: Owner, after: After = None, limit: Limit = 20, expand: Expand = None
) -> Response:
    """A page of the owner's data sets."""
    return _page(parts, owner, Dataset, dataset_view, after, limit, expand)


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

    def read() -> ModelView:
        with parts.sessions() as session:
            return model_view(find_upload(session, owner, Model, model_id))

    return await _once_inspected(request, parts, model_id, read)


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
        return json_with_tag(request, builtin_dataset_view(dataset_id), {})
    check_id(dataset_id, "dst")

    def read() -> UploadView:
        with parts.sessions() as session:
            return dataset_view(find_upload(session, owner, Dataset, dataset_id))

    return await _once_inspected(request, parts, dataset_id, read)


_SHOWN = answers(200, PREVIEW, 404, 409, 412, 416, description="Rows, or a sheet of images.")
_SHOWN[200]["content"]["image/png"] = {"schema": {"type": "string", "contentMediaType": "image/png"}}


@router.get(
    "/v1/datasets/{dataset_id}/preview",
    response_model=PreviewRows,
    tags=["data sets"],
    summary="Look at samples of a data set",
    description="Some samples of the training split (drawn with seed 0 where the data set brings no splits) as a model "
    "gets them, before a job's own `preprocess`: a PNG with images and their labels or masks, or JSON with rows of "
    "numbers or token ids. Made once, when the data set is inspected: 409 until then, and if it was rejected.",
    responses=_SHOWN | {206: {"description": "The range asked for."}} | UNCHANGED,
)
def get_preview(request: Request, parts: PartsOf, owner: Owner, dataset_id: str) -> Response:
    """The file that the inspection left."""
    if dataset_id in BUILTIN_DATASETS:
        raise NotFound(f"{dataset_id} is part of pared and has no preview. GET /v1/datasets/{dataset_id} describes it.")
    check_id(dataset_id, "dst")
    with parts.sessions() as session:
        return file_response(request, parts, preview_of(find_upload(session, owner, Dataset, dataset_id)))


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
    delete_upload(parts.sessions, owner, Model, model_id)


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
    if dataset_id not in BUILTIN_DATASETS:
        check_id(dataset_id, "dst")
    delete_upload(parts.sessions, owner, Dataset, dataset_id)


def _page(
    parts: Parts,
    owner: str,
    table: type[Upload],
    view: Callable[..., UploadView],
    after: str | None,
    limit: int,
    expand: str | None,
) -> Response:
    query = owned_uploads(owner, table)
    if expand:
        limit = min(limit, EXPANDED_ROWS)
    else:
        query = query.options(defer(table.inspection, raiseload=True))
    with parts.sessions() as session:
        return json_page(
            session, query, table.id, after, limit, lambda rows: [view(row, inspection=bool(expand)) for row in rows]
        )


def _say_where(response: Response, view: UploadView, *, new: bool) -> None:
    """Set the headers and the status of an upload's answer."""
    response.headers["Location"] = view.links.self
    if not new:
        response.status_code = 200


async def _once_inspected(request: Request, parts: Parts, upload_id: str, read: Callable[[], UploadView]) -> Response:
    wait_s = requested_wait_s(request)
    look = partial(run_in_threadpool, read)
    view = await wait_until(request, parts, upload_id, look, lambda upload: upload.status != "inspecting", wait_s)
    headers = wait_headers(wait_s)
    if view.status == "inspecting":
        headers["Retry-After"] = "1"
    return json_with_tag(request, view, headers)
