"""A verdict's words agree with its interval and its test."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.compression.report.verdict import prune_verdict, still_learning
from pared.reports import Comparison, Interval, Report
from pared.specs import Retrain

STORED = Path(__file__).parents[2] / "support/reports/search.json"
HARDLY = "which can hardly be told from chance: the interval and the paired test do not agree"


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.001, 0.02, 0.01, "a real gain"),
        (-0.02, -0.001, 0.01, "a real loss"),
        (-0.001, 0.02, 0.04, HARDLY),
        (0.001, 0.02, 0.06, HARDLY),
        (-0.01, 0.02, 0.3, "which the paired test cannot tell from chance"),
    ],
)
def test_a_gain_is_called_real_where_the_interval_and_the_test_say_so(low: float, high: float, p: float, said: str):
    report = Report.model_validate_json(STORED.read_bytes())
    difference = Interval(value=(low + high) / 2, low=low, high=high)
    comparison = Comparison(quality_difference=difference, p_value=p, test="mcnemar", equal_predictions=0.9)
    assert f", {said} (p = {p:.2g})" in prune_verdict("channel", report.before, report.after, comparison)


@pytest.mark.parametrize(
    ("best", "schedule", "high", "told"),
    [
        (3, "constant", -0.01, True),
        (2, "constant", -0.01, False),
        (3, "cosine", -0.01, False),
        (3, "constant", 0.01, False),
    ],
)
def test_more_epochs_are_advised_where_the_last_one_was_the_best(best: int, schedule: str, high: float, told: bool):
    difference = Interval(value=-0.02, low=-0.04, high=high)
    comparison = Comparison(quality_difference=difference, p_value=0.01, test="mcnemar")
    notes = still_learning(
        "retraining", Retrain.model_validate({"epochs": 3, "lr_schedule": schedule}), best, comparison
    )
    notes = [note for note in notes if note.startswith("The last epoch of the retraining was the best one")]
    assert len(notes) == told
    assert still_learning("retraining", None, None, None) == []
