"""A new type of job is one spec, one method and one entry: shown in a copy of the packages, by real processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy

import pared
from tests.support.processes import Processes
from tests.support.stack import Stack

SPEC = '''\
"""The spec and the report of a job that counts the bytes of several models."""

from typing import Literal

from pydantic import BaseModel, Field

from pared.specs import JobSpec, ModelId


class Pair(JobSpec):
    """Two models in one field."""

    first: ModelId
    others: list[ModelId] = Field(min_length=1)


class CountSpec(JobSpec):
    """Count their bytes."""

    type: Literal["count"]
    pair: Pair
    times: int = Field(1, ge=1)


class CountReport(BaseModel):
    """What was counted."""

    type: str
    verdict: str
    bytes: dict[str, int]
'''
METHOD = '''\
"""The method of a job that counts the bytes of several models."""

from pared.specs.counting import CountReport


def count(spec, work):
    """Count them, and leave a file."""
    work.observer.stage("compress")
    counted = {role: len(file.path.read_bytes()) * spec.times for role, file in work.models.items()}
    (work.directory / "count.txt").write_text(str(sum(counted.values())))
    return CountReport(type="count", verdict="Counted.", bytes=counted)
'''
ENTRY = """\
JOB_TYPES = (
    JobType(
        name="count",
        spec=CountSpec,
        report=CountReport,
        method="pared.compression.counting:count",
        examples={"count": {"summary": "Count", "value": {"type": "count"}}},
    ),
"""


def copy_with_the_new_type(folder: Path) -> Path:
    root = Path(pared.__file__).parents[1]
    for package in ("pared", "service", "worker", "migrations"):
        shutil.copytree(root / package, folder / package)  # with what is compiled, which three processes need
    (folder / "pared/specs/counting.py").write_text(SPEC)
    (folder / "pared/compression/counting.py").write_text(METHOD)
    entries = folder / "pared/job_types.py"
    before, after = entries.read_text().split("JOB_TYPES = (\n")
    before = before.replace("\nMethod = ", "\nfrom pared.specs.counting import CountReport, CountSpec\n\nMethod = ", 1)
    entries.write_text(before + ENTRY + after)
    return folder


def test_a_new_type_of_job_is_one_spec_one_method_and_one_entry(processes: Processes, scratch: Path) -> None:
    folder = scratch / "new_job_type"
    folder.mkdir()
    copy = copy_with_the_new_type(folder / "copy")
    stack = Stack(folder, processes, workers=1, settings={"PYTHONPATH": str(copy)})
    files = [safetensors.numpy.save({"weight": np.zeros((8, width), np.float32)}) for width in (1, 10, 100)]
    first, second, third = (stack.upload_model(file, "weights.safetensors") for file in files)
    spec = {"type": "count", "pair": {"first": first, "others": [second, third]}, "times": 2}

    job = stack.submit(spec)
    report = stack.succeeded(job)
    assert report["bytes"] == dict(
        zip(("first", "others.0", "others.1"), [2 * len(file) for file in files], strict=True)
    )
    assert stack.download(job, "count.txt") == str(2 * sum(map(len, files))).encode()
    ended = stack.job(job)
    assert (ended["type"], ended["result"]["verdict"]) == ("count", "Counted.")
    assert [one["id"] for one in stack.get("/v1/jobs", type="count")["data"]] == [job]
    with pared.Client(stack.url) as client:
        assert [one.id for one in client.jobs.list(type="count")] == [job]

    # What depends on the uploads that a spec names, the new fields too.
    refused = stack.http.post("/v1/jobs", json=spec | {"pair": {"first": first, "others": ["mdl_" + "0" * 26]}})
    assert refused.status_code == 404
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/pair/others/0"]
    misspelt = stack.http.post("/v1/jobs", json=spec | {"tims": 2})
    assert "did you mean times?" in misspelt.json()["detail"]
    assert stack.inspected(third)["status"] == "ready"
    stack.workers[0].kill()
    waiting = stack.submit(spec)
    in_use = stack.http.delete(f"/v1/models/{third}")
    assert (in_use.status_code, waiting in in_use.json()["detail"]) == (409, True)
    stack.http.post(f"/v1/jobs/{waiting}/cancel")
    assert stack.http.delete(f"/v1/models/{third}").status_code == 204

    description = stack.get("/openapi.json")
    (body,) = description["paths"]["/v1/jobs"]["post"]["requestBody"]["content"].values()
    assert "count" in body["examples"]
    assert {"$ref": "#/components/schemas/CountSpec"} in description["components"]["schemas"]["JobSpec"]["oneOf"]
    assert "count" in description["components"]["schemas"]["JobView"]["properties"]["type"]["enum"]
    stack.stop()
