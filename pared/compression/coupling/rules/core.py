"""Keeps the registry of rules, and `LabelTracker`, with which a rule ties units, fixes them and notes sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pared.compression.coupling.interpreter import Call, is_constant, is_static
from pared.compression.coupling.labels import NO_UNITS, Labels, Tracked, Units, spanned
from pared.compression.coupling.model import Edit, LayerUse, Patch, Split
from pared.compression.coupling.python_values import spoken

Nature = Literal["elementwise", "layout", "layer"]
"""What an operator is: one that computes each element by itself, only moves elements, or has weights and a bias."""


# -- the registry -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What an operator does to labels. `apply` sets the label layers of the call's results.

    `also_without_labels`: it is applied even where no tensor of the call has labels; others are not.
    """

    apply: Callable[[LabelTracker, Call], None]
    nature: Nature | None = None
    also_without_labels: bool = False


RULES: dict[str, Rule] = {}
"""Operator, such as `aten::relu` -> its rule. Operators that write in place have the rule of those that do not."""


def rule(
    operators: str | Collection[str], *, nature: Nature | None = None, also_without_labels: bool = False
) -> Callable[[Callable[[LabelTracker, Call], None]], Callable[[LabelTracker, Call], None]]:
    """Register the function below as the rule of these operators.

    Args:
        operators: names with spaces between them; those without a namespace are torch's own, `aten`.

    Raises:
        ValueError: one of them has a rule already.
    """

    def register(apply: Callable[[LabelTracker, Call], None]) -> Callable[[LabelTracker, Call], None]:
        for operator in operator_names(operators) if isinstance(operators, str) else operators:
            if operator in RULES:
                raise ValueError(f"{operator} has two rules: {RULES[operator].apply.__name__} and {apply.__name__}")
            RULES[operator] = Rule(apply, nature, also_without_labels)
        return apply

    return register


def operator_names(names: str) -> set[str]:
    """Operators, named with spaces between them, with their namespaces."""
    return {name if "::" in name else f"aten::{name}" for name in names.split()}


def rule_of(kind: str) -> Rule | None:
    """The rule of an operator, or of the one that it is when it writes in place."""
    return RULES.get(kind if kind.endswith("__") else kind.removesuffix("_"))


def nature(kind: str) -> Nature | None:
    """What an operator is, as far as its rule says."""
    registered = RULES.get(kind.removesuffix("_"))
    return None if registered is None else registered.nature


# -- what rules do ------------------------------------------------------------------------------


class LabelTracker:
    """Carries labels through one run of a graph, and gathers what its calls say of them.

    Args:
        units: the union-find to write to. With `frozen`, nothing is merged or noted any more: labels
            are only carried along, which is how a reference run knows which elements are removed.
        choices: index of a node that splits channels -> which of the dimensions that units could be slices of.
        not_zero: nodes that are given something else than zeros for what is removed.
        loose: nodes of layers in groups whose groups are tied at the end alone, and only if they must be.
    """

    def __init__(
        self,
        units: Units,
        *,
        frozen: bool = False,
        choices: Mapping[int, int] | None = None,
        loose: Collection[int] = (),
        not_zero: Collection[int] = (),
    ) -> None:
        self.units = units
        self.frozen = frozen
        self.loose = loose
        self.not_zero = not_zero
        self.choices = choices or {}
        self.splits: list[Split] = []
        # Of products of activations: what each has one of, as a head of attention, and what each sums over.
        self.heads: list[Labels] = []
        self.widths: list[Labels] = []
        self.patches: dict[tuple[int, int, int | None], Patch] = {}
        self.uses: dict[str, LayerUse] = {}
        self.out_axes: dict[tuple[str, int], None] = {}  # a set in order
        self._channel_sizes: set[str] = set()
        self._sizes: dict[str, Tracked] = {}  # name of a list of sizes -> whose they are
        self._statistics: dict[int, tuple[Labels, Call, int]] = {}  # `id` of a statistic's layer -> what made it
        self.averaged: list[Labels] = []
        self.balanced: list[tuple[Labels, Call]] = []
        self.shuffled: dict[str, tuple[Tracked, tuple[int, ...]]] = {}  # see `shuffle.py`
        self._products: dict[str, Call] = {}

    def union(self, a: Labels, b: Labels, call: Call, why: str = "ties them to channels that stay") -> None:
        """Tie units together: a[i] with b[i], shapes broadcast. `why`: what it means where one of them is fixed."""
        if not self.frozen:
            self.units.union(a, b, self.reason(call, why))

    def fix(self, layers: Iterable[Labels], call: Call, why: str = "takes them in a form that is not followed") -> None:
        """Fix the units of these layers: they can never be removed, for what this call does to them, `why`."""
        if not self.frozen:
            for layer in layers:
                self.units.fix(layer, self.reason(call, why))

    def balance(self, groups: Labels, call: Call) -> None:
        """Tie what makes the groups of a layer, shape (groups, n): each must lose as many.

        The same of each group go together. Where that has tied all of them, `find_groups` asks for another reading:
        that later ties let each unit have as many members in one group as in any other.
        """
        if not self.frozen:
            self.balanced.append((groups, call))
            if call.index not in self.loose:
                self.union(groups, groups[:1], call, _GROUPS)

    def settle(self) -> None:
        """After the run: tie the groups that were left loose, unless each unit has as many members in each of them."""
        loose = [(groups, call) for groups, call in self.balanced if call.index in self.loose]
        while loose:
            uneven = [each for each in loose if not self._is_even(each[0])]
            for groups, call in uneven:
                self.union(groups, groups[:1], call, _GROUPS)
            if not uneven:
                return
            loose = [each for each in loose if all(each is not tied for tied in uneven)]

    def _is_even(self, groups: Labels) -> bool:
        members = np.sort(self.units.roots(groups), axis=1)
        return bool((members == members[:1]).all())

    def patch(
        self,
        call: Call,
        argument: str,
        element: int | None,
        labels: Labels,
        *,
        fixed: float = 0,
        computed: bool = False,
        edit: Edit = "number",
        dtype: torch.dtype | None = None,
        positions: Sequence[int] = (),
        dim: int = 0,
    ) -> None:
        """Note that a number of this call, or one in a list, counts these units and `fixed` more; see `Patch`.

        Args:
            edit, dtype, positions, dim: of what is no plain number, as `Patch` has them.
        """
        if self.frozen:
            return
        names = list(call.arguments)
        key = (call.index, names.index(argument), element)
        if key in self.patches:  # a node in a loop: each turn must count the same
            if self.patches[key].labels.shape == labels.shape:
                self.union(self.patches[key].labels, labels, call)
            else:
                self.fix([self.patches[key].labels, labels], call, "runs in a loop, each time with other channels")
            return
        length = 0 if element is None else len(call.arguments[argument])
        if edit == "places":
            length = call.arguments[argument].tensor.dim()
        self.patches[key] = Patch(*key, labels, fixed, computed, length, edit, dtype, tuple(positions), dim)

    def follow(self, call: Call, argument: str, element: int | None, labels: Labels, *, fixed: float = 0) -> None:
        """Let a number of this call count units, unless it follows by itself, as the size of a batch does."""
        if self.frozen:
            return
        value = self.written(call, argument, element)
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

    def follow_tensor(self, call: Call, argument: str) -> None:
        """Let a number in a tensor, as traced files compute with sizes, stay as it is though it counts channels."""
        value, number = call.input_value(argument), call.arguments[argument].tensor
        if self.frozen or is_static(value) or not is_static(value, self._channel_sizes) or _holds_a_weight(value):
            return
        self.patch(call, argument, None, NO_UNITS, fixed=number.item(), computed=True, dtype=number.dtype)

    def is_constant(self, value: Any) -> bool:
        """Whether a tensor of the graph is the same for all inputs of one model, such as a buffer or a range."""
        return is_constant(value, self._channel_sizes)

    def note_statistics(self, call: Call, layers: Iterable[Labels], result: int) -> list[Labels]:
        """Layers of the units that a reduction takes together, for the `statistic` of its result of this number."""
        noted = [layer.copy() for layer in layers]
        if not self.frozen:
            self._statistics |= {id(layer): (layer, call, result) for layer in noted}
        return noted

    def count_removed_as_zeros(self, statistics: Iterable[Labels], why: str) -> None:
        """Means and the like that are more than part of a norm: let them count what is removed as zeros.

        Where that is not known how, their units stay, for `why`.
        """
        for layer in [] if self.frozen else statistics:
            _, call, result = self._statistics[id(layer)]
            edit = MAY_COUNT_ZEROS.get(call.kind) if result == 0 and call.index not in self.not_zero else None
            if edit is None or len(spanned(layer)) != 1:
                self.units.fix(layer, why)
                continue
            self.patch(call, next(iter(call.arguments)), None, layer.reshape(-1), edit=edit)
            self.averaged.append(layer.reshape(-1))

    def is_written(self, call: Call, argument: str, element: int | None) -> bool:
        """Whether an int of this call is written in the file, or computed from a number of channels."""
        return is_static(self.written(call, argument, element), self._channel_sizes)

    @staticmethod
    def written(call: Call, argument: str, element: int | None) -> Any:
        """The graph value of an int, or of one in a list."""
        value = call.input_value(argument)
        return value if element is None else _element(value, element, len(call.arguments[argument]))

    def must_be_literal(self, call: Call, argument: str, labels: Labels) -> None:
        """Fix these units where a number that counts them is computed, so that no literal can follow them."""
        if not self.frozen and not is_static(call.input_value(argument)):
            self.fix([labels], call, f"its {argument} are computed while the model runs")

    def note_product(self, call: Call) -> None:
        """Remember a product of sizes: where a number follows channels, so do its factors."""
        self._products[call.node.output().debugName()] = call

    def note_size(self, call: Call) -> None:
        """Remember the size of a dimension that holds channels: what is computed from it counts channels too."""
        x = call.tensors[0]
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

    def keep_answer(self, call: Call) -> None:
        """Let a comparison of a number of channels (mostly an assertion) give the answer that the original gets."""
        for argument, value in call.arguments.items():
            if isinstance(value, int) and not isinstance(value, bool):
                self.follow(call, argument, None, NO_UNITS, fixed=value)
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
            kind = call.kind.split("::")[1].lstrip("_")
            self.uses[layer] = LayerUse(layer, kind, shapes, axis, channels if axis else None)

    def makes_channels(self, weight: Tracked, dim: int) -> None:
        """Note that this dimension of a parameter makes output channels: what it holds is what they are scored by."""
        if not self.frozen and weight.name:
            self.out_axes[weight.name, dim] = None

    @staticmethod
    def reason(call: Call, why: str) -> str:
        """What an operator does to channels, as inspections and reports say it."""
        return f"{spoken(call.kind)}: {why}"


_GROUPS = "each of its groups must lose as many channels"

MAY_COUNT_ZEROS: Mapping[str, Edit] = {
    "aten::mean": "mean",
    "aten::max": "largest",
    "aten::amax": "largest",
    "aten::min": "smallest",
    "aten::amin": "smallest",
}
"""Reductions that can be made to count zeros for what is removed."""


def _holds_a_weight(value: Any) -> bool:
    """Whether a tensor of the model has a part in this value: it may be trained."""
    node = value.node()
    if node.kind() == "prim::GetAttr":
        return isinstance(value.type(), torch._C.TensorType)
    return node.kind() != "aten::size" and any(_holds_a_weight(each) for each in node.inputs())


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
