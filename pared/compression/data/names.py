"""Puts a data set's inputs into the order of a model's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from pared.compression.data.samples import Data
from pared.errors import ShapeMismatch
from pared.wording import shortened

LEFT_OUT = "Arrays that are neither x nor y were left out"


def arrange_inputs(data: Data, arguments: Sequence[tuple[str, bool]] | None) -> None:
    """Take the inputs by the names of the model's arguments, where the data set has those, else as they are stored.

    Args:
        arguments: name of each, and whether it must be given; None: the model takes any number.

    Raises:
        ShapeMismatch: too few or too many inputs, or only some of the names are the model's.
    """
    if arguments is None:
        return
    names = data.names or []
    needed = [name for name, must in arguments if must]
    matched = [name for name, _ in arguments if name in names]
    if matched and set(needed) <= set(matched):
        taken = next((i for i, (name, _) in enumerate(arguments) if name not in names), len(arguments))
        _keep(data, [names.index(name) for name, _ in arguments[:taken]])
        return
    left_out = next((f" ({note[:-1]})" for note in data.warnings if note.startswith(LEFT_OUT)), "")
    count = len(data.inputs["train"])
    held = f"'s inputs are {shortened(names)}" if names else f" has {count} input{'s' * (count != 1)}{left_out}"
    takes = f"The model takes {shortened([name for name, _ in arguments])}; the data set{held}."
    if matched and any(names[i : i + 1] != [name] for i, (name, _) in enumerate(arguments) if name in matched):
        raise ShapeMismatch(f"{takes} Name every input as the model does, or store them in its order as x0, x1, ….")
    if not len(needed) <= len(data.inputs["train"]) <= len(arguments):
        raise ShapeMismatch(
            f"{takes} Give as many, under the model's names or in its order as x0, x1, …: arrays of an .npz or "
            ".safetensors, for all columns of a table are one input."
        )


def _keep(data: Data, order: Sequence[int]) -> None:
    """Keep the inputs of these indices, in this order, and say which were left out."""
    names = data.names or []
    left_out = [name for index, name in enumerate(names) if index not in order]
    if left_out:
        data.warnings.append(f"Inputs that the model has no argument for were left out: {shortened(left_out)}.")
    data.inputs = {split: [columns[index] for index in order] for split, columns in data.inputs.items()}
    data.scaling = [data.scaling[index] for index in order] if data.scaling else []
    data.names = [names[index] for index in order]
