"""Finds which channels of a model must be removed together, on the model itself, without its source.

`find_groups` runs the model's TorchScript graph once on an example, ties the indices of all weights
that belong to one channel (`rules/`), and then *checks*: for every group it really removes channels
and compares the shrunk model with the original whose same channels are zeroed. What does not hold is
left alone, with the operator named. `remove` takes chosen channels out of a model for good.

Why not a ready-made dependency graph: `docs/decisions/0002-coupling-by-unit-labels.md`.
"""

from pared.compression.coupling.activations import input_norms
from pared.compression.coupling.bias_correction import BiasCorrection, LostInputs, find_bias_correction
from pared.compression.coupling.groups import find_groups
from pared.compression.coupling.model import ChannelGroup, Coupling, LayerUse, Removed, compose_removed, merge
from pared.compression.coupling.shrink import remove
from pared.compression.coupling.verify import unsound

__all__ = [
    "BiasCorrection",
    "ChannelGroup",
    "Coupling",
    "LayerUse",
    "LostInputs",
    "Removed",
    "compose_removed",
    "find_bias_correction",
    "find_groups",
    "input_norms",
    "merge",
    "remove",
    "unsound",
]
