"""Removes the residual blocks of the lowest scores from a model, and checks what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pared.compression.architectures import build, without_residuals
from pared.compression.coupling import Removed
from pared.compression.coupling.verify import Mismatch, compare, failing
from pared.compression.loading import LoadedModel
from pared.compression.names import matches, tensors, weight_layers
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.pruning.other_code import other_methods
from pared.compression.pruning.residual_blocks.blocks import ResidualBlock, ResidualBlocks, find_blocks, without_blocks
from pared.compression.pruning.residual_blocks.importance import block_scores
from pared.compression.pruning.residual_blocks.whole_layers import Layers, checked, find_layers
from pared.compression.pruning.schedules import Amounts
from pared.errors import ModelFailed, NothingToPrune, telling_line
from pared.specs import Criterion
from pared.wording import shortened


@dataclass(frozen=True)
class BlockRemoval:
    """A model without the removed blocks.

    `removed`: all indices of the first dimension of each removed tensor, in earlier steps too. `reasons`: layer name
    -> why no block could go with it. `units`: name -> 1 of each block that could be chosen; `removed_units`: how many
    were removed in this step.
    """

    loaded: LoadedModel
    removed: Removed
    reasons: dict[str, str]
    units: dict[str, int]
    removed_units: int


def remove_blocks(
    original: LoadedModel,
    current: nn.Module,
    example: Sequence[Tensor],
    *,
    amount: Amounts | float,
    criterion: Criterion = "magnitude",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    statistics: CalibrationStatistics | None = None,
    generator: torch.Generator | None = None,
    removed: Removed | None = None,
    uniform: bool = False,
) -> BlockRemoval:
    """Remove the `amount` lowest-scored residual blocks; the result is checked on the example.

    Args:
        original: the upload.
        current: what earlier steps made of it, whose weights the result has.
        example: the model's inputs, on CPU, in a batch of at least 2.
        amount: share of all blocks of the upload that match, those removed earlier included.
        statistics: for criteria that need data.
        removed: by earlier steps.
        uniform: of a model folder, take the whole layers that its config counts.

    Raises:
        NothingToPrune: no block can go; the detail says why, and what to do.
    """
    residual = _found(original, example, uniform=uniform)
    eligible, reasons = _eligible(original.module, residual, include, exclude)
    if not eligible:
        raise NothingToPrune(_none_removable(residual, reasons, include, exclude))
    removed_before = [block for block in residual.blocks if block.tensors[0] in (removed or {})]
    remaining = [block for block in eligible if block not in removed_before]
    share = amount.default if isinstance(amount, Amounts) else amount
    count = round(share * len(eligible)) - len(removed_before)
    if count < 1:
        raise NothingToPrune(
            f"An amount of {share:g} is less than one block here: {len(eligible)} residual blocks can be chosen from. "
            "Give a larger amount."
        )
    scores = block_scores(
        remaining,
        criterion,
        tensors(current),
        residual=residual,
        removed_before=removed_before,
        statistics=statistics,
        generator=generator,
    )
    chosen = [remaining[index] for index in scores.argsort(stable=True)[:count].tolist()]
    return _removal(original, current, example, residual, eligible, reasons, removed_before, chosen)


class RemovableBlocks:
    """The residual blocks of a model in the layers that they make up, found once, for removals of any number of them.

    Where blocks of the same shapes follow one another in turns, as attention and MLP of a transformer do, those of one
    turn are one layer; anything else is a layer of its own. `layers`: their names, in the order in which they run.
    """

    def __init__(self, loaded: LoadedModel, example: Sequence[Tensor]) -> None:
        """Find the blocks; of a model folder, the whole layers that its config counts.

        Args:
            example: the model's inputs, on CPU, in a batch of at least 2.

        Raises:
            NothingToPrune: there are none.
        """
        self._loaded, self._example = loaded, example
        self._residual = _found(loaded, example, uniform=True)
        self._blocks, self._reasons = _eligible(loaded.module, self._residual, ["*"], [])
        if not self._blocks:
            raise NothingToPrune(_refused(self._reasons))
        weights = tensors(loaded.module)
        shapes = [[tuple(weights[name].shape) for name in block.tensors] for block in self._blocks]
        turn = _turn(shapes)
        self._layers = [self._blocks[first : first + turn] for first in range(0, len(self._blocks), turn)]
        self.layers = [", ".join(block.name for block in layer) for layer in self._layers]

    def evenly(self, kept: int) -> list[int]:
        """Which layers go where so many stay: the first and the last stay, and those between at equal distances."""
        staying = torch.linspace(0, len(self.layers) - 1, kept).round().long().tolist()
        return [index for index in range(len(self.layers)) if index not in staying]

    def least_important(self, kept: int, statistics: CalibrationStatistics | None) -> list[int]:
        """Which layers go where so many stay: those that add the least to what passes by them.

        Args:
            statistics: of training samples; without them, those with the smallest weights go.
        """
        criterion = "magnitude" if statistics is None else "activation"
        scores = block_scores(
            self._blocks, criterion, tensors(self._loaded.module), residual=self._residual, statistics=statistics
        )
        of_layers = scores.reshape(len(self._layers), -1).sum(1)
        return sorted(of_layers.argsort(stable=True)[: len(self._layers) - kept].tolist())

    def without(self, layers: Sequence[int]) -> BlockRemoval:
        """The model without these layers, checked on the example; blocks that cannot go stay.

        Raises:
            NothingToPrune: none can go.
        """
        chosen = [block for index in layers for block in self._layers[index]]
        reasons = dict(self._reasons)
        module = self._loaded.module
        return _removal(self._loaded, module, self._example, self._residual, self._blocks, reasons, [], chosen)


def _turn(shapes: Sequence[Sequence[tuple[int, ...]]]) -> int:
    """How many blocks follow one another until the same shapes come again, throughout; 1 where they do not."""
    for turn in range(1, len(shapes) // 2 + 1):
        if len(shapes) % turn == 0 and all(one == other for one, other in zip(shapes, shapes[turn:], strict=False)):
            return turn
    return 1


def _removal(
    original: LoadedModel,
    current: nn.Module,
    example: Sequence[Tensor],
    residual: ResidualBlocks | Layers,
    eligible: Sequence[ResidualBlock],
    reasons: dict[str, str],
    removed_before: Sequence[ResidualBlock],
    chosen: Sequence[ResidualBlock],
) -> BlockRemoval:
    """The original without the chosen blocks, as far as they can go.

    Raises:
        NothingToPrune: none can.
    """

    def attempt(indices: list[int]) -> None:
        assert isinstance(residual, ResidualBlocks)  # noqa: S101 - layers are checked in another way
        attempted = [*removed_before, *(chosen[index] for index in indices)]
        try:
            expected = residual.runner.outputs_without(example, attempted)
        except ModelFailed as error:
            raise Mismatch(error.detail) from error
        try:
            smaller = _without(original, residual, attempted, original.module, example)
        except Exception as error:
            raise Mismatch(f"the model without it cannot be built: {telling_line(error)}") from error
        if not any(True for _ in smaller.module.parameters()):
            raise Mismatch("without it no weight would be left")
        compare(expected, example, smaller.module, "what they add")

    if isinstance(residual, Layers):
        chosen = _leaving_one(residual, removed_before, chosen)
        failed = checked(residual, chosen, example)
    else:
        failed = failing(len(chosen), attempt)
    for index, why in failed.items():
        reasons |= dict.fromkeys(chosen[index].layers, why)
    removed_now = [block for index, block in enumerate(chosen) if index not in failed]
    if not removed_now:
        raise NothingToPrune(_refused(reasons))
    return BlockRemoval(
        _without(original, residual, [*removed_before, *removed_now], current, example),
        _indices(original.module, [*removed_before, *removed_now]),
        reasons,
        {block.name: 1 for block in eligible},
        len(removed_now),
    )


def apply_block_removal(
    original: LoadedModel, example: Sequence[Tensor], removed: Removed, *, uniform: bool = False
) -> LoadedModel:
    """Replay a recorded removal on the same upload: how a resumed job gets its smaller model back."""
    residual = _found(original, example, uniform=uniform)
    blocks = [block for block in residual.blocks if block.tensors[0] in removed]
    return _without(original, residual, blocks, original.module, example)


def _found(original: LoadedModel, example: Sequence[Tensor], *, uniform: bool) -> ResidualBlocks | Layers:
    if uniform and original.folder is not None:
        return find_layers(original, original.folder)
    return find_blocks(original.module, example)


def _leaving_one(
    layers: Layers, before: Sequence[ResidualBlock], chosen: Sequence[ResidualBlock]
) -> list[ResidualBlock]:
    """Those of the chosen, lowest first, without which each stack has a layer left."""
    left = {field: len(names) for field, names in layers.widths.depths.items()}
    going = []
    for block in [*before, *chosen]:
        field = next(field for field, names in layers.widths.depths.items() if block.name in names)
        if left[field] > 1:
            left[field] -= 1
            going.append(block)
    return [block for block in going if block not in before]


def _without(
    original: LoadedModel,
    residual: ResidualBlocks | Layers,
    blocks: Sequence[ResidualBlock],
    current: nn.Module,
    example: Sequence[Tensor],
) -> LoadedModel:
    """The original without these blocks, with the weights of `current`."""
    if isinstance(residual, Layers):
        return residual.without(blocks, current, example)
    if original.format == "state_dict":
        architecture = without_residuals(original.architecture, [name for block in blocks for name in block.tensors])
        module: nn.Module = build(architecture)
        smaller = replace(original, module=module, architecture=architecture)
    else:
        script = without_blocks(residual.script, blocks)
        module = script if original.given is None else original.given.given_to(script)
        gone = [name for name in other_methods(original) if not name.startswith("__")]
        lost = [f"The result has forward alone: its methods {shortened(gone)} are gone."] if gone else []
        smaller = replace(original, module=module, inlined=True, lost=(*original.lost, *lost))
    state = current.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    module.eval()
    return smaller


def _indices(module: nn.Module, blocks: Sequence[ResidualBlock]) -> Removed:
    weights = tensors(module)
    names = [name for block in blocks for name in block.tensors if weights[name].dim()]
    return {name: {"0": list(range(len(weights[name])))} for name in names}


def _eligible(
    module: nn.Module, residual: ResidualBlocks | Layers, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[ResidualBlock], dict[str, str]]:
    """Blocks all of whose layers may be touched, and why the other layers stay."""
    reasons = (
        dict.fromkeys(weight_layers(module).values(), "it is in no residual block that could go") | residual.reasons
    )
    eligible = []
    for block in residual.blocks:
        barred = [layer for layer in block.layers if not matches([layer], include, exclude)]
        for layer in block.layers:
            reasons.pop(layer, None)
            if layer in barred:
                reasons[layer] = "left out by include/exclude"
            elif barred:
                reasons[layer] = f"it is in one block with {', '.join(barred)}, which include/exclude leaves out"
        if not barred:
            eligible.append(block)
    return eligible, reasons


def _none_removable(
    residual: ResidualBlocks | Layers, reasons: Mapping[str, str], include: Sequence[str], exclude: Sequence[str]
) -> str:
    if not residual.blocks:
        return _refused(reasons)
    return (
        f"All layers of a residual block must match include {list(include)} and exclude {list(exclude)}; those of none "
        f"do. The blocks are: {shortened([block.name for block in residual.blocks], 20, between='; ')}."
    )


def _refused(reasons: Mapping[str, str]) -> str:
    listed = shortened([f"{layer}: {reason}" for layer, reason in reasons.items()], between="; ") or "it has no weights"
    return (
        "No residual block, out = x + f(x) with both of the same shape, can be removed from this model "
        f"({listed}). Granularity `channel` makes other models smaller."
    )
