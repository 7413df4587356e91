"""Corrects biases and batch norms, without data, for the mean and the variance that pruned weights gave.

Behind a batch norm a channel is distributed as N(β, γ²), so what activations and layers make of it follows from the
weights alone. A layer that lost weights adds the mean that is missing to its bias, or, without one, takes it from the
mean that the batch norm behind it subtracts; the variance by which that one divides falls by the same share as the
modelled one. After Nagel et al. 2019, arXiv:1906.04721, section 4.2, who correct the means of a quantized model so.

For variances, channels and branches are taken as uncorrelated, and the places that a pooling looks at as correlated
by one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import Call, Interpreter, StorageKey, storage_key
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.model import Removed
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.compression.coupling.rules import nature
from pared.compression.coupling.shrink import kept_part, tensors_of

T = TypeVar("T")


@dataclass(frozen=True)
class BiasCorrection:
    """What makes up, on average, for what layers have lost.

    `changes`: name of a bias or running statistic -> what is to be added to it. `corrected`: the layers that it is
    for; `unknown`: those that lost something of which the average is not known.
    """

    changes: dict[str, Tensor]
    corrected: set[str]
    unknown: set[str]

    def apply(self, module: nn.Module, removed: Removed | None = None) -> None:
        """Change a pruned module, in place. `removed`: the channels that it lacks of the one that was looked at."""
        tensors = tensors_of(module)
        by_storage = {storage_key(tensors[name]): by_dim for name, by_dim in (removed or {}).items()}
        with torch.no_grad():
            for name, change in self.changes.items():
                tensors[name].add_(kept_part(change, by_storage.get(storage_key(tensors[name]), {})))


def find_bias_correction(module: nn.Module, example: Sequence[Tensor], lost: Mapping[str, Tensor]) -> BiasCorrection:
    """What makes up for lost weights.

    Args:
        module: with all weights. In eval mode, on CPU. Not changed.
        example: its inputs.
        lost: name of a weight -> the weight where it will be lost, zero elsewhere. Each is asked for when it is needed.
    """
    original = Interpreter(scripted(module, example))
    tensors = tensors_of(original.module)
    parts = {
        storage_key(tensors[name]): _Lost(name.rpartition(".")[0] or name, partial(lost.__getitem__, name))
        for name in lost
    }
    statistics = _Statistics(parts)
    with torch.no_grad(), suppress(UnsupportedGraph):  # what was found before it holds all the same
        original.run(example, lambda name, tensor: Tracked(tensor, [], name=name), statistics)
    # A layer that is used several times has one bias for all uses.
    changes = {name: torch.stack(of_uses).mean(dim=0) for name, of_uses in statistics.changes.items()}
    return BiasCorrection(changes, statistics.corrected, {part.layer for part in parts.values()} - statistics.corrected)


class LostInputs(Mapping[str, Tensor]):
    """What the layers that read removed channels lose: each such weight, zero where it stays, made when asked for."""

    def __init__(self, module: nn.Module, removed: Removed, output_dims: Mapping[str, int]) -> None:
        """Args: output_dims: weight name -> the dimension that makes its output channels."""
        self._tensors, self._removed, self._output_dims = tensors_of(module), removed, output_dims
        self._names = [name for name in removed if self._tensors[name].dim() >= 2 and self._read(name)]

    def _read(self, name: str) -> set[int]:
        return {int(dim) for dim in self._removed[name]} - {self._output_dims.get(name)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        read, part = self._read(name), self._tensors[name].detach().clone()
        for dim, indices in self._removed[name].items():
            removed_mask = torch.zeros(part.shape[int(dim)], dtype=torch.bool)
            removed_mask[indices] = True
            # Its own outputs that go lose nothing that matters.
            part.index_fill_(int(dim), (~removed_mask if int(dim) in read else removed_mask).nonzero().squeeze(1), 0)
        return part


@dataclass(frozen=True)
class _Lost:
    layer: str
    part: Callable[[], Tensor]


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of each element of a tensor, both NaN where they are not known.

    Both have the tensor's rank, and size 1 along dimensions where nothing changes.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Shortfall:
    """What is missing in a layer's output, each of shape (channels,): of the mean, and as a share of the variance."""

    layer: str
    mean: Tensor
    variance_share: Tensor
    has_bias: bool


class _OfTensors(Generic[T]):
    """What is known of tensors, none of which it holds: they may take more memory than the model."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ReferenceType[Tracked], T]] = {}

    def know(self, tracked: Tracked, what: T) -> None:
        self._known[id(tracked)] = ref(tracked), what

    def forget(self, tracked: Tracked) -> None:
        self._known.pop(id(tracked), None)

    def of(self, tracked: object) -> T | None:
        known = self._known.get(id(tracked))
        return known[1] if known is not None and known[0]() is tracked else None


class _Statistics:
    """Visits a running graph: carries the moments along, and finds what each layer's output loses of them.

    `changes`: name of a bias or running statistic -> what is to be added to it, for each use.
    """

    def __init__(self, lost: Mapping[StorageKey, _Lost]) -> None:
        self.changes: dict[str, list[Tensor]] = {}
        self.corrected: set[str] = set()
        self._lost = lost
        self._moments: _OfTensors[_Moments] = _OfTensors()
        self._shortfalls: _OfTensors[_Shortfall] = _OfTensors()
        self._full_variance: Tensor | None = None  # of the layer that is looked at, where it is computed already

    def __call__(self, call: Call) -> None:
        """The visitor of `Interpreter`."""
        self._full_variance = None
        if nature(call.kind) == "layer":
            self._take_up(call)
        elif call.kind == "aten::batch_norm":
            self._renormalize(call)
        moments_after = self._after(call)
        if call.kind.endswith("_") and not call.kind.endswith("__"):
            self._moments.forget(call.tensors[0])
            # All who hold the tensor see the result.
            moments_after, results = moments_after[:1] * 2, [call.tensors[0], *call.results]
        else:
            results = call.results
        for result, moments in zip(results, moments_after, strict=False):
            self._moments.know(result, moments)

    # -- what is missing ------------------------------------------------------------------------

    def _take_up(self, call: Call) -> None:
        """A layer that reads removed channels: its bias takes up their mean."""
        weight, bias = call.arguments["weight"], call.arguments.get("bias")
        lost, x = self._lost.get(storage_key(weight.tensor)), self._of(call.arguments["input"])
        if lost is None or x is None:
            return
        missing = _through_layer(call, _known(x), lost.part())
        full = self._full_variance = _variance_through(call, _known(x), weight.tensor)
        others = [dim for dim in range(missing.mean.dim()) if dim != _channel_dim(call, call.results[0])]
        mean, variance = missing.mean.mean(dim=others), missing.variance.mean(dim=others)
        if not mean.any() and not variance.any():
            return  # nothing is known of what was removed
        share = (variance / full.mean(dim=others)).nan_to_num(0.0)
        shortfall = _Shortfall(lost.layer, mean, share, bias is not None)
        self._shortfalls.know(call.results[0], shortfall)
        if bias is not None:
            self._change(shortfall, bias, mean)

    def _renormalize(self, call: Call) -> None:
        """A batch norm behind such a layer: its running statistics become those of what is left."""
        shortfall = self._shortfalls.of(call.arguments["input"])
        mean, variance = call.arguments.get("running_mean"), call.arguments.get("running_var")
        if shortfall is None or mean is None or variance is None:
            return
        if not shortfall.has_bias:
            self._change(shortfall, mean, -shortfall.mean)
        # Never to nothing, which would blow up what the model of the variance leaves out.
        self._change(shortfall, variance, -variance.tensor * shortfall.variance_share.clamp(max=0.99))

    def _change(self, shortfall: _Shortfall, tensor: Tracked, change: Tensor) -> None:
        if tensor.name:
            self.corrected.add(shortfall.layer)
            self.changes.setdefault(tensor.name, []).append(change)

    # -- what is known of a tensor --------------------------------------------------------------

    def _of(self, tracked: Tracked) -> _Moments | None:
        return self._moments.of(tracked)

    def _after(self, call: Call) -> list[_Moments]:
        """The moments of a call's results; none where nothing is known."""
        if call.kind == "aten::batch_norm":
            return [_of_batch_norm(call)]
        known = [self._of(tracked) for tracked in call.tensors]
        if nature(call.kind) == "layer":
            return _of_layer(call, known[0], self._full_variance)
        if nature(call.kind) == "layout" and any(known):
            return _moved(call, known)
        match known:
            case [_Moments() as x] if nature(call.kind) == "elementwise":
                return [_through_function(call, x)]
            case [_Moments() as x] if call.kind in _POOLS:
                return [_pooled(call, x)]
            case [_Moments() as a, _Moments() as b] if call.kind.removesuffix("_") in _SUMS:
                return [_sum(call, a, b)]
        return []


def _of_batch_norm(call: Call) -> _Moments:
    """N(β, γ²) a channel, dimension 1."""
    shape = call.results[0].tensor.shape

    def part(name: str, default: float) -> Tensor:
        parameter = call.arguments.get(name)
        values = torch.full((shape[1],), default) if parameter is None else parameter.tensor
        return values.double().reshape([1, -1] + [1] * (len(shape) - 2))

    return _Moments(part("bias", 0.0), part("weight", 1.0).square())


def _of_layer(call: Call, x: _Moments | None, variance: Tensor | None = None) -> list[_Moments]:
    """A linear layer or convolution; an output all of whose weights are zero is constant, whatever comes in.

    Args:
        variance: of its output, where it is computed already.
    """
    weight, bias = call.arguments["weight"].tensor, call.arguments.get("bias")
    if x is None:
        if weight.dim() < 2 or weight.flatten(1).any(dim=1).all():
            return []
        x = _unknown(call.arguments["input"].tensor.dim())
    mean = _mean_through(call, _known(x), weight, None if bias is None else bias.tensor)
    variance = _variance_through(call, _known(x), weight) if variance is None else variance
    missed = x.mean.isnan()
    if missed.any():
        unknown = _variance_through(call, _Moments(missed.double(), missed.double()), weight) > 0
        mean, variance = mean.masked_fill(unknown, math.nan), variance.masked_fill(unknown, math.nan)
    return [_narrowed(mean, variance)]


def _through_layer(call: Call, x: _Moments, weight: Tensor) -> _Moments:
    """What a layer with this weight, and no bias, makes of its input, taken as uncorrelated."""
    return _Moments(_mean_through(call, x, weight), _variance_through(call, x, weight))


def _mean_through(call: Call, x: _Moments, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    added = _no_bias(call) if bias is None else [bias.double()]
    return _run_in_order(call, [_as_input(call, x.mean), weight.double(), *added])[0]


def _variance_through(call: Call, x: _Moments, weight: Tensor) -> Tensor:
    squares = weight.to(torch.double, copy=True).square_()
    return _run_in_order(call, [_as_input(call, x.variance), squares, *_no_bias(call)])[0]


def _no_bias(call: Call) -> list[Tensor]:
    own = call.arguments.get("bias")
    return [] if own is None else [torch.zeros_like(own.tensor, dtype=torch.double)]


def _as_input(call: Call, part: Tensor) -> Tensor:
    own_input = call.arguments["input"]
    shape = list(own_input.tensor.shape)
    if _channel_dim(call, own_input) > 0:
        shape[0] = part.shape[0]  # one sample stands for all where they are alike
    return part.expand(shape)


def _through_function(call: Call, x: _Moments) -> _Moments:
    """Of f(x), x normal, by the trapezoidal rule: f may have kinks, as ReLU has."""
    points, density = _standard_normal()
    mean = square = torch.zeros((), dtype=torch.double)
    for value, weight in zip(_values(call, x, points), density, strict=True):
        mean, square = mean + weight * value, square + weight * value.square()
    return _Moments(mean, (square - mean.square()).clamp(min=0))


def _values(call: Call, x: _Moments, points: Tensor) -> Iterator[Tensor]:
    """The function at so many deviations from the mean each: of few elements all at once."""
    deviation = x.variance.sqrt()
    at = (x.mean + deviation * point for point in points)
    if deviation.dim() and deviation.numel() <= _SMALL:
        together = torch.cat(list(at))
        yield from torch.split(_run_in_order(call, [together])[0].double(), len(together) // len(points))
    else:
        yield from (_run_in_order(call, [tensor])[0].double() for tensor in at)


def _pooled(call: Call, x: _Moments) -> _Moments:
    """The average or the largest of k places, which are taken as normal and correlated by one half."""
    mean, variance = (part[0] for part in _run_on_both(call, [x]))
    places = call.tensors[0].tensor
    if "kernel_size" in call.arguments:
        sizes = call.arguments["kernel_size"]
        count = math.prod(sizes) ** (int(call.kind[-2]) / len(sizes))
    else:
        count = places.numel() / mean.numel()
    if "max" not in call.kind:
        return _narrowed(mean, variance * (0.5 + 0.5 / count))
    points, density = _standard_normal()
    density = density * torch.special.ndtr(points) ** (count - 1)
    density /= density.sum()
    largest = float((points * density).sum())
    spread = float((points.square() * density).sum()) - largest**2
    return _narrowed(mean + (variance / 2).sqrt() * largest, variance * (0.5 + 0.5 * spread))


def _sum(call: Call, a: _Moments, b: _Moments) -> _Moments:
    """a + αb or a − αb, uncorrelated."""
    shape = (a.mean + b.mean).shape
    (mean,) = _run_in_order(call, [moments.mean.expand(shape).clone() for moments in (a, b)])
    return _Moments(mean, (a.variance + call.arguments.get("alpha", 1) ** 2 * b.variance).expand(mean.shape))


def _moved(call: Call, known: Sequence[_Moments | None]) -> list[_Moments]:
    """A layout does to the moments what it does to the elements."""
    whole = [moments or _unknown(tracked.tensor.dim()) for moments, tracked in zip(known, call.tensors, strict=True)]
    means, variances = _run_on_both(call, whole)
    return [_narrowed(mean, variance) for mean, variance in zip(means, variances, strict=True)]


def _run_on_both(call: Call, operands: Sequence[_Moments]) -> tuple[list[Tensor], list[Tensor]]:
    """The call on the means of all its tensors, and on their variances."""
    shapes = [tracked.tensor.shape for tracked in call.tensors]
    means = [moments.mean.expand(shape).contiguous() for moments, shape in zip(operands, shapes, strict=True)]
    variances = [moments.variance.expand(shape).contiguous() for moments, shape in zip(operands, shapes, strict=True)]
    return _run_in_order(call, means), _run_in_order(call, variances)


def _run_in_order(call: Call, replacements: Sequence[Tensor]) -> list[Tensor]:
    """The call again, with its tensors replaced in order of appearance."""
    return call.run_again({id(tracked): tensor for tracked, tensor in zip(call.tensors, replacements, strict=False)})


def _narrowed(mean: Tensor, variance: Tensor) -> _Moments:
    """Every dimension along which neither changes cut to size 1."""
    for dim in range(mean.dim()):
        parts = mean.narrow(dim, 0, 1), variance.narrow(dim, 0, 1)
        if all(
            torch.isclose(whole, first, rtol=0, atol=0, equal_nan=True).all()
            for whole, first in zip((mean, variance), parts, strict=True)
        ):
            mean, variance = parts
    return _Moments(mean, variance)


def _known(x: _Moments) -> _Moments:
    """Zero where it is not known."""
    return _Moments(x.mean.nan_to_num(0.0), x.variance.nan_to_num(0.0))


def _unknown(rank: int) -> _Moments:
    nothing = torch.full([1] * rank, math.nan, dtype=torch.double)
    return _Moments(nothing, nothing)


def _channel_dim(call: Call, tracked: Tracked) -> int:
    """The dimension of a layer's input or output that counts channels; 0 for an image or vector without a batch."""
    rank = tracked.tensor.dim()
    of_weight: int = call.arguments["weight"].tensor.dim()
    return rank - 1 if call.kind == "aten::linear" else rank - of_weight + 1


def _standard_normal() -> tuple[Tensor, Tensor]:
    """Points, and the share of a standard normal at each."""
    points = torch.linspace(-6, 6, 241, dtype=torch.double)
    density = torch.exp(-points.square() / 2)
    return points, density / density.sum()


_SMALL = 8192  # elements
_SUMS = {"aten::add", "aten::sub"}
_POOLS = {"aten::mean"} | {
    f"aten::{adaptive}{how}_pool{dims}d"
    for adaptive in ("", "adaptive_")
    for how in ("avg", "max")
    for dims in (1, 2, 3)
}
