"""Draws the validation and test splits that a data set does not bring."""

from __future__ import annotations

import torch
from torch import Tensor

from pared.compression.data.columns import Column, StoredColumn, part_of
from pared.compression.data.samples import SPLITS, Split
from pared.errors import InvalidData

HELD_OUT = 0.15
"""Share of the samples that validation and test each get where the data set brings no split of its own."""
MIN_SAMPLES = 10


def draw_missing(
    inputs: dict[Split, list[StoredColumn]], targets: dict[Split, Column], seed: int, *, by_class: bool
) -> None:
    """Draw the splits that were not given from the training samples, by seed alone.

    Args:
        by_class: whether targets are classes, of which every split gets its share.

    Raises:
        InvalidData: too few samples.
    """
    total = len(inputs["train"][0])
    missing: list[Split] = [split for split in ("val", "test") if split not in inputs]
    if missing:
        if total < MIN_SAMPLES:
            raise InvalidData(
                f"The data set has {total} training sample{'s' * (total != 1)}; at least {MIN_SAMPLES} are needed to "
                "hold some out for validation and test."
            )
        size = max(2, round(HELD_OUT * total))
        shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        order = _in_proportion(targets["train"], shuffled) if by_class else shuffled
        ends = [total - size * len(missing) + size * i for i in range(len(missing))]
        parts = torch.tensor_split(order, ends)
        kept: dict[Split, Tensor] = dict(zip(("train", *missing), parts, strict=True))
        source, labels = inputs["train"], targets["train"]
        for split, part in kept.items():
            indices = part.sort().values
            inputs[split] = [column.part(indices) for column in source]
            targets[split] = part_of(labels, indices)
    for split in SPLITS:
        if len(targets[split]) < 2:
            raise InvalidData(f"The {split} split has {len(targets[split])} sample: at least 2 are needed.")


def _in_proportion(targets: Column, shuffled: Tensor) -> Tensor:
    """The shuffled samples in an order any run of which holds the classes in equal proportions."""
    labels = targets.index_select(0, shuffled)
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.empty(len(labels), dtype=torch.float64)
    # Sample number r of the n of its class goes to the place (r + ½) / n.
    ranks = torch.arange(len(labels)) - starts[labels[by_class]]
    rank[by_class] = (ranks.double() + 0.5) / counts[labels[by_class]]
    return shuffled[rank.argsort(stable=True)]
