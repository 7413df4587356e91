"""Numbers classes that data name by words as the model numbers them, where it names its classes too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pared.compression.loading.file_format import folder_entries
from pared.compression.loading.folders.contents import read_contents, tokenizer_in
from pared.compression.tasks.labels import IGNORED
from pared.compression.work import DatasetFile
from pared.wording import shortened


def read_as_by(folder: Path, dataset: DatasetFile) -> DatasetFile:
    """A data set for a model folder, which lies there as a zip: with its tokenizer and the names of its classes."""
    config = read_contents(folder, folder_entries(folder)).config
    return replace(dataset, tokenizer=tokenizer_in(folder), classes=names_in(config))


def names_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the config of a model folder calls the model's classes, in the order of its outputs; () if it names none."""
    named = config.get("id2label")
    if not isinstance(named, Mapping):
        return ()
    by_number = {str(number): str(name) for number, name in named.items()}
    names = tuple(by_number.get(str(number), "") for number in range(len(by_number)))
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return () if unnamed or not all(names) else names


def as_the_model(targets: Mapping[Any, Tensor], words: Sequence[str], names: Sequence[str]) -> dict[Any, Tensor] | None:
    """Classes that are indices of `words` as indices of the model's `names`; None where it does not know them all."""
    exact = {name: number for number, name in enumerate(names)}
    folded = {name.casefold(): number for number, name in enumerate(names)}
    known = exact if all(word in exact for word in words) else folded
    keys = words if known is exact else [word.casefold() for word in words]
    if any(target.dtype != torch.int64 for target in targets.values()):
        return None  # labels of which several hold
    if len(known) < len(names) or len(set(keys)) < len(words) or any(key not in known for key in keys):
        return None
    numbers = torch.tensor([known[key] for key in keys])

    def renumbered(target: Tensor) -> Tensor:
        return torch.where(target == IGNORED, target, numbers[target.clamp_min(0)])

    return {split: renumbered(target) for split, target in targets.items()}


def numbered_by_alphabet(words: Sequence[str], names: Sequence[str]) -> str:
    """What a report says of words that the model does not name so."""
    order = shortened([f"{number} = {word}" for number, word in enumerate(words)], 8)
    calls = f" The model calls its classes {shortened(names, 8)}." if names else ""
    return (
        f"The labels are words, which were numbered in alphabetical order: {order}.{calls} If the model was trained "
        "with another order, its scores and what it learns here are wrong: give the labels as the model's own numbers."
    )
