"""Words in which reports are shown, in terminals and on pages."""

from __future__ import annotations

from math import prod
from typing import Literal

from pared.reports import Latency, PlannedLayer

TESTS = {
    "mcnemar": "McNemar's exact test",
    "paired_t": "paired t-test",
    "jackknife_t": "t-test of the samples' pseudo-values",
}
"""What a comparison's tests are called."""
RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "torch"}
"""What ran a quantized file."""


def what_goes(layer: PlannedLayer) -> str:
    """What a job would take from a layer, or make of it; why no more does is its `reason`."""
    if layer.precision:
        return layer.precision.replace("_", " ")
    if not prod(layer.shape_after):
        return "all of it"
    if layer.removed_units:
        return f"{layer.removed_units:,} channels"
    if layer.zeroed_weights:
        return f"{layer.zeroed_weights:,} of {prod(layer.shape_before):,} weights become zero"
    return "nothing" if layer.shape_before == layer.shape_after else "inputs, with the layers before"


def factor(before: float, after: float, less: str, more: str) -> str:
    """How much less or more there is than before: 4.17× smaller; empty where that cannot be said."""
    if before == after or not before or not after:
        return "same" if before == after else ""
    try:
        times = before / after if after < before else after / before
    except OverflowError:
        return ""
    if not times < 1e9:  # NaN neither
        return ""
    return f"{times:.2f}× {less if after < before else more}"


def speed(before: Latency, after: Latency) -> Literal["faster", "slower", "same"]:
    """Whether the median changed: by more than the spread of the runs, and by more than 5 %.

    Where the middle half of the runs is spread wider than the median is long, as on a machine that others keep busy,
    the medians are no speeds of the models.
    """
    if max(before.noise, after.noise) > 1:
        return "same"
    margin = 1 + max(before.noise, after.noise, 0.05)
    if before.p50_ms > margin * after.p50_ms:
        return "faster"
    return "slower" if after.p50_ms > margin * before.p50_ms else "same"


def latency_change(before: Latency, after: Latency) -> str:
    """How much faster or slower the median is; within the spread a factor would be a figure without a meaning."""
    if speed(before, after) == "same":
        return "within noise"
    return factor(before.p50_ms, after.p50_ms, "faster", "slower")
