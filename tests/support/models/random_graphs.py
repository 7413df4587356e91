"""Random models: a Hypothesis strategy that draws one operator after the other into a graph of plain torch.

What is drawn runs in eager mode, scripts and traces. Values are images (batch, channels, height, width), signals
(batch, channels, steps), tokens (batch, tokens, features) or vectors (batch, features).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.support.models.gallery import settled
from tests.support.models.gallery.images import ChannelsFirstNorm, SqueezeExcite
from tests.support.models.gallery.sequences import RmsNorm, UnitLength

OPERATORS = (4, 14)
MOST_ELEMENTS = 2048  # of a value, for one sample
BATCH = 3

UNARY = [
    torch.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu, F.leaky_relu, F.hardswish, F.softplus, torch.abs, F.elu,
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """A model in eval mode, and an example of its inputs."""

    module: fx.GraphModule
    example: tuple[Tensor, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"{self.module.code}\n{self.module}\nof inputs {[tuple(x.shape) for x in self.example]}")


@dataclass(frozen=True)
class Value:
    """A value of the graph; `shape` is that of one sample, `channels` the dimension of it that has been made."""

    node: fx.Node
    shape: tuple[int, ...]
    kind: str

    @property
    def dim(self) -> int:
        """The dimension of the channels, the batch counted."""
        return len(self.shape) if self.kind == "tokens" else 1

    @property
    def channels(self) -> int:
        return self.shape[self.dim - 1]

    def with_channels(self, channels: int) -> tuple[int, ...]:
        shape = list(self.shape)
        shape[self.dim - 1] = channels
        return tuple(shape)


@st.composite
def models(draw: st.DrawFn) -> Drawn:
    """A model of a few to a dozen operators, some of them several layers, one or two inputs and one or two outputs."""
    maker = _Maker(draw)
    maker.enter(draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(*OPERATORS))):
        maker.step()
    return maker.finish()


class _Maker:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.buffers: dict[str, Tensor] = {}
        self.reusable: list[tuple[str, Value, tuple[int, ...], str]] = []
        self.values: list[Value] = []
        self.example: list[Tensor] = []
        torch.manual_seed(0)

    # -- the frame --------------------------------------------------------------------------------

    def enter(self, count: int) -> None:
        """Inputs, each read by a first layer, so that there are channels to remove."""
        kinds = [self.pick(["image", "signal", "tokens", "vector", "ids"]) for _ in range(count)]
        nodes = [self.graph.placeholder(f"x{index}", type_expr=Tensor) for index in range(count)]
        for kind, node in zip(kinds, nodes, strict=True):
            shape = {"image": (3, 4, 4), "signal": (2, 6), "tokens": (5, 6), "vector": (8,), "ids": (5,)}[kind]
            if kind == "ids":
                self.example.append(torch.randint(0, 9, (BATCH, *shape)))
                width = self.width()
                self.add(self.called(nn.Embedding(9, width), node), (5, width), "tokens")
            else:
                self.example.append(torch.randn(BATCH, *shape))
                self.project(Value(node, shape, kind), self.width())

    def finish(self) -> Drawn:
        """All values that nothing has read yet, side by side, through one head or two."""
        vectors = [self.pooled(value) for value in self.values if not value.node.users]
        node, width = vectors[0].node, sum(vector.channels for vector in vectors)
        if len(vectors) > 1:
            node = self.call(torch.cat, [vector.node for vector in vectors], 1)
        outputs = [self.called(nn.Linear(width, 3), node) for _ in range(self.draw(st.integers(1, 2)))]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        root = nn.ModuleDict(self.modules)
        for name, tensor in self.buffers.items():
            root.register_buffer(name, tensor)
        module = fx.GraphModule(root, self.graph)
        return Drawn(settled(lambda: module, tuple(self.example)), tuple(self.example))

    def step(self) -> None:
        """One operator on one of the values, a recent one rather than an old one."""
        value = self.values[-1 - min(self.draw(st.integers(0, 3)), len(self.values) - 1)]
        common = "unary layer again add_to multiply concatenate split gate norm gate_by_all reorder"
        own = {
            "image": "convolve upsample pool squeeze_excite shuffle pixels to_vector to_tokens to_patches neighbours",
            "signal": "convolve upsample pool pad to_vector to_tokens neighbours",
            "tokens": "attend recur move mix to_vector to_signal",
            "vector": "stack to_image neighbours",
        }
        getattr(self, self.pick([*common.split(), *own[value.kind].split()]))(value)

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def width(self) -> int:
        return self.pick([4, 6, 8, 12])

    def called(self, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        name = f"m{len(self.modules)}"
        self.modules[name] = module
        return self.graph.call_module(name, inputs)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        return self.graph.call_method(name, args)

    def add(self, node: fx.Node, shape: tuple[int, ...], kind: str) -> Value:
        value = Value(node, shape, kind)
        self.values.append(value)
        return value

    def like(self, value: Value, node: fx.Node) -> Value:
        return self.add(node, value.shape, value.kind)

    # -- what all values take -----------------------------------------------------------------------

    def project(self, value: Value, width: int) -> Value:
        """A layer that makes channels."""
        make = {
            "image": lambda: nn.Conv2d(value.channels, width, self.pick([1, 3]), padding="same"),
            "signal": lambda: nn.Conv1d(value.channels, width, 3, padding=1),
        }.get(value.kind, lambda: nn.Linear(value.channels, width, bias=self.draw(st.booleans())))
        return self.add(self.called(make(), value.node), value.with_channels(width), value.kind)

    def layer(self, value: Value) -> None:
        before = len(self.modules)
        made = self.project(value, self.width())
        self.reusable.append((f"m{before}", value, made.shape, made.kind))

    def again(self, value: Value) -> None:
        """A layer that was used before, on another value of the same shape: shared weights."""
        fitting = [entry for entry in self.reusable if entry[1].shape == value.shape and entry[1].kind == value.kind]
        if not fitting:
            self.layer(value)
            return
        name, _, shape, kind = self.pick(fitting)
        self.add(self.graph.call_module(name, (value.node,)), shape, kind)

    def unary(self, value: Value) -> None:
        self.like(value, self.call(self.pick(UNARY), value.node))

    def other(self, value: Value) -> Value:
        """Another value of the same shape: one that there is, or one made to fit."""
        like = [known for known in self.values if (known.shape, known.kind) == (value.shape, value.kind)]
        fitting = [known for known in like if known is not value]
        return self.pick(fitting) if fitting and self.draw(st.booleans()) else self.project(value, value.channels)

    def add_to(self, value: Value) -> None:
        self.like(value, self.call(self.pick([operator.add, operator.sub]), value.node, self.other(value).node))

    def multiply(self, value: Value) -> None:
        self.like(value, self.call(operator.mul, value.node, self.call(torch.sigmoid, self.other(value).node)))

    def concatenate(self, value: Value) -> None:
        other = self.project(value, self.width()) if self.draw(st.booleans()) else self.other(value)
        shape = value.with_channels(value.channels + other.channels)
        if shape[value.dim - 1] <= 32:
            self.add(self.call(torch.cat, [value.node, other.node], value.dim), shape, value.kind)

    def split(self, value: Value) -> None:
        """In two halves, or at any place; both go on."""
        if value.channels % 2 == 0 and value.channels > 4:
            parts = self.call(torch.chunk, value.node, 2, value.dim)
            sizes = [value.channels // 2] * 2
        elif value.channels > 4:
            sizes = [2, value.channels - 2]
            parts = self.call(torch.split, value.node, sizes, value.dim)
        else:
            return
        for index, size in enumerate(sizes):
            self.add(self.call(operator.getitem, parts, index), value.with_channels(size), value.kind)

    def gate(self, value: Value) -> None:
        """GLU, or SwiGLU of two layers."""
        if value.channels % 2 == 0 and self.draw(st.booleans()):
            self.add(self.call(F.glu, value.node, value.dim), value.with_channels(value.channels // 2), value.kind)
            return
        width = self.width()
        a, b = self.project(value, width), self.project(value, width)
        self.like(b, self.call(operator.mul, self.call(F.silu, a.node), b.node))

    def norm(self, value: Value) -> None:
        channels, flat = value.channels, value.kind == "signal"
        if value.kind in ("tokens", "vector"):
            kinds = [nn.LayerNorm, nn.RMSNorm, RmsNorm, UnitLength, *([nn.BatchNorm1d] * (value.kind == "vector"))]
        else:
            kinds = [nn.GroupNorm, nn.BatchNorm1d if flat else nn.BatchNorm2d, *([ChannelsFirstNorm] * (not flat))]
            if value.shape[-1] > 1:
                kinds.append(nn.InstanceNorm1d if flat else nn.InstanceNorm2d)
        kind = self.pick(kinds)
        if kind is nn.GroupNorm:
            made = nn.GroupNorm(self.pick([groups for groups in (1, 2, channels) if channels % groups == 0]), channels)
        elif kind in (nn.InstanceNorm1d, nn.InstanceNorm2d):
            made = kind(channels, affine=self.draw(st.booleans()))
        else:
            made = kind(channels)
        self.like(value, self.called(made, value.node))

    def gate_by_all(self, value: Value) -> None:
        """A gate for each place, by the mean, the largest or the smallest over the channels, as CBAM has it."""
        over = self.method(self.pick(["mean", "amax", "amin"]), value.node, value.dim, True)
        self.like(value, self.call(operator.mul, value.node, self.call(torch.sigmoid, over)))

    def reorder(self, value: Value) -> None:
        """The channels in another order, that of a shuffle, or some of them more than once."""
        order = torch.randperm(value.channels)
        if self.draw(st.booleans()):
            order = order[[*range(len(order) - 1), 0]]
        elif value.channels % 2 == 0:
            order = torch.arange(value.channels).view(2, -1).t().flatten()
        name = f"order{len(self.graph.nodes)}"
        self.buffers[name] = order
        index = self.graph.get_attr(name)
        self.like(value, self.call(torch.index_select, value.node, value.dim, index))

    def neighbours(self, value: Value) -> None:
        """Each channel with its neighbours: local response normalisation, or a 1-D convolution over channels (ECA)."""
        if value.kind != "vector" and self.draw(st.booleans()):
            size = self.pick([2, 3, 5])
            self.like(value, self.call(F.local_response_norm, value.node, size, alpha=0.5))
            return
        size = self.pick([1, 3, 5])
        mixed = self.called(
            nn.Conv1d(1, 1, size, padding=size // 2), self.method("unsqueeze", self.pooled(value).node, 1)
        )
        gate = self.call(torch.sigmoid, self.method("squeeze", mixed, 1))
        for _ in value.shape[1:]:
            gate = self.method("unsqueeze", gate, -1)
        self.like(value, self.call(operator.mul, value.node, gate))

    # -- images and signals -------------------------------------------------------------------------

    def convolve(self, value: Value) -> None:
        """Grouped, depthwise or plain."""
        channels, flat = value.channels, value.kind == "signal"
        groups = self.pick([g for g in (1, 2, 3, channels) if channels % g == 0])
        width = groups * self.pick([1, 2] if groups == channels else [2, 4])
        if width <= 24:
            layer = (nn.Conv1d if flat else nn.Conv2d)(channels, width, 3, padding=1, groups=groups)
            self.add(self.called(layer, value.node), value.with_channels(width), value.kind)

    def upsample(self, value: Value) -> None:
        """Transposed convolution, or repetition."""
        channels, flat = value.channels, value.kind == "signal"
        shape = tuple(2 * size for size in value.shape[1:])
        if torch.Size((channels, *shape)).numel() > MOST_ELEMENTS:
            return
        if self.draw(st.booleans()):
            self.add(self.call(F.interpolate, value.node, scale_factor=2.0), (channels, *shape), value.kind)
            return
        groups = self.pick([g for g in (1, 2, channels) if channels % g == 0])
        width = channels if groups == channels else 2 * groups
        make = nn.ConvTranspose1d if flat else nn.ConvTranspose2d
        self.add(
            self.called(make(channels, width, 2, stride=2, groups=groups), value.node), (width, *shape), value.kind
        )

    def pool(self, value: Value) -> None:
        if min(value.shape[1:]) < 2:
            return
        flat = value.kind == "signal"
        function = self.pick([F.max_pool1d, F.avg_pool1d] if flat else [F.max_pool2d, F.avg_pool2d])
        shape = (value.channels, *(size // 2 for size in value.shape[1:]))
        self.add(self.call(function, value.node, 2), shape, value.kind)

    def pad(self, value: Value) -> None:
        self.add(self.call(F.pad, value.node, [1, 0]), (value.channels, value.shape[1] + 1), value.kind)

    def squeeze_excite(self, value: Value) -> None:
        self.like(value, self.called(SqueezeExcite(value.channels, 4), value.node))

    def shuffle(self, value: Value) -> None:
        """nn.ChannelShuffle, or reshapes that do the same, their sizes computed or written."""
        if value.channels % 2:
            return
        if self.draw(st.booleans()):
            self.like(value, self.called(nn.ChannelShuffle(2), value.node))
            return
        channels, height, width = value.shape
        x = self.method("reshape", value.node, -1, 2, channels // 2, height, width)
        x = self.method("reshape", self.method("transpose", x, 1, 2), -1, channels, height, width)
        self.like(value, x)

    def pixels(self, value: Value) -> None:
        channels, height, width = value.shape
        if channels % 4 == 0 and self.draw(st.booleans()):
            self.add(self.call(F.pixel_shuffle, value.node, 2), (channels // 4, 2 * height, 2 * width), "image")
        elif height % 2 == 0 and width % 2 == 0 and channels <= 6:
            self.add(self.call(F.pixel_unshuffle, value.node, 2), (channels * 4, height // 2, width // 2), "image")

    # -- tokens and vectors -------------------------------------------------------------------------

    def attend(self, value: Value) -> None:
        """Attention with two heads of separate, or of fused, queries, keys and values."""
        tokens, features = value.shape
        inner = self.pick([4, 8])
        if self.draw(st.booleans()):
            fused = self.called(nn.Linear(features, 3 * inner), value.node)
            parts = self.call(torch.chunk, fused, 3, 2)
            q, k, v = (self.call(operator.getitem, parts, index) for index in range(3))
        else:
            q, k, v = (self.called(nn.Linear(features, inner), value.node) for _ in range(3))
        heads = (self.method("reshape", x, -1, tokens, 2, inner // 2) for x in (q, k, v))
        q, k, v = (self.method("transpose", x, 1, 2) for x in heads)
        if self.draw(st.booleans()):
            scores = self.call(operator.mul, self.call(torch.matmul, q, self.method("transpose", k, -2, -1)), 0.5)
            mixed = self.call(torch.matmul, self.call(torch.softmax, scores, -1), v)
        else:
            mixed = self.call(F.scaled_dot_product_attention, q, k, v)
        joined = self.method("reshape", self.method("transpose", mixed, 1, 2), -1, tokens, inner)
        self.like(value, self.called(nn.Linear(inner, features), joined))

    def recur(self, value: Value) -> None:
        make, both = self.pick([nn.LSTM, nn.GRU, nn.RNN]), self.draw(st.booleans())
        hidden = self.pick([4, 6])
        layer = make(value.channels, hidden, self.pick([1, 2]), batch_first=True, bidirectional=both)
        output = self.call(operator.getitem, self.called(layer, value.node), 0)
        self.add(output, (value.shape[0], hidden * (1 + both)), "tokens")

    def move(self, value: Value) -> None:
        """Tokens rolled, added up, or turned around, or the features turned around."""
        moves = [(torch.roll, (1, 1)), (torch.cumsum, (1,)), (torch.flip, ([2],)), (torch.flip, ([1],))]
        function, args = self.pick(moves)
        self.like(value, self.call(function, value.node, *args))

    def mix(self, value: Value) -> None:
        """A perceptron over the tokens, as in a mixer."""
        tokens, _ = value.shape
        x = self.called(nn.Linear(tokens, 6), self.method("transpose", value.node, 1, 2))
        x = self.called(nn.Linear(6, tokens), self.call(torch.relu, x))
        self.like(value, self.call(operator.add, value.node, self.method("transpose", x, 1, 2)))

    def stack(self, value: Value) -> None:
        """Two values one above the other, and their largest or their mean."""
        stacked = self.call(torch.stack, [value.node, self.other(value).node], self.pick([1, 2]))
        self.like(value, self.method(self.pick(["mean", "amax", "sum"]), stacked, 1 if stacked.args[1] == 1 else 2))

    # -- from one kind to another -------------------------------------------------------------------

    def pooled(self, value: Value) -> Value:
        if value.kind == "vector":
            return value
        dims = {"image": [2, 3], "signal": [2], "tokens": [1]}[value.kind]
        return Value(self.method("mean", value.node, dims), (value.channels,), "vector")

    def to_vector(self, value: Value) -> None:
        size = torch.Size(value.shape).numel()
        if size > 64 or self.draw(st.booleans()):
            pooled = self.pooled(value)
            self.add(pooled.node, pooled.shape, "vector")
            return
        written = self.draw(st.booleans())
        flat = self.method("reshape", value.node, -1, size) if written else self.call(torch.flatten, value.node, 1)
        self.project(Value(flat, (size,), "vector"), self.width())

    def to_tokens(self, value: Value) -> None:
        """Places become tokens."""
        x = value.node if value.kind == "signal" else self.method("flatten", value.node, 2)
        shape = (torch.Size(value.shape[1:]).numel(), value.channels)
        if shape[0] <= 16:
            self.add(self.method("transpose", x, 1, 2), shape, "tokens")

    def to_patches(self, value: Value) -> None:
        """Patches become tokens."""
        channels, height, width = value.shape
        if height % 2 == 0 and width % 2 == 0 and channels <= 12 and height * width <= 64:
            patches = self.method("transpose", self.call(F.unfold, value.node, 2, stride=2), 1, 2)
            self.add(patches, (height * width // 4, channels * 4), "tokens")

    def to_signal(self, value: Value) -> None:
        tokens, features = value.shape
        self.add(self.method("permute", value.node, 0, 2, 1), (features, tokens), "signal")

    def to_image(self, value: Value) -> None:
        """Features become channels of 2 × 2 places."""
        features = self.pick([4, 6]) * 4
        wide = self.project(value, features)
        self.add(self.method("reshape", wide.node, -1, features // 4, 2, 2), (features // 4, 2, 2), "image")
