"""Captures the outputs of a model's inner layers, for a student that learns from those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import reloaded
from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import device_of, place_graph
from pared.compression.measuring.running import forward, own_failures
from pared.compression.tasks import TaskRules
from pared.errors import ValidationError
from pared.wording import shortened

_LAYER_OPERATORS = (
    "aten::linear",
    "aten::conv",
    "aten::_conv",
    "aten::embedding",
    "aten::batch_norm",
    "aten::layer_norm",
)


class Probe:
    """Runs a module and also returns what named layers gave, flattened to (N, D) a layer.

    Args:
        module: any module; it is not changed, and its training mode at the time of the call counts.
        layers: names as in `module.named_modules()`. Of a layer that runs several times the last output counts.
        role: what to call the module in errors.

    Raises:
        ValidationError: there is no such layer; the text lists those that there are.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], role: str) -> None:
        self._module, self._layers, self._role = module, list(layers), role
        self._function: Any = None
        if not layers:
            return
        if isinstance(module, torch.jit.ScriptModule):
            self._function = _capturing(module, self._layers, role)
            return
        known = [name for name, _ in module.named_modules() if name]
        for layer in self._layers:
            if layer not in known:
                raise _unknown_layer(layer, known, role)

    def __call__(self, inputs: Inputs, task: TaskRules) -> tuple[Tensor, list[Tensor]]:
        """The module's output, and the layers' outputs."""
        if not self._layers:
            return forward(self._module, inputs, task), []
        with own_failures():
            output, captured = self._run_script(inputs) if self._function else self._run_eager(inputs)
        features = [
            self._flat(layer, value, len(inputs[0])) for layer, value in zip(self._layers, captured, strict=True)
        ]
        return task.taken(output, len(inputs[0])), features

    def _run_script(self, inputs: Inputs) -> tuple[Any, list[Any]]:
        output, *captured = self._function(self._module, *inputs)
        return output, captured

    def _run_eager(self, inputs: Inputs) -> tuple[Any, list[Any]]:
        captured: dict[str, Any] = {}
        named = dict(self._module.named_modules())

        def keeper(layer: str) -> Any:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                captured[layer] = output

            return keep

        hooks = [named[layer].register_forward_hook(keeper(layer)) for layer in set(self._layers)]
        try:
            output = self._module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return output, [captured.get(layer) for layer in self._layers]

    def _flat(self, layer: str, value: Any, samples: int) -> Tensor:
        if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == samples and value.is_floating_point():
            return value.flatten(1)
        description = (
            f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        )
        text = (
            f"The {self._role}'s layer {layer} gives {description}; a feature is a float tensor (samples, …). "
            "Name another layer."
        )
        raise ValidationError(text, errors=[{"pointer": "/loss/features", "detail": text}])


def _unknown_layer(layer: str, known: Sequence[str], role: str) -> ValidationError:
    shown = shortened(known, 40)
    text = f"The {role} has no layer {layer!r} whose output can be read. Its layers are: {shown or 'none'}."
    return ValidationError(text, errors=[{"pointer": "/loss/features", "detail": text}])


def _capturing(module: torch.jit.ScriptModule, layers: Sequence[str], role: str) -> Any:
    """A function `(module, *inputs) -> (output, *outputs of the layers)` made of the module's own graph.

    A ScriptModule takes no hooks. So, in a copy, every call of a submodule is marked before calls are inlined, and
    the marked values become outputs. Weights and the training flag are read from the module at each call. The graph
    API is private to torch; `tests/integration/compression/test_distill.py` pins what is relied on.
    """
    copy: Any = reloaded(module)
    marked: set[str] = set()
    for submodule in copy.modules():
        kind = submodule._c._type().qualified_name()
        if kind not in marked:  # instances of one class share their code
            marked.add(kind)
            for name in submodule._c._method_names():
                method = submodule._c._get_method(name)
                _mark_calls(method.graph, method.graph)
    graph = copy._c._get_method("forward").graph
    torch._C._jit_pass_inline(graph)
    graph = graph.copy()
    place_graph(graph, device_of(module), copy)
    values: dict[str, Any] = {}
    for node in graph.nodes():
        if node.kind() == "prim::TupleConstruct" and _is_module(next(node.inputs(), None)):
            called, output = node.inputs()
            values[_path(called)] = output
        elif node.outputsSize() == 1:
            # Where removing channels had to rewrite a size, calls are inlined in the file: there a layer is the
            # operator that takes its weight.
            for name in [_path(value) for value in node.inputs()]:
                if name.endswith(".weight") and node.kind().startswith(_LAYER_OPERATORS):
                    values.setdefault(name.removesuffix(".weight"), node.output())
    for layer in layers:
        if layer not in values:
            raise _unknown_layer(layer, list(values), role)
    result = graph.create("prim::TupleConstruct", [*graph.outputs(), *(values[layer] for layer in layers)], 1)
    result.output().setType(torch._C.TupleType([value.type() for value in result.inputs()]))
    graph.appendNode(result)
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(result.output())
    torch._C._jit_pass_dce(graph)  # drops the marks
    return torch._C._create_function_from_graph("with_features", graph)


def _mark_calls(graph: Any, block: Any) -> None:
    """After each call of a submodule, a tuple of that submodule and its output, which inlining leaves alone."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            _mark_calls(graph, inner)
        # The second call of a traced module is a method `forward1`.
        if node.kind() == "prim::CallMethod" and node.s("name").startswith("forward"):
            graph.create("prim::TupleConstruct", [next(node.inputs()), node.output()], 1).insertAfter(node)


def _is_module(value: Any) -> bool:
    return value is not None and isinstance(value.type(), torch._C.ClassType)


def _path(value: Any) -> str:
    """`layer1.conv.weight` for a chain of attributes that starts at the module itself, else the empty text."""
    parts: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        parts.append(value.node().s("name"))
        value = next(value.node().inputs())
    return ".".join(reversed(parts)) if value.node().kind() == "prim::Param" else ""
