"""The preview of a data set: there once it was inspected, gone with it."""

from __future__ import annotations

import json
import os

import pytest

from pared.state import lifecycle
from pared.state.inspections import MAX_PREVIEW_BYTES
from pared.state.sweep import Sweep
from pared.state.tables import Artifact, Job, new_id
from tests.integration.service.conftest import Api

ROWS = {
    "split": "train",
    "inputs": [{"name": "x", "shape": [1], "dtype": "float32", "min": 0, "max": 1, "mean": 0.5}],
    "samples": [{"index": 0, "inputs": {"x": [0.5]}, "target": 1}],
}
INSPECTION = {"format": "npz", "inputs": [], "samples": {}, "splits": "given", "target": None}


def inspect(api: Api, upload_id: str, files: dict[str, bytes]) -> list[str]:
    """What a worker does with an inspection that left these files; the keys under which they were stored."""
    with api.parts.sessions() as session:
        jobs = session.query(Job).filter(Job.type == "inspect").all()
        job_id = next(job.id for job in jobs if job.spec["subject"] == upload_id)
    fence = api.claim(job_id)
    artifacts = []
    for name, content in files.items():
        stored = api.parts.store.put([content], key=f"jobs/{job_id}/{fence}/{name}")
        media_type = "application/octet-stream"
        artifacts.append(
            Artifact(
                id=new_id("art"), job_id=job_id, name=name, media_type=media_type, object_key=stored.key,
                sha256=stored.sha256, size_bytes=stored.size_bytes,
            )
        )  # fmt: skip
    with api.parts.sessions.begin() as session:
        assert lifecycle.succeed(session, job_id, fence, INSPECTION, artifacts)
    return [artifact.object_key for artifact in artifacts]


def upload(api: Api) -> str:
    return api.upload(os.urandom(50), "d.npz", "datasets")["id"]


@pytest.mark.parametrize(
    ("name", "content", "media_type"),
    [
        ("preview.png", b"\x89PNG\r\n a sheet", "image/png"),
        ("preview.json", json.dumps(ROWS).encode(), "application/json"),
    ],
)
def test_a_preview_is_served_as_what_it_is(api: Api, name: str, content: bytes, media_type: str):
    dataset = upload(api)
    inspect(api, dataset, {name: content})
    answer = api.get(f"/v1/datasets/{dataset}/preview")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = api.get(f"/v1/datasets/{dataset}/preview", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_until_it_is_there_a_preview_is_refused_with_what_to_do(api: Api):
    dataset = upload(api)
    early = api.get(f"/v1/datasets/{dataset}/preview")
    assert (early.status_code, early.json()["type"]) == (409, "/problems/not-ready")
    assert "Wait until it is ready" in early.json()["detail"]
    assert early.headers["retry-after"]
    api.inspected(dataset, status="rejected", reason={"code": "x", "title": "x", "detail": "x has NaN."})
    late = api.get(f"/v1/datasets/{dataset}/preview")
    assert (late.status_code, "x has NaN" in late.json()["detail"]) == (409, True)


def test_data_sets_without_a_preview_say_so(api: Api):
    dataset = upload(api)
    inspect(api, dataset, {"other.png": b"x", "preview.html": b"x", "preview.png": bytes(MAX_PREVIEW_BYTES + 1)})
    for name in (dataset, "builtin:digits", "dst_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "nonsense"):
        answer = api.get(f"/v1/datasets/{name}/preview")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), name


def test_a_preview_is_kept_for_as_long_as_its_data_set(api: Api):
    dataset = upload(api)
    key, other = inspect(api, dataset, {"preview.json": json.dumps(ROWS).encode(), "left.bin": b"x"})
    sweep = Sweep(api.parts.sessions, api.parts.settings.model_copy(update={"keep_unreferenced_s": -1.0}))
    sweep.collect()
    assert api.get(f"/v1/datasets/{dataset}/preview").status_code == 200
    assert not api.parts.store.exists(other)
    assert api.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert api.get(f"/v1/datasets/{dataset}/preview").status_code == 404
    sweep.collect()
    assert not api.parts.store.exists(key)
