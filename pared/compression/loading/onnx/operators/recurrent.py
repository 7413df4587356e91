"""Recurrent layers: LSTM, GRU and RNN, whose gates ONNX has in another order than torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pared.compression.loading.onnx.code import TRAINING, Number, Value
from pared.compression.loading.onnx.operators.step import Step, operator

_GATES = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""Where torch's gates are among those of ONNX: i f g o among i o f c, and r z n among z r h."""
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


@operator("LSTM GRU RNN", "activations clip direction hidden_size input_forget layout linear_before_reset")
def recurrent(step: Step) -> list[Value | None]:
    """One layer, in one direction or both."""
    code, x = step.code, step.input()
    hidden, kind = int(step.attribute("hidden_size", step.input(2).shape[-1])), step.op
    direction = _text(step.attribute("direction", "forward"))
    both, reverse = direction == "bidirectional", direction == "reverse"
    relu = _checked(step, both)
    first = bool(step.attribute("layout", 0))
    if first:
        x = code.call("transpose", x, 0, 1)
    if reverse:
        x = code.call("flip", x, [0])
    batch = code.size(x, 1)
    states = [_state(step, 5, 1 + both, batch, hidden, first)]
    if kind == "LSTM":
        states.append(_state(step, 6, 1 + both, batch, hidden, first))
    name = {"LSTM": "lstm", "GRU": "gru"}.get(kind, "rnn_relu" if relu else "rnn_tanh")
    weights = [part for way in range(1 + both) for part in _weights(step, way, hidden)]
    given: Any = states if kind == "LSTM" else states[0]
    results = code.calls(name, len(states) + 1, x, given, weights, True, 1, 0.0, TRAINING, both, False)
    return _as_onnx(step, results, both, reverse, hidden, first)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _checked(step: Step, both: bool) -> bool:
    """Refuse what torch's layers do not do; whether an RNN has ReLU."""
    asked = [_text(name).lower() for name in step.attribute("activations", [])]
    usual = _ACTIVATIONS[step.op] * (1 + both)
    relu = step.op == "RNN" and asked == ["relu"] * (1 + both)
    if asked and asked != usual and not relu:
        raise step.refuse(f"has the activations {', '.join(asked)[:60]}, where torch has {', '.join(usual)}.")
    if step.attribute("clip") is not None or step.attribute("input_forget", 0) or step.given(7) is not None:
        raise step.refuse("clips, couples its gates or has peepholes, which torch's layers do not do.")
    if step.op == "GRU" and not step.attribute("linear_before_reset", 0):
        raise step.refuse("resets before its product (linear_before_reset=0), where torch resets after it.")
    lengths = step.given(4)
    time = 1 if step.attribute("layout", 0) else 0
    if lengths is not None and (not lengths.known or not (lengths.tensor == step.input().shape[time]).all()):
        raise step.refuse("has sequences of different lengths (sequence_lens), which pared does not follow.")
    return relu


def _state(step: Step, index: int, ways: int, batch: Number, hidden: int, first: bool) -> Value:
    """The state before the first step: as given, with its sizes checked, or zeros."""
    given, code = step.given(index), step.code
    zero = given is None or given.fill == 0 or (given.known and not given.text and not given.tensor.any())
    if given is None or zero:
        device: Any = Number(f"{code.first}.device", None)
        return code.call("zeros", [ways, batch, hidden], dtype=torch.float32, device=device)
    given = code.call("transpose", given, 0, 1) if first else given
    # torch's own operator reads past the end of a state that is too small; this says so.
    return code.call("reshape", given, [ways, batch, hidden])


def _weights(step: Step, way: int, hidden: int) -> list[Value]:
    """The four tensors of one direction, their rows in torch's order."""
    order, suffix = _GATES[step.op], "_reverse" if way else ""
    into, over = step.input(1), step.input(2)
    bias = step.given(3)
    if not all(part.known and not part.text for part in (into, over, *([bias] if bias else []))):
        raise step.refuse("computes its weights, which pared does not follow.")
    halves = torch.zeros(2, len(order) * hidden)
    if bias is not None:
        halves = bias.tensor[way].reshape(2, -1)
    parts = {
        "weight_ih_l0": into.tensor[way],
        "weight_hh_l0": over.tensor[way],
        "bias_ih_l0": halves[0],
        "bias_hh_l0": halves[1],
    }
    layer = step.path(Value(into.tensor), "weight").rpartition(".")[0]
    made = []
    for leaf, tensor in parts.items():
        if len(tensor) != len(order) * hidden:
            raise step.refuse("has weights of another hidden size than it says: the file is damaged.")
        gates = tensor.reshape(len(order), hidden, *tensor.shape[1:])[order].reshape(tensor.shape)
        made.append(step.code.weight(Value(gates, known=True), f"{layer}.{leaf}{suffix}", kind=step.op))
    return made


def _as_onnx(
    step: Step, results: Sequence[Value], both: bool, reverse: bool, hidden: int, first: bool
) -> list[Value | None]:
    """Results as ONNX has them: the directions apart, in front of the batch."""
    code, y = step.code, results[0]
    states: list[Value | None] = list(results[1:])
    if reverse:
        y = code.call("flip", y, [0])
    if both:
        y = code.call("permute", code.call("unflatten", y, 2, [2, hidden]), [0, 2, 1, 3])
    else:
        y = code.call("unsqueeze", y, 1)
    if first:
        y = code.call("permute", y, [2, 0, 1, 3])
        states = [None if state is None else code.call("transpose", state, 0, 1) for state in states]
    return [y, *states]
