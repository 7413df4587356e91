"""Builds of an architecture (a name, or a layer list) an `nn.Module` that runs, traces and scripts."""

from __future__ import annotations

import difflib
import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pared.compression.architectures.layers import (
    MAX_LAYERS,
    PARAMETERS,
    Layer,
    make_module,
    read_layers,
    write_layers,
)
from pared.compression.architectures.named import ARCHITECTURES
from pared.errors import InvalidArchitecture
from pared.specs import LayeredArchitecture, NamedArchitecture

MAX_PARAMETERS = 2_000_000_000


class LayeredModule(fx.GraphModule):
    """A module made from a layer list: plain `torch.nn` leaves joined by a small graph.

    A graph, and not a class for each structure, keeps state-dict keys free of structure (`layer1.0.conv1.weight`)
    and gives `torch.jit.script` straight-line code.
    """

    # What GraphModule keeps about itself has no place in the TorchScript file.
    __jit_unused_properties__ = [  # noqa: RUF012
        "architecture",
        *(name for name, value in inspect.getmembers(fx.GraphModule) if isinstance(value, property)),
    ]
    __jit_ignored_attributes__ = [  # noqa: RUF012
        "meta",
        "shape_env",
        "_code",
        "_graph",
        "_lineno_map",
        "_prologue_start",
        "_tracer_cls",
        "_tracer_extras",
    ]

    def recompile(self) -> Any:
        """As fx does, but a call that fails only raises: fx's own call prints a traceback to stderr as well."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]  # fx makes a class for each module
        return code

    @property
    def architecture(self) -> dict[str, Any]:
        """The layer list this module was made from: `{"layers": [...]}`. Copies of the module keep it."""
        return self.meta["architecture"]  # type: ignore[no-any-return]


def build(architecture: Any) -> LayeredModule:
    """Make the module of an architecture, with freshly initialised weights.

    Args:
        architecture: a name; `{"name", "kwargs"}`; `{"layers"}`; or one of the specs of these.

    Raises:
        InvalidArchitecture: unknown name, bad argument, or the position of a layer that does not build.
    """
    layers = read_layers(layer_list(architecture))
    if not layers:
        raise InvalidArchitecture("The architecture has no layers.")
    graph = fx.Graph()
    wiring = _Wiring(graph)
    x = graph.placeholder("x", type_expr=Tensor)
    graph.output(wiring.chain(layers, x))
    _check_size(wiring.leaves)

    root = fx.GraphModule(nn.Module(), fx.Graph())
    for name, leaf in wiring.leaves.items():
        _add(root, name, make_module(leaf))
    module = LayeredModule(root, graph)
    module.meta["architecture"] = {"layers": write_layers(layers)}
    return module


def _add(root: fx.GraphModule, name: str, made: nn.Module | nn.Parameter) -> None:
    """Put a layer where its name says; a tensor may stand beside the layers of its block."""
    if isinstance(made, nn.Module):
        root.add_submodule(name, made)
        return
    above, _, own = name.rpartition(".")
    try:
        holder = root.get_submodule(above)
    except AttributeError:
        holder = nn.Module()
        root.add_submodule(above, holder)
    holder.register_parameter(own, made)


def layer_list(architecture: Any) -> list[Any]:
    """The layer list, not yet checked, of any form of architecture.

    Raises:
        InvalidArchitecture: unknown name or form, or an argument that the named architecture does not take.
    """
    if isinstance(architecture, LayeredArchitecture):
        return architecture.layers
    if isinstance(architecture, NamedArchitecture):
        return _named_layers(architecture.name, architecture.kwargs)
    if isinstance(architecture, str):
        return _named_layers(architecture, {})
    if isinstance(architecture, dict) and architecture.keys() == {"layers"}:
        layers = architecture["layers"]
        if isinstance(layers, (list, tuple)):
            return list(layers)
    if isinstance(architecture, dict) and "name" in architecture and architecture.keys() <= {"name", "kwargs"}:
        return _named_layers(architecture["name"], architecture.get("kwargs") or {})
    raise InvalidArchitecture(
        'An architecture is a name, {"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}. '
        f"Known names: {', '.join(ARCHITECTURES)}."
    )


def _named_layers(name: Any, kwargs: Any) -> list[Any]:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        near = difflib.get_close_matches(str(name)[:64].lower(), ARCHITECTURES, n=3)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InvalidArchitecture(
            f"There is no architecture {str(name)[:64]!r}.{meant} Known names: {', '.join(ARCHITECTURES)}; "
            'or give {"layers": [["Linear", {"in_features": …, "out_features": …}], …]}.'
        )
    known = inspect.signature(ARCHITECTURES[name]).parameters
    if not isinstance(kwargs, dict) or not kwargs.keys() <= known.keys():
        unknown = ", ".join(str(key)[:64] for key in kwargs if key not in known) if isinstance(kwargs, dict) else "such"
        raise InvalidArchitecture(f"{name} has no argument {unknown}. It takes: {', '.join(known)}.")
    needed = [key for key, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    missing = [key for key in needed if key not in kwargs]
    if missing:
        raise InvalidArchitecture(f"{name} needs {', '.join(missing)}. It takes: {', '.join(known)}.")
    for key, value in kwargs.items():
        _check_argument(name, key, value, a_list=key == "widths")
    return ARCHITECTURES[name](**kwargs)


def _check_argument(name: str, key: str, value: Any, *, a_list: bool) -> None:
    """Named architectures take positive integers, and `widths`, a list of them; `batch_norm` is true or false."""
    if key == "batch_norm":
        if not isinstance(value, bool):
            raise InvalidArchitecture(f"{name}: {key} must be true or false.")
        return
    entries = value if a_list else [value]
    if not isinstance(entries, (list, tuple)) or not 1 <= len(entries) <= 100:
        raise InvalidArchitecture(f"{name}: {key} must be a list of 1 to 100 integers.")
    most = 100 if key in {"blocks", "layers"} else 1 << 24
    if any(isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= most for one in entries):
        raise InvalidArchitecture(f"{name}: {key} must be {'integers' if a_list else 'an integer'} from 1 to {most}.")


def _check_size(leaves: dict[str, Layer]) -> None:
    """Count parameters on the meta device, where nothing is allocated."""
    total = 0
    with torch.device("meta"):
        for leaf in leaves.values():
            made = make_module(leaf)
            tensors = [made] if isinstance(made, nn.Parameter) else [*made.parameters(), *made.buffers()]
            total += sum(tensor.numel() for tensor in tensors)
            if total > MAX_PARAMETERS:
                raise InvalidArchitecture(
                    f"{leaf.where} ({leaf.kind}) takes the model past {MAX_PARAMETERS:,} parameters, the most allowed."
                )


class _Wiring:
    """Writes layers into a graph, and collects the modules that it calls."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.leaves: dict[str, Layer] = {}
        self.calls = 0

    def chain(self, layers: list[Layer], x: fx.Node) -> fx.Node:
        for layer in layers:
            x = self.layer(layer, x)
        return x

    def layer(self, layer: Layer, x: fx.Node) -> fx.Node:
        self.calls += 1
        if self.calls > MAX_LAYERS:  # Repeat within Repeat
            raise InvalidArchitecture(f"{layer.where}: with its repetitions the model has over {MAX_LAYERS:,} layers.")
        children = layer.children
        match layer.kind:
            case "Sequential":
                return self.chain(children["layers"], x)
            case "Residual":
                body = self.chain(children["layers"], x)
                return self.graph.call_function(operator.add, (body, self.chain(children.get("shortcut", []), x)))
            case "Gate":
                gated = self.chain(children.get("shortcut", []), x)
                return self.graph.call_function(operator.mul, (gated, self.chain(children["layers"], x)))
            case "Resized":
                size = [self.graph.call_method("size", (x, dim)) for dim in (2, 3)]
                options: dict[str, Any] = {"size": size, "mode": "bilinear", "align_corners": False}
                return self.graph.call_function(functional.interpolate, (self.chain(children["layers"], x),), options)
            case "Concat":
                branches = [self.chain(branch, x) for branch in children.values()]
                return self.graph.call_function(torch.cat, (branches,), {"dim": layer.kwargs["dim"]})
            case "Repeat":
                for _ in range(layer.kwargs["times"]):
                    x = self.chain(children["layers"], x)
                return x
            case "Mean":
                return self.graph.call_method("mean", (x,), {"dim": layer.kwargs["dim"]})
            case "Transpose":
                return self.graph.call_method("transpose", (x, layer.kwargs["dim0"], layer.kwargs["dim1"]))
            case "Permute":
                return self.graph.call_method("permute", (x, tuple(layer.kwargs["dims"])))
            case "Reshape":
                batch = self.graph.call_method("size", (x, 0))
                return self.graph.call_method("reshape", (x, (batch, *layer.kwargs["shape"])))
            case "Select":
                return self.graph.call_method("select", (x, layer.kwargs["dim"], layer.kwargs["index"]))
            case kind if kind in PARAMETERS:
                return self.parameter(layer, x)
            case _:
                self.leaves[layer.name] = layer
                # Given a name, since torch 2.11 looks for a free one in time that is quadratic in the repetitions.
                return self.graph.create_node("call_module", layer.name, (x,), name=f"layer_{self.calls}")

    def parameter(self, layer: Layer, x: fx.Node) -> fx.Node:
        self.leaves[layer.name] = layer
        tensor = self.graph.create_node("get_attr", layer.name, name=f"tensor_{self.calls}")
        if layer.kind == "Scale":
            return self.graph.call_function(operator.mul, (x, tensor))
        if layer.kind == "Shift":
            return self.graph.call_function(operator.add, (x, tensor))
        batch = self.graph.call_method("size", (x, 0))
        rest = [-1] * (len(layer.kwargs["shape"]) - 1)
        return self.graph.call_function(torch.cat, ([self.graph.call_method("expand", (tensor, batch, *rest)), x], 1))
