"""How each operator carries unit labels from its inputs to its outputs, and which units it ties together.

A rule looks at one executed call, merges units that can only go together, fixes those that cannot go,
sets the label layers of the outputs, and notes `Patch`es: literal sizes written in the file (a `view`
to 128 columns, the `groups` of a depthwise convolution) that must follow when units go.

Rules may be cautious but never wrong: an operator without a rule fixes every unit that reaches it
(`operator_without_rule.py`), and whatever the rules conclude is checked on the shrunk model itself before it is
believed. How to add one: `CONTRIBUTING.md`.
"""

# Each module registers the rules of its operators.
from pared.compression.coupling.rules import (  # noqa: F401
    attention,
    contraction,
    convolution,
    elementwise,
    layout,
    norm,
    recurrent,
    reduction,
    shape,
)
from pared.compression.coupling.rules.core import MAY_COUNT_ZEROS, RULES, LabelTracker, Rule, nature, rule
from pared.compression.coupling.rules.dispatch import apply_rule
from pared.compression.coupling.rules.reduction import REDUCTIONS, SOFTMAX, reduced_dims

__all__ = [
    "MAY_COUNT_ZEROS",
    "REDUCTIONS",
    "RULES",
    "SOFTMAX",
    "LabelTracker",
    "Rule",
    "apply_rule",
    "nature",
    "reduced_dims",
    "rule",
]
