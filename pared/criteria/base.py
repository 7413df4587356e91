"""What a criterion is: facts about a score of importance, and the functions that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor

Need = Literal["batch norms", "layer inputs", "gradients"]
"""What a criterion looks at beside the weights; the last two are computed from training samples."""

SCORED_AS = {
    "weight": "weights",
    "n:m": "weights",
    "block": "weights",
    "channel": "channels",
    "head": "channels",
    "residual_block": "residual_blocks",
}
"""Granularity -> the field of a `Criterion` whose function scores what goes there."""


@dataclass(frozen=True)
class WeightTensor:
    """The weights of one layer, and what training samples say of them where a criterion needs that.

    `gradients`: parameter name -> the gradient of the loss, of one batch. `norms` gives weight name -> ‖x‖ of what each
    entry multiplies, which broadcasts to the weight. `generator`: for what is drawn at random.
    """

    name: str
    values: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Callable[[], Mapping[str, Tensor]] = dict
    generator: Generator | None = None

    @property
    def loss_change(self) -> Tensor:
        """g·w of each entry: how much the loss of a batch changes without it, to first order."""
        return self.gradients[self.name].to(self.values.device) * self.values

    @property
    def input_norms(self) -> Tensor | None:
        """‖x‖ of what each entry multiplies, on the CPU; None where that is not known."""
        return self.norms().get(self.name)


class Channels(Protocol):
    """A group of channels, or of heads, any of which can go: those of one layer, or of several coupled ones."""

    units: int
    """How many they are."""
    layers: list[str]
    """Names of the layers that make them."""
    has_batch_norm: bool
    generator: Generator | None

    def sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """Σ of a value over the incoming weights of each channel, in all layers: float64 of shape (units,).

        `value` gives a tensor of the weight's shape.
        """

    def batch_norm_sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """The same over the scales γ of the batch norms behind each channel."""

    def rows(self) -> Tensor:
        """The incoming weights of each channel in a row: float64 of shape (units, weights of a channel)."""


class ResidualBlock(Protocol):
    """The f of an addition x + f(x)."""

    generator: Generator | None

    def layer_mean(self, value: Callable[[Tensor], Tensor]) -> float:
        """The mean over its layers of √n · value(w), w a layer's weights in float64, of n inputs each.

        With the factor √n, layers of any width compare.
        """

    def entries(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        """A value of all its parameters, end to end: float64 of one dimension."""

    def contribution(self) -> float:
        """‖f(x)‖ / ‖x‖ on training samples: how much it adds to what passes by it."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A way to rank what can be pruned by its importance, or saliency: the lowest scores go first.

    A criterion is for those granularities that it has a function for. Each function scores one thing and returns
    float32 or float64. One that needs gradients is called for each of some batches, and the scores are added up.

    Attributes:
        name: in specs and commands, which is also the name of the criterion's module.
        title: for people.
        formula: the score of a channel.
        paper: author, year and arXiv number, or what else finds it.
        phrase: what the smallest of goes first, in a few words.
        position: where it stands in lists: 10 is the first of the built-in ones, and they leave room between them.
        needs: what it looks at beside the weights.
        channels: scores a group of channels, shape (units,).
        weights: scores each weight of a tensor, in the tensor's shape; 0 for a weight that is 0, the lowest there is.
        residual_blocks: scores a residual block, one number.
    """

    name: str
    title: str
    formula: str
    paper: str = ""
    phrase: str
    position: int
    needs: frozenset[Need] = frozenset()
    channels: Callable[[Channels], Tensor] | None = None
    weights: Callable[[WeightTensor], Tensor] | None = None
    residual_blocks: Callable[[ResidualBlock], Tensor | float] | None = None

    @property
    def granularities(self) -> tuple[str, ...]:
        """Those that it can score."""
        return tuple(granularity for granularity, scored in SCORED_AS.items() if getattr(self, scored) is not None)

    @property
    def needs_data(self) -> bool:
        """Whether it looks at training samples."""
        return bool(self.needs & {"layer inputs", "gradients"})

    @property
    def needs_gradients(self) -> bool:
        """Whether it looks at gradients of the loss."""
        return "gradients" in self.needs
