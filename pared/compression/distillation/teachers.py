"""Says what one teacher or several answer to samples: their mean, or for each sample the best one's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.distillation.kept_answers import KeptAnswers
from pared.compression.measuring.running import Samples, answers_of, forward
from pared.compression.tasks import TaskRules
from pared.compression.tasks.labels import IGNORED
from pared.compression.training.calibration import copied


@dataclass(frozen=True)
class Member:
    """One teacher: in eval mode, with the task of its own outputs, and how much it weighs."""

    module: nn.Module
    task: TaskRules
    weight: float = 1.0


@dataclass(frozen=True)
class Teachers:
    """One teacher or several, as one.

    `combine`: `mean` or `best`, as in a spec. `temperature`: at which the loss softens classes; None: it does not, and
    a mean is that of the outputs themselves. `kept`: how answers that are computed ahead are rounded and kept.
    """

    members: Sequence[Member]
    combine: Literal["mean", "best"] = "mean"
    temperature: float | None = None
    kept: KeptAnswers | None = None

    def answer(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """What they answer to a batch, without gradients, as `TaskRules.taken` gives outputs.

        Args:
            targets: by which the best is told.
        """
        with torch.no_grad():
            outputs = [forward(each.module, inputs, each.task) for each in self.members]
            if len(outputs) == 1:
                return outputs[0]
            if self.combine == "best":
                return best_of(outputs, targets, self.members[0].task)
            weights = [each.weight for each in self.members]
            return mean_of(outputs, weights, self.members[0].task, self.temperature)

    def answers(self, data: Samples, *, device: str, tick: Callable[[], None] = lambda: None) -> Tensor:
        """What they answer to all training samples in their stored order, on the device; many come to the CPU."""

        def compute() -> Tensor:
            return answers_of(self.answer, data, "train", device=device, tick=tick)

        return compute() if self.kept is None else self.kept.of(data, compute, device)

    def beside(self, device: str) -> Teachers:
        """The same on a device, where nobody else moves them on."""
        members = [replace(each, module=copied(each.module).eval()) for each in self.members]
        for each in members:
            place(each.module, device)
        return replace(self, members=members)


def mean_of(outputs: Sequence[Tensor], weights: Sequence[float], task: TaskRules, temperature: float | None) -> Tensor:
    """One output that stands for several: z with σ(z / T) = Σ_k w_k σ(z_k / T), Σ_k w_k = 1.

    σ is the softmax, or the sigmoid where each of the odds stands for itself. The softmax leaves a constant open: it is
    chosen such that the mean of z over classes is that of Σ_k w_k z_k (of two classes, that the first one is the same).
    Numbers, and odds that the loss does not soften, are averaged as they are. The mean of softened answers is that of
    Hinton et al. 2015 (arXiv:1503.02531), section 5.

    Args:
        outputs: of one shape, from each teacher.
        weights: above 0, one for each.
        temperature: T; None: the loss does not soften.
    """
    shares = [weight / math.fsum(weights) for weight in weights]
    plain = sum((share * output for share, output in zip(shares, outputs, strict=True)), torch.zeros_like(outputs[0]))
    if temperature is None or not task.softens:
        return plain
    logs = [math.log(share) for share in shares]
    softened = [output / temperature for output in outputs]
    if task.independent:
        holds, fails = (
            torch.stack([functional.logsigmoid(sign * z) + log for z, log in zip(softened, logs, strict=True)])
            for sign in (1, -1)
        )
        return temperature * (holds.logsumexp(0) - fails.logsumexp(0))
    dim = getattr(task, "class_dim", 1)
    mean = torch.stack([z.log_softmax(dim) + log for z, log in zip(softened, logs, strict=True)]).logsumexp(0)
    mean = temperature * mean
    if mean.shape[dim] == 2:
        offset = (plain - mean).narrow(dim, 0, 1)
    else:
        known = mean.isfinite() & plain.isfinite()
        offset = torch.where(known, plain - mean, 0.0).sum(dim, keepdim=True) / known.sum(dim, keepdim=True).clamp_min(
            1
        )
    return mean + torch.where(offset.isfinite(), offset, 0.0)


def best_of(outputs: Sequence[Tensor], targets: Tensor, task: TaskRules) -> Tensor:
    """For each sample the output whose loss on the label is the smallest; of equal ones, the first.

    Args:
        outputs: of one shape, (N, …), from each teacher.
        targets: of the task, for the same samples.
    """
    losses = torch.stack([_losses(output, targets, task) for output in outputs])
    chosen = losses.nan_to_num(nan=math.inf, posinf=math.inf).argmin(0)
    return torch.stack(list(outputs))[chosen, torch.arange(len(targets), device=chosen.device)]


def _losses(output: Tensor, target: Tensor, task: TaskRules) -> Tensor:
    """The loss of each sample, summed over its labels, (N,)."""
    rows, _ = task.rows(output, target)
    if not task.softens:
        losses = (rows - target.reshape(len(rows), -1)).square()
    elif target.is_floating_point():
        losses = functional.binary_cross_entropy_with_logits(rows, target.to(rows.dtype), reduction="none")
    elif task.independent:
        wanted = functional.one_hot(target, rows.shape[1]).to(rows.dtype)
        losses = functional.binary_cross_entropy_with_logits(rows, wanted, reduction="none")
    else:
        losses = functional.cross_entropy(rows, target.reshape(-1), ignore_index=IGNORED, reduction="none")
    return losses.reshape(len(target), -1).sum(1)
