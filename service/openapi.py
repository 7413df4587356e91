"""Owns the API's description: OpenAPI 3.1 with an example and the possible problems on every operation."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pared.errors import (
    ChecksumMismatch,
    Conflict,
    Forbidden,
    NotAcceptable,
    NotFound,
    ParedError,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageFull,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedChecksum,
    UnsupportedModel,
    ValidationError,
)
from pared.job_types import LISTED, listed_spec
from pared.specs.examples import PIPELINE, PRUNE, PRUNE_BY_AMOUNT
from pared.specs.uploads import EXAMPLE_DATASET_ID as DATASET_ID
from pared.specs.uploads import EXAMPLE_MODEL_ID as MODEL_ID

DESCRIPTION = """\
Makes trained PyTorch models smaller. Upload a model and a data set, post a *prune*, *distill* or *quantize* job, or a
*pipeline* of them, follow it, and download the smaller model with a report of what was gained and lost.

Webhooks tell you when jobs have ended.

Errors are RFC 9457 problem documents: `detail` says what to do, and `type` is the path
of a page with causes and cures. Where this server needs keys, send
`Authorization: Bearer pared_…`.
"""

JOB_ID = "job_01K9Q5X8C3F6H9K2M5P8S1V4Y7"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

MODEL = {
    "id": MODEL_ID,
    "filename": "lenet.pt",
    "sha256": SHA256,
    "size_bytes": 249318,
    "format": "torchscript",
    "status": "ready",
    "reason": None,
    "inspection": {"format": "torchscript", "flavour": "scripted", "parameters": 61706, "trainable_parameters": 61706},
    "created_at": "2026-01-15T09:30:00.000Z",
    "links": {"self": f"/v1/models/{MODEL_ID}"},
    "architecture": None,
    "weights": None,
    "prefix": None,
}
DATASET = {
    "id": DATASET_ID,
    "filename": "digits.npz",
    "sha256": SHA256,
    "size_bytes": 475218,
    "format": "npz",
    "status": "ready",
    "reason": None,
    "inspection": {"format": "npz", "samples": {"train": 1257, "validation": 270, "test": 270}},
    "created_at": "2026-01-15T09:30:05.000Z",
    "links": {"self": f"/v1/datasets/{DATASET_ID}"},
}
PARTIAL_UPLOAD = {
    "id": "upl_01K9Q5V1B3D5F7H9K2M4P6R8T0",
    "kind": "models",
    "filename": "lenet.pt",
    "size_bytes": 249318,
    "offset": 0,
    "result": None,
    "expires_at": "2026-01-16T09:30:00.000Z",
    "links": {"self": "/v1/uploads/upl_01K9Q5V1B3D5F7H9K2M4P6R8T0"},
}
PREVIEW = {
    "split": "train",
    "inputs": [{"name": "x", "shape": [3], "dtype": "float32", "min": -1.25, "max": 7.5, "mean": 2.125}],
    "samples": [{"index": 0, "inputs": {"x": [0.5, -1.25, 7.5]}, "target": 2, "class": "ant"}],
}
ARTIFACT = {
    "id": "art_01K9Q5Z6T8V1X3Z5B7D9F1H3J5",
    "name": "model.pt",
    "media_type": "application/octet-stream",
    "size_bytes": 70112,
    "sha256": SHA256,
    "created_at": "2026-01-15T09:31:10.000Z",
    "links": {"self": f"/v1/jobs/{JOB_ID}/artifacts/model.pt"},
}
JOB = {
    "id": JOB_ID,
    "type": "prune",
    "status": "running",
    "stage": "retrain",
    "progress": {"fraction": 0.4, "epoch": 1, "epochs": 3, "eta_s": 21.0},
    "queue_position": None,
    "waits_for": None,
    "attempt": 1,
    "sandbox": "standard",
    "created_at": "2026-01-15T09:30:10.000Z",
    "started_at": "2026-01-15T09:30:10.400Z",
    "finished_at": None,
    "pinned": False,
    "spec": PRUNE,
    "error": None,
    "result": None,
    "links": {
        "self": f"/v1/jobs/{JOB_ID}",
        "events": f"/v1/jobs/{JOB_ID}/events",
        "report": f"/v1/jobs/{JOB_ID}/report",
        "artifacts": f"/v1/jobs/{JOB_ID}/artifacts",
        "cancel": f"/v1/jobs/{JOB_ID}/cancel",
        "web": f"/jobs/{JOB_ID}",
    },
}
FAILED_OUTPUT = {
    "format": "onnx",
    "code": "export-failed",
    "detail": "ONNX cannot hold this model: Exporting the operator 'aten::lgamma' to ONNX opset version 20 is not "
    "supported.",
}
SUCCEEDED = JOB | {
    "status": "succeeded",
    "stage": None,
    "progress": {"fraction": 1.0, "epoch": 3, "epochs": 3, "eta_s": 0.0},
    "finished_at": "2026-01-15T09:31:10.000Z",
    "spec": PRUNE | {"outputs": ["torchscript", "onnx"]},
    "result": {
        "verdict": "Goal met: 24.8 % of the parameters (asked: at most 25 %). 4.0× fewer parameters, 3.6× smaller "
        "file. Not written: onnx.",
        "artifacts": [ARTIFACT],
        "failed_outputs": [FAILED_OUTPUT],
    },
}
PLAN = {
    "verdict": "3.8× fewer parameters, 3.3× fewer multiply-adds, 3.7× smaller file. Not written: onnx.",
    "amount": 0.5,
    "round_to": None,
    "goal": None,
    "exact": True,
    "before": {"parameters": 61706, "nonzero_parameters": 61706, "macs": 416520, "file_bytes": 249318},
    "after": {"parameters": 16066, "nonzero_parameters": 16066, "macs": 125340, "file_bytes": 66612},
    "files": {
        "model.pt": {"size_bytes": 66612, "exact": True},
        "model.packed": {"size_bytes": 58930, "exact": False},
    },
    "failed_outputs": [FAILED_OUTPUT],
    "layers": [
        {
            "name": "conv1",
            "shape_before": [6, 1, 5, 5],
            "shape_after": [3, 1, 5, 5],
            "removed_units": 3,
            "zeroed_weights": 0,
            "reason": None,
        },
        {
            "name": "fc3",
            "shape_before": [10, 84],
            "shape_after": [10, 42],
            "removed_units": 0,
            "zeroed_weights": 0,
            "reason": "its channels are outputs of the model",
        },
    ],
    "steps": [],
    "frontier": [],
    "notes": ["The bytes of model.packed are about so many: it codes the weights, which retraining changes."],
    "warnings": [],
}
PLAN_PENDING = {
    "id": JOB_ID,
    "status": "queued",
    "waits_for": None,
    "created_at": "2026-01-15T09:30:10.000Z",
    "links": {"self": f"/v1/plans/{JOB_ID}"},
}


def page(item: dict[str, Any]) -> dict[str, Any]:
    """A page example with one item."""
    return {"data": [item], "has_more": False, "next_cursor": None}


_NULL = "(null)"  # FastAPI leaves out what is None, also from examples

_PROBLEMS = {
    error.status: error
    for error in (
        UnsupportedChecksum("The checksum is of an unknown kind, or is none."),
        Unauthorized("An API key is needed, or the one sent does not work."),
        Forbidden("The request comes from another web site, or with a key that does not allow this."),
        NotFound("There is no such thing, or it belongs to another owner."),
        NotAcceptable("It is not to be had in the form that `Accept` asks for."),
        Conflict("Not possible in this state, or not on the device that is asked for; the detail says which."),
        PreconditionFailed("`If-Match` names another version of the file, or `Tus-Resumable` another one of tus."),
        TooLarge("More bytes than this server takes."),
        UnsupportedModel("The upload cannot be opened as what it was posted for."),
        RangeNotSatisfiable("The range lies outside the file."),
        ValidationError("The request is not valid; `errors` points at each bad field."),
        TooManyRequests("A limit of yours is reached, which `limit` names; `Retry-After` says when to try again."),
        ChecksumMismatch("The bytes are not those that the checksum was made of."),
        ParedError("Something failed on this side; the detail names the request id."),
        Unavailable("The database, queue or store does not answer."),
        StorageFull("The server's disk is full."),
    )
}


UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "As the client knows it."}}


def answers(
    status: int, example: Any, *problems: int, media_type: str = "application/json", description: str = ""
) -> dict[int | str, dict[str, Any]]:
    """What an operation answers: its example, and the problems beside those that any operation may have."""
    good: dict[str, Any] = {"description": description or HTTPStatus(status).phrase}
    if example is not None:
        good["content"] = {media_type: {"example": _replaced(example, None, _NULL)}}
    responses: dict[int | str, dict[str, Any]] = {status: good}
    responses.update({code: _problem(code) for code in sorted({*problems, 401, 403, 422, 429, 500, 503})})
    return responses


def _replaced(value: Any, old: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(part, old, new) for name, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, old, new) for part in value]
    return new if value == old else value


def _problem(status: int) -> dict[str, Any]:
    error = _PROBLEMS[status]
    example = {**error.problem(), "request_id": "6f1c0e9a2b7d4e58"}
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
    return {"description": error.detail, "content": {"application/problem+json": content}}


_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do about it."},
        "request_id": {"type": "string"},
        "limit": {"type": "string", "description": "With 429, the limit that is reached, as `/v1/limits` names it."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer into the request."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


_KEYS = {
    "HTTPBearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer pared_…`."},
    "APIKeyHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key in a header of its own.",
    },
}
KEYLESS: dict[str, Any] = {"security": []}
"""For operations that need no key: `openapi_extra`."""


def describe(app: FastAPI) -> None:
    """Give the app its description, with the schemas that no route's signature shows."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                openapi_version="3.1.0",
                description=DESCRIPTION,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            for operation in (each for path in schema["paths"].values() for each in path.values()):
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _never_null(parameter["schema"])
            schemas = schema["components"]["schemas"]
            specs = listed_spec.json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(specs.pop("$defs"))
            schemas["JobSpec"] = specs
            schemas["Report"]["properties"]["type"]["enum"] = [each.name for each in LISTED]
            schemas["Problem"] = _PROBLEM_SCHEMA
            schema["components"]["securitySchemes"] = _KEYS
            schema["security"] = [{name: []} for name in _KEYS]
            app.openapi_schema = _replaced(schema, _NULL, None)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that may be left out: it is text, which says `null` as it says any other word."""
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if not forms:
        return schema
    said = {name: value for name, value in schema.items() if name != "anyOf"}
    return forms[0] | said if len(forms) == 1 else {"anyOf": forms, **said}


_BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "description": "The file's bytes as they are, or a form with one file.",
        "content": {
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                        "filename": {"type": "string"},
                        "architecture": {"type": "string"},
                        "weights": {"type": "string", "maxLength": 255},
                        "prefix": {"type": "string", "maxLength": 255},
                    },
                }
            },
        },
    }
}
PARTIAL_BODY = {
    "parameters": [
        {
            "name": "Tus-Resumable",
            "in": "header",
            "schema": {"type": "string", "const": "1.0.0"},
            "description": "The version of the protocol.",
        }
    ]
}
PLAN_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/PruneSpec"},
                        {"$ref": "#/components/schemas/PipelineSpec"},
                    ]
                },
                "examples": {
                    "goal": {
                        "summary": "What must go for a quarter of the parameters?",
                        "value": PRUNE | {"target": {"params": 0.25}},
                    },
                    "amount": {
                        "summary": "What would be left without half of the channels?",
                        "value": PRUNE_BY_AMOUNT | {"outputs": ["torchscript", "packed"]},
                    },
                    "pipeline": {
                        "summary": "How far must the first step go for a fifth of the bytes in the end?",
                        "value": PIPELINE | {"target": {"file_bytes": 0.2}},
                    },
                },
            }
        },
    }
}
SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {name: example for each in LISTED for name, example in each.examples.items()},
            }
        },
    }
}
