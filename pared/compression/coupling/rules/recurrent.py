"""LSTM, GRU and plain recurrent layers: which rows and columns of their stacked weights belong to one hidden unit.

A layer keeps its gates one above the other (4 of an LSTM, 3 of a GRU), so that a unit is a row of each gate in both
weights and biases, a column of the recurrent weight, and whatever reads the layer's output. All layers and directions
of one stack start from one tensor of states, (layers * directions, batch, hidden), so the same units go from each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import Labels, Tracked, along
from pared.compression.coupling.rules.core import LabelTracker, rule


@dataclass(frozen=True)
class _Cell:
    """The weights of one layer in one direction: (gates * hidden, inputs) and (gates * hidden, out).

    `project`: (out, hidden), where an LSTM's output is narrower than its hidden state.
    """

    inputs: Tracked
    hidden: Tracked
    biases: Sequence[Tracked]
    project: Tracked | None

    @property
    def weights(self) -> list[Tracked]:
        return [self.inputs, self.hidden, *self.biases, *([] if self.project is None else [self.project])]

    def units(self, tracker: LabelTracker, call: Call) -> tuple[Labels, Labels]:
        """Its output's units and its hidden state's, each tied over all that they consist of."""
        out = self.hidden.axis(1)
        hidden = out if self.project is None else self.project.axis(1)
        for weight in (self.inputs, self.hidden, *self.biases):
            tracker.union(hidden, weight.axis(0).reshape(-1, len(hidden)), call)
        if self.project is not None:
            tracker.union(out, self.project.axis(0), call)
        return out, hidden


@rule("lstm gru rnn_tanh rnn_relu")
def sequence(tracker: LabelTracker, call: Call) -> None:
    """lstm, gru, rnn_tanh, rnn_relu, of a padded input (its features last) or of a packed one."""
    x = call.arguments["data" if "data" in call.arguments else "input"]
    states = call.arguments["hx"] if isinstance(call.arguments["hx"], list) else [call.arguments["hx"]]
    directions = 2 if call.arguments["bidirectional"] else 1
    cells = list(_cells(call, projected=_projected(call)))
    tracker.fix(x.spanning(set(range(x.tensor.dim() - 1))), call, "takes them for steps or samples")
    entering, (out, hidden) = x.axis(-1), cells[0].units(tracker, call)
    for start in range(0, len(cells), directions):
        for cell in cells[start : start + directions]:
            tracker.union(entering, cell.inputs.axis(1), call, "its inputs stay")
            for own, shared in zip(cell.units(tracker, call), (out, hidden), strict=True):
                tracker.union(own, shared, call)
        entering = np.tile(out, directions)
    for state, units in zip(states, (out, hidden), strict=False):
        _tie_state(tracker, call, state, units)
    _note(tracker, call, cells, len(hidden))
    output, *last = call.results
    _label(output, entering)
    for state, units in zip([result for result in last if result.tensor.dim() == 3], (out, hidden), strict=False):
        _label(state, units)


@rule("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def cell_step(tracker: LabelTracker, call: Call) -> None:
    """lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: one step."""
    x = call.arguments["input"]
    states = call.arguments["hx"] if isinstance(call.arguments["hx"], list) else [call.arguments["hx"]]
    biases = [bias for bias in (call.arguments["b_ih"], call.arguments["b_hh"]) if bias is not None]
    cell = _Cell(call.arguments["w_ih"], call.arguments["w_hh"], biases, None)
    units, _ = cell.units(tracker, call)
    tracker.union(x.axis(-1), cell.inputs.axis(1), call, "its inputs stay")
    for state in states:
        _tie_state(tracker, call, state, units)
    _note(tracker, call, [cell], len(units))
    for result in call.results:
        _label(result, units)


@rule("_pack_padded_sequence _pad_packed_sequence")
def packed(tracker: LabelTracker, call: Call) -> None:
    """_pack_padded_sequence, (batch, steps, features) -> (rows, features), and _pad_packed_sequence back."""
    x = call.tensors[0]
    last = x.tensor.dim() - 1
    tracker.fix(x.spanning(set(range(last))), call, "takes them for steps or samples")
    _label(call.results[0], x.axis(last))


def _projected(call: Call) -> bool:
    """Whether an LSTM has a narrower output: then its two states differ in width."""
    states = call.arguments["hx"]
    return isinstance(states, list) and states[0].tensor.shape[-1] != states[1].tensor.shape[-1]


def _cells(call: Call, *, projected: bool) -> Iterator[_Cell]:
    weights: list[Tracked] = call.arguments["params"]
    biases = 2 if call.arguments["has_biases"] else 0
    each = 2 + biases + projected
    for start in range(0, len(weights), each):
        inputs, hidden, *rest = weights[start : start + each]
        yield _Cell(inputs, hidden, rest[:biases], rest[-1] if projected else None)


def _tie_state(tracker: LabelTracker, call: Call, state: Tracked, units: Labels) -> None:
    last = state.tensor.dim() - 1
    tracker.fix(state.spanning(set(range(last))), call, "takes them for steps or samples")
    tracker.union(
        state.axis(last), units, call, "its first state is given from outside, with as many units as it has now"
    )


def _note(tracker: LabelTracker, call: Call, cells: Sequence[_Cell], hidden: int) -> None:
    weights = {f"{index}.{role}": w for index, cell in enumerate(cells) for role, w in enumerate(cell.weights)}
    tracker.use(call, weights, ("0.0", 0), channels=hidden)
    for cell in cells:
        for weight in [cell.inputs, cell.hidden, *([] if cell.project is None else [cell.project])]:
            tracker.makes_channels(weight, 0)


def _label(result: Tracked, units: Labels) -> None:
    if units.any():
        result.layers = [along(units, -1, result.tensor.dim())]
