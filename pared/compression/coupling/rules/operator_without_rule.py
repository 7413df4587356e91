"""Says what happens at an operator without a rule: every channel that reaches it stays."""

from __future__ import annotations

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.rules.core import LabelTracker


def fix_all_units(tracker: LabelTracker, call: Call) -> None:
    """Fix the units of all tensors that the call takes; the reason in inspections and reports names the operator.

    Its results have no labels: for all that is known, any of their elements may hang on any of its inputs.
    """
    for tracked in call.tensors:
        tracker.fix(tracked.layers, call, "what it does to channels is not known")
