"""How each operator carries unit labels from its inputs to its outputs, and which units it ties together.

A rule looks at one executed call, merges units that can only go together, fixes those that cannot go,
sets the label layers of the outputs, and notes `Patch`es: literal sizes written in the file (a `view`
to 128 columns, the `groups` of a depthwise convolution) that must follow when units go.

Rules may be cautious but never wrong: an operator without a rule fixes every unit that reaches it, and
whatever the rules conclude is checked on the shrunk model itself before it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pared.compression.coupling.interpreter import Call, is_static
from pared.compression.coupling.labels import Labels, Tracked, Units, along, compressed, spanned
from pared.compression.coupling.rules.recurrent import RECURRENT


@dataclass
class Patch:
    """A number that a node takes, and that must become a literal counting the kept among some units.

    `node`: index of the node in `nodes_of`; `argument`: index of its input; `element`: index in that
    input's list, which has `length`, or None for a plain number; `labels`: the units counted, shape (n,);
    `fixed`: added to their number, for what no unit stands behind. `computed`: the number is computed from
    a number of channels, so it must be replaced as soon as any channel goes.
    """

    node: int
    argument: int
    element: int | None
    labels: Labels
    fixed: float = 0
    computed: bool = False
    length: int = 0


@dataclass(frozen=True)
class Split:
    """A place where a reshape splits channels over several dimensions, whole slices of one of which are units.

    `node`: index of the node in `nodes_of`; `labels`: of that dimension; `others`: how many other dimensions it
    might have been.
    """

    node: int
    labels: Labels
    others: int


@dataclass(frozen=True)
class Use:
    """A layer: one operator's use of its weights."""

    kind: str
    weights: dict[str, list[int]]
    out_axis: tuple[str, int] | None
    channels: int | None


class Rules:
    """Applies the rule of every call, and gathers patches and layer uses.

    Args:
        units: the union-find to write to. With `frozen`, nothing is merged or noted any more: labels
            are only carried along, which is how a reference run knows which elements are removed.
        choices: index of a node that splits channels -> which of the dimensions that units could be slices of.
    """

    def __init__(self, units: Units, *, frozen: bool = False, choices: Mapping[int, int] | None = None) -> None:
        self.units = units
        self.frozen = frozen
        self.choices = choices or {}
        self.splits: list[Split] = []
        # Of products of activations: what each has one of, as a head of attention, and what each sums over.
        self.heads: list[Labels] = []
        self.widths: list[Labels] = []
        self.patches: dict[tuple[int, int, int | None], Patch] = {}
        self.uses: dict[str, Use] = {}
        self.out_axes: dict[tuple[str, int], None] = {}  # a set in order
        self._channel_sizes: set[str] = set()
        self._sizes: dict[str, Tracked] = {}  # name of a list of sizes -> whose they are
        self._products: dict[str, Call] = {}

    def __call__(self, call: Call) -> None:
        """The visitor of `Interpreter`."""
        if call.kind in _COMPARISONS and not call.tensors:
            self._keep_answer(call)
            return
        kind = call.kind if call.kind.endswith("__") else call.kind.removesuffix("_")
        self._apply(call, _RULES.get(kind))
        statistics = [layer for tracked in call.tensors for layer in tracked.statistic]
        if statistics and not self.frozen:
            self._use_statistics(call, kind, statistics)

    def _apply(self, call: Call, rule: Rule | None) -> None:
        if not any(tracked.layers for tracked in call.tensors) and rule is not _constant:
            if call.kind in ("aten::mul", "aten::mul_"):
                self._products[call.node.output().debugName()] = call
            if rule in (_sized_layout, _elementwise):  # the numbers that they take may still count channels
                rule(self, call)
            return
        if rule is None:
            for tracked in call.tensors:
                self.fix(tracked.layers, call)
            return
        rule(self, call)

    def _use_statistics(self, call: Call, kind: str, statistics: list[Labels]) -> None:
        """Follow means and variances over channels until they meet these channels: then it was a norm."""
        if kind in _SHAPES_READ:
            return
        if kind not in _OF_STATISTICS:
            self.fix(statistics, call, "uses a mean over the channels for more than a norm")
            return
        for out in call.results:
            met = self.units.roots(np.concatenate([np.zeros(1, dtype=np.int64), *(la.ravel() for la in out.layers)]))
            out.statistic = [la for la in statistics if not np.isin(self.units.roots(la.ravel()), met).all()]

    # -- what rules do ---------------------------------------------------------------------------

    def union(self, a: Labels, b: Labels, call: Call, why: str = "") -> None:
        """Tie units together."""
        if not self.frozen:
            self.units.union(a, b, self._reason(call, why))

    def fix(self, layers: Iterable[Labels], call: Call, why: str = "") -> None:
        """Units that cannot go, for what this call does."""
        if not self.frozen:
            for layer in layers:
                self.units.fix(layer, self._reason(call, why))

    def patch(
        self,
        call: Call,
        argument: str,
        element: int | None,
        labels: Labels,
        *,
        fixed: float = 0,
        computed: bool = False,
    ) -> None:
        """Note that a number of this call counts these units."""
        if self.frozen:
            return
        names = list(call.arguments)
        key = (call.index, names.index(argument), element)
        if key in self.patches:  # a node in a loop: each turn must count the same
            if self.patches[key].labels.shape == labels.shape:
                self.union(self.patches[key].labels, labels, call)
            else:
                self.fix([self.patches[key].labels, labels], call, "one literal in a loop counts different things")
            return
        length = 0 if element is None else len(call.arguments[argument])
        self.patches[key] = Patch(*key, labels, fixed, computed, length)

    def follow(self, call: Call, argument: str, element: int | None, labels: Labels, *, fixed: float = 0) -> None:
        """Let a number of this call count units, unless it follows by itself, as the size of a batch does."""
        if self.frozen:
            return
        value = self._written(call, argument, element)
        if is_static(value):
            if len(labels):
                self.patch(call, argument, element, labels, fixed=fixed)
        elif is_static(value, self._channel_sizes):
            self.patch(call, argument, element, labels, fixed=fixed, computed=True)
        elif len(labels):
            self._follow_factor(value, labels)

    def _follow_factor(self, value: Any, labels: Labels) -> None:
        """Of a product such as batch * heads, which counts heads anew for each sample, let the heads follow."""
        while value.node().kind() in ("aten::Int", "prim::NumToTensor"):
            value = value.node().inputsAt(0)
        product = self._products.get(value.debugName())
        if product is None:
            return
        for argument, factor in product.arguments.items():
            count = int(factor.tensor if isinstance(factor, Tracked) else factor)
            written = product.input_value(argument)
            if not is_static(written, self._channel_sizes) or not count or len(labels) % count:
                continue
            period = labels[:count]
            if np.array_equal(self.units.roots(labels), np.tile(self.units.roots(period), len(labels) // count)):
                self.patch(product, argument, None, period, computed=not is_static(written))

    def is_written(self, call: Call, argument: str, element: int | None) -> bool:
        """Whether an int of this call is written in the file, or computed from a number of channels."""
        return is_static(self._written(call, argument, element), self._channel_sizes)

    @staticmethod
    def _written(call: Call, argument: str, element: int | None) -> Any:
        """The graph value of an int, or of one in a list."""
        value = call.input_value(argument)
        return value if element is None else _element(value, element, len(call.arguments[argument]))

    def note_size(self, call: Call) -> None:
        """`size` of a dimension that holds channels: what is computed from it counts channels too."""
        x = _first(call)
        name = call.node.output().debugName()
        self._sizes[name] = x
        if "dim" in call.arguments:
            if x.spanning({call.arguments["dim"] % x.tensor.dim()}):
                self._channel_sizes.add(name)
            return
        for use in call.node.output().uses():
            reader = use.user
            if reader.kind() == "prim::ListUnpack":
                for dim, value in enumerate(reader.outputs()):
                    if x.spanning({dim}):
                        self._channel_sizes.add(value.debugName())
            elif reader.kind() == "aten::__getitem__":
                dim = list(reader.inputs())[1].toIValue()
                if isinstance(dim, int) and x.spanning({dim % x.tensor.dim()}):
                    self._channel_sizes.add(reader.output().debugName())

    def _keep_answer(self, call: Call) -> None:
        """A comparison of a number of channels (mostly an assertion) gives the answer it gave in the original."""
        for argument, value in call.arguments.items():
            if isinstance(value, int) and not isinstance(value, bool):
                self.follow(call, argument, None, _NO_UNITS, fixed=value)
            elif isinstance(value, list) and call.input_value(argument).debugName() not in self._sizes:
                for other in set(call.arguments) - {argument}:
                    sized = self._sizes.get(call.input_value(other).debugName())
                    for layer in sized.layers if sized is not None else []:
                        for dim in spanned(layer) & set(range(len(value))):
                            self.follow(call, argument, dim, layer.reshape(-1))

    def use(
        self,
        call: Call,
        weights: Mapping[str, Tracked | None],
        out: tuple[str, int] | None,
        *,
        channels: int | None = None,
    ) -> None:
        """Note a layer. `out`: which weight, and which of its dimensions, makes the output channels.

        `channels`: how many these are, where that dimension stacks several rows of each.
        Only parameters count, as only they have names here: a filter held in a buffer makes no layer.
        """
        if self.frozen:
            return
        named = {role: tracked for role, tracked in weights.items() if tracked is not None and tracked.name}
        if not named:
            return
        first = next(iter(named.values())).name or ""
        axis = None
        if out is not None and out[0] in named:
            weight = named[out[0]]
            axis = (weight.name or "", out[1])
            self.makes_channels(weight, out[1])
            channels = channels or weight.tensor.shape[out[1]]
        layer = first.rpartition(".")[0] or first
        if layer not in self.uses:
            shapes = {t.name or "": list(t.tensor.shape) for t in named.values()}
            self.uses[layer] = Use(call.kind.split("::")[1].lstrip("_"), shapes, axis, channels if axis else None)

    def makes_channels(self, weight: Tracked, dim: int) -> None:
        """Note that this dimension of a parameter makes output channels: what it holds is what they are scored by."""
        if not self.frozen and weight.name:
            self.out_axes[weight.name, dim] = None

    @staticmethod
    def _reason(call: Call, why: str) -> str:
        return f"{call.kind}{': ' + why if why else ''}"


# -- elementwise --------------------------------------------------------------------------------


def _elementwise(rules: Rules, call: Call) -> None:
    """Operands broadcast; elements at one position go together."""
    out = call.results[0] if call.results else None
    if out is None:
        return
    out.layers = _broadcast(rules, call, call.tensors, out.tensor.dim())
    for argument, value in call.arguments.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rules.follow(call, argument, None, _NO_UNITS, fixed=value)  # as a scale taken from a number of channels


def _broadcast(rules: Rules, call: Call, operands: list[Tracked], rank: int) -> list[Labels]:
    """Ties labels of broadcast operands; gives the layers of the result."""
    shapes = [(1,) * (rank - t.tensor.dim()) + tuple(t.tensor.shape) for t in operands]
    layers = [[layer.reshape((1,) * (rank - layer.ndim) + layer.shape) for layer in t.layers] for t in operands]
    result: list[Labels] = []
    for me, mine in enumerate(layers):
        for layer in mine:
            dims = spanned(layer)
            for other, theirs in enumerate(layers):
                if other == me or all(shapes[other][dim] == 1 for dim in dims):
                    continue
                met = [their for their in theirs if spanned(their) & dims]
                if not met:
                    rules.fix([layer], call, "meets a tensor with fixed channels")
                for their in met:
                    rules.union(layer, their, call, "meets a tensor with fixed channels")
            if not any(spanned(known) >= dims for known in result):
                result = [known for known in result if not spanned(known) <= dims]
                result.append(layer)
    return result


def _unary(rules: Rules, call: Call) -> None:
    """Each element by itself: labels pass (also through type changes, dropout, activations)."""
    call.results[0].layers = list(_first(call).layers)


def _prelu(rules: Rules, call: Call) -> None:
    """prelu(x, w): w is one number or one a channel (dimension 1)."""
    x, w = call.arguments["self"], call.arguments["weight"]
    if w.tensor.numel() > 1:
        rules.union(x.axis(1), w.axis(0), call)
    rules.use(call, {"weight": w}, None)
    call.results[0].layers = list(x.layers)


# -- contractions -------------------------------------------------------------------------------


def _contract(rules: Rules, call: Call, operands: list[tuple[Tracked, str]], out_letters: str) -> list[Labels]:
    """Einstein notation: dimensions of one letter are tied together; those in the output carry on.

    Those that two activations share with the output are heads: it is made for each of them apart.
    """
    by_letter: dict[str, Labels] = {}
    sizes: dict[str, int] = {}
    for tracked, letters in operands:
        for letter, size in zip(letters, tracked.tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    for tracked, letters in operands:
        for layer in tracked.layers:
            if len(spanned(layer)) > 1:
                rules.fix([layer], call, "channels spread over several dimensions")
        for dim, letter in enumerate(letters):
            if tracked.tensor.shape[dim] == 1:
                continue  # broadcast, or nothing to remove
            labels = tracked.axis(dim)
            if letter in by_letter:
                rules.union(by_letter[letter], labels, call, "contracted with fixed channels")
                if not any(t.name for t, of in operands if letter in of):
                    (rules.heads if letter in out_letters else rules.widths).append(labels)
            if letter not in by_letter or not by_letter[letter].any():
                by_letter[letter] = labels
    rank = len(out_letters)
    return [
        along(by_letter[letter], dim, rank)
        for dim, letter in enumerate(out_letters)
        if letter in by_letter and by_letter[letter].any()
    ]


def _linear(rules: Rules, call: Call) -> None:
    """y[..., o] = Σ_i x[..., i] w[o, i] + b[o]."""
    x, w, b = call.arguments["input"], call.arguments["weight"], call.arguments.get("bias")
    batch = _letters(x.tensor.dim() - 1)
    out = batch + "O" if w.tensor.dim() == 2 else batch
    w_letters = "OI" if w.tensor.dim() == 2 else "I"
    operands = [(x, batch + "I"), (w, w_letters)]
    if b is not None and b.tensor.dim() == 1:
        operands.append((b, "O"))
    call.results[0].layers = _contract(rules, call, operands, out)
    rules.use(call, {"weight": w, "bias": b}, ("weight", 0))


def _matmul(rules: Rules, call: Call) -> None:
    """Matrix products: mm, bmm, matmul, with broadcasting of the batch dimensions."""
    a, b = call.tensors[:2]
    _product_use(rules, call, a, b)
    if a.tensor.dim() < 2 or b.tensor.dim() < 2:
        rules.fix([*a.layers, *b.layers], call)
        return
    batch = _letters(max(a.tensor.dim(), b.tensor.dim()) - 2)
    a_batch = batch[len(batch) - (a.tensor.dim() - 2) :]
    b_batch = batch[len(batch) - (b.tensor.dim() - 2) :]
    call.results[0].layers = _contract(rules, call, [(a, a_batch + "MK"), (b, b_batch + "KN")], batch + "MN")


def _addmm(rules: Rules, call: Call) -> None:
    """addmm, baddbmm: c + a @ b."""
    c, a, b = call.tensors[:3]
    _product_use(rules, call, a, b, c)
    batch = _letters(a.tensor.dim() - 2)
    product = Tracked(call.results[0].tensor)
    product.layers = _contract(rules, call, [(a, batch + "MK"), (b, batch + "KN")], batch + "MN")
    call.results[0].layers = _broadcast(rules, call, [product, c], product.tensor.dim())


def _product_use(rules: Rules, call: Call, a: Tracked, b: Tracked, bias: Tracked | None = None) -> None:
    """x @ W is a layer with weights (in, out), W @ x one with weights (out, in)."""
    if b.name and a.name:
        rules.use(call, {"weight": b, "other": a, "bias": bias}, None)
    elif a.name:
        rules.use(call, {"weight": a, "bias": bias}, ("weight", a.tensor.dim() - 2) if a.tensor.dim() >= 2 else None)
    else:
        rules.use(call, {"weight": b, "bias": bias}, ("weight", b.tensor.dim() - 1) if b.tensor.dim() >= 2 else None)


def _einsum(rules: Rules, call: Call) -> None:
    """torch.einsum: `...` stands for leading dimensions; without `->` the letters met once come out in order."""
    left, arrow, out = call.arguments["equation"].replace(" ", "").partition("->")
    operands, terms = call.arguments["tensors"], left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    ranks = [t.tensor.dim() - len(term.replace("...", "")) for t, term in zip(operands, terms, strict=True)]
    leading = "0123456789"[: max(ranks)]
    spelled = [term.replace("...", leading[len(leading) - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    out = out.replace("...", leading)
    call.results[0].layers = _contract(rules, call, list(zip(operands, spelled, strict=True)), out)


def _attention(rules: Rules, call: Call) -> None:
    """scaled_dot_product_attention: q (..., L, E), k (..., S, E), v (..., S, V) -> (..., L, V)."""
    q, k, v, mask = (call.arguments[name] for name in ("query", "key", "value", "attn_mask"))
    if call.arguments.get("scale") is None and (q.spanning({q.tensor.dim() - 1}) or k.spanning({k.tensor.dim() - 1})):
        # The default scale is 1/sqrt(E): with fewer features it would be another function.
        rules.patch(call, "scale", None, _NO_UNITS, fixed=q.tensor.shape[-1] ** -0.5, computed=True)
    batch = _letters(q.tensor.dim() - 2)
    shared = batch
    if call.arguments.get("enable_gqa"):  # each head of k and v serves several of q
        shared = batch[:-1] + "H"
        for few in (k, v):
            served = np.repeat(few.axis(-3), q.tensor.shape[-3] // few.tensor.shape[-3])
            rules.union(q.axis(-3), served, call, "contracted with fixed channels")
        rules.heads.append(q.axis(-3))
    operands = [(q, batch + "LE"), (k, shared + "SE"), (v, shared + "SV")]
    if isinstance(mask, Tracked):
        operands.append((mask, (batch + "LS")[-mask.tensor.dim() :]))
    call.results[0].layers = _contract(rules, call, operands, batch + "LV")


# -- convolutions -------------------------------------------------------------------------------


def _convolution(rules: Rules, call: Call) -> None:
    """conv1d/2d/3d, conv_transpose1d/2d/3d and the traced `_convolution`: x (N, C, ...), w (O, C/groups, ...)."""
    x, w, b = call.arguments["input"], call.arguments["weight"], call.arguments.get("bias")
    transposed = bool(call.arguments.get("transposed", "transpose" in call.kind))
    groups = int(call.arguments["groups"])
    out = call.results[0]
    batched = x.tensor.dim() == w.tensor.dim()
    channel = 1 if batched else 0
    rules.fix(x.spanning(set(range(x.tensor.dim())) - {channel}), call, "channels in a spatial dimension")
    rules.fix(w.spanning(set(range(2, w.tensor.dim()))), call)
    x_units = x.axis(channel)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    depthwise = 1 < groups == len(x_units)  # its filters are along dimension 0 either way
    rules.use(call, {"weight": w, "bias": b}, ("weight", 0 if depthwise else out_dim))
    if groups == 1:
        rules.union(x_units, w.axis(in_dim), call, "its input channels are fixed")
        units = w.axis(out_dim)
    elif depthwise:  # a channel and its filters go together, and `groups` counts them
        rules.patch(call, "groups", None, x_units)
        _must_be_literal(rules, call, "groups", x_units)
        multiplier = out.tensor.shape[channel] // groups
        if transposed:
            rules.union(x_units, w.axis(0), call, "its input channels are fixed")
            rules.fix([w.axis(1)], call, "depthwise with a multiplier")
            units = np.repeat(x_units, multiplier)
        else:
            rules.union(np.repeat(x_units, multiplier), w.axis(0), call, "its input channels are fixed")
            units = w.axis(0)
    else:  # the number of groups stays: the same channel goes from every group
        per_group = x_units.reshape(groups, -1)
        rules.union(per_group, per_group[:1], call, "its input channels are fixed")
        if transposed:
            rules.union(x_units, w.axis(0), call, "its input channels are fixed")
            units = np.tile(w.axis(1), groups)
        else:
            rules.union(per_group, w.axis(1)[None], call, "its input channels are fixed")
            units = w.axis(0)
            rules.union(units.reshape(groups, -1), units.reshape(groups, -1)[:1], call)
    if b is not None:
        rules.union(units, b.axis(0), call)
    if units.any():
        out.layers = [along(units, channel, out.tensor.dim())]


# -- norms --------------------------------------------------------------------------------------


def _batch_norm(rules: Rules, call: Call) -> None:
    """batch_norm, instance_norm: statistics and affine parameters a channel (dimension 1)."""
    x = call.arguments["input"]
    parts = {name: call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")}
    rules.use(call, parts, None)
    rules.fix(x.spanning(set(range(x.tensor.dim())) - {1}), call, "channels in a spatial dimension")
    for part in parts.values():
        if part is not None:
            rules.union(x.axis(1), part.axis(0), call, "its channels are fixed")
    call.results[0].layers = list(x.layers)


def _group_norm(rules: Rules, call: Call) -> None:
    """group_norm: the number of groups stays and every group gives the same channels; or one channel a group."""
    x, groups = call.arguments["input"], int(call.arguments["num_groups"])
    parts = {name: call.arguments.get(name) for name in ("weight", "bias")}
    rules.use(call, parts, None)
    rules.fix(x.spanning(set(range(x.tensor.dim())) - {1}), call, "channels in a spatial dimension")
    units = x.axis(1)
    if groups == len(units):
        rules.patch(call, "num_groups", None, units)
        _must_be_literal(rules, call, "num_groups", units)
    else:
        rules.union(units.reshape(groups, -1), units.reshape(groups, -1)[:1], call)
    for part in parts.values():
        if part is not None:
            rules.union(units, part.axis(0), call, "its channels are fixed")
    call.results[0].layers = list(x.layers)


def _layer_norm(rules: Rules, call: Call) -> None:
    """layer_norm, rms_norm over the last dimensions: affine parameters are tied to what they scale."""
    x, shape = call.arguments["input"], call.arguments["normalized_shape"]
    parts = [call.arguments.get(name) for name in ("weight", "bias")]
    rules.use(call, {"weight": parts[0], "bias": parts[1]}, None)
    rank = x.tensor.dim()
    layers = _broadcast(rules, call, [x, *(part for part in parts if part is not None)], rank)
    for position in range(len(shape)):
        dim = rank - len(shape) + position
        for layer in x.spanning({dim}):
            if spanned(layer) == {dim}:
                rules.follow(call, "normalized_shape", position, layer.reshape(-1))
    call.results[0].layers = layers


# -- embedding and reductions -------------------------------------------------------------------


def _embedding(rules: Rules, call: Call) -> None:
    """embedding(w, ids): w (tokens, width) -> (..., width)."""
    w = call.arguments["weight"]
    rules.use(call, {"weight": w}, ("weight", 1))
    rules.fix(w.spanning({0}), call, "one row is one token")
    out = call.results[0]
    units = w.axis(1)
    if units.any():
        out.layers = [along(units, -1, out.tensor.dim())]


def _embedding_bag(rules: Rules, call: Call) -> None:
    """embedding_bag(w, ids, ...): as embedding, then a mean, sum or maximum over the tokens."""
    w = call.arguments["weight"]
    rules.use(call, {"weight": w}, ("weight", 1))
    rules.fix(w.spanning({0}), call, "one row is one token")
    if w.axis(1).any():
        call.results[0].layers = [along(w.axis(1), -1, 2)]


def _reduce(rules: Rules, call: Call) -> None:
    """mean, sum, max...: over channels, a sum is one of those kept, and anything else must be part of a norm."""
    if "other" in call.arguments:  # max(a, b) and min(a, b) are elementwise
        _elementwise(rules, call)
        return
    x, reduced = _first(call), reduced_dims(call)
    rank = x.tensor.dim()
    for out in call.results:
        if call.kind not in _SUMS:
            out.statistic = x.spanning(reduced)
        if out.tensor.dim() == rank:
            out.layers = [layer for layer in x.layers if not spanned(layer) & reduced]
        else:
            kept = [dim for dim in range(rank) if dim not in reduced]
            out.layers = [
                layer.transpose([*kept, *reduced]).reshape([layer.shape[dim] for dim in kept])
                for layer in x.layers
                if not spanned(layer) & reduced
            ]


def reduced_dims(call: Call) -> set[int]:
    """The dimensions that a reduction takes together."""
    rank = _first(call).tensor.dim()
    dims = call.arguments.get("dim", call.arguments.get("dims"))
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % rank for dim in (dims if isinstance(dims, list) else [dims])}


def _along_one_dim(rules: Rules, call: Call) -> None:
    """softmax, cumsum...: mixes along one dimension, which must not hold the channels."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    rules.fix(x.spanning({dim}), call, "mixes the channels")
    call.results[0].layers = [layer for layer in x.layers if dim not in spanned(layer)]


def _softmax(rules: Rules, call: Call) -> None:
    """softmax, log_softmax: where it runs over the channels, it is one of those kept."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    if dim == x.tensor.dim() - 1 >= 3:  # (..., heads, queries, keys)
        rules.heads += [layer for layer in x.layers if spanned(layer) == {dim - 2}]
    call.results[0].layers = list(x.layers)


def _compare(rules: Rules, call: Call) -> None:
    """cosine_similarity(a, b, dim): a feature goes from both."""
    a, b = call.tensors[:2]
    rank = max(a.tensor.dim(), b.tensor.dim())
    dim = call.arguments["dim"] % rank
    layers = _broadcast(rules, call, [a, b], rank)
    call.results[0].layers = [np.squeeze(layer, dim) for layer in layers if dim not in spanned(layer)]


def _expand_as(rules: Rules, call: Call) -> None:
    """expand_as(x, other): what is the same everywhere along a dimension has the channels of the other there."""
    x, other = call.tensors[:2]
    rank = other.tensor.dim()
    own = [layer.reshape((1,) * (rank - layer.ndim) + layer.shape) for layer in x.layers]
    wide = {dim for dim in range(rank) if dim < rank - x.tensor.dim() or x.tensor.shape[dim - rank] == 1}
    call.results[0].layers = own + [layer for layer in other.layers if spanned(layer) <= wide]


def _spatial(rules: Rules, call: Call) -> None:
    """Pooling and resizing over the last dimensions, which must not hold the channels."""
    x, out = _first(call), call.results[0]
    count = next(int(c) for c in call.kind if c.isdigit())
    spatial = set(range(x.tensor.dim() - count, x.tensor.dim()))
    rules.fix(x.spanning(spatial), call, "channels in a spatial dimension")
    for result in call.results or [out]:
        result.layers = [layer for layer in x.layers if not spanned(layer) & spatial]


def _glu(rules: Rules, call: Call) -> None:
    """glu: the first half times the sigmoid of the second."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    units = x.axis(dim).reshape(2, -1)
    rules.fix([layer for layer in x.layers if len(spanned(layer)) > 1], call)
    rules.union(units[0], units[1], call)
    others = [layer for layer in x.layers if dim not in spanned(layer)]
    if len(units[0]) == 1:
        rules.fix([units], call, "leaves a single channel")
    halves = [along(units[0], dim, x.tensor.dim())] if len(units[0]) > 1 and units.any() else []
    call.results[0].layers = others + halves


# -- layout: operators that only move elements --------------------------------------------------


def _layout(rules: Rules, call: Call, operands: list[Tracked] | None = None) -> None:
    """Runs the operator itself on the labels, element for element, and reads where they went.

    Args:
        operands: the tensors that it moves; without any, all that it takes.
    """
    operands = call.tensors if operands is None else operands
    moved: list[list[torch.Tensor]] = []
    for dims in sorted({tuple(sorted(spanned(layer))) for t in operands for layer in t.layers}):
        full = {}
        for tracked in operands:
            fixed = np.zeros((1,) * tracked.tensor.dim(), dtype=np.int64)
            labels = next((layer for layer in tracked.layers if spanned(layer) == set(dims)), fixed)
            full[id(tracked)] = torch.from_numpy(np.broadcast_to(labels, tuple(tracked.tensor.shape)).copy())
        moved.append(run_on(call, full))
    for position, out in enumerate(call.results):
        out.layers = []
        for tensors in moved:
            layer = compressed(rules.units, tensors[position].numpy())
            if layer is None:
                continue
            if not spanned(layer):
                rules.fix([layer], call, "leaves a single channel")
                continue
            layer = _rectangular(rules, call, layer)
            if out.spanning(spanned(layer)):
                rules.fix([layer], call, "puts it in one dimension with others, whose slices go as a whole")
            if rules.frozen or not out.spanning(spanned(layer)):
                out.layers.append(layer)


def run_on(call: Call, replacements: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
    """The call again, with some of its tensors replaced: `id` of the `Tracked` -> what stands in for it."""

    def replaced(value: Any) -> Any:
        if isinstance(value, Tracked):
            return replacements.get(id(value), value.tensor)
        if isinstance(value, list):
            return [replaced(item) for item in value]
        return value

    schema = torch._C.parse_schema(call.node.schema())
    operator = torch._C._get_operation_overload(schema.name, schema.overload_name)[0]
    values = [(argument, replaced(call.arguments[argument.name])) for argument in schema.arguments]
    result = operator(
        *[value for argument, value in values if not argument.kwarg_only],
        **{argument.name: value for argument, value in values if argument.kwarg_only},
    )
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _rectangular(rules: Rules, call: Call, layer: Labels) -> Labels:
    """Labels along one dimension alone: what is kept of a tensor must be a box.

    Where a reshape splits channels over several dimensions, whole slices of one of them go together.
    A split of the last dimension is read as (heads, width), so heads go whole, or, of features into an
    image, as (channels, height, width); one of a middle dimension as (groups, channels), so the same
    channel goes from every group. Where that leads nowhere, `find_groups` makes another choice.
    """
    dims = sorted(spanned(layer))
    if len(dims) <= 1:
        return layer
    stacked = call.arguments["dim"] % layer.ndim if call.kind == "aten::stack" else layer.ndim
    removable = [known for t in call.tensors for known in t.layers if rules.units.roots(known).any()]
    before = {dim + (dim >= stacked) for known in removable for dim in spanned(known)}
    if call.kind in ("aten::cat", "aten::stack", "aten::index_put"):
        candidates = [next((dim for dim in dims if dim in before), dims[-1])]
    else:
        kept = dims[-1]
        if dims[-1] == layer.ndim - 1:
            kept = 1 if dims[0] == 1 and len(dims) > 2 else dims[-2]
        candidates = [kept, *(dim for dim in dims if dim != kept)]
    kept = candidates[rules.choices.get(call.index, 0) % len(candidates)]
    first = layer
    for dim in dims:
        if dim != kept:
            first = np.take(first, [0], axis=dim)
    rules.union(layer, first, call, "its channels spread over several dimensions")
    rules.splits.append(Split(call.index, first, len(candidates) - 1))
    return first if rules.frozen else rules.units.roots(first)


def _sized_layout(rules: Rules, call: Call) -> None:
    """view, reshape, expand...: a layout whose sizes may be written in the file."""
    _layout(rules, call)
    if call.kind == "aten::expand" and not rules.frozen:
        _spread(rules, call)
    _follow_sizes(rules, call)


def _spread(rules: Rules, call: Call) -> None:
    """What is the same along a dimension of written size can lose any part of it: it follows what it meets."""
    x, out = _first(call), call.results[0]
    new = out.tensor.dim() - x.tensor.dim()
    for dim, size in enumerate(out.tensor.shape):
        if size > 1 and (dim < new or x.tensor.shape[dim - new] == 1) and rules.is_written(call, "size", dim):
            out.layers.append(along(rules.units.make(size), dim, out.tensor.dim()))


def _follow_sizes(rules: Rules, call: Call) -> None:
    """Each size counts the channels of its dimension, or stays as it is though it was computed from channels."""
    name = next(n for n in ("size", "shape", "sizes") if n in call.arguments)
    offset = call.arguments["dim"] % _first(call).tensor.dim() if "dim" in call.arguments else 0
    channels = {dim: layer.reshape(-1) for layer in call.results[0].layers for dim in spanned(layer)}
    for position, size in enumerate(call.arguments[name]):
        dim = position + offset
        if size == -1:
            continue
        if dim in channels:
            rules.follow(call, name, position, channels[dim])
        else:
            rules.follow(call, name, position, _NO_UNITS, fixed=size)


def _slice(rules: Rules, call: Call) -> None:
    """slice(x, dim, start, end, step): along the channels, literal bounds count the kept before them."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    crossed = x.spanning({dim})
    if call.arguments["step"] != 1:
        rules.fix(crossed, call, "a stride over the channels")
    size = x.tensor.shape[dim]
    for layer in crossed:
        units = layer.reshape(-1)
        for name in ("start", "end"):
            bound = call.arguments[name]
            if bound is None or bound == 0 or bound >= size:
                continue
            if bound < 0:
                rules.fix([layer], call, "a bound counted from the end")
                continue
            rules.follow(call, name, None, units[:bound])
    _layout(rules, call)


def _split(rules: Rules, call: Call) -> None:
    """split, chunk: parts of equal size lose equally many; listed sizes follow what each part keeps."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    for layer in x.spanning({dim}):
        if spanned(layer) != {dim}:
            rules.fix([layer], call)
            continue
        units = layer.reshape(-1)
        sizes = call.arguments.get("split_sizes", call.arguments.get("split_size"))
        if isinstance(sizes, list):
            name = "split_sizes" if "split_sizes" in call.arguments else "split_size"
            for position, part in enumerate(np.split(units, np.cumsum(sizes)[:-1])):
                rules.follow(call, name, position, part)
            continue
        count = int(call.arguments["chunks"]) if sizes is None else math.ceil(len(units) / int(sizes))
        if len(units) % count:
            rules.fix([layer], call, "parts of unequal size")
            continue
        parts = units.reshape(count, -1)
        rules.union(parts, parts[:1], call)
        if sizes is not None:
            name = "split_size" if "split_size" in call.arguments else "split_size_or_sections"
            rules.follow(call, name, None, parts[0])
    _layout(rules, call)


def _index(rules: Rules, call: Call) -> None:
    """index, index_select: picks along some dimensions, and moves all others."""
    x = _first(call)
    if "dim" in call.arguments:
        picked = {call.arguments["dim"] % x.tensor.dim()}
    else:
        picked = {dim for dim, index in enumerate(call.arguments["indices"]) if index is not None}
    if any(tracked.tensor.dtype == torch.bool for tracked in call.tensors[1:]):  # a mask spans several
        picked = set(range(x.tensor.dim()))
    rules.fix(x.spanning(picked), call, "picks single channels")
    _layout(rules, call, [x])


def _select(rules: Rules, call: Call) -> None:
    """select, unbind: picking single channels fixes them."""
    x = _first(call)
    dim = call.arguments["dim"] % x.tensor.dim()
    rules.fix(x.spanning({dim}), call, "picks single channels")
    _layout(rules, call)


def _channel_shuffle(rules: Rules, call: Call) -> None:
    """channel_shuffle(x, groups): the number of groups stays, so the same channel goes from every group."""
    units = _first(call).axis(1).reshape(call.arguments["groups"], -1)
    rules.union(units, units[:1], call)
    _layout(rules, call)


def _roll(rules: Rules, call: Call) -> None:
    """roll: along the channels a shift would no longer end at the same ones."""
    x, dims = _first(call), call.arguments["dims"]
    rolled = set(range(x.tensor.dim())) if dims == [] else {dim % x.tensor.dim() for dim in dims}
    rules.fix(x.spanning(rolled), call, "shifts the channels")
    _layout(rules, call)


def _pixel_shuffle(rules: Rules, call: Call) -> None:
    """pixel_shuffle(x, r): r² neighbouring channels make one."""
    x, r = _first(call), call.arguments["upscale_factor"]
    units = x.axis(x.tensor.dim() - 3).reshape(-1, r * r)
    rules.union(units, units[:, :1], call)
    _layout(rules, call)


def _pad(rules: Rules, call: Call) -> None:
    """pad: other dimensions than the channels."""
    x, out = _first(call), call.results[0]
    padded = {d for d in range(x.tensor.dim()) if x.tensor.shape[d] != out.tensor.shape[d]}
    rules.fix(x.spanning(padded), call, "pads the channels")
    out.layers = [layer for layer in x.layers if not spanned(layer) & padded]


def _constant(rules: Rules, call: Call) -> None:
    """zeros, ones, full: the same everywhere, so a size that is written in the file follows what the tensor meets."""
    if rules.frozen:
        return
    out = call.results[0]
    for position, size in enumerate(call.arguments["size"]):
        if size > 1 and rules.is_written(call, "size", position):
            units = rules.units.make(size)
            rules.follow(call, "size", position, units)
            out.layers.append(along(units, position, out.tensor.dim()))


def _shape_only(rules: Rules, call: Call) -> None:
    """Reads only shape, type or device: nothing is tied."""


def _size(rules: Rules, call: Call) -> None:
    """size: nothing is tied, but what it counts may be channels."""
    if not rules.frozen:
        rules.note_size(call)


def _must_be_literal(rules: Rules, call: Call, argument: str, labels: Labels) -> None:
    if not rules.frozen and not is_static(call.input_value(argument)):
        rules.fix([labels], call, f"{argument} is computed")


def _element(value: Any, position: int, length: int) -> Any:
    """The graph value of one element of a list of this length; the list's own where it is not made of values."""
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return node.inputsAt(position)
    if node.kind() == "aten::add":  # as `x.size()[:-1] + [heads, width]`
        front, back = (made.node() for made in node.inputs())
        if back.kind() == "prim::ListConstruct" and position >= length - back.inputsSize():
            return back.inputsAt(position - length + back.inputsSize())
        if front.kind() == "prim::ListConstruct" and position < front.inputsSize():
            return front.inputsAt(position)
    return value


def _first(call: Call) -> Tracked:
    return call.tensors[0]


def _letters(count: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[:count]


def _kinds(names: str) -> set[str]:
    return {f"aten::{name}" for name in names.split()}


REDUCTIONS = _kinds(
    "mean sum amax amin prod std var std_mean var_mean norm linalg_vector_norm max min logsumexp median argmax"
)
SOFTMAX = _kinds("softmax log_softmax _softmax _log_softmax")
_SUMS = _kinds("sum norm linalg_vector_norm")
"""Reductions to which an element that is zero adds nothing."""
_OF_STATISTICS = _kinds(
    "add sub rsub mul div true_divide pow square sqrt rsqrt reciprocal neg abs clamp clamp_min maximum to float "
    "type_as _to_copy contiguous clone detach unsqueeze squeeze view reshape expand expand_as lerp addcmul"
)
"""What a norm does with a mean or a variance before it meets the channels."""
_SHAPES_READ = {*_kinds("size sym_size dim numel len"), "prim::device", "prim::dtype"}
_NO_UNITS: Labels = np.zeros(0, dtype=np.int64)
_COMPARISONS = _kinds("eq ne lt gt le ge")

Rule = Callable[[Rules, Call], None]


def nature(kind: str) -> Literal["elementwise", "layout", "layer"] | None:
    """What an operator is: one that computes each element by itself, only moves elements, or has weights and a bias."""
    rule = _RULES.get(kind.removesuffix("_"))
    if rule in (_unary, _elementwise):
        return "elementwise"
    if rule in (_linear, _convolution):
        return "layer"
    return "layout" if rule in _LAYOUTS else None


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(_kinds(names), rule)


_RULES: dict[str, Rule] = {
    **_named(
        _elementwise,
        "add sub mul div rsub where maximum minimum pow lerp addcmul addcdiv eq ne lt gt le ge logical_and logical_or "
        "masked_fill fmod remainder atan2 __and__ __or__ bitwise_and bitwise_or floor_divide type_as true_divide",
    ),
    **_named(
        _unary,
        "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus "
        "softsign logsigmoid log_sigmoid exp log sqrt rsqrt abs neg square sin cos erf clamp clamp_min clamp_max "
        "dropout feature_dropout alpha_dropout contiguous clone to detach alias logical_not threshold rrelu "
        "hardshrink softshrink tanhshrink float half double bfloat16 native_dropout reciprocal sign ceil floor round "
        "log1p expm1 nan_to_num isnan isinf fill _to_copy lift_fresh requires_grad",
    ),
    **_named(_shape_only, "dim numel len is_floating_point is_complex __is__ __isnot__ sym_size"),
    **{f"prim::{name}": _shape_only for name in ("device", "dtype", "layout", "is_nested", "requires_grad", "type")},
    **_named(_shape_only, "rand_like"),
    **_named(_constant, "zeros ones full empty new_zeros new_ones new_full new_empty"),
    **_named(_unary, "zeros_like ones_like full_like empty_like"),
    **RECURRENT,
    **_named(_shape_only, "is_nonzero Bool Int Float item any all isfinite"),
    "aten::size": _size,
    "aten::prelu": _prelu,
    "aten::linear": _linear,
    **_named(_matmul, "matmul mm bmm"),
    **_named(_addmm, "addmm baddbmm"),
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    **_named(
        _convolution,
        "_convolution _convolution_mode convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
        "conv_transpose3d",
    ),
    **_named(_batch_norm, "batch_norm instance_norm"),
    "aten::group_norm": _group_norm,
    **_named(_layer_norm, "layer_norm rms_norm"),
    "aten::embedding": _embedding,
    **_named(_embedding_bag, "embedding_bag _embedding_bag"),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(SOFTMAX, _softmax),
    **_named(_along_one_dim, "cumsum cumprod logcumsumexp sort argsort"),
    "aten::cosine_similarity": _compare,
    "aten::expand_as": _expand_as,
    **_named(
        _spatial,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d "
        "upsample_trilinear3d max_pool2d_with_indices max_pool1d_with_indices lp_pool2d "
        "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    ),
    **_named(_pad, "pad constant_pad_nd"),
    "aten::glu": _glu,
    **_named(_sized_layout, "view reshape expand unflatten _unsafe_view _reshape_alias"),
    **_named(
        _layout,
        "flatten squeeze unsqueeze permute transpose t numpy_T movedim swapaxes flip cat concat stack repeat "
        "view_as reshape_as pixel_unshuffle mT ravel unfold repeat_interleave",
    ),
    "aten::slice": _slice,
    **_named(_split, "split split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes"),
    **_named(_select, "select unbind"),
    **_named(_index, "index index_select"),
    "aten::pixel_shuffle": _pixel_shuffle,
    "aten::channel_shuffle": _channel_shuffle,
    "aten::roll": _roll,
}

_LAYOUTS = {_layout, _sized_layout, _slice, _split, _select, _channel_shuffle, _roll, _pixel_shuffle}
