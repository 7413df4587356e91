"""Twelve families × scripted, traced, state dict, and three of them as .pt2: half the weights, half the channels.

A cell holds when the file loads where there is torch alone, answers in the right shape, is smaller, and
answers exactly as the original with the removed channels zeroed. Refusals are counted: three are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.support.campaign import each_nth, one_form_each
from tests.support.clean_process import CleanProcess
from tests.support.models import zoo
from tests.support.models.reference import zeroed_outputs
from tests.support.stack import Stack

PROGRAMS: list[tuple[str, zoo.Form]] = [(name, "program") for name in ("resnet", "text_transformer", "signal_cnn")]
CELLS = [*one_form_each(zoo.FAMILIES, zoo.FORMS, n=4), *each_nth(PROGRAMS, 3)]
MOST_REFUSED = 3
RETRAINED = ("scripted", "program")


@dataclass
class Submitted:
    """A cell's upload and its two jobs."""

    file: bytes
    weights: str
    channels: str


@pytest.fixture(scope="module")
def submitted(request: pytest.FixtureRequest, embedded: Stack) -> dict[tuple[str, str], Submitted]:
    """All cells of this run posted up front, so that the worker is busy while they are checked."""
    cells = {}
    for family, form in _cells_of(request):
        file = zoo.upload(family, form)
        extra = {"architecture": zoo.architecture(family)} if form == "state_dict" else {}
        model = embedded.upload_model(file, f"{family}_{form}.pt", **extra)
        spec = {
            "type": "prune",
            "model": model,
            "dataset": embedded.upload_dataset(zoo.dataset(family), f"{family}.npz"),
            "task": zoo.FAMILIES[family].task,
            "amount": 0.5,
            "retrain": None,
            "outputs": ["torchscript", "state_dict"] if form == "state_dict" else None,
        }
        # Two forms also retrain, which must leave the pruned weights at zero.
        retrain = {"epochs": 2, "momentum": 0.9, "weight_decay": 0.001} if form in RETRAINED else None
        weights = embedded.submit({**spec, "granularity": "weight", "retrain": retrain})
        channels = embedded.submit({**spec, "granularity": "channel"})
        cells[family, form] = Submitted(file, weights, channels)
    return cells


@pytest.fixture(scope="module")
def table() -> list[str]:
    """One line for each cell, printed by the last test."""
    return []


@pytest.mark.parametrize(("family", "form"), CELLS)
def test_half_the_weights_and_half_the_channels(
    family: str,
    form: str,
    embedded: Stack,
    submitted: dict[tuple[str, str], Submitted],
    clean: CleanProcess,
    table: list[str],
) -> None:
    cell = submitted[family, form]
    kind = zoo.FAMILIES[family]
    original = zoo.trained(family)
    one, seven = kind.inputs(1), kind.inputs(7)
    shapes = {"one": list(original(one).shape), "seven": list(original(seven).shape)}
    parameters = sum(p.numel() for p in original.parameters())

    history = embedded.succeeded(cell.weights)["history"]
    assert len(history) == (2 if form in RETRAINED else 0)
    name = "model.pt2" if form == "program" else "model.pt"
    sparse = clean.run(embedded.download(cell.weights, name), name, one=one, seven=seven)
    assert sparse["shapes"] == shapes
    assert sparse["parameters"] == parameters
    assert abs(sparse["zeros"] - 0.5 * sparse["of"]) <= 1

    job = embedded.ended(cell.channels)
    if job["status"] == "failed":
        assert job["error"]["code"] == "nothing-to-prune"
        assert "torch." in job["error"]["detail"], "a refusal names the operator"
        table.append(f"{family:16} {form:10} refused: {job['error']['detail'][:120]}")
        return
    assert job["status"] == "succeeded", job["error"]
    report = embedded.report(cell.channels)
    file = embedded.download(cell.channels, name)
    small = clean.run(file, name, one=one, seven=seven)
    assert small["shapes"] == shapes
    assert small["parameters"] < parameters
    # The report compares like with like: for a state dict, the weights' file.
    result = embedded.download(cell.channels, "model.safetensors") if form == "state_dict" else file
    assert len(result) < len(cell.file)
    assert report["before"]["parameters"] == parameters
    assert report["after"]["parameters"] == small["parameters"]
    assert report["after"]["file_bytes"] == len(result)
    assert any(report["removed"].values())
    difference = 0.0
    for name, x in (("one", one), ("seven", seven)):
        expected = zeroed_outputs(original, report["removed"], x)
        difference = max(difference, (torch.tensor(small["outputs"][name]) - expected).abs().max().item())
    assert difference <= 1e-5
    table.append(
        f"{family:16} {form:10} {parameters:>7} -> {small['parameters']:>6} parameters "
        f"{len(cell.file):>7} -> {len(result):>6} bytes  difference {difference:.0e}"
    )


def test_at_most_three_cells_are_refused(request: pytest.FixtureRequest, table: list[str]) -> None:
    print("\n" + "\n".join(table))
    refused = [line for line in table if "refused" in line]
    assert len(refused) <= MOST_REFUSED
    assert len(table) == len(_cells_of(request))


def _cells_of(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """The cells that this run tries."""
    cells = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return [(cell.params["family"], cell.params["form"]) for cell in cells if cell is not None]
