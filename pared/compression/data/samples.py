"""A data set in memory: tensors in three splits, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
Task = Literal["classification", "regression"]
Inputs = tuple[Tensor, ...]


@dataclass
class Data:
    """Samples with their targets. Training sees `train`, choices are made on `val`, `test` is only reported on."""

    inputs: dict[Split, list[Tensor]]
    """For each split one tensor for each input of the model, all (samples, …): float32, or int64 token ids."""
    targets: dict[Split, Tensor]
    """Classes: int64 (samples,). Regression: float32 (samples, …), (samples, 1) for one number each."""
    task: Task
    classes: int | None
    """Number of classes; None for regression."""
    splits: Literal["given", "by_seed"]
    """Whether the test split came with the data set or was drawn by seed."""
    format: str
    class_names: list[str] | None = None
    warnings: list[str] = field(default_factory=list)

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""
        return len(self.targets[split])

    def order(self, split: Split, generator: torch.Generator | None = None) -> Tensor:
        """Indices of a split's samples in the order of `batches`: as stored, or shuffled by the generator."""
        count = self.samples(split)
        return torch.arange(count) if generator is None else torch.randperm(count, generator=generator)

    def take(self, split: Split, indices: Tensor) -> tuple[Inputs, Tensor]:
        """`(inputs, targets)` of these samples."""
        return tuple(tensor[indices] for tensor in self.inputs[split]), self.targets[split][indices]

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, targets)` of a split; the last batch may be smaller."""
        for indices in torch.split(self.order(split, generator), batch_size):
            yield self.take(split, indices)

    def example(self, batch: int = 2) -> Inputs:
        """The inputs of the first training samples, repeated where there are fewer than `batch`."""
        count = self.samples("train")
        return self.take("train", torch.arange(batch) % count)[0]
