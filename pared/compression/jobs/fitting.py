"""Holds a model against a data set before anything is trained: shapes, token ids, classes."""

from __future__ import annotations

from typing import Any

import torch

from pared.compression.data.columns import in_memory, token_range
from pared.compression.data.first_layer import refusal
from pared.compression.data.names import arrange_inputs
from pared.compression.data.samples import Data, Inputs, Split
from pared.compression.jobs.fitting_texts import fit_texts, too_long
from pared.compression.loading import LoadedModel, arguments_of, guess_example_inputs
from pared.compression.measuring.running import own_failures
from pared.errors import InvalidData, ModelFailed, ShapeMismatch
from pared.wording import listed


def answer_to(loaded: LoadedModel, data: Data) -> Any:
    """What the model returns for two samples, whatever it is.

    Inputs that the data set names as the model does are brought into the model's order.

    Raises:
        ShapeMismatch: the model takes other shapes.
        InvalidData: token ids beyond what the model has.
        ModelFailed: its forward raises for a reason of its own.
    """
    if data.padding is None:
        arrange_inputs(data, arguments_of(loaded))
    else:
        fit_texts(loaded, data)
    inputs = _extreme_samples(data)
    try:
        with torch.no_grad(), own_failures():
            return loaded.module(*inputs)
    except ModelFailed as error:
        raise _explained(loaded, data, inputs, error) from error


def check_fits(loaded: LoadedModel, data: Data) -> Any:
    """Run the model on two samples and compare what it takes and gives with what the data set holds.

    Inputs that the data set names as the model does are brought into the model's order, and targets into the shape of
    the model's output where only dimensions of 1 differ.

    Returns:
        What `answer_to` does.

    Raises:
        ShapeMismatch: the model takes or gives other shapes.
        InvalidData: labels or token ids beyond what the model has.
        ModelFailed: its forward raises for a reason of its own.
    """
    answer = answer_to(loaded, data)
    output = data.task.taken(answer, 2)
    if output.isnan().any():
        raise ModelFailed(
            "The model answers its data with NaN. Look for NaN among its weights, and whether the data must be scaled "
            "(`preprocess`); nothing can be measured or trained from there."
        )
    masks = {split: each for split, each in data.targets.items() if each.dtype == torch.uint8}
    if masks:  # as they are stored: their classes and sizes are known
        highest = (data.classes or 1) - 1
        data.task.fitted({split: torch.full((1, *each.shape[1:]), highest) for split, each in masks.items()}, output)
    else:
        targets = {split: in_memory(each) for split, each in data.targets.items()}
        data.targets.update(data.task.fitted(targets, output))
    return answer


def _extreme_samples(data: Data) -> Inputs:
    """Two training samples; of token ids, those with the highest and the lowest in any split."""
    rows: list[tuple[Split, int]] = [("train", 0), ("train", min(1, data.samples("train") - 1))]
    for index, column in enumerate(data.inputs["train"]):
        if column.dtype == torch.int64:
            found = [(split, token_range(columns[index])) for split, columns in data.inputs.items()]
            high, of_high = max(found, key=lambda each: each[1].high)
            low, of_low = min(found, key=lambda each: each[1].low)
            rows = [(high, of_high.high_row), (low, of_low.low_row)]
            break
    taken = [data.take(split, torch.tensor([row]), cut=False)[0] for split, row in rows]
    return tuple(torch.cat(parts) for parts in zip(*taken, strict=True))


def _explained(loaded: LoadedModel, data: Data, inputs: Inputs, error: ModelFailed) -> Exception:
    """Why the model did not run: ids beyond its table, other shapes, or a failure of its own."""
    tokens = [column for columns in data.inputs.values() for column in columns if column.dtype == torch.int64]
    if tokens and "index out of range" in error.detail:
        if (longer := too_long(loaded, data)) is not None:
            return longer
        ranges = [token_range(column) for column in tokens]
        low, high = min(each.low for each in ranges), max(each.high for each in ranges)
        return InvalidData(
            f"The token ids run from {low} to {high}, beyond what one of the model's embeddings holds. Encode the text "
            "with the vocabulary the model was trained with."
        )
    contents = _described(inputs, sum(map(len, data.targets.values())))
    refused = refusal(loaded.module, inputs)
    if refused is not None:
        return ShapeMismatch(f"The data set holds {contents}. {refused} {error.detail}")
    if (moved := _channels_first(inputs)) is not None and _runs_on(loaded, moved):
        names = ["x"] if len(inputs) == 1 else [f"x{each}" for each in range(len(inputs)) if inputs[each].dim() > 2]
        save = listed((f"numpy.moveaxis({name}, -1, 1) as {name}" for name in names), "and")
        return ShapeMismatch(
            f"The data set holds {contents}. The channels seem to come last, for the model runs on "
            f"{_described(moved, None)}: save {save}. {error.detail}"
        )
    ran = guess_example_inputs(loaded)
    if ran is not None and _described(ran, 0) != _described(inputs, 0):
        return ShapeMismatch(
            f"The model fails on the data set, which holds {contents}. Of the shapes tried in its place, it ran on "
            f"{_described(ran, None)}; others may do as well. {error.detail}"
        )
    return ModelFailed(f"The model fails on the data set, which holds {contents}. {error.detail}")


def _channels_first(inputs: Inputs) -> Inputs | None:
    """The inputs with the last dimension behind the batch; None where that changes none of them."""
    moved = tuple(each.movedim(-1, 1).contiguous() if each.dim() > 2 else each for each in inputs)
    return None if all(one.shape == other.shape for one, other in zip(moved, inputs, strict=True)) else moved


def _runs_on(loaded: LoadedModel, inputs: Inputs) -> bool:
    try:
        with torch.no_grad(), own_failures():
            loaded.module(*inputs)
    except ModelFailed:
        return False
    return True


def _described(inputs: Inputs, samples: int | None) -> str:
    shapes = []
    alike = len({tensor.dtype for tensor in inputs}) == 1
    for tensor in inputs:
        kind = "" if alike else " of numbers"
        sizes = ", ".join(["N" if samples is None else str(samples), *map(str, tensor.shape[1:])])
        shapes.append(f"({sizes})" + (kind if tensor.is_floating_point() else " of int64 token ids"))
    return " and ".join(shapes)
