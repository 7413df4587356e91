"""The rules of operators along a dimension: sums, means, maxima, softmax, similarities."""

from __future__ import annotations

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import spanned
from pared.compression.coupling.rules.core import LabelTracker, operator_names, rule
from pared.compression.coupling.rules.elementwise import broadcast, elementwise

REDUCTIONS = operator_names(
    "mean sum amax amin prod std var std_mean var_mean norm linalg_vector_norm max min logsumexp median argmax"
)
SOFTMAX = operator_names("softmax log_softmax _softmax _log_softmax")
_SUMS = operator_names("sum norm linalg_vector_norm")
"""Reductions to which an element that is zero adds nothing."""


@rule(REDUCTIONS)
def reduce(tracker: LabelTracker, call: Call) -> None:
    """mean, sum, max...: over channels, a sum is one of those kept, and anything else must be part of a norm."""
    if "other" in call.arguments:  # max(a, b) and min(a, b) are elementwise
        elementwise(tracker, call)
        return
    x, reduced = call.tensors[0], reduced_dims(call)
    rank = x.tensor.dim()
    for index, out in enumerate(call.results):
        if call.kind not in _SUMS:
            out.statistic = tracker.note_statistics(call, x.spanning(reduced), index)
        if out.tensor.dim() == rank:
            out.layers = [layer for layer in x.layers if not spanned(layer) & reduced]
        else:
            kept = [dim for dim in range(rank) if dim not in reduced]
            out.layers = [
                layer.transpose([*kept, *reduced]).reshape([layer.shape[dim] for dim in kept])
                for layer in x.layers
                if not spanned(layer) & reduced
            ]


def reduced_dims(call: Call) -> set[int]:
    """The dimensions that a reduction takes together."""
    rank = call.tensors[0].tensor.dim()
    dims = call.arguments.get("dim", call.arguments.get("dims"))
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % rank for dim in (dims if isinstance(dims, list) else [dims])}


@rule(SOFTMAX)
def softmax(tracker: LabelTracker, call: Call) -> None:
    """softmax, log_softmax: where it runs over the channels, it is one of those kept."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    if dim == x.tensor.dim() - 1 >= 3:  # (..., heads, queries, keys)
        tracker.heads += [layer for layer in x.layers if spanned(layer) == {dim - 2}]
    call.results[0].layers = list(x.layers)


@rule("cumsum cumprod logcumsumexp sort argsort")
def along_one_dim(tracker: LabelTracker, call: Call) -> None:
    """cumsum, sort...: mixes along one dimension, which must not hold the channels."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    tracker.fix(x.spanning({dim}), call, "mixes the channels")
    call.results[0].layers = [layer for layer in x.layers if dim not in spanned(layer)]


@rule("cosine_similarity")
def similarity(tracker: LabelTracker, call: Call) -> None:
    """cosine_similarity(a, b, dim): a feature goes from both."""
    a, b = call.tensors[:2]
    rank = max(a.tensor.dim(), b.tensor.dim())
    dim = call.arguments["dim"] % rank
    layers = broadcast(tracker, call, [a, b], rank)
    call.results[0].layers = [np.squeeze(layer, dim) for layer in layers if dim not in spanned(layer)]
