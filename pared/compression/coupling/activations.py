"""Measures the norms of layers' inputs on the running graph: a ScriptModule has no hooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import Call, Interpreter
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.errors import ModelFailed


def input_norms(module: nn.Module, batches: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Name of each weight of a linear layer or convolution -> ‖x‖ of the input that each of its entries multiplies.

    ‖x‖ is over all samples and positions; the tensor has the weight's dimensions and broadcasts to it. A weight that
    is used several times has the norm over all uses.

    Args:
        module: in eval mode, on CPU. Not changed.
        batches: inputs of the module, at least one batch.

    Raises:
        ModelFailed: the graph holds an operator that cannot be followed.
    """
    squares: dict[str, Tensor] = {}

    def visit(call: Call) -> None:
        weight = call.arguments.get("weight")
        if not isinstance(weight, Tracked) or weight.name is None:
            return
        if call.kind == "aten::linear":
            square = _of_linear(call.arguments["input"].tensor, weight.tensor)
        elif "conv" in call.kind:
            square = _of_convolution(call, weight.tensor)
        else:
            return
        squares[weight.name] = squares.get(weight.name, 0) + square

    interpreter: Interpreter | None = None
    with torch.no_grad():
        for inputs in batches:
            interpreter = interpreter or Interpreter(scripted(module, inputs))
            try:
                interpreter.run(inputs, lambda name, tensor: Tracked(tensor, [], name=name), visit)
            except UnsupportedGraph as unsupported:
                raise ModelFailed(f"The inputs of the layers cannot be followed: {unsupported}.") from unsupported
    return {name: total.sqrt() for name, total in squares.items()}


def _of_linear(x: Tensor, weight: Tensor) -> Tensor:
    square = x.double().square().reshape(-1, x.shape[-1]).sum(dim=0)
    return square.reshape([1] * (weight.dim() - 1) + [-1])


def _of_convolution(call: Call, weight: Tensor) -> Tensor:
    """The weight is (out, in / groups, …), or transposed (in, out / groups, …)."""
    x: Tensor = call.arguments["input"].tensor
    channel = 1 if x.dim() == weight.dim() else 0
    square = x.double().square().sum(dim=[dim for dim in range(x.dim()) if dim != channel])
    ones = [1] * (weight.dim() - 2)
    if call.arguments.get("transposed", "transpose" in call.kind):
        return square.reshape([-1, 1, *ones])
    groups = int(call.arguments["groups"])
    of_group = square.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return of_group.reshape([weight.shape[0], -1, *ones])
