"""Folds what a TorchScript file computes a layer's weights from, such as weight norm, into plain weights.

Weights behind a parametrization are not what the layer multiplies by: zeroing them makes no zeros there, and a row of
zeros under a norm is 0/0. So what a layer's weight comes to whatever the input is evaluated once and takes, as a
parameter, the place of its computation; what it was computed from goes.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.interpreter import Interpreter, inlined, inlined_graph, nodes_of, outputs_of
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.rules import nature
from pared.compression.coupling.verify import TOLERANCE, flat_tensors, relative_difference
from pared.compression.graphs.flow import Flow, Step, erase_dead
from pared.compression.graphs.plain import spell_out_lists
from pared.compression.graphs.rebuilding import without_unused
from pared.compression.loading.examples import guess_example_inputs
from pared.compression.loading.loaded import LoadedModel
from pared.compression.loading.parametrized import folded_note, plain_name
from pared.errors import UnsupportedModel, telling_line


def folded(loaded: LoadedModel) -> LoadedModel:
    """The upload with plain weights in place of those that it computes from its own tensors, and a warning of that.

    What cannot be folded is left as it is, and named with the reason in `left_out`: its single weights are not to be
    pruned. Where inputs can be guessed, the model is tried out against what it was; else `confirmed` does it.
    """
    script = loaded.module
    if not isinstance(script, torch.jit.ScriptModule):
        return loaded
    folding = _fold(script)
    result = replace(loaded, left_out=folding.left, warnings=[*loaded.warnings, *_left_notes(folding.left)])
    if not folding.sources:
        return result
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (script, folding.module)]
    result = replace(
        result,
        module=folding.module.eval(),
        inlined=True,
        sparse=folding.sparse,
        frozen_names=[name for name, tensor in folding.module.named_parameters() if not tensor.requires_grad],
        warnings=[*loaded.warnings, folded_note(folding.sources, *counts), *_left_notes(folding.left)],
    )
    example = guess_example_inputs(result)
    if example is None:
        return replace(result, unfolded=script)
    if (why := folding_difference(script, folding.module, example)) is None:
        return result
    left = {_layer(source): why for sources in folding.sources.values() for source in sources} | folding.left
    return replace(loaded, left_out=left, warnings=[*loaded.warnings, *_left_notes(left)])


def confirmed(loaded: LoadedModel, example: Sequence[Tensor]) -> LoadedModel:
    """The upload as `folded` gives it, after trying out a folding that could not be tried out on opening.

    Raises:
        UnsupportedModel: the folded model answers otherwise than the upload, or there is no example to tell by.
    """
    if loaded.unfolded is None or not isinstance(loaded.module, torch.jit.ScriptModule):
        return loaded
    if not example:
        raise UnsupportedModel(
            "The model computes some of its weights from others, and whether it answers alike without can only be told "
            "by running it: give `example_inputs`, or take the parametrizations off before saving it, as with "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    if (why := folding_difference(loaded.unfolded, loaded.module, example)) is not None:
        raise UnsupportedModel(
            f"The weights that this model computes from others cannot be folded into plain ones: {why}. Take the "
            "parametrizations off before saving it, as with torch.nn.utils.parametrize.remove_parametrizations."
        )
    return replace(loaded, unfolded=None)


def folding_difference(upload: nn.Module, result: nn.Module, example: Sequence[Tensor]) -> str | None:
    """Why a folded model is not taken for the upload; None: both answer alike.

    Args:
        upload, result: in eval mode.
    """
    answers = []
    for module in (upload, result):
        # A copy, for some files change their own tensors when they run; and the same draws of chance.
        runs = reloaded(module) if isinstance(module, torch.jit.ScriptModule) else module
        with torch.random.fork_rng(devices=[]), torch.no_grad(), optimized_execution(False):
            torch.manual_seed(0)
            try:
                answers.append(flat_tensors(runs(*example)))
            except Exception as error:  # noqa: BLE001 - a model fails in any way it likes
                return f"with plain weights it does not run ({telling_line(error)})"
    differences = [relative_difference(after, before) for before, after in zip(*answers, strict=True)]
    worst = next((each for each in differences if not each <= TOLERANCE), None)  # NaN is within no limit
    return None if worst is None else f"with plain weights its answers would differ by {worst:.2g}"


def _left_notes(left: Mapping[str, str]) -> list[str]:
    return [
        f"The weights of {layer} are computed while the model runs and could not be folded into plain ones: {why}. "
        "Single weights are not pruned there; its channels can be, where the layer's own line does not say why not."
        for layer, why in left.items()
    ]


# -- what is computed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folding:
    """What was folded.

    `sources`: new name -> the tensors that it was computed from. `left`: layer -> why it was not. `sparse`: names of
    those whose computation forces zeros, as a mask does.
    """

    module: torch.jit.ScriptModule
    sources: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Computed:
    """A weight that is computed.

    `values`: what it is in the graph. `argument`: what the layer calls it. `sparse`: whether some of it is zero
    whatever its parameters are.
    """

    values: list[str]
    tensor: Tensor
    parameters: Mapping[str, Tensor]
    buffers: set[str]
    argument: str
    sparse: bool


class _Reading:
    """The computed weights of a graph: `computed` maps the value of each to its argument name in the layer."""

    def __init__(self, script: torch.jit.ScriptModule, graph: Any) -> None:
        self.flow = Flow(graph, script)
        self.computed: dict[str, str] = {}
        for node, step in zip(nodes_of(graph), self.flow.steps, strict=True):
            for value, argument in _weights_of(node, step, self.flow):
                self.computed |= dict.fromkeys(self._computed(value, set()), argument)

    def _computed(self, value: str, seen: set[str]) -> Iterator[str]:
        """What is computed of the model's own tensors alone, on the way to a value.

        On from there elements are only moved, or steps look at the data too.
        """
        made = self.flow.maker.get(value)
        if made is None or value in seen or value in self.flow.paths:
            return
        seen.add(value)
        step, of_data = self.flow.steps[made], value in self.flow.data
        if of_data and (nature(step.kind) == "layer" or step.kind in _PRODUCTS or step.blocks):
            return  # what the data came through before
        parts = [computed for part in self.flow.operands(value) for computed in self._computed(part, seen)]
        if of_data or step.kind in _MOVES or nature(step.kind) == "layout":
            yield from parts
        elif parts or (step.inputs and not step.blocks):  # branches may agree on a tensor of the model itself
            yield value


def _weights_of(node: Any, step: Step, flow: Flow) -> Iterator[tuple[str, str]]:
    """The weights and biases among the inputs of an operator on data that has any, and what it calls them."""
    if flow.data.isdisjoint(step.outputs):
        return
    if step.kind in _PRODUCTS:
        yield from ((value, "weight") for value in step.inputs if value not in flow.data)
    elif _LAYER.fullmatch(step.kind):
        names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
        for value, name in zip(step.inputs, names, strict=False):
            if _WEIGHT.fullmatch(name):
                yield value, "bias" if "bias" in name else "weight"


_PRODUCTS = {f"aten::{name}" for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "einsum")}
_LAYER = re.compile(
    r"aten::(linear|bilinear|prelu|conv\w*|_conv\w*|embedding\w*|_embedding_bag|\w*(batch|layer|group|instance|rms)_norm"
    r"|lstm|gru|rnn_\w+|lstm_cell|gru_cell|_native_multi_head_attention|_transformer_encoder_layer_fwd)"
)
_WEIGHT = re.compile(r"(\w+_)?(weight|bias)(_\d)?|params|[wb]_[ih]h")
_MOVES = {
    *(f"aten::{name}" for name in ("to", "clone", "contiguous", "detach", "alias", "dropout", "_to_copy", "type_as")),
    *(f"aten::{name}" for name in ("float", "_unwrap_optional", "__getitem__", "index", "index_select", "expand_as")),
    *(f"prim::{name}" for name in ("ListConstruct", "ListUnpack", "TupleConstruct", "TupleUnpack", "TupleIndex")),
    *(f"prim::{name}" for name in ("data", "unchecked_cast", "unchecked_unwrap_optional")),
}
"""What gives back elements that it was given, beside layouts: a zero for each zero, and for nothing else."""
_OF_ZERO_ZERO = _MOVES | _PRODUCTS | {"aten::mul", "aten::outer"}


def _fold(script: torch.jit.ScriptModule) -> _Folding:
    """Fold all that can be; what turns out not to is given up one after the other."""
    left: dict[str, str] = {}
    reading = _Reading(script, inlined(script.graph.copy()))
    if not reading.computed or not _computed_weights(script, reading, left):
        return _Folding(script, left=left)
    plain = reloaded(script)
    spell_out_lists(inlined_graph(plain), plain)
    given_up: set[str] = set()
    while True:
        twin = reloaded(plain)
        reading = _Reading(twin, inlined_graph(twin))
        weights = [each for each in _computed_weights(twin, reading, left) if given_up.isdisjoint(each.parameters)]
        if not weights:
            return _Folding(script, left=left)
        failed, why = _shared(weights), "another weight is computed from it too"
        if not failed:
            try:
                return replace(_rewritten(twin, reading.flow, weights), left=left)
            except _StillRead as read:
                failed, why = read.weights, "the model reads it elsewhere, too"
            except RuntimeError as error:
                failed, why = weights, f"its code does not compile without them ({telling_line(error)})"
        for weight in failed:
            given_up |= weight.parameters.keys()
            _leave(left, weight.parameters, why)


def _leave(left: dict[str, str], parameters: Mapping[str, Tensor], why: str) -> None:
    left |= {_layer(name): why for name, tensor in parameters.items() if tensor.dim() >= 2}


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _computed_weights(script: torch.jit.ScriptModule, reading: _Reading, left: dict[str, str]) -> list[_Computed]:
    """The weights that can be folded; the layers of those that cannot are added to `left`."""
    flow, tensors = reading.flow, dict(script.named_parameters(remove_duplicate=False))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        own, shaken = copy.deepcopy(script), copy.deepcopy(script)  # some files write into their tensors as they run
        for parameter in shaken.parameters():
            parameter.uniform_(0.5, 1.5)
        known, otherwise = (Interpreter(each, flow.graph).fixed_values() for each in (own, shaken))
    storages = {tensor.untyped_storage().data_ptr() for tensor in own.state_dict().values()}
    weights: list[_Computed] = []
    for value, argument in reading.computed.items():
        cone = flow.cone(value)
        paths = {flow.paths[part] for part in cone if part in flow.paths}
        parameters = {path: tensors[path] for path in tensors if path in paths}
        fixed = known.get(value)
        tensor = fixed.tensor.detach() if isinstance(fixed, Tracked) else None
        if not parameters or (tensor is not None and tensor.untyped_storage().data_ptr() in storages):
            continue  # a tensor of the model itself, whatever branch it came through
        kinds = {flow.steps[flow.maker[part]].kind for part in cone if part in flow.maker and part not in flow.paths}
        if (why := _obstacle(tensor, parameters, _updated_by_data(flow, paths), kinds)) is not None:
            if why:
                _leave(left, parameters, why)
            continue
        assert tensor is not None  # noqa: S101 - no obstacle
        other = otherwise.get(value)
        sparse = isinstance(other, Tracked) and bool(((tensor == 0) & (other.tensor == 0)).any())
        weight = _Computed([value], tensor.clone(), parameters, paths - parameters.keys(), argument, sparse)
        same = [w for w in weights if w.parameters.keys() == parameters.keys() and torch.equal(w.tensor, tensor)]
        if same:
            same[0].values.append(value)  # a layer that is called twice
        else:
            weights.append(weight)
    return weights


def _obstacle(tensor: Tensor | None, parameters: Mapping[str, Tensor], updated: bool, kinds: set[str]) -> str | None:
    """Why a computed weight stays so; empty where that does no harm; None where it can be folded."""
    harmless = all(kind in _OF_ZERO_ZERO or nature(kind) == "layout" for kind in kinds)
    if tensor is None:
        return "" if harmless else "what they come to cannot be told without an input"
    if updated:
        return "" if harmless else "the data changes what they are computed from"
    if not tensor.is_floating_point() or tensor.numel() > sum(parameter.numel() for parameter in parameters.values()):
        return "" if harmless else "plain ones would be more"
    return None if bool(tensor.isfinite().all()) else "they come to NaN or infinity"


def _updated_by_data(flow: Flow, paths: set[str]) -> bool:
    """Whether the data has a part in what is written into one of these tensors."""
    return any(
        path in paths for step in flow.steps for path in _written_paths(step, flow) if _looks_at_data(step, flow)
    )


def _written_paths(step: Step, flow: Flow) -> set[str]:
    """The tensors of the module that a step changes in place, or through a view of them."""
    return {flow.paths[part] for name in step.written for part in flow.cone(name) if part in flow.paths}


def _looks_at_data(step: Step, flow: Flow) -> bool:
    around = step.around
    while around is not None:
        if not flow.data.isdisjoint(flow.steps[around].inputs):
            return True
        around = flow.steps[around].around
    return not flow.data.isdisjoint(step.inputs)


def _shared(weights: Sequence[_Computed]) -> list[_Computed]:
    """Those that have a parameter in common with another."""
    count = Counter(name for weight in weights for name in weight.parameters)
    return [weight for weight in weights if any(count[name] > 1 for name in weight.parameters)]


# -- the model without it -------------------------------------------------------------------------


class _StillRead(Exception):
    """Some of what weights were computed from is read by other steps as well."""

    def __init__(self, weights: list[_Computed]) -> None:
        super().__init__()
        self.weights = weights


def _rewritten(script: torch.jit.ScriptModule, flow: Flow, weights: Sequence[_Computed]) -> _Folding:
    """The module with parameters in the place of these.

    Args:
        script: of the caller's own, and `flow` of its graph, which is changed.

    Raises:
        _StillRead: some of them have to stay.
        RuntimeError: torch's own, for a module that it does not compile anew.
    """
    graph = flow.graph
    values = {value.debugName(): value for node in nodes_of(graph) for value in outputs_of(node)}
    inputs = len(list(graph.inputs()))
    stand_ins = []
    for weight in weights:
        stand_in = graph.addInput().setType(torch._C.TensorType.get())
        stand_ins.append(stand_in)
        for name in weight.values:
            values[name].replaceAllUsesWith(stand_in)
    updated = _without_updates(graph, flow, {path for w in weights for path in (*w.parameters, *w.buffers)})
    erase_dead(graph, Flow(graph, script))
    read = set(Flow(graph, script).paths.values())
    still = [w for w in weights if not read.isdisjoint(w.parameters) or not read.isdisjoint(updated & w.buffers)]
    if still:
        raise _StillRead(still)
    added: dict[str, tuple[str, nn.Parameter]] = {}
    for weight, stand_in in zip(weights, stand_ins, strict=True):
        place = _place(weight)
        path = _free_name(place, weight.argument, read | added.keys())
        trains = any(parameter.requires_grad for parameter in weight.parameters.values())
        added[path] = place, nn.Parameter(weight.tensor.contiguous(), requires_grad=trains)
        stand_in.replaceAllUsesWith(_reading_of(graph, path))
    for _ in stand_ins:
        graph.eraseInput(inputs)
    return _Folding(
        without_unused(script, added),
        {path: [*w.parameters, *sorted(w.buffers)] for path, w in zip(added, weights, strict=True)},
        sparse=frozenset(path for path, weight in zip(added, weights, strict=True) if weight.sparse),
    )


def _without_updates(graph: Any, flow: Flow, sources: set[str]) -> set[str]:
    """Leave out what keeps such tensors up to date, as a power iteration does; which of them it was."""
    updated: set[str] = set()
    for node, step in reversed(list(zip(nodes_of(graph), flow.steps, strict=True))):
        if step.kind == "prim::SetAttr":
            paths = {f"{flow.paths.get(step.inputs[0], '')}.{node.s('name')}".lstrip(".")}
        else:
            paths = {flow.paths[name] for name in step.written if name in flow.paths}
        if not paths & sources or _looks_at_data(step, flow):
            continue
        updated |= paths
        for output in node.outputs():
            output.replaceAllUsesWith(node.inputsAt(step.inputs.index(step.written[0])))
        node.destroy()
    return updated


def _place(weight: _Computed) -> str:
    """The parameter that the computation is about: the one of the weight's shape, or else the largest."""

    def likeness(name: str) -> tuple[bool, int]:
        parameter = weight.parameters[name]
        return parameter.shape == weight.tensor.shape, parameter.numel()

    return max(weight.parameters, key=likeness)


def _free_name(place: str, argument: str, taken: set[str]) -> str:
    """What a folded weight is called: as the layer calls it, in the layer that owned what it was computed from."""
    plain = plain_name(place)
    layer = place.rpartition(".")[0]
    own = [plain] if plain is not None else [f"{layer}.{argument}".lstrip("."), place]
    numbered = (f"{place}_folded{number or ''}" for number in itertools.count())
    return next(name for name in itertools.chain(own, numbered) if name not in taken)


def _reading_of(graph: Any, path: str) -> Any:
    """A new value of the graph, at its beginning: the tensor at this path. `without_unused` gives it its type."""
    value = next(graph.inputs())
    with graph.insert_point_guard(next(graph.nodes())):
        for name in path.split("."):
            get = graph.insertNode(graph.create("prim::GetAttr", [value], 1))
            get.s_("name", name)
            value = get.output()
    return value
