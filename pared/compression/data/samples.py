"""A data set as columns in three splits, in memory or read as needed, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from pared.compression.data.columns import Column
from pared.compression.data.loader import Loader, ahead, loader_for
from pared.compression.tasks import TaskRules
from pared.compression.tasks.labels import IGNORED

_AHEAD = 3  # batches that are read before they are asked for

Split = Literal["train", "val", "test"]
Inputs = tuple[Tensor, ...]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""What data sets call them."""

NO_CLASS = 255
"""In a mask that is stored in bytes: a pixel that has no class."""


@dataclass(frozen=True)
class Scaling:
    """How stored bytes become inputs: `(x * scale - mean) / std`. Mean and std: (1, channels, 1, …)."""

    scale: float = 1.0
    mean: Tensor | None = None
    std: Tensor | None = None
    _there: dict[torch.device, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Scale float32 numbers in place, on their own device."""
        device = numbers.device
        if device not in self._there:  # sent once, for sending waits
            mean, std = (None if each is None else each.to(device) for each in (self.mean, self.std))
            self._there[device] = mean, std
        mean, std = self._there[device]
        if self.scale != 1:
            numbers.mul_(self.scale)
        if mean is not None:
            numbers.sub_(mean)
        if std is not None:
            numbers.div_(std)
        return numbers


@dataclass
class Data:
    """Samples with their targets. Training sees `train`, choices are made on `val`, `test` is only reported on."""

    inputs: dict[Split, list[Column]]
    """For each split one column for each input of the model, all (samples, …): float32, int64 token ids, or uint8,
    which becomes float32 when samples are taken."""
    targets: dict[Split, Column]
    """Classes: int64 (samples,), or (samples, …) for one at each position, −100 where there is none. Masks: uint8
    (samples, height, width), which become such classes when samples are taken. Numbers and labels of which several
    hold: float32 (samples, …), (samples, 1) for one number each. Without labels: (samples, 0)."""
    task: TaskRules
    classes: int | None
    """Number of classes; None for numbers."""
    splits: Literal["given", "by_seed"]
    """Whether the test split came with the data set or was drawn by seed."""
    format: str
    labelled: bool = True
    """Whether the data set has targets."""
    names: list[str] | None = None
    """Of the inputs, where the data set names them as a model may."""
    class_names: list[str] | None = None
    warnings: list[str] = field(default_factory=list)
    scaling: list[Scaling] = field(default_factory=list)
    """Of each input; without any, bytes stay as large as they are. Numbers in memory are scaled already, bytes and what
    is read as needed when they are taken."""
    padding: int | None = None
    """Of texts: the id that rows of tokens are padded by. Stored are then tokens, (samples, tokens), and how many of
    each row are no padding, (samples, 1); taken are tokens, cut to the longest of the batch, and their mask if
    `masked`."""
    masked: bool = False
    """Whether the model takes a mask of the tokens, int64 (samples, tokens) with 1 where there is a token."""
    vocabulary: int | None = None
    """Where a tokenizer came with the texts: one more than its highest id."""
    answers: Tensor | None = None
    """A teacher's answers to the training samples, which then end their inputs."""
    loaders: dict[str, Loader] = field(default_factory=dict)
    """Device -> what takes samples there; shared by all that are made from these samples."""

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""
        return len(self.targets[split])

    def order(self, split: Split, generator: torch.Generator | None = None) -> Tensor:
        """Indices of a split's samples in the order of `batches`: as stored, or shuffled by the generator."""
        count = self.samples(split)
        return torch.arange(count) if generator is None else torch.randperm(count, generator=generator)

    def spread(self, split: Split, most: int) -> Tensor:
        """Indices of at most so many samples of a split, evenly spaced, for stored samples may be in an order."""
        count = self.samples(split)
        return torch.linspace(0, count - 1, min(count, most)).round().long()

    def some(self, most: int) -> Data:
        """At most so many samples of each split, evenly spaced, in memory."""
        inputs: dict[Split, list[Column]] = {}
        targets: dict[Split, Column] = {}
        for split, columns in self.inputs.items():
            rows = self.spread(split, most)
            inputs[split] = [self._in_memory(index, column, rows) for index, column in enumerate(columns)]
            targets[split] = self.targets[split].index_select(0, rows)
        return replace(self, inputs=inputs, targets=targets)

    def _in_memory(self, index: int, column: Column, rows: Tensor) -> Tensor:
        taken = column.index_select(0, rows)
        as_stored = not isinstance(column, Tensor) and taken.is_floating_point() and bool(self.scaling)
        return self.scaling[index](taken.float()) if as_stored else taken

    def take(self, split: Split, indices: Tensor, *, cut: bool = True) -> tuple[Inputs, Tensor]:
        """`(inputs, targets)` of these samples. `cut`: whether texts are cut to the longest of them."""
        return self.finished([column.index_select(0, indices) for column in self.columns(split)], cut=cut)

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, targets)` of a split; the last batch may be smaller."""
        columns, order = self.columns(split), self.order(split, generator)
        rows = ([column.index_select(0, indices) for column in columns] for indices in torch.split(order, batch_size))
        in_memory = all(isinstance(column, Tensor) for column in columns)
        # Finished here, not by the thread that reads: torch would give it as many threads of its own as a step has.
        yield from map(self.finished, rows if in_memory else ahead(rows, _AHEAD))

    def example(self, batch: int = 2) -> Inputs:
        """The inputs of the first training samples, repeated where there are fewer than `batch`. Texts are not cut."""
        count = self.samples("train")
        return replace(self, answers=None).take("train", torch.arange(batch) % count, cut=False)[0]

    def taught(self, answers: Tensor) -> Data:
        """The same samples with a teacher's answers, (training samples, …), as their last input in training."""
        return replace(self, answers=answers)

    def on(self, device: str) -> Data | OnCard:
        """The same samples, whose batches lie on a device."""
        if torch.device(device).type == "cpu":
            return self
        if device not in self.loaders:
            self.loaders[device] = loader_for(device)
        return OnCard(self, self.loaders[device])

    def columns(self, split: Split) -> list[Column]:
        """All columns of a split as they are stored: inputs, answers where there are any, targets."""
        answers = [] if self.answers is None or split != "train" else [self.answers]
        return [*self.inputs[split], *answers, self.targets[split]]

    def finished(self, columns: Sequence[Tensor], *, cut: bool = True) -> tuple[Inputs, Tensor]:
        """`(inputs, targets)` of rows of `columns`: bytes become numbers, on the device where they are."""
        *inputs, targets = columns
        if self.padding is not None:
            return self._padded(inputs, targets, cut=cut)
        targets = self.labels(targets)
        return tuple(self._scaled(index, tensor) for index, tensor in enumerate(inputs)), targets

    def labels(self, stored: Tensor) -> Tensor:
        """Rows of targets as they are taken: of masks in bytes, int64."""
        return stored.long().masked_fill(stored == NO_CLASS, IGNORED) if stored.dtype == torch.uint8 else stored

    def _padded(self, inputs: Sequence[Tensor], targets: Tensor, *, cut: bool) -> tuple[Inputs, Tensor]:
        """Rows of tokens, cut to the longest of them, with labels of tokens cut alike."""
        tokens, lengths, *answers = inputs
        width = int(lengths.max()) if cut else tokens.shape[1]
        if targets.shape[1:] == tokens.shape[1:] and targets.dtype == torch.int64:
            targets = targets[:, :width]
        mask = [(torch.arange(width, device=lengths.device) < lengths).long()] if self.masked else []
        return (tokens[:, :width], *mask, *answers), targets

    def _scaled(self, index: int, rows: Tensor) -> Tensor:
        """Rows of the input of this index as they come to the model; the teacher's answers lie behind the inputs."""
        stored = self.inputs["train"]
        as_stored = index < len(stored) and not isinstance(stored[index], Tensor) and rows.is_floating_point()
        if rows.dtype != torch.uint8 and not as_stored:
            return rows
        return self.scaling[index](rows.float()) if self.scaling else rows.float()


class OnCard:
    """Samples whose batches lie on a card: the same ones in the same order as on the CPU."""

    def __init__(self, data: Data, loader: Loader) -> None:
        self._data, self._loader, self.padding = data, loader, data.padding

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""
        return self._data.samples(split)

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, targets)` of a split; the last batch may be smaller."""
        columns, order = self._data.columns(split), self._data.order(split, generator)
        return self._loader.batches(columns, order, batch_size, self._data.finished)

    def taught(self, answers: Tensor) -> OnCard:
        """As `Data.taught`."""
        return OnCard(self._data.taught(answers), self._loader)

    def on(self, _device: str) -> OnCard:
        """They are there."""
        return self
