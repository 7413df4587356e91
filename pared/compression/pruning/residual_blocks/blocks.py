"""Finds a model's residual blocks, out = g(x) + f(x), on its TorchScript graph, and removes f."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import (
    Interpreter,
    Step,
    inlined_graph,
    inputs_of,
    nodes_of,
    outputs_of,
    storage_key,
)
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.verify import flat_tensors
from pared.compression.graphs.flow import Flow, erase_dead
from pared.compression.graphs.plain import in_plain_steps
from pared.compression.graphs.rebuilding import without_unused
from pared.compression.names import layer_of
from pared.errors import ModelFailed

_ADDITIONS = ("aten::add", "aten::add_")


@dataclass(frozen=True)
class ResidualBlock:
    """The f of an addition g(x) + f(x).

    `add`: position of the addition among the nodes of the inlined graph. `branch`: which of its two inputs is f.
    `tensors`: names of the parameters that only f uses, with at least one weight of two or more dimensions.
    """

    add: int
    branch: int
    in_place: bool
    tensors: list[str]
    layers: list[str]
    """Those of the weights, in the model's order."""

    @property
    def name(self) -> str:
        """What stands for the block in messages."""
        return ", ".join(self.layers)


@dataclass(frozen=True)
class ResidualBlocks:
    """What `find_blocks` found. `reasons`: layer -> why the addition that follows it is not that of such a block."""

    script: torch.jit.ScriptModule
    runner: BlockRunner
    blocks: list[ResidualBlock]
    reasons: dict[str, str] = field(default_factory=dict)


def find_blocks(module: nn.Module, example: Sequence[Tensor]) -> ResidualBlocks:
    """The residual blocks of a model. Of blocks within blocks, the innermost.

    g is x itself, or a sum that x is part of; or else a single path from x with at most one weight, where f has more.
    Other inputs of f, such as a mask, may come from anywhere. Nothing outside of f may use a value of f.

    Args:
        module: a ScriptModule, or a module that `torch.jit.trace` can trace. In eval mode, on CPU. Not changed.
        example: its inputs, in a batch of at least 2.

    Raises:
        ModelFailed: the model does not run on the example, or its graph cannot be followed.
    """
    script = in_plain_steps(scripted(module, example))
    runner = BlockRunner(reloaded(script))
    sums = runner.sums(example)
    flow = Flow(runner.graph, runner.module)
    used = _used_tensors(flow, runner.module)
    blocks: list[ResidualBlock] = []
    reasons: dict[str, str] = {}
    for add, outside in sorted(sums.items()):
        for branch in (1, 0):
            inner = _inner_values(flow, runner.dims, add, branch)
            if inner is None or not outside[1 - branch]:
                continue
            still_used, values = _without(runner.module, flow, add, branch)
            names = [name for name in used if name not in still_used]
            layers = _layers(names, runner.dims)
            if layers and not values & inner:
                blocks.append(ResidualBlock(add, branch, flow.steps[add].kind == "aten::add_", names, layers))
                break
            step = flow.steps[add]
            own = flow.cone(step.inputs[branch]) - flow.cone(step.inputs[1 - branch])
            what = "values inside its residual block" if layers else "the weights of its residual block"
            weights = [flow.parameters[value] for value in own if value in flow.parameters]
            reasons |= dict.fromkeys(_layers(weights, runner.dims), f"{what} are used outside of it")
    return ResidualBlocks(script, runner, _innermost(blocks), reasons)


def _layers(names: Iterable[str], dims: Mapping[str, int]) -> list[str]:
    """The layers whose weights, of two or more dimensions, are among these."""
    return list(dict.fromkeys(layer_of(name) for name in names if dims[name] >= 2))


class BlockRunner(Interpreter):
    """Runs the original, and looks at its additions, or leaves out what some of them add."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__(module)
        self.graph = self._graph
        self.dims = {name: tensor.dim() for name, tensor in module.named_parameters(remove_duplicate=False)}
        self._at_sum: Callable[[int, list[Any]], None] = lambda add, args: None

    def sums(self, example: Sequence[Tensor]) -> dict[int, tuple[bool, bool]]:
        """Each addition of two tensors -> whether its first and its second have the shape and type of the sum."""
        whole_parts: dict[int, tuple[bool, bool]] = {}

        def at_sum(add: int, args: list[Any]) -> None:
            first, second, alpha = args
            shape = torch.broadcast_shapes(first.tensor.shape, second.tensor.shape)  # type: ignore[no-untyped-call]
            dtype = torch.result_type(first.tensor, second.tensor)
            whole = [part.tensor.shape == shape and part.tensor.dtype == dtype and alpha == 1 for part in args[:2]]
            before = whole_parts.get(add, (True, True))
            whole_parts[add] = before[0] and whole[0], before[1] and whole[1]

        self._run(example, at_sum)
        return whole_parts

    def contributions(
        self,
        batches: Sequence[Sequence[Tensor]],
        blocks: Sequence[ResidualBlock],
        removed: Sequence[ResidualBlock],
        tensors: Mapping[str, Tensor],
    ) -> Tensor:
        """‖f(x)‖ / ‖g(x)‖ of each block, the mean over all batches, float64 of shape (blocks,).

        Args:
            removed: blocks whose f counts as zero.
            tensors: the model's tensors as they are by now; of what is missing, the upload's.
        """
        position = {block.add: index for index, block in enumerate(blocks)}
        left_out = {block.add: block for block in removed}
        totals = torch.zeros(len(blocks), dtype=torch.float64)

        def at_sum(add: int, args: list[Any]) -> None:
            if add in left_out:
                _zero(left_out[add], args)
            elif add in position:
                branch = blocks[position[add]].branch
                added, kept = (args[index].tensor.double().norm() for index in (branch, 1 - branch))
                totals[position[add]] += added / kept.clamp_min(torch.finfo(torch.float32).tiny)

        for inputs in batches:
            self._run(inputs, at_sum, tensors)
        return totals / max(len(batches), 1)

    def outputs_without(self, example: Sequence[Tensor], blocks: Sequence[ResidualBlock]) -> list[Tensor]:
        """The original's outputs with the f of these blocks zeroed."""
        left_out = {block.add: block for block in blocks}

        def at_sum(add: int, args: list[Any]) -> None:
            if add in left_out:
                _zero(left_out[add], args)

        return self._run(example, at_sum)

    def _run(
        self,
        inputs: Sequence[Tensor],
        at_sum: Callable[[int, list[Any]], None],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        self._at_sum = at_sum
        now = tensors or {}
        copies = [tensor.clone() for tensor in inputs]  # a model may write on its inputs
        try:
            with torch.no_grad():
                answer = self.run(copies, lambda name, tensor: Tracked(now.get(name, tensor)), lambda call: None)
        except UnsupportedGraph as unsupported:
            raise ModelFailed(f"The model's graph cannot be followed: {unsupported}.") from unsupported
        return flat_tensors(answer)

    def _call(self, step: Step, args: list[Any]) -> list[Any]:
        if step.kind in _ADDITIONS and len(args) == 3 and all(isinstance(arg, Tracked) for arg in args[:2]):
            self._at_sum(self.index_of(step.node), args)
        return super()._call(step, args)


def _zero(block: ResidualBlock, args: list[Any]) -> None:
    """What is added becomes zero; in place only where the sum is written there."""
    if block.in_place and block.branch == 0:
        args[0].tensor.zero_()
    else:
        args[block.branch] = Tracked(torch.zeros_like(args[block.branch].tensor))


def without_blocks(script: torch.jit.ScriptModule, blocks: Collection[ResidualBlock]) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule without these blocks, and without all that only they used.

    Calls are inlined. The copy loads anywhere without source, and trains as the original does. Its forward is the
    file's own, where that of the script only calls it.
    """
    smaller = reloaded(script)
    graph = inlined_graph(smaller)
    _rewire(graph, [(block.add, block.branch) for block in blocks])
    erase_dead(graph, Flow(graph, smaller))
    return without_unused(smaller)


def _rewire(graph: Any, additions: Sequence[tuple[int, int]]) -> None:
    """Let g(x) take the place of each sum. Where something is written in place, a copy of it."""
    nodes, aliases = list(nodes_of(graph)), graph.alias_db()
    copied = {}
    for add, branch in additions:
        values = inputs_of(nodes[add])
        kept, output = values[1 - branch], nodes[add].output()
        in_place = nodes[add].kind() == "aten::add_"
        if in_place and branch == 1:
            copied[add] = False  # the sum had the memory of g(x) before, too
        else:
            copied[add] = aliases.has_writers(output) or aliases.has_writers(kept)
    for add, branch in additions:
        node = nodes[add]
        kept = node.inputsAt(1 - branch)
        if copied[add]:
            with graph.insert_point_guard(node):
                kept = graph.insert("aten::clone", [kept])
        node.output().replaceAllUsesWith(kept)
    for add, _ in additions:
        nodes[add].destroy()


def _used_tensors(flow: Flow, module: torch.jit.ScriptModule) -> list[str]:
    """The parameters that the model's answer needs, by all their names, in the model's order."""
    _, values = flow.live()
    return _named(flow, module, values)


def _named(flow: Flow, module: torch.jit.ScriptModule, values: Collection[str]) -> list[str]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    keys = {storage_key(parameters[name]) for value, name in flow.parameters.items() if value in values}
    return [name for name, parameter in parameters.items() if storage_key(parameter) in keys]


def _without(module: torch.jit.ScriptModule, flow: Flow, add: int, branch: int) -> tuple[set[str], set[str]]:
    """Without one block: the parameters that are still used, and all values that are."""
    graph = flow.graph.copy()
    name_of = {  # a copy gives new names to values that had none
        copied.debugName(): value.debugName()
        for old, new in zip(nodes_of(flow.graph), nodes_of(graph), strict=True)
        for value, copied in zip(outputs_of(old), outputs_of(new), strict=True)
    }
    _rewire(graph, [(add, branch)])
    smaller = Flow(graph, module)
    _, values = smaller.live()
    return set(_named(smaller, module, values)), {name_of.get(value, value) for value in values}


def _inner_values(flow: Flow, dims: Mapping[str, int], add: int, branch: int) -> set[str] | None:
    """The values of f, from the x that it shares with g on; None if this is no addition of a residual block."""
    step = flow.steps[add]
    added, kept = step.inputs[branch], step.inputs[1 - branch]
    of_f, of_g = flow.cone(added), flow.cone(kept)
    if added not in flow.data or added in of_g:
        return None
    shared = of_f & of_g
    if not _trunk(flow, kept) & of_f:
        path = (of_g - shared) & flow.data
        matrices = {value for value, name in flow.parameters.items() if dims[name] >= 2}
        of_f_alone, of_g_alone = (
            {flow.parameters[value] for value in (cone - shared) & matrices} for cone in (of_f, of_g)
        )
        single = all(len(flow.parts(value)) <= 1 for value in path)
        if not shared & flow.data or not single or len(of_g_alone) > 1 or len(of_f_alone) <= len(of_g_alone):
            return None
    return (flow.reach(shared & flow.data) & of_f) - of_g


def _trunk(flow: Flow, value: str) -> set[str]:
    """What a value passes on: itself, and where it is a sum its parts, and so on."""
    trunk, todo = {value}, [value]
    while todo:
        made = flow.maker.get(todo.pop())
        if made is not None and flow.steps[made].kind in _ADDITIONS:
            new = set(flow.steps[made].inputs[:2]) & flow.data - trunk
            trunk |= new
            todo += new
    return trunk


def _innermost(blocks: list[ResidualBlock]) -> list[ResidualBlock]:
    """Those that hold no other; of two with the same weights, the first."""
    ordered = sorted(blocks, key=lambda block: (len(block.tensors), block.add))
    inner: list[ResidualBlock] = []
    for block in ordered:
        if not any(set(other.tensors) <= set(block.tensors) for other in inner):
            inner.append(block)
    return sorted(inner, key=lambda block: block.add)
