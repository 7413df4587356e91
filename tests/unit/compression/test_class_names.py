"""Classes that data name by words: numbered as a model names them, or by the alphabet, which is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import prune
from pared.compression.data.class_names import as_the_model, names_in

TARGETS = {"train": torch.tensor([0, 1, 2, -100]), "test": torch.tensor([2])}
WORDS = ["bad", "good", "odd"]


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["good", "bad", "odd"], [1, 0, 2, -100]),
        (["Good", "BAD", "odd"], [1, 0, 2, -100]),
        (["other", "odd", "good", "bad"], [3, 2, 1, -100]),
        (["good", "bad", "unknown"], None),
        (["good", "Good", "bad", "odd"], [2, 0, 3, -100]),
        (["good", "Good", "bad", "ODD"], None),
    ],
)
def test_words_are_numbered_as_the_model_names_them(names, train):
    renumbered = as_the_model(TARGETS, WORDS, names)
    assert (None if renumbered is None else renumbered["train"].tolist()) == train


def test_labels_of_which_several_hold_stay_as_they_are():
    assert as_the_model({"train": torch.zeros(4, 3)}, WORDS, ["odd", "good", "bad"]) is None


@pytest.mark.parametrize(
    ("named", "names"),
    [
        ({0: "good", 1: "bad"}, ("good", "bad")),
        ({"1": "bad", "0": "good"}, ("good", "bad")),
        ({0: "LABEL_0", 1: "LABEL_1"}, ()),
        ({0: "good", 2: "bad"}, ()),
        (["good"], ()),
        (None, ()),
    ],
)
def test_a_config_may_name_classes(named, names):
    assert names_in({"id2label": named}) == names


def _data(order: str) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A model that is always right where its classes are numbered in this order, and words as labels."""
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3).repeat(2, 1))
        model[1].weight.copy_(torch.eye(3).repeat(1, 2))
    truth = np.random.default_rng(0).integers(0, 3, 240)
    return model, np.eye(3, dtype=np.float32)[truth], np.array(list(order))[truth]


def test_words_without_names_of_the_model_are_numbered_by_the_alphabet_and_the_report_says_so():
    model, x, y = _data("abc")
    notes = prune(model, (x, y), amount=0.5, granularity="weight", retrain=None).report.warnings
    assert any("0 = a, 1 = b, 2 = c" in note for note in notes)
    assert not any("commonest class" in note for note in notes)


def test_an_upload_that_is_no_better_than_a_constant_is_told_what_may_differ():
    model, x, y = _data("bca")
    notes = prune(model, (x, y), amount=0.5, granularity="weight", retrain=None).report.warnings
    assert any("are the labels numbered as then?" in note for note in notes)


def test_an_upload_whose_numbers_were_scaled_otherwise_is_told_so():
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 1)), np.random.default_rng(0).normal(size=(200, 3))
    y = 1000 + x @ np.array([1.0, 2.0, 3.0])
    notes = prune(model, (x, y), amount=0.5, granularity="weight", retrain=None).report.warnings
    assert any("hardly better than the mean of the targets" in note for note in notes)
