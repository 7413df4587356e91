"""What an entry of a job type says, and what no entry can leave out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from pared.job_types import BY_NAME, JOB_TYPES, LISTED, JobType, job_spec, type_of
from pared.reports import DatasetInspection, ModelInspection, Report
from pared.specs import DatasetReference, JobSpec, Json, ModelId, Spec, Text
from pared.specs.uploads import references, upload_fields

MODEL, OTHER, DATA = "mdl_" + "0" * 26, "mdl_" + "1" * 26, "dst_" + "2" * 26


def entry(spec: type[JobSpec], name: str = "toy") -> JobType:
    return JobType(name=name, spec=spec, report=Report, method="nowhere:toy")


@pytest.mark.parametrize(
    "kind",
    [
        str,
        str | None,
        Annotated[str, Field(max_length=30)],
        list[str],
        dict[str, str],
        tuple[int, str],
        Any,
        dict,
        list[Any],
        ModelId | str,
    ],
    ids=str,
)
def test_no_spec_has_text_of_which_nothing_says_what_it_names(kind):
    with pytest.raises(TypeError, match=r"Toy\.upload: say what this text names"):
        type("Toy", (Spec,), {"__annotations__": {"upload": kind}, "__module__": __name__})


def test_a_field_is_for_uploads_or_for_other_text():
    with pytest.raises(TypeError, match="make it two fields"):
        type("Toy", (Spec,), {"__annotations__": {"upload": ModelId | Text}, "__module__": __name__})


class Step(Spec):
    name: Text
    learned_from: list[DatasetReference] = Field(default_factory=list)


class Toy(JobSpec):
    type: Literal["toy"]
    first: ModelId | None = None
    others: dict[str, ModelId] = Field(default_factory=dict)
    steps: list[Step] = Field(default_factory=list)
    labels: dict[str, Text] = Field(default_factory=dict)
    options: Json = None


def test_references_are_found_wherever_they_stand_and_nothing_else_is():
    spec = Toy(
        type="toy",
        first=MODEL,
        others={"a": OTHER, "b": MODEL},
        steps=[Step(name=OTHER), Step(name="x", learned_from=[DATA, "builtin:digits"])],
        labels={MODEL: MODEL},
        options={"model": MODEL},
    )
    found = references(Toy, spec.model_dump(mode="json"))
    assert [(one.pointer, one.role, one.kind, one.id, one.is_upload) for one in found] == [
        ("/first", "first", "model", MODEL, True),
        ("/others/a", "others.a", "model", OTHER, True),
        ("/others/b", "others.b", "model", MODEL, True),
        ("/steps/1/learned_from/0", "steps.1.learned_from.0", "dataset", DATA, True),
        ("/steps/1/learned_from/1", "steps.1.learned_from.1", "dataset", "builtin:digits", False),
    ]
    assert upload_fields(Toy) == [("first", "model"), ("others", "model"), ("steps.learned_from", "dataset")]
    assert references(Toy, {"type": "toy", "first": None, "steps": "?"}) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"type": Literal["other"]}, "needs a field `type"),
        ({"type": Literal["toy"], "a": DatasetReference, "b": DatasetReference}, "one data set"),
        ({"type": Literal["toy"], "name": ModelId, "step": Toy}, None),
        ({"type": Literal["toy"], "first": ModelId, "step": Toy}, "have one name"),
    ],
)
def test_an_entry_that_could_not_work_is_refused(fields, says):
    spec = type("Spec", (JobSpec,), {"__annotations__": fields, "__module__": __name__})
    if says is None:
        entry(spec)
        return
    with pytest.raises(TypeError, match=says):
        entry(spec)


def test_the_name_of_a_type_fits_its_column():
    spec = type("Spec", (JobSpec,), {"__annotations__": {"type": Literal["a_name_that_is_long"]}})
    with pytest.raises(TypeError, match="16 characters"):
        entry(spec, "a_name_that_is_long")


def test_names_and_specs_are_those_of_one_entry_each():
    assert len(BY_NAME) == len(JOB_TYPES) == len({each.spec for each in JOB_TYPES})
    for each in LISTED:
        for example in each.examples.values():
            assert type_of(job_spec.validate_python(example["value"])) is each


class _Settings(BaseModel):
    inspect_time_s: float = 1.0
    plan_time_s: float = 2.0
    job_time_s: float = 3.0


@pytest.mark.parametrize(
    ("spec", "limit_s"),
    [
        ({"type": "inspect", "subject": MODEL}, 1.0),
        ({"type": "plan", "job": {"time_limit_s": 9}}, 2.0),
        ({"type": "prune"}, 3.0),
        ({"type": "prune", "time_limit_s": None}, 3.0),
        ({"type": "distill", "time_limit_s": 9}, 9.0),
    ],
)
def test_the_time_limit_is_the_specs_or_the_types(spec, limit_s):
    assert BY_NAME[spec["type"]].time_limit_s(spec, _Settings()) == limit_s


def test_an_inspection_reports_on_what_it_is_about():
    inspect = BY_NAME["inspect"]
    assert inspect.report_class({"subject": MODEL}) is ModelInspection
    assert inspect.report_class({"subject": DATA}) is DatasetInspection
