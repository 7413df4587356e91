"""Applies to every call of a running graph the rule of its operator, and follows means over channels to their norm."""

from __future__ import annotations

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import Labels
from pared.compression.coupling.rules.core import LabelTracker, operator_names, rule_of
from pared.compression.coupling.rules.operator_without_rule import fix_all_units

_COMPARISONS = operator_names("eq ne lt gt le ge")
_PRODUCTS = operator_names("mul mul_")
_SHAPES_READ = operator_names("size sym_size dim numel len prim::device prim::dtype")
_OF_STATISTICS = operator_names(
    "add sub rsub mul div true_divide pow square sqrt rsqrt reciprocal neg abs clamp clamp_min maximum to float "
    "type_as _to_copy contiguous clone detach unsqueeze squeeze view reshape expand expand_as lerp addcmul"
)
"""What a norm does with a mean or a variance before it meets the channels."""


def apply_rule(tracker: LabelTracker, call: Call) -> None:
    """Carry labels through one call. Bound to a tracker, this is the visitor of an `Interpreter`."""
    if call.kind in _COMPARISONS and not call.tensors:
        tracker.keep_answer(call)
        return
    _carry_labels(tracker, call)
    statistics = [layer for tracked in call.tensors for layer in tracked.statistic]
    if statistics and not tracker.frozen:
        _follow_statistics(tracker, call, statistics)


def _carry_labels(tracker: LabelTracker, call: Call) -> None:
    rule = rule_of(call.kind)
    labelled = any(tracked.layers for tracked in call.tensors)
    if not labelled and call.kind in _PRODUCTS:
        tracker.note_product(call)
    if rule is None:
        fix_all_units(tracker, call)
    elif labelled or rule.also_without_labels:
        rule.apply(tracker, call)


def _follow_statistics(tracker: LabelTracker, call: Call, statistics: list[Labels]) -> None:
    """Follow means and variances over channels until they meet these channels: then it was a norm."""
    kind = call.kind if call.kind.endswith("__") else call.kind.removesuffix("_")
    if kind in _SHAPES_READ:
        return
    if kind not in _OF_STATISTICS:
        why = tracker.reason(call, "uses a mean, a maximum or the like over the channels for more than a norm")
        tracker.count_removed_as_zeros(statistics, why)
        return
    units = tracker.units
    for out in call.results:
        met = units.roots(np.concatenate([np.zeros(1, dtype=np.int64), *(layer.ravel() for layer in out.layers)]))
        out.statistic = [layer for layer in statistics if not np.isin(units.roots(layer.ravel()), met).all()]
