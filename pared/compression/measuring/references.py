"""Samples whose targets are the original model's answers: kept where they are few, else computed for each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.data.columns import Column
from pared.compression.data.samples import SPLITS, Data, Inputs, Split
from pared.compression.devices.placement import device_of, place
from pared.compression.measuring.running import EVALUATION_BATCH, Samples, answers, forward, unoptimized
from pared.compression.tasks import Match, TaskRules

KEPT_BYTES = 1 << 28
"""Most bytes of answers that are kept in memory beside the samples."""


def keeps_answers(task: TaskRules, module: nn.Module, data: Data, splits: tuple[Split, ...]) -> bool:
    """Whether a model's answers to all samples of these splits are few enough to be kept; otherwise it runs beside."""
    inputs = tuple(tensor.to(device_of(module)) for tensor in data.example())
    with torch.no_grad():
        numbers = forward(module, inputs, task)[:1].numel()
    return 4 * numbers * sum(data.samples(split) for split in splits) <= KEPT_BYTES


def with_references(data: Data, original: nn.Module, *, device: str = "cpu", beside: bool = False) -> Data:
    """The same samples with the original's answers as their targets.

    Args:
        data: whose task has references.
        original: in eval mode; it may be kept, and stays on the device.
        beside: never to keep answers, as where training changes its samples.
    """
    task = data.task
    place(original, device)
    if beside or not keeps_answers(task, original, data, SPLITS):
        of_data = {each.name: getattr(data, each.name) for each in fields(data)}
        return Referenced(**of_data, reference=Reference(original, task))
    targets: dict[Split, Column] = {
        split: answers(original, data, split, task, device=device).cpu() for split in SPLITS
    }
    return replace(data, targets=targets)


@dataclass(frozen=True)
class Reference:
    """What answers in the place of labels."""

    module: nn.Module
    task: TaskRules

    def beside(self, batches: Iterator[tuple[Inputs, Tensor]]) -> Iterator[tuple[Inputs, Tensor]]:
        """The same batches, with its answers as targets."""
        for inputs, _ in batches:
            yield inputs, self.answer(inputs)

    def answer(self, inputs: Inputs) -> Tensor:
        """Its answer to a batch, on the batch's device."""
        if device_of(self.module) != inputs[0].device:
            place(self.module, inputs[0].device)
        with torch.no_grad(), unoptimized():
            return forward(self.module, inputs, self.task)


@dataclass
class Referenced(Data):
    """Samples beside which the original runs."""

    reference: Reference = field(kw_only=True)

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, the original's answers)` of a split; the last batch may be smaller."""
        return self.reference.beside(super().batches(split, batch_size, generator))

    def plain(self) -> Data:
        """The same samples without answers."""
        return Data(**{each.name: getattr(self, each.name) for each in fields(Data)})

    def on(self, device: str) -> Any:
        """The same samples, whose batches lie on a device."""
        there = super().on(device)
        return self if there is self else ReferencedOnCard(there, self.reference)


class ReferencedOnCard:
    """Samples on a card, beside which the original runs there."""

    def __init__(self, samples: Samples, reference: Reference) -> None:
        self._samples, self.reference = samples, reference

    def plain(self) -> Samples:
        """The same samples without answers."""
        return self._samples

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""
        return self._samples.samples(split)

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, the original's answers)` of a split; the last batch may be smaller."""
        return self.reference.beside(self._samples.batches(split, batch_size, generator))

    def on(self, _device: str) -> ReferencedOnCard:
        """They are there."""
        return self


def held_outputs(data: Data, original: nn.Module, result: nn.Module, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """How far a result's outputs that no labels belong to are from the original's, over the test split.

    Args:
        original, result: in eval mode, on the CPU.
    """
    held = data.task.held
    assert isinstance(held, Match)  # noqa: S101 - the caller asks where there is one
    sums = []
    for inputs, _ in data.batches("test", EVALUATION_BATCH):
        with torch.no_grad(), unoptimized():
            reference, output = (forward(module, inputs, held) for module in (original, result))
        sums.append(held.condensed(output, reference).double().sum(0, keepdim=True)[:, 2:])
        tick()
    return held.of_outputs(torch.cat(sums).sum(0, keepdim=True))
