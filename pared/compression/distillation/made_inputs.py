"""Makes up inputs for a distillation without data: by the statistics of the teacher's batch norms, or else of noise.

Behind a training a batch norm knows the mean and the variance of what came to it. Inputs that give the same ones
resemble the training samples in what the network looks at: Yin et al. 2020, arXiv:1912.08795 (DeepInversion), without
the terms that are for images alone, so that it serves any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import Call, Interpreter
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.compression.data import Data
from pared.compression.data.first_layer import embedding_of
from pared.compression.data.samples import Split
from pared.compression.loading import LoadedModel, arguments_of
from pared.compression.measuring.running import own_failures
from pared.compression.tasks import TaskRules

_STEPS = 60  # of Adam for each batch
_RATE = 0.1
_BATCH = 128
_VALIDATION = 0.2  # share of the made inputs by which the best epoch is told
_OF_CLASSES = 0.2  # weight of the term that wants all classes among the answers

NOISE = (
    "The job had no data: the student learned what the teacher answers to noise, which says little of what it answers "
    "to anything else, and nothing was measured. Such a student is seldom of use. A few hundred real samples, which "
    "need no labels, are worth far more: name a `dataset`."
)
INVERTED = (
    "The job had no data: the student learned what the teacher answers to made-up inputs that fit the statistics of "
    "{norms} of its batch norms. How well it does on real inputs is not known, for nothing was measured: measure it "
    "before use. Real samples, which need no labels, are worth far more: name a `dataset`."
)


@dataclass(frozen=True)
class MadeInputs:
    """Inputs of a model, (samples, …) each; and a sentence on what a result from them is worth."""

    inputs: list[Tensor]
    note: str


def made_data(made: MadeInputs, task: TaskRules) -> Data:
    """The inputs as samples without labels, of a task that needs none; nothing is to be measured by the test split.

    That split is the one of validation, for there must be one.
    """
    held_out = max(2, round(_VALIDATION * len(made.inputs[0])))
    parts: dict[Split, list[Tensor]] = {
        "train": [each[held_out:] for each in made.inputs],
        "val": [each[:held_out] for each in made.inputs],
        "test": [each[:held_out] for each in made.inputs],
    }
    return Data(
        inputs={split: list(columns) for split, columns in parts.items()},
        targets={split: torch.zeros(len(columns[0]), 0) for split, columns in parts.items()},
        task=task,
        classes=None,
        splits="by_seed",
        format="made",
        labelled=False,
        warnings=[made.note],
    )


def make_inputs(
    teacher: LoadedModel,
    example: Sequence[Tensor],
    samples: int,
    *,
    generator: torch.Generator,
    of_classes: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> MadeInputs:
    """Make up inputs of the teacher.

    Args:
        teacher: in eval mode, on the CPU.
        example: inputs of the shapes that are wanted, in a batch of at least 2.
        samples: how many.
        of_classes: whether the outputs (N, C) are odds of classes, of which all are then wanted alike.
        tick: called after each step.
    """
    names = [name for name, _ in arguments_of(teacher) or []]
    inputs = [
        _drawn(teacher.module, tensor, names[index] if index < len(names) else "", samples, generator)
        for index, tensor in enumerate(example)
    ]
    if not any(tensor.is_floating_point() for tensor in inputs):
        return MadeInputs(inputs, NOISE)
    matching = _Matching(teacher.module, example)
    norms = matching.norms(example)
    if not norms:
        return MadeInputs(inputs, NOISE)
    batches = zip(*(torch.split(tensor, _BATCH) for tensor in inputs), strict=True)
    fitted = [matching.fitted(batch, generator, of_classes=of_classes, tick=tick) for batch in batches]
    return MadeInputs([torch.cat(parts) for parts in zip(*fitted, strict=True)], INVERTED.format(norms=norms))


def _drawn(module: nn.Module, example: Tensor, name: str, samples: int, generator: torch.Generator) -> Tensor:
    """Noise: normal numbers, or token ids that the model's embedding holds; of a mask all ones."""
    shape = (samples, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator)
    if "mask" in name.lower():
        return torch.ones(shape, dtype=example.dtype)
    embedding = embedding_of(module)
    rows = 2 if embedding is None or "type" in name.lower() or "segment" in name.lower() else embedding[1]
    return torch.randint(0, rows, shape, generator=generator, dtype=example.dtype)


class _Matching:
    """Runs a model with gradients to its inputs, and compares what comes to its batch norms with what they know."""

    def __init__(self, module: nn.Module, example: Sequence[Tensor]) -> None:
        self._interpreter = Interpreter(scripted(module, example))
        self._distances: list[Tensor] = []

    def norms(self, example: Sequence[Tensor]) -> int:
        """How many batch norms with statistics there are; 0 where the graph cannot be followed with gradients."""
        try:
            leaves = [_leaf(tensor) for tensor in example]
            self._run(leaves)
            if not self._distances:
                return 0
            torch.stack(self._distances).sum().backward()  # type: ignore[no-untyped-call]
        except (UnsupportedGraph, RuntimeError):
            return 0
        return len(self._distances)

    def fitted(
        self, inputs: Sequence[Tensor], generator: torch.Generator, *, of_classes: bool, tick: Callable[[], None]
    ) -> list[Tensor]:
        """A batch whose numbers were moved to where the statistics are those that the batch norms know."""
        leaves = [_leaf(tensor) for tensor in inputs]
        optimizer = torch.optim.Adam([leaf for leaf in leaves if leaf.requires_grad], lr=_RATE)
        wanted: Tensor | None = None
        for _ in range(_STEPS):
            optimizer.zero_grad(set_to_none=True)
            answer = self._run(leaves)
            loss = torch.stack(self._distances).mean()
            if of_classes and isinstance(answer, Tensor) and answer.dim() == 2:
                if wanted is None:
                    wanted = torch.randint(0, answer.shape[1], (len(answer),), generator=generator)
                loss = loss + _OF_CLASSES * functional.cross_entropy(answer, wanted)
            if not math.isfinite(float(loss.detach())):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            tick()
        return [leaf.detach() for leaf in leaves]

    def _run(self, leaves: Sequence[Tensor]) -> object:
        """The model's answer; `_distances` are then those of its batch norms."""
        self._distances = []
        inputs = [leaf * 1 if leaf.requires_grad else leaf.clone() for leaf in leaves]  # a model may write on them
        with torch.enable_grad(), own_failures():
            answer = self._interpreter.run(inputs, lambda _, tensor: Tracked(tensor.detach()), self._visit)
        return answer.tensor if isinstance(answer, Tracked) else answer

    def _visit(self, call: Call) -> None:
        if call.kind != "aten::batch_norm":
            return
        given, mean, variance = (call.arguments[name] for name in ("input", "running_mean", "running_var"))
        if not isinstance(mean, Tracked) or not isinstance(variance, Tracked):
            return
        values = given.tensor.transpose(0, 1).flatten(1)
        scale = variance.tensor.clamp_min(1e-8)
        of_mean = (values.mean(1) - mean.tensor).square() / scale
        of_variance = (values.var(1, unbiased=False) / scale - 1).square()
        self._distances.append((of_mean + of_variance).mean())


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point())
