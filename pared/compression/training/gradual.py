"""Gradual pruning: which steps of a training renew the masks, and the gradients that they are chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pared.compression.pruning.weights import Masks
from pared.specs import Train

_RENEW_EVERY = 40  # most steps between two masks of a ramp
_RENEWALS = 50  # fewest masks of a ramp that has so many steps
_REMEMBERED = 0.99  # of the mean square of gradients, from step to step


@dataclass(frozen=True)
class GradualSchedule:
    """Lets weights go while training runs, fast first and then ever slower. Zhu and Gupta 2017, arXiv:1710.01878.

    `masks`: from the module, whose gradients are of the current batch and for removed weights too, how far the ramp
    is, and slopes, to masks; 0 is its beginning and 1 its end. Slopes: parameter name -> the root of the running mean
    square of its gradients, of removed weights too; None unless `by_gradients`. `share`: of all steps of the run, over
    which it goes.
    """

    masks: Callable[[nn.Module, float, Mapping[str, Tensor] | None], Masks]
    share: float
    by_gradients: bool = False


class StepCount:
    """Counts the optimizer's steps of a run, and says what depends on the count.

    `ramp_ends`: the step that ends the ramp; -1 without one. `ready`: the last epoch that ends with the ramp
    unfinished; 0 without one.
    """

    def __init__(self, config: Train, samples: int, ramp: GradualSchedule | None) -> None:
        self.config = config
        size = config.batch_size
        # A last batch of one sample is left out; see `_train_epoch`.
        self.of_an_epoch = max(1, samples // size + (samples % size > min(1, size - 1)))
        self._all = self.of_an_epoch * config.epochs
        self.ramp_ends = -1 if ramp is None else min(round(ramp.share * self._all), self._all - 1)
        self._every = max(1, min(_RENEW_EVERY, self.ramp_ends // _RENEWALS))
        self.ready = max(0, self.ramp_ends) // self.of_an_epoch

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rate, warm = self.config.lr, self.config.warmup * self._all
        if step < warm:
            rate *= (step + 1) / (warm + 1)
        if self.config.lr_schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / self._all)) / 2
        return rate

    def renews(self, step: int) -> float | None:
        """How far the ramp is, where this step renews the masks."""
        if step > self.ramp_ends or (step % self._every and step != self.ramp_ends):
            return None
        return step / self.ramp_ends if self.ramp_ends else 1.0


class RunningGradients:
    """How steep the loss has lately been along each parameter: the mean square of its gradients, the last ones most."""

    def __init__(self, module: nn.Module, state: dict[str, Tensor] | None) -> None:
        """Args: state: of a checkpoint, to go on from."""
        self._parameters = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
        self._squares = {
            name: torch.zeros_like(tensor) if state is None else state[name].to(tensor)
            for name, tensor in self._parameters.items()
        }

    def add(self) -> None:
        """Take up the gradients of a step."""
        for name, parameter in self._parameters.items():
            square = self._squares[name].mul_(_REMEMBERED)
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad, value=1 - _REMEMBERED)

    def roots(self, steps: int) -> dict[str, Tensor]:
        """What a ramp is told after so many steps."""
        weight = 1 - _REMEMBERED**steps  # of all gradients so far; it comes to 1
        return {name: (square / weight).sqrt() for name, square in self._squares.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: square.clone() for name, square in self._squares.items()}
