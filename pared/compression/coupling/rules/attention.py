"""The rule of scaled dot-product attention."""

from __future__ import annotations

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import NO_UNITS, Tracked
from pared.compression.coupling.rules.contraction import contract, letters
from pared.compression.coupling.rules.core import LabelTracker, rule


@rule("scaled_dot_product_attention")
def attention(tracker: LabelTracker, call: Call) -> None:
    """scaled_dot_product_attention: q (..., L, E), k (..., S, E), v (..., S, V) -> (..., L, V)."""
    q, k, v, mask = (call.arguments[name] for name in ("query", "key", "value", "attn_mask"))
    if call.arguments.get("scale") is None and (q.spanning({q.tensor.dim() - 1}) or k.spanning({k.tensor.dim() - 1})):
        # The default scale is 1/sqrt(E): with fewer features it would be another function.
        tracker.patch(call, "scale", None, NO_UNITS, fixed=q.tensor.shape[-1] ** -0.5, computed=True)
    batch = letters(q.tensor.dim() - 2)
    shared = batch
    if call.arguments.get("enable_gqa"):  # each head of k and v serves several of q
        shared = batch[:-1] + "H"
        for few in (k, v):
            served = np.repeat(few.axis(-3), q.tensor.shape[-3] // few.tensor.shape[-3])
            tracker.union(q.axis(-3), served, call, "multiplies them with channels that stay")
        tracker.heads.append(q.axis(-3))
    operands = [(q, batch + "LE"), (k, shared + "SE"), (v, shared + "SV")]
    if isinstance(mask, Tracked):
        operands.append((mask, (batch + "LS")[-mask.tensor.dim() :]))
    call.results[0].layers = contract(tracker, call, operands, batch + "LV")
