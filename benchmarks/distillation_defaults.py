"""What the defaults of distillation are chosen by, on held-out samples: losses and trainings of quarter-width students.

Many small students train in one process at once, as one batched network (`torch.func`), each with its own teacher, order
of samples, loss and learning rate; formulas, schedule and choice of the epoch are those of `pared.compression`. All
students of a seed start from the same weights: those that pared leaves when it cuts the teacher to a quarter of its
width, or fresh ones. Samples that nothing was trained or chosen by judge them. `make bench-distillation-defaults`; an
interrupted run goes on where it stopped: results are kept in `build/bench-distillation-defaults`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept
from taught_networks import KINDS, Kind
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels

WORK = Path("build/bench-distillation-defaults")
BATCH = 64


@dataclass(frozen=True)
class Lesson:
    """(1 − labels) · (alpha · squared distance + (1 − alpha) · T² · KL) + labels · cross-entropy."""

    alpha: float
    temperature: float
    labels: float

    def __str__(self) -> str:
        """As the table has it."""
        if self.labels == 1:
            return "labels alone"
        if self.alpha == 1:
            return "squared distance"
        return f"α {self.alpha:g}, T {self.temperature:g}, labels {self.labels:g}"


ALONE = Lesson(0, 1, 1)
LESSONS = [
    ALONE,
    Lesson(1, 1, 0),
    Lesson(0.5, 4, 0),
    *(Lesson(0, temperature, labels) for temperature in (2, 4, 8) for labels in (0, 0.1, 0.5)),
    Lesson(0, 1, 0),
]


# -- many networks at once -----------------------------------------------------------------------


class Many:
    """Networks of one form, trained together on data of their own.

    Args:
        modules: the networks as they start.
        splits: of each the arrays of its splits.
    """

    def __init__(self, modules: Sequence[nn.Module], splits: Sequence[dict[str, np.ndarray]]) -> None:
        self._form = modules[0]
        states = [module.state_dict() for module in modules]
        self.parameters = {name: torch.stack([each[name] for each in states]).requires_grad_() for name in states[0]}
        kinds = {id(each): each for each in splits}
        self._data = {
            name: torch.stack([torch.from_numpy(each[name]) for each in kinds.values()]) for name in splits[0]
        }
        positions = {key: index for index, key in enumerate(kinds)}
        self._of = torch.tensor([positions[id(each)] for each in splits])

    def __call__(self, x: Tensor) -> Tensor:
        """(networks, samples, …) to (networks, samples, classes)."""
        return vmap(lambda parameters, x: functional_call(self._form, parameters, (x,)))(self.parameters, x)

    def answers(self, split: str) -> Tensor:
        """Of each network the answers to its own split."""
        with torch.no_grad():
            return torch.cat([self(part) for part in self._data[f"x_{split}"][self._of].split(500, 1)], 1)

    def errors(self, split: str) -> tuple[Tensor, Tensor]:
        """Of each network the error in percent and the cross-entropy."""
        answers, y = self.answers(split), self._data[f"y_{split}"][self._of]
        wrong = (answers.argmax(2) != y).double().mean(1) * 100
        return wrong, functional.cross_entropy(answers.transpose(1, 2), y, reduction="none").mean(1)

    def fit(
        self,
        lessons: Sequence[Lesson],
        teacher: Tensor,
        rates: Sequence[float],
        seeds: Sequence[int],
        epochs: int,
        warmup: float,
        schedule: str,
    ) -> Tensor:
        """Train by Adam; each network ends with the weights of its best epoch on validation, whose number is returned.

        Args:
            teacher: (networks, training samples, classes) what the teacher answers.
        """
        count = self._data["x_train"].shape[1]
        of_an_epoch = math.ceil(count / BATCH)
        rising = round(warmup * of_an_epoch * epochs)
        names = list(self.parameters)
        moments = {
            name: (torch.zeros_like(self.parameters[name]), torch.zeros_like(self.parameters[name])) for name in names
        }
        alpha, temperature, labels = (
            torch.tensor([getattr(each, name) for each in lessons], dtype=torch.float32)
            for name in ("alpha", "temperature", "labels")
        )
        temperature = temperature[:, None, None]
        rate_of = torch.tensor(rates, dtype=torch.float32)
        best = [*(each for each in self.errors("val")), torch.zeros(len(lessons), dtype=torch.long)]
        kept = {name: self.parameters[name].detach().clone() for name in names}
        step = 0
        for epoch in range(1, epochs + 1):
            orders = {
                seed: torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))
                for seed in {*seeds}
            }
            order = torch.stack([orders[seed] for seed in seeds])
            for chosen in order.split(BATCH, 1):
                x, y = (self._data[f"{letter}_train"][self._of[:, None], chosen] for letter in "xy")
                answers = self(x)
                hard = functional.cross_entropy(answers.transpose(1, 2), y, reduction="none").mean(1)
                taught = teacher.gather(1, chosen[:, :, None].expand(-1, -1, teacher.shape[2]))
                distance = (answers - taught).square().sum(2).mean(1)
                own, expected = ((each / temperature).log_softmax(2) for each in (answers, taught))
                kl = (expected.exp() * (expected - own)).sum(2).mean(1) * temperature[:, 0, 0] ** 2
                loss = labels * hard + (1 - labels) * (alpha * distance + (1 - alpha) * kl)
                gradients = torch.autograd.grad(loss.sum(), [self.parameters[name] for name in names])
                share = (step + 1) / rising if step < rising else 1.0
                if step >= rising and schedule == "cosine":
                    share = (1 + math.cos(math.pi * (step - rising) / max(of_an_epoch * epochs - rising, 1))) / 2
                step += 1
                for name, gradient in zip(names, gradients, strict=True):
                    first, second = moments[name]
                    first.lerp_(gradient, 0.1)
                    second.lerp_(gradient.square(), 0.001)
                    mean, spread = first / (1 - 0.9**step), (second / (1 - 0.999**step)).sqrt_()
                    rate = (share * rate_of).reshape(-1, *[1] * (gradient.dim() - 1))
                    self.parameters[name].data -= rate * mean / (spread + 1e-8)
            error, loss = self.errors("val")
            better = (error < best[0]) | ((error == best[0]) & (loss < best[1]))
            for index, value in enumerate((error, loss, torch.tensor(epoch))):
                best[index] = torch.where(better, value, best[index])
            for name in names:
                kept[name][better] = self.parameters[name].detach()[better]
        for name in names:
            self.parameters[name].data = kept[name]
        return best[2]


# -- the experiment ------------------------------------------------------------------------------


def teachers_of(name: str, seeds: Sequence[int]) -> tuple[list[dict[str, np.ndarray]], list[nn.Module]]:
    """Of each seed its splits and its teacher, which are kept in files."""
    kind, arrays, modules = KINDS[name], [], []
    stem = "".join(letter for letter in name if letter.isalnum())
    for seed in seeds:
        arrays.append(kind.arrays(WORK, seed))
        file = WORK / f"{stem}-{seed}.pt"
        if not file.exists():
            torch.save(kind.teacher(arrays[-1], seed).state_dict(), file)
        modules.append(kind.network(1.0, seed))
        modules[-1].load_state_dict(torch.load(file))
    return arrays, modules


def starts(
    kind: Kind, how: str, teachers: Sequence[nn.Module], seeds: Sequence[int], example: Tensor
) -> list[nn.Module]:
    """The students of a quarter of the width as they start."""
    if how == "fresh":
        return [kind.network(0.25, seed + 1000) for seed in seeds]
    found = []
    for teacher in teachers:
        loaded = LoadedModel(teacher.eval(), "state_dict", "state_dict", architecture=teacher.architecture)
        found.append(remove_channels(loaded, (example,), amount=0.75, scope="layer").loaded.module)
    return found


def run(
    name: str, how: str, seeds: Sequence[int], training: dict[str, Any], lessons: Sequence[Lesson], results: Kept
) -> None:
    """Train what is missing, and keep each one's held-out error."""

    def key(lesson: Lesson, seed: int) -> str:
        return f"{name}/{how}/{named(training)}/{lesson}/{seed}"

    wanted = [(lesson, seed) for lesson in lessons for seed in seeds if key(lesson, seed) not in results]
    if not wanted:
        return
    arrays, teachers = teachers_of(name, seeds)
    of_seed = {seed: index for index, seed in enumerate(seeds)}
    begun = starts(KINDS[name], how, teachers, seeds, torch.from_numpy(arrays[0]["x_train"][:8]))
    taught = Many(teachers, arrays)
    answers, errors = taught.answers("train"), taught.errors("test")[0]
    for seed in seeds:
        results[f"{name}/teacher/{seed}"] = float(errors[of_seed[seed]])
    chosen = [of_seed[seed] for _, seed in wanted]
    many = Many([begun[index] for index in chosen], [arrays[index] for index in chosen])
    epochs = many.fit(
        [lesson for lesson, _ in wanted], answers[chosen], [training["lr"]] * len(wanted), [seed for _, seed in wanted],
        training["epochs"], training["warmup"], training["lr_schedule"],
    )  # fmt: skip
    errors, losses = many.errors("test")
    for (lesson, seed), error, loss, epoch in zip(
        wanted, errors.tolist(), losses.tolist(), epochs.tolist(), strict=True
    ):
        results[key(lesson, seed)] = {"error": error, "loss": loss, "epoch": epoch}


def named(training: dict[str, Any]) -> str:
    """A training in words."""
    schedule = "cosine" if training["lr_schedule"] == "cosine" else "constant"
    rising = f", warm-up {training['warmup']:g}" if training["warmup"] else ""
    return f"{training['epochs']} epochs, {training['lr']:g} {schedule}{rising}"
