"""Runs a model on samples, and tells its own failures from others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs, Split
from pared.compression.devices.memory import BatchSize, ran_out_of_memory
from pared.compression.tasks import TaskRules
from pared.errors import ModelFailed, ParedError, telling_line

EVALUATION_BATCH = 256
_MOST_AT_ONCE = 4096
_INPUT_BYTES = 32 << 20  # of a batch that is scored on a card
_KEPT_BYTES = 1 << 30  # of outputs, on a card


class Samples(Protocol):
    """Where batches come from: `pared.compression.data.Data`, or what wraps it."""

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, targets)` of a split, shuffled where a generator is given."""

    def on(self, device: str) -> Samples:
        """The same samples, whose batches lie on a device."""


def forward(module: Callable[..., Any], inputs: Inputs, task: TaskRules) -> Tensor:
    """The output of the model that its task is about, such as the logits (N, classes) of a classification.

    Raises:
        ModelFailed: its own forward raised, or it returns something that the task cannot learn or score.
    """
    with own_failures():
        answer = module(*inputs)
    return task.taken(answer, len(inputs[0]))


@contextmanager
def own_failures() -> Iterator[None]:
    """Turns what a model's own code raises into ModelFailed. Running out of memory is told apart by others."""
    try:
        yield
    except ParedError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ModelFailed(f"The model's own code raised: {telling_line(error)}") from error


def unoptimized() -> AbstractContextManager[None]:
    """Runs TorchScript as it is written, without profile-guided plans.

    Those change the arithmetic after a model's first passes, so that a resumed run, which profiles anew, would differ
    in the last bits. Only for running: under it a module's `inlined_graph` is not inlined.
    """
    manager: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return manager


def predict(
    module: nn.Module,
    data: Samples,
    split: Split,
    task: TaskRules,
    *,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """What is kept for scoring of all outputs of a split in its stored order, and of its targets, on the CPU.

    Puts the module into eval mode.

    Args:
        tick: called after every batch, as a sign of life.

    Raises:
        OutOfMemory: not even one sample fits.
    """
    module.eval()

    def condensed(inputs: Inputs, target: Tensor) -> Tensor:
        return task.condensed(forward(module, inputs, task), target)

    outputs, targets = _collected(condensed, data, split, task.kept_targets, device, tick)
    return outputs.cpu(), targets.cpu()


def answers(
    module: nn.Module,
    data: Samples,
    split: Split,
    task: TaskRules,
    *,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """All outputs of a split in its stored order, on the device.

    Outputs of more than a card should hold come to the CPU. The module is run as it is, without gradients.
    """
    return answers_of(lambda inputs, _: forward(module, inputs, task), data, split, device=device, tick=tick)


def answers_of(
    answer: Callable[[Inputs, Tensor], Tensor],
    data: Samples,
    split: Split,
    *,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """As `answers`, of whatever gives an answer to the inputs and targets of a batch."""
    return _collected(answer, data, split, lambda each: each[:0], device, tick)[0]


def _collected(
    answer: Callable[[Inputs, Tensor], Tensor],
    data: Samples,
    split: Split,
    keep: Callable[[Tensor], Tensor],
    device: str,
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """What is made of the outputs and targets of each batch, one behind the other."""
    data = data.on(device)

    def run(size: int) -> tuple[Tensor, Tensor]:
        outputs, targets, kept = [], [], 0
        for inputs, target in data.batches(split, size):
            output = answer(inputs, target).float()
            kept += output.nbytes
            # Together at the end, so that no batch waits for the card.
            outputs.append(output if kept <= _KEPT_BYTES else output.cpu())
            targets.append(keep(target))
            tick()
        if kept > _KEPT_BYTES:
            outputs = [output.cpu() for output in outputs]
        return torch.cat(outputs), torch.cat(targets)

    samples = data.samples(split)
    with torch.no_grad(), unoptimized():
        return BatchSize(_evaluation_batch(data, split, device)).run(run, samples, "run the model")


def _evaluation_batch(data: Samples, split: Split, device: str) -> int:
    """How many samples are scored at once: more on a card, which small batches leave idle."""
    if torch.device(device).type == "cpu":
        return EVALUATION_BATCH
    inputs, _ = next(iter(data.batches(split, EVALUATION_BATCH)))
    sample_bytes = sum(tensor[:1].nbytes for tensor in inputs)
    return max(EVALUATION_BATCH, min(_MOST_AT_ONCE, _INPUT_BYTES // max(sample_bytes, 1)))
