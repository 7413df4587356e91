"""Scores the inner channels, heads and layers of a stored decoder by a criterion, and chooses those that stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pared.compression.decoders.config import LAYERS, PROJECTIONS, Decoder
from pared.compression.decoders.running import Layer, Seen
from pared.compression.names import matches
from pared.compression.pruning.schedules import Amounts
from pared.criteria import CRITERIA, WeightTensor
from pared.errors import NothingToPrune

_MADE_BY = {
    "inner": ("mlp.gate_proj", "mlp.up_proj"),
    "groups": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
_READ_BY = {"inner": "mlp.down_proj", "groups": "self_attn.o_proj"}


@dataclass(frozen=True)
class Widths:
    """How much stays: inner channels and head groups of each layer, and how many layers."""

    inner: int
    groups: int
    layers: int


@dataclass(frozen=True)
class Kept:
    """What stays: layers by their numbers, and of each of all layers its inner channels and head groups."""

    layers: list[int]
    inner: list[Tensor]
    groups: list[Tensor]


def names_of(decoder: Decoder) -> list[str]:
    """The layers that can lose channels or heads, as patterns name them."""
    return [f"{LAYERS}.{layer}.{name}" for layer in range(decoder.layers) for name in PROJECTIONS]


def widths(
    decoder: Decoder,
    granularity: str,
    amounts: Amounts,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    round_to: int | None = None,
) -> Widths:
    """How much stays of what, where all layers keep the same widths, which is what config.json can say.

    Raises:
        NothingToPrune: nothing can go.
    """
    inner, groups, layers = decoder.inner, decoder.groups, decoder.layers
    if granularity == "residual_block":
        may_go = len(removable(decoder, include, exclude))
        layers -= min(round(amounts.default * may_go), decoder.layers - 1)
    else:
        if granularity == "channel":
            inner = _left(inner, _share(decoder, "inner", amounts, include, exclude), round_to)
        groups = _left(groups, _share(decoder, "groups", amounts, include, exclude), None)
    found = Widths(inner, groups, layers)
    if found == Widths(decoder.inner, decoder.groups, decoder.layers):
        what = f"{decoder.layers} layers with {decoder.inner} inner channels and {decoder.groups} groups of heads each"
        raise NothingToPrune(
            f"Nothing goes of {what}: the amount is less than one of them, or `include` and `exclude` keep some of "
            "each. All layers keep the same widths, so that a layer that must stay whole keeps all others whole. Give "
            "a larger amount, or other patterns."
        )
    return found


def removable(decoder: Decoder, include: Sequence[str], exclude: Sequence[str]) -> list[int]:
    """The layers that may go whole: patterns name the layer, or linear layers in it."""
    found = []
    for layer in range(decoder.layers):
        names = [f"{LAYERS}.{layer}", *_within(layer, PROJECTIONS)]
        if matches(names, include, exclude):
            found.append(layer)
    return found


def _within(layer: int, names: Sequence[str] | Mapping[str, object]) -> list[str]:
    return [f"{LAYERS}.{layer}.{name}" for name in names]


def _share(decoder: Decoder, axis: str, amounts: Amounts, include: Sequence[str], exclude: Sequence[str]) -> float:
    names = [_within(layer, _MADE_BY[axis]) for layer in range(decoder.layers)]
    return min(amounts.of(each) if matches(each, include, exclude) else 0.0 for each in names)


def _left(units: int, share: float, round_to: int | None) -> int:
    left = max(1, units - round(share * units))
    return left if round_to is None else min(units, -(-left // round_to) * round_to)


class Scores:
    """The scores of all layers, added as each is read."""

    def __init__(self, decoder: Decoder, granularity: str, criterion: str, generator: torch.Generator) -> None:
        self._decoder, self._granularity = decoder, granularity
        self._criterion, self._generator = CRITERIA[criterion], generator
        self._inner: list[Tensor] = []
        self._groups: list[Tensor] = []
        self._layers: list[float] = []

    def add(self, layer: Layer, seen: Seen | None) -> None:
        """Score what is in a layer. `seen`: what it did to texts, for a criterion that looks at those."""
        if self._granularity == "residual_block":
            score = self._criterion.residual_blocks
            assert score is not None  # noqa: S101 - specs refuse others
            self._layers.append(float(score(_Whole(layer, seen, self._generator))))
            return
        score_channels = self._criterion.channels
        assert score_channels is not None  # noqa: S101 - specs refuse others
        if self._granularity == "channel":
            self._inner.append(score_channels(_Units(layer, "inner", self._decoder, seen, self._generator)))
        self._groups.append(score_channels(_Units(layer, "groups", self._decoder, seen, self._generator)))

    def kept(self, left: Widths, may_go: Sequence[int]) -> Kept:
        """The highest scores, of each layer or of all layers. `may_go`: the layers that may."""
        layers = list(range(self._decoder.layers))
        if left.layers < len(layers):
            order = sorted(may_go, key=lambda layer: (self._layers[layer], layer))
            gone = order[: len(layers) - left.layers]
            layers = [layer for layer in layers if layer not in gone]
        every_inner, every_group = torch.arange(self._decoder.inner), torch.arange(self._decoder.groups)
        count = self._decoder.layers
        return Kept(
            layers,
            [_highest(each, left.inner) for each in self._inner] or [every_inner] * count,
            [_highest(each, left.groups) for each in self._groups] or [every_group] * count,
        )


def _highest(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


class _Units:
    """The inner channels, or the groups of heads, of a layer as a criterion sees them (`pared.criteria.Channels`).

    By weights alone they are scored by what makes them; on texts by what reads them, for what a channel hands on counts
    for as much as it is multiplied with (An et al. 2024, arXiv:2312.11983).
    """

    has_batch_norm = False

    def __init__(
        self, layer: Layer, axis: str, decoder: Decoder, seen: Seen | None, generator: torch.Generator
    ) -> None:
        self._layer, self._axis, self._seen = layer, axis, seen
        self.units = decoder.inner if axis == "inner" else decoder.groups
        self.layers = _within(layer.index, _MADE_BY[axis])
        self.generator: torch.Generator | None = generator

    def sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """Σ of a value over the weights of each unit."""
        totals = torch.zeros(self.units, dtype=torch.float64)
        if self._seen is None:
            for name in _MADE_BY[self._axis]:
                of_rows = [value(WeightTensor(name, block)).double().sum(1) for block in self._blocks(name)]
                totals += torch.cat(of_rows).view(self.units, -1).sum(1)
            return totals
        name, squares = _READ_BY[self._axis], self._seen.inner if self._axis == "inner" else self._seen.heads
        norms = {name: squares.sqrt().float()}
        for block in self._blocks(name):
            of_columns = value(WeightTensor(name, block, norms=lambda: norms)).double().sum(0)
            totals += of_columns.view(self.units, -1).sum(1)
        return totals

    def batch_norm_sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """There are none."""
        raise NothingToPrune("A decoder has no batch norms.")

    def rows(self) -> Tensor:
        """Not here: all rows of a layer in float64 are four times the layer."""
        raise NothingToPrune("This criterion compares all rows of a layer, which is not done layer by layer.")

    def _blocks(self, name: str) -> Iterator[Tensor]:
        return (block for _, block in self._layer.blocks(f"{name}.weight"))


class _Whole:
    """A layer as a criterion sees it (`pared.criteria.ResidualBlock`)."""

    def __init__(self, layer: Layer, seen: Seen | None, generator: torch.Generator) -> None:
        self._layer, self._seen = layer, seen
        self.generator: torch.Generator | None = generator

    def layer_mean(self, value: Callable[[Tensor], Tensor]) -> float:
        """The mean of √n · value(w) over its weights w of n inputs each, of a value the mean over blocks of rows."""
        scaled = []
        for name in PROJECTIONS:
            rows, columns = self._layer.tensors[f"{name}.weight"].shape
            blocks = self._layer.blocks(f"{name}.weight")
            total = sum(len(block) * float(value(block.double())) for _, block in blocks)
            scaled.append(total / rows * math.sqrt(columns))
        return sum(scaled) / len(scaled)

    def entries(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """Not here: only criteria of gradients ask for it."""
        raise NothingToPrune("This criterion needs gradients, which are not there layer by layer.")

    def contribution(self) -> float:
        """‖f(x)‖ / ‖x‖, the mean over tokens."""
        assert self._seen is not None  # noqa: S101 - specs ask for data
        return self._seen.added / max(self._seen.tokens, 1)
