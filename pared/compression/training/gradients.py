"""Computes the gradients of a batch: whole, in parts where memory is short, on a card as a recorded CUDA graph."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.memory import BatchSize, ran_out_of_memory
from pared.compression.devices.placement import graphs_of, scripts_in
from pared.compression.measuring.running import own_failures
from pared.compression.ranks import ALONE, Ranks
from pared.compression.training.across_ranks import mean_gradients

Loss = Callable[[nn.Module, Inputs, Tensor], Tensor]
"""`(module, inputs, targets) -> scalar`, the mean over the batch."""


@dataclass(frozen=True)
class WeightedLoss:
    """A loss that is a mean over something else than samples, such as pixels that have a label.

    `weight`: targets -> of how much.
    """

    run: Loss
    weight: Callable[[Tensor], Tensor | int]

    def __call__(self, module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """As `Loss`."""
        return self.run(module, inputs, targets)


def weight_of(loss: Loss) -> Callable[[Tensor], Tensor | int]:
    """What a loss is a mean over."""
    return loss.weight if isinstance(loss, WeightedLoss) else len


_WARM_UP = 3  # steps before one is recorded, in which libraries set themselves up
_SAME = 1e-2  # most relative difference of gradients that are the same but for the order of their sums
_WAITED = "called a synchronizing CUDA operation"  # torch's warning, in its mode that finds such calls
WORTH_RECORDING = 30
"""Fewest steps of a run that recording one saves time in."""


class Gradients:
    """Of the mean loss over a batch; they are left in the parameters' `grad`.

    `parts`: how many samples run at once.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        learned: Sequence[nn.Parameter],
        autocast: AbstractContextManager[Any],
        *,
        batch_size: int,
        steps: int,
        device: str,
        record: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """Set up.

        Args:
            learned: the parameters whose gradients are wanted.
            steps: how often they will be asked for.
            record: whether steps may be recorded, where that can be done.
            ranks: which share the batches; all of them come to the gradients of the whole.
        """
        self._module, self._loss, self._learned, self._autocast = module, loss, learned, autocast
        self._without_cudnn = cudnn_refuses(module)
        self._ranks = ranks
        self.parts = BatchSize(ranks.largest_share(batch_size))
        self._recorder: _Recorder | None = None
        can_be = torch.device(device).type == "cuda" and not _keeps_numbers(module)
        if record and can_be and steps >= WORTH_RECORDING:
            self._recorder = _Recorder(lambda inputs, target: self._add(inputs, target, len(target)), module, learned)

    def __call__(self, inputs: Inputs, target: Tensor) -> Tensor:
        """Compute them anew for a batch. Returns its loss, without gradient; it is valid until the next call.

        Raises:
            OutOfMemory: not even one sample fits.
        """
        if self._ranks.alone:
            return self._own(inputs, target)
        share = self._ranks.share(len(target))
        inputs, target = tuple(each[share] for each in inputs), target[share]
        clear(self._learned)
        value = self._own(inputs, target) if len(target) else None
        weight = float(weight_of(self._loss)(target)) if len(target) else 0.0
        return mean_gradients(self._ranks, self._learned, value, weight).to(target.device)

    def _own(self, inputs: Inputs, target: Tensor) -> Tensor:
        if self._recorder is not None and self.parts.size >= len(target):
            value = self._recorder(inputs, target)
            if value is not None:
                return value
        return self.parts.run(lambda most: self._anew(inputs, target, most), len(target), "train")

    def _anew(self, inputs: Inputs, target: Tensor, most: int) -> Tensor:
        clear(self._learned)
        try:
            return self._add(inputs, target, most)
        except Exception as error:
            if self._recorder is None or not ran_out_of_memory(error):
                raise
        # A recorded step keeps its memory; without it there may be enough.
        self._recorder = None
        clear(self._learned)
        torch.cuda.empty_cache()
        return self._add(inputs, target, most)

    def _add(self, inputs: Inputs, target: Tensor, most: int) -> Tensor:
        with cudnn_disabled(self._without_cudnn):
            return add_gradients(self._module, inputs, target, self._loss, most, self._autocast)


def clear(learned: Sequence[nn.Parameter]) -> None:
    """Drop the gradients of these parameters."""
    for parameter in learned:
        parameter.grad = None


def add_gradients(
    module: nn.Module,
    inputs: Inputs,
    target: Tensor,
    loss: Loss,
    most: int,
    autocast: AbstractContextManager[Any],
) -> Tensor:
    """Add the gradients of the mean loss over a batch, run at most so many samples at once. Returns the loss.

    The parts are as equal as can be, for a batch norm cannot do with one of a single sample.
    """
    count = len(target)
    if count <= most:
        with autocast:
            value = loss(module, inputs, target)
        with own_failures():
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach()
    pieces, weight = -(-count // most), weight_of(loss)
    whole = weight(target)
    if isinstance(whole, Tensor):
        whole = whole.clamp_min(1e-12)  # of a batch in which nothing has a label
    total = torch.zeros((), device=target.device)
    for *part, part_target in zip(*(torch.tensor_split(each, pieces) for each in (*inputs, target)), strict=True):
        with autocast:
            value = loss(module, tuple(part), part_target) * (weight(part_target) / whole)
        with own_failures():
            value.backward()  # type: ignore[no-untyped-call]
        total += value.detach()
    return total


_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def cudnn_refuses(module: nn.Module) -> bool:
    """Whether cuDNN computes no gradients of a module: of recurrent layers in eval mode, which tracing makes permanent.

    torch's own kernels compute them, and more slowly all else, so they are not the rule.
    """
    return any(map(_refuses_script, scripts_in(module))) or any(map(_refuses_layer, module.modules()))


def _refuses_script(script: torch.jit.ScriptModule) -> bool:
    for graph, kind in itertools.product(graphs_of(script), _RECURRENT):
        for node in graph.findAllNodes(f"aten::{kind}", recurse=True):
            names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
            flag = list(node.inputs())[names.index("train")].node()
            if not (flag.output().toIValue() if flag.kind() == "prim::Constant" else script.training):
                return True
    return False


def _refuses_layer(layer: nn.Module) -> bool:
    if isinstance(layer, nn.RNNBase):
        return not layer.training
    nodes = layer.graph.nodes if isinstance(layer, fx.GraphModule) else ()
    return any(_train_flag(node) is False for node in nodes if _is_recurrent(node.target))


def _is_recurrent(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name in {f"aten::{kind}" for kind in _RECURRENT}


def _train_flag(node: fx.Node) -> Any:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return node.kwargs.get("train", dict(zip(names, node.args, strict=False)).get("train"))


@contextmanager
def cudnn_disabled(disabled: bool) -> Iterator[None]:
    """Whether torch does without cuDNN inside."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and not disabled
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


class _Recorder:
    """Records the kernels of a step once, and launches them all at once for every later batch of the same shapes.

    A step of a small network is hundreds of kernels, which a card runs faster than Python can launch them. A module
    that reads results back, or draws random numbers on the CPU, may go another way with every batch: it is never
    recorded, and every step runs as it is. So it does where the recording fails, or comes to other gradients.
    """

    def __init__(
        self, run: Callable[[Inputs, Tensor], Tensor], module: nn.Module, learned: Sequence[nn.Parameter]
    ) -> None:
        self._run, self._module, self._learned = run, module, learned
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._shapes: list[torch.Size] | None = None
        self._warm_up = _WARM_UP
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []
        self._gradients: list[Tensor | None] = []
        self._value: Tensor | None = None
        self._refused = False

    def __call__(self, inputs: Inputs, target: Tensor) -> Tensor | None:
        """The loss, with new gradients in place; None: this batch is to be run as it is."""
        batch = [*inputs, target]
        shapes = [tensor.shape for tensor in batch]
        self._shapes = self._shapes or shapes
        if self._refused:
            self._graph, self._batch, self._gradients, self._value = None, [], [], None  # and the memory they hold
        if self._refused or shapes != self._shapes:
            return None
        try:
            if self._warm_up:
                self._warm_up -= 1
                return self._watched(inputs, target)
            if self._graph is None:
                self._record(batch)
                return self._compared(batch)
        except Exception as error:
            self._refused = True
            if self._warm_up and not ran_out_of_memory(error):
                raise
            return None
        return self._replayed(batch)

    def _watched(self, inputs: Inputs, target: Tensor) -> Tensor:
        """Run a step as it is, in a stream of its own, and see whether it can be recorded."""
        random = torch.get_rng_state()
        clear(self._learned)
        self._stream.wait_stream(torch.cuda.current_stream())
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as waits, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                value = self._run(inputs, target)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(self._stream)
        if not torch.equal(random, torch.get_rng_state()) or any(_WAITED in str(each.message) for each in waits):
            self._refused = True
        return value

    def _record(self, batch: list[Tensor]) -> None:
        clear(self._learned)
        self._batch = [tensor.clone() for tensor in batch]
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls count: another one may be sending samples.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._value = self._run(tuple(self._batch[:-1]), self._batch[-1])
        except Exception:
            _end_recording(self._stream)
            clear(self._learned)
            raise
        self._graph = graph
        self._gradients = [parameter.grad for parameter in self._learned]

    def _compared(self, batch: list[Tensor]) -> Tensor:
        """Run the batch both ways, from the same state; what counts is the step as it is."""
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        random = torch.cuda.get_rng_state()
        value = self._replayed(batch).clone()
        recorded = [value, *(parameter.grad.clone() for parameter in self._learned if parameter.grad is not None)]
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.cuda.set_rng_state(random)
        clear(self._learned)
        value = self._run(tuple(batch[:-1]), batch[-1])
        real = [value, *(parameter.grad for parameter in self._learned if parameter.grad is not None)]
        if len(recorded) != len(real) or _distance(recorded, real) > _SAME:
            self._refused = True
        return value

    def _replayed(self, batch: list[Tensor]) -> Tensor:
        assert self._graph is not None  # noqa: S101 - the caller has seen to it
        assert self._value is not None  # noqa: S101 - it was recorded with the graph
        for recorded, tensor in zip(self._batch, batch, strict=True):
            recorded.copy_(tensor)
        self._graph.replay()
        for parameter, gradient in zip(self._learned, self._gradients, strict=True):
            parameter.grad = gradient  # a batch of another shape may have left others
        return self._value


def _distance(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """‖actual − expected‖ / ‖expected‖ over all of them together; infinite where a number is not finite."""
    far = sum(float((a - b).double().square().sum()) for a, b in zip(actual, expected, strict=True))
    size = sum(float(tensor.double().square().sum()) for tensor in expected)
    relative = math.sqrt(far / size) if size else far
    return relative if math.isfinite(relative) else math.inf


def _end_recording(stream: torch.cuda.Stream) -> None:
    """After a recording that failed: random numbers stay in its hands until another one ends well."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device).add_(1)


def _keeps_numbers(module: nn.Module) -> bool:
    """Whether a module's code writes attributes, such as a count of its calls: recorded, it would do so only once."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    graph: Any = module.inlined_graph  # whose type has no declared methods
    return bool(graph.findAllNodes("prim::SetAttr", recurse=True))
