"""What notebooks show: it is all there, harmless whatever it is of, small, and changes nothing around it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from pared.client import Event, Job, Plan, Report, Upload
from pared.notebook.live import Course, in_notebook
from pared.notebook.records import html_of_job, html_of_jobs, html_of_uploads
from pared.notebook.style import scoped_style
from pared.report_page import STYLE
from pared.report_words import what_goes
from pared.reports import PlannedLayer
from service.pages.plan_view import shown_plan
from tests.unit.test_report_page import CONTROLS, HOSTILE, STORED, Page, stored

MODEL = {
    "id": "mdl_1",
    "filename": "digits.pt",
    "status": "ready",
    "size_bytes": 352_200,
    "inspection": {
        "format": "torchscript",
        "flavour": "scripted",
        "parameters": 970,
        "trainable_parameters": 970,
        "inputs": [{"shape": [None, 1, 8, 8], "dtype": "float32"}],
        "layers": [
            {"name": "conv1", "kind": "conv2d", "weights": {"conv1.weight": [32, 1, 3, 3]}, "parameters": 320,
             "prunable_channels": True},
            {"name": "fc", "kind": "linear", "weights": {"fc.weight": [10, 64]}, "parameters": 650,
             "reason": "the model's output"},
        ],
        "warnings": ["batch norms are frozen"],
    },
}  # fmt: skip
DATA = {
    "id": "dst_1",
    "filename": "digits.npz",
    "status": "ready",
    "inspection": {
        "format": "npz",
        "task": "classification",
        "inputs": [{"shape": [1, 8, 8], "dtype": "float32"}],
        "samples": {"train": 1197, "test": 360},
        "splits": "given",
        "target": {"dtype": "int64", "classes": 10},
    },
}
JOB = {"id": "job_1", "type": "prune", "status": "running", "stage": "retrain",
       "progress": {"fraction": 0.4, "epoch": 3, "epochs": 10, "eta_s": 12.0}}  # fmt: skip
SIZE = {"parameters": 4000, "nonzero_parameters": 4000, "macs": 9000, "file_bytes": 40_000}
PLAN = {
    "verdict": "2.0× fewer parameters",
    "amount": 0.5,
    "exact": False,
    "before": SIZE,
    "after": {"parameters": 2000, "nonzero_parameters": 2000, "macs": 4500, "file_bytes": 20_000},
    "files": {"model.pt": {"size_bytes": 20_000, "exact": False}},
    "layers": [
        {"name": "fc", "shape_before": [40, 90], "shape_after": [20, 90], "removed_units": 20},
        {"name": "out", "shape_before": [10, 40], "shape_after": [10, 20], "reason": "the model's output"},
    ],
    "notes": ["retraining changes what the file compresses to"],
}


def event(number: int, kind: str, **data: Any) -> Event:
    return Event(id=number, event=kind, data=data)


def course(text: str = "epoch 3: loss 0.1", phase: str = "retrain") -> Course:
    made = Course()
    for stage in ("validate", "baseline", phase):
        made.add(event(1, "status", status="running", stage=stage))
    for epoch in (1, 2, 3):
        made.add(event(2, "metric", name="train_loss", value=1 / epoch, step=epoch, phase=phase))
        made.add(event(3, "metric", name="validation_accuracy", value=0.9 + epoch / 100, step=epoch, phase=phase))
    made.add(event(4, "log", text=text))
    return made


def pieces() -> dict[str, str]:
    job = Job.model_validate(JOB)
    return {
        **{name: Report.model_validate(stored(name))._repr_html_() for name in STORED},
        "plan": Plan.model_validate(PLAN)._repr_html_(),
        "model": Upload.model_validate(MODEL)._repr_html_(),
        "data": Upload.model_validate(DATA)._repr_html_(),
        "job": job._repr_html_(),
        "followed job": html_of_job(job, course()),
        "jobs": html_of_jobs([job], more=True),
        "uploads": html_of_uploads([Upload.model_validate(MODEL)], more=False),
    }


@pytest.mark.parametrize("name", [*STORED, *list(pieces())[len(STORED) :]])
def test_a_piece_is_one_labelled_element_that_loads_nothing(name: str) -> None:
    piece = pieces()[name]
    page = Page(piece)
    assert page.tags[0][0] == "div"
    assert ("div", "role", "group") in page.attributes
    assert len(piece) < 40_000
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "h1", "h2", "body"}
    assert not [name for _, name, _ in page.attributes if name in ("src", "href", "style") or name.startswith("on")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert max(Counter(ids).values(), default=1) == 1
    named = [part for _, name, value in page.attributes if name == "aria-labelledby" for part in value.split()]
    assert set(named) <= set(ids)
    assert all(value for _, name, value in page.attributes if name == "aria-label")


def words_of(page: Page) -> str:
    return " ".join(" ".join(text for _, text in page.texts).split())


def test_what_goes_and_why_no_more_are_two_columns_in_the_same_words_everywhere() -> None:
    plan = Plan.model_validate(PLAN)
    web = " ".join(cell for row in shown_plan(plan).layers.rows for cell in row)
    for shown in (str(plan), web, words_of(Page(plan._repr_html_()))):
        assert all(text in shown for text in ("20 channels", "inputs, with the layers before", "the model's output"))
    assert "why no more" in str(plan)
    whole = PLAN | {"layers": PLAN["layers"][:1]}  # type: ignore[index]
    assert "why no more" not in str(Plan.model_validate(whole))
    zeros = {"name": "fc", "shape_before": [40, 90], "shape_after": [40, 90], "zeroed_weights": 1800}
    for layer, said in (
        (zeros, "1,800 of 3,600 weights become zero"),
        (zeros | {"zeroed_weights": 0}, "nothing"),
        (zeros | {"shape_after": [0, 90]}, "all of it"),
        (zeros | {"precision": "int8_weights"}, "int8 weights"),
    ):
        assert what_goes(PlannedLayer.model_validate(layer)) == said


def test_pieces_say_what_they_are_of() -> None:
    said = {name: words_of(Page(piece)) for name, piece in pieces().items()}
    assert "goal met" in said["search"]
    assert "Before and after" in said["search"]
    assert "Input any × 1 × 8 × 8 float32" in said["model"]
    assert "2, of which 1 can lose channels" in said["model"]
    assert "the model's output" in said["model"]
    assert "train 1,197, test 360" in said["data"]
    assert "20 channels" in said["plan"]
    assert "about 20.0 kB" in said["plan"]
    assert "40 % · retrain · epoch 3 of 10" in said["job"]
    assert "validate 0.0 s" in said["followed job"]
    assert "retrain: validation accuracy" in said["followed job"]
    assert "epoch 3: loss 0.1" in said["followed job"]
    assert "iterate for all" in said["jobs"]


def test_jobs_that_ended_say_how() -> None:
    ended = {"result": {"verdict": "4.2× fewer parameters", "artifacts": [{"name": "model.pt", "size_bytes": 10_000}]}}
    done = Page(Job.model_validate(JOB | {"status": "succeeded"} | ended)._repr_html_())
    assert "4.2× fewer parameters" in done.text
    assert "model.pt (10.0" in done.text
    assert "progress" not in {tag for tag, _ in done.tags}
    failed = {"status": "failed", "error": {"code": "out-of-memory", "detail": "It needs 9 GB."}}
    assert "out-of-memory: It needs 9 GB." in Page(Job.model_validate(JOB | failed)._repr_html_()).text
    waiting = {"status": "queued", "queue_position": 3, "waits_for": "no worker is there", "progress": None}
    assert "number 3 in the queue" in Page(Job.model_validate(JOB | waiting)._repr_html_()).text
    rejected = {"status": "rejected", "inspection": None, "reason": {"code": "x", "detail": "Not a model."}}
    assert "Not a model." in Page(Upload.model_validate(MODEL | rejected)._repr_html_()).text


def hostile(value: Any) -> Any:
    """The same with each text that is no word of ours replaced."""
    if isinstance(value, dict):
        kept = ("status", "type", "id", "metric", "test", "runtime", "precision", "task", "device", "chosen", "source")
        return {name: each if name in kept else hostile(each) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["search", "distill", "pipeline"])
def test_nothing_of_a_hostile_report_is_markup(name: str) -> None:
    report = stored(name)
    changed = hostile({key: report[key] for key in ("verdict", "layers", "history", "warnings", "steps")})
    assert_harmless(Report.model_validate(report | changed)._repr_html_())


def test_nothing_that_a_hostile_server_says_is_markup() -> None:
    job = Job.model_validate(hostile(JOB) | {"id": HOSTILE, "type": HOSTILE, "waits_for": HOSTILE})
    job.result, job.error = {"verdict": HOSTILE, "artifacts": [{"name": HOSTILE}]}, {"code": HOSTILE, "detail": HOSTILE}
    upload = Upload.model_validate(hostile(MODEL) | {"id": HOSTILE})
    upload.inspection = (upload.inspection or {}) | {
        HOSTILE: HOSTILE,
        "samples": {HOSTILE: 3},
        "target": {HOSTILE: [1]},
    }
    for piece in (
        Plan.model_validate(
            PLAN | hostile({name: PLAN[name] for name in ("verdict", "layers", "notes")})
        )._repr_html_(),
        job._repr_html_(),
        html_of_job(job, course(HOSTILE, HOSTILE)),
        html_of_jobs([job], more=False),
        upload._repr_html_(),
        html_of_uploads([upload], more=False),
    ):
        assert_harmless(piece)


def assert_harmless(piece: str) -> None:
    page = Page(piece)
    assert "alert(1)" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not CONTROLS.search(piece)


@pytest.mark.parametrize("inspection", [
    {"layers": "many"}, {"layers": [1, {"weights": 3, "parameters": "x"}, {"weights": {"w": "y"}}]},
    {"inputs": [{"shape": "?"}, {"shape": [[1], None]}], "samples": [3], "target": 3, "warnings": {"a": 1}},
    {"parameters": float("nan"), "format": 3, "warnings": [{"a": 1}, None]},
])  # fmt: skip
def test_an_inspection_of_another_form_is_shown_as_far_as_it_can_be(inspection: dict[str, Any]) -> None:
    Page(Upload.model_validate(MODEL | {"inspection": inspection})._repr_html_())


def test_progress_of_another_form_is_shown_as_far_as_it_can_be() -> None:
    for progress in ({"fraction": "x"}, {"fraction": 7, "epoch": None}, {"epoch": 1}, {"eta_s": float("inf")}):
        piece = Job.model_validate(JOB | {"progress": progress})._repr_html_()
        assert 0 <= float(re.search(r'value="([^"]*)"', piece)[1]) <= 1  # type: ignore[index]
    odd = Course()
    for data in ({}, {"name": None, "step": "x"}, {"step": 1, "value": None}, {"step": 2, "value": "1"}):
        odd.add(Event(id=1, event="metric", data=data))
    odd.add(Event(id=1, event="status", data={"stage": 3}))
    Page(html_of_job(Job.model_validate(JOB), odd))


def test_pieces_of_huge_things_stay_small() -> None:
    report = stored("search")
    report["layers"] = [report["layers"][0] | {"name": f"layers.{number}"} for number in range(3000)]
    report["history"] = [
        {"phase": "retrain", "epoch": epoch, "train_loss": 1.0 + epoch % 7, "validation": 0.9, "seconds": 1.0}
        for epoch in range(1, 3001)
    ]
    report["frontier"] *= 200
    assert len(Report.model_validate(report)._repr_html_()) < 120_000
    layers = [PLAN["layers"][0]] * 3000
    assert len(Plan.model_validate(PLAN | {"layers": layers})._repr_html_()) < 60_000
    inspection = MODEL["inspection"] | {
        "layers": [MODEL["inspection"]["layers"][0]] * 3000,
        "warnings": ["x" * 999] * 999,
    }
    assert len(Upload.model_validate(MODEL | {"inspection": inspection})._repr_html_()) < 60_000
    long = Course()
    for number in range(5000):
        long.add(event(1, "status", stage=f"stage {number}"))
        long.add(event(1, "metric", name="train_loss", value=float(number % 9), step=number, phase="retrain"))
        long.add(event(1, "log", text="x" * 5000))
    assert len(html_of_job(Job.model_validate(JOB), long)) < 40_000


def test_the_style_changes_nothing_around_it() -> None:
    style = scoped_style()
    assert style.startswith(".pared.pared{")
    assert style.count("{") == style.count("}")
    depth, ends = 0, []
    for at, character in enumerate(style):
        depth += (character == "{") - (character == "}")
        if depth == 0 and character == "}":
            ends.append(at)
    assert ends == [len(style) - 1]  # all of it is within the one rule
    assert not re.search(r":root|body\{|@page|prefers-color-scheme|rem\b", style)
    assert "--page:#14171b" in style.split('data-jp-theme-light="false"')[1]
    assert set(re.findall(r"\.[a-z]+\{", STYLE)) <= set(re.findall(r"\.[a-z]+\{", style))


def test_this_is_no_notebook() -> None:
    assert not in_notebook()
