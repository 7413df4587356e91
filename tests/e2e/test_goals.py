"""A goal through the whole service: met or infeasible, and every point tried is downloadable."""

from __future__ import annotations

import csv
import io

import torch

from tests.support.models import zoo
from tests.support.stack import Stack


def test_a_goal_is_met_and_one_out_of_reach_is_called_infeasible(embedded: Stack) -> None:
    spec = {
        "type": "prune",
        "model": embedded.upload_model(zoo.upload("mlp", "scripted"), "mlp.pt"),
        "dataset": embedded.upload_dataset(zoo.dataset("mlp"), "mlp.npz"),
        "retrain": {"epochs": 1},
    }
    met, missed = (
        embedded.submit({**spec, "target": {"params": share, "max_accuracy_drop": 0.9}}) for share in (0.5, 0.001)
    )
    report = embedded.succeeded(met)
    assert report["goal"]["status"] == "met"
    assert report["verdict"].startswith("Goal met: ")
    small = torch.jit.load(io.BytesIO(embedded.download(met)))
    parameters = sum(parameter.numel() for parameter in small.parameters())
    assert report["goal"]["reached"]["params"] == parameters / report["before"]["parameters"] <= 0.5
    table = list(csv.DictReader(io.StringIO(embedded.download(met, "frontier.csv").decode())))
    assert [int(row["parameters"]) for row in table] == [point["parameters"] for point in report["frontier"]]

    report = embedded.succeeded(missed)
    assert report["goal"]["status"] == "infeasible"
    assert report["goal"]["reached"]["params"] > 0.001
    assert embedded.download(missed)
