"""All model families of the matrix, pruned and retrained on the card; the results run anywhere and answer alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu.card import Card
from tests.gpu.jobs import CELLS, Posted
from tests.gpu.test_basics import computed_on, told
from tests.support.clean_process import CleanProcess
from tests.support.models import zoo

pytestmark = pytest.mark.gpu

APART = 1e-3
"""Most that the answers of a processor and a card, which multiplies in TF32, may differ: as a share of the largest."""


@pytest.mark.parametrize(("family", "form"), CELLS, ids=[" ".join(cell) for cell in CELLS])
def test_family(
    family: str,
    form: zoo.Form,
    posted: Posted,
    before: Card | None,
    on_cpu: CleanProcess,
    on_device: CleanProcess,
    finding: dict[str, Any],
) -> None:
    name = f"{family} {form}"
    report = posted.report(name)
    told(finding, report)
    computed_on(report, before)
    assert len(report["history"]) == 2
    kind, file = "model.pt2" if form == "program" else "model.pt", posted.id(name)
    result, inputs = posted.up.download(file, kind), zoo.FAMILIES[family].inputs(7)
    here, there = (process.run(result, kind, x=inputs) for process in (on_cpu, on_device))
    answers = [torch.tensor(answered["outputs"]["x"]) for answered in (here, there)]
    finding["difference"] = float(f"{(answers[0] - answers[1]).abs().max() / answers[0].abs().max():.1e}")
    assert len(answers[0]) == 7
    assert answers[0].isfinite().all()
    assert finding["difference"] <= APART
    if form == "traced":
        assert here["zeros"] == pytest.approx(here["of"] / 2, abs=1)
    else:
        assert here["parameters"] == report["after"]["parameters"] < report["before"]["parameters"]
