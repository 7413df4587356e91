"""Finds out whether a model's last operator is a softmax or a sigmoid, so that its answers are probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import Call, Interpreter
from pared.compression.coupling.labels import Tracked
from pared.compression.tasks.base import Head, TaskRules
from pared.compression.tasks.outputs import chosen

_SAME_NUMBERS = (
    *("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "expand", "select", "slice"),
    *("contiguous", "clone", "alias", "to", "float", "detach", "dropout"),
)
_CLOSE = 1e-3


def head_of(module: nn.Module, inputs: Sequence[Tensor], task: TaskRules) -> Head:
    """What makes the output that a task takes, `logits` where that is no probability.

    The operator that computes it says so; where the graph cannot be followed, numbers that add up to 1 do.

    Args:
        module: in eval mode, on the CPU.
        inputs: of a few samples.
        task: of logits, so far.
    """
    if not task.softens:
        return "logits"
    with torch.no_grad():
        answer = module(*inputs)
    output = chosen(answer, task.output, task.wanted)
    if not bool(((output >= 0) & (output <= 1)).all()):
        return "logits"
    rows, _ = task.rows(task.shaped(output.float()), torch.zeros(()))
    adds_up = rows.shape[1] > 1 and torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=_CLOSE)
    single = output.numel() == len(output) or task.name in ("binary", "multilabel")
    try:
        kind = _last_operator(module, inputs, task)
    except Exception:  # noqa: BLE001 - of a graph that cannot be followed the numbers tell
        return "softmax" if adds_up and not single else "logits"
    if kind == "sigmoid":
        return "sigmoid"
    return "softmax" if kind == "softmax" and adds_up and not single else "logits"


def _last_operator(module: nn.Module, inputs: Sequence[Tensor], task: TaskRules) -> str:
    """The operator that computed the numbers of the output."""
    made_by: dict[int, Call] = {}

    def visit(call: Call) -> None:
        made_by.update((id(result), call) for result in call.results)

    run = Interpreter(scripted(module, inputs)).run
    found = run(tuple(inputs), lambda name, tensor: Tracked(tensor, [], name=name), visit)
    tracked = _at(found, task)
    while (call := made_by.get(id(tracked))) is not None:
        kind = call.kind.removeprefix("aten::").removesuffix("_")
        if kind not in _SAME_NUMBERS or not call.tensors:
            return kind
        tracked = call.tensors[0]
    return ""


def _at(answer: Any, task: TaskRules) -> Any:
    """What is tracked of the output that the task takes."""
    tensors: dict[int, Tracked] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tracked):
            tensors[id(value.tensor)] = value
            return value.tensor
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return tensors[id(chosen(plain(answer), task.output, task.wanted))]
