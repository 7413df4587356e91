"""Thirty-five users' stories over HTTP: models and data of every task, from upload to a result that runs without pared.

Each model is pruned, pruned for a goal, or distilled. The result is run where there is torch alone, and its score
there, in plain numpy, is the report's. `make test` tries each model in one way; `make stories` prints the whole table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.campaign import each_nth, one_form_each
from tests.support.clean_process import CleanProcess
from tests.support.models.stories import FURTHER, STORIES, Story, dataset, npz, upload
from tests.support.stack import Stack

WAYS: dict[str, dict[str, Any]] = {
    "prune": {"type": "prune", "amount": 0.4, "retrain": {"epochs": 1}},
    "goal": {"type": "prune", "target": {"macs": 0.7, "max_quality_drop": 0.9}, "retrain": {"epochs": 1}},
    "distill": {"type": "distill", "student": {"from_teacher": {"width": 0.6}}, "train": {"epochs": 1},
                "loss": {"kind": "output_mse"}},
}  # fmt: skip
TOLD = [*one_form_each(STORIES, [*WAYS]), *each_nth([(name, "prune") for name in FURTHER], 2)]


@pytest.fixture(scope="module")
def jobs(embedded: Stack, request: pytest.FixtureRequest) -> dict[tuple[str, str], tuple[str, bytes]]:
    """(job, upload) of each story of this run, posted up front so that the worker is busy."""
    cells = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    told = [(cell.params["name"], cell.params["way"]) for cell in cells if cell]
    posted = {}
    for name, story in (STORIES | FURTHER).items():
        if name not in dict(told):
            continue
        file, (content, filename) = upload(name), dataset(name)
        model, data = embedded.upload_model(file, "model.pt"), embedded.upload_dataset(content, filename)
        for way in [way for each, way in told if each == name]:
            role = "teacher" if way == "distill" else "model"
            job = embedded.submit({**WAYS[way], **story.fields, role: model, "dataset": data})
            posted[name, way] = job, file
    return posted


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A line for each story, printed by the last test."""
    return []


@pytest.mark.parametrize(("name", "way"), TOLD)
def test_a_story_ends_in_a_smaller_model_whose_score_is_the_reports(
    name: str,
    way: str,
    embedded: Stack,
    jobs: dict[tuple[str, str], tuple[str, bytes]],
    clean: CleanProcess,
    lines: list[str],
) -> None:
    story = (STORIES | FURTHER)[name]
    job, original = jobs[name, way]
    report = embedded.succeeded(job)
    before, after = report["before"], report["after"]
    assert after["parameters"] < before["parameters"]
    assert after["quality"]["metric"] == story.metric
    result = embedded.download(job)
    measured = clean.run(result, test=torch.from_numpy(story.test))
    assert measured["parameters"] == after["parameters"]
    sizes = f"{before['parameters']:>6} -> {after['parameters']:>5} parameters"
    scores = f"{before['quality']['test']['value']:.3f} -> {after['quality']['test']['value']:.3f}"
    lines.append(f"{name:30} {way:8} {sizes}  {story.metric:14} {scores}")
    if story.file not in (None, npz) and story.metric == "accuracy":
        return  # whose test split is drawn by seed, inside the job
    expected = wanted(story, clean, original)
    assert story.score(measured["outputs"]["test"], expected) == pytest.approx(
        after["quality"]["test"]["value"], abs=1e-4
    )
    if way == "goal":
        assert report["goal"]["reached"]["macs"] <= 0.7
        assert report["goal"]["reached"].keys() == {"macs", "max_quality_drop"}


def wanted(story: Story, clean: CleanProcess, original: bytes) -> Any:
    """The labels of the test samples, or what the original answers."""
    if not story.by_original:
        assert story.labels is not None
        return story.labels(story.test)
    return clean.run(original, test=torch.from_numpy(story.test))["outputs"]["test"]


def test_every_story_is_told(lines: list[str], jobs: dict[tuple[str, str], tuple[str, bytes]]) -> None:
    print("\n" + "\n".join(lines))
    assert len(lines) == len(jobs)
    assert len(TOLD) >= 30
