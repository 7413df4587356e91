"""What the defaults of distillation are chosen by, on held-out samples: `make bench-distillation-defaults`.

Students of a quarter of their teacher's width learn by several losses and trainings, on four data sets. Many of them
train in one process as one batched network (`torch.func`), each with its own teacher, order of samples and loss;
formulas, schedule and choice of the epoch are those of `pared.compression`. All students of a seed start from the same
weights: those that pared leaves when it cuts the teacher, or fresh ones. They are judged by samples that nothing was
trained or chosen by; of MNIST, training images: its test images are never read. An interrupted run goes on where it
stopped: results are kept in `build/bench-distillation-defaults`. `--seeds 2 --only digits` takes less.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from results import Kept, machine, table, write_section
from taught_networks import BATCH, KINDS, Arrays, Kind
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from pared.specs import TeachTrain

WORK = Path("build/bench-distillation-defaults")
SETS = ("digits", "MNIST, 14×14", "image segments", "lines of code")
STARTS = ("cut", "fresh")


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
        return f"α {self.alpha:g}, T {self.temperature:g}, labels {self.labels:g}"


@dataclass(frozen=True)
class Training:
    """By Adam; `epochs` None: those that a student has by default."""

    epochs: int | None
    lr: float
    cosine: bool = True
    warmup: float = 0.05

    def __str__(self) -> str:
        """As the table has it."""
        epochs = "usual" if self.epochs is None else str(self.epochs)
        return f"{epochs} epochs, {self.lr:g} {'along a cosine' if self.cosine else 'throughout'}"

    def epochs_on(self, samples: int) -> int:
        """How many there are."""
        return TeachTrain(epochs=self.epochs).on(samples).epochs


ALONE, BEFORE, CHOSEN = Lesson(0, 1, 1), Lesson(0.5, 4, 0), Lesson(0, 2, 0.5)
USUAL = Training(None, 0.003)
LESSONS = [
    ALONE,
    BEFORE,
    *(Lesson(0, temperature, labels) for temperature in (2, 4) for labels in (0.1, 0.5, 0.8)),
    Lesson(0, 1, 0.5),
]
TRAININGS = [
    Training(5, 0.001, cosine=False, warmup=0),
    Training(20, 0.003),
    Training(None, 0.001),
    Training(None, 0.01),
]
"""Beside the usual one, for three losses."""


def main() -> None:
    """Run what is missing, then write the section `distillation-defaults`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=SETS)
    asked = parser.parse_args()
    results, seeds = Kept(WORK), range(asked.seeds)
    for name in [asked.only] if asked.only else SETS:
        for start in STARTS:
            run(name, start, seeds, USUAL, LESSONS, results)
        for training in TRAININGS:
            run(name, STARTS[0], seeds, training, [ALONE, BEFORE, CHOSEN], results)
    text = section(results, seeds)
    print(text)
    write_section("distillation-defaults", text)


# -- many networks at once -----------------------------------------------------------------------


class Many:
    """Networks of one form, trained together on data of their own.

    Args:
        modules: the networks as they start.
        splits: of each the arrays of its splits.
    """

    def __init__(self, modules: Sequence[nn.Module], splits: Sequence[Arrays]) -> None:
        self._form = modules[0]
        states = [module.state_dict() for module in modules]
        self.parameters = {name: torch.stack([each[name] for each in states]).requires_grad_() for name in states[0]}
        kinds = {id(each): each for each in splits}  # students of one seed share their data
        self._data = {
            name: torch.stack([torch.from_numpy(each[name]) for each in kinds.values()]) for name in splits[0]
        }
        self._of = torch.tensor([list(kinds).index(id(each)) for each in splits])

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

    def fit(self, lessons: Sequence[Lesson], teacher: Tensor, seeds: Sequence[int], training: Training) -> None:
        """Train by Adam; each network ends with the weights of its best epoch on validation.

        Args:
            lessons, seeds: of each network.
            teacher: (networks, training samples, classes) what the teacher answers.
        """
        count = self._data["x_train"].shape[1]
        epochs, of_an_epoch = training.epochs_on(count), math.ceil(count / BATCH)
        loss, adam = _loss_of(lessons), _Adam(self.parameters)
        best = self.errors("val")
        kept = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        step, steps = 0, epochs * of_an_epoch
        for epoch in range(1, epochs + 1):
            chance = {seed: torch.Generator().manual_seed(1000 * seed + epoch) for seed in {*seeds}}
            orders = {seed: torch.randperm(count, generator=generator) for seed, generator in chance.items()}
            for chosen in torch.stack([orders[seed] for seed in seeds]).split(BATCH, 1):
                x, y = (self._data[f"{letter}_train"][self._of[:, None], chosen] for letter in "xy")
                taught = teacher.gather(1, chosen[:, :, None].expand(-1, -1, teacher.shape[2]))
                rate = training.lr * min(1.0, (step + 1) / (training.warmup * steps + 1))
                if training.cosine:
                    rate *= (1 + math.cos(math.pi * step / steps)) / 2
                adam.step(loss(self(x), taught, y), rate)
                step += 1
            found = self.errors("val")
            better = (found[0] < best[0]) | ((found[0] == best[0]) & (found[1] < best[1]))
            best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))  # type: ignore[assignment]
            for name, tensor in self.parameters.items():
                kept[name][better] = tensor.detach()[better]
        for name, tensor in self.parameters.items():
            tensor.data = kept[name]


class _Adam:
    """Adam over stacked parameters, whose gradients do not mix."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self._parameters = list(parameters.values())
        self._moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in self._parameters]
        self._steps = 0

    def step(self, losses: Tensor, rate: float) -> None:
        """One step down the losses, (networks,)."""
        self._steps += 1
        gradients = torch.autograd.grad(losses.sum(), self._parameters)
        for tensor, gradient, (first, second) in zip(self._parameters, gradients, self._moments, strict=True):
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            spread = (second / (1 - 0.999**self._steps)).sqrt_().add_(1e-8)
            tensor.data.addcdiv_(first, spread, value=-rate / (1 - 0.9**self._steps))


def _loss_of(lessons: Sequence[Lesson]):  # noqa: ANN202 - a function of (answers, taught, labels) to (networks,)
    alpha, temperature, labels = (
        torch.tensor([getattr(each, name) for each in lessons], dtype=torch.float32)
        for name in ("alpha", "temperature", "labels")
    )

    def loss(answers: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        hard = functional.cross_entropy(answers.transpose(1, 2), y, reduction="none").mean(1)
        distance = (answers - taught).square().sum(2).mean(1)
        own, expected = ((each / temperature[:, None, None]).log_softmax(2) for each in (answers, taught))
        kl = (expected.exp() * (expected - own)).sum(2).mean(1) * temperature**2
        return labels * hard + (1 - labels) * (alpha * distance + (1 - alpha) * kl)

    return loss


# -- the experiment ------------------------------------------------------------------------------


def run(
    name: str, start: str, seeds: Sequence[int], training: Training, lessons: Sequence[Lesson], results: Kept
) -> None:
    """Train what is missing, and keep each one's held-out error."""
    wanted = [
        (lesson, index)
        for lesson in lessons
        for index, seed in enumerate(seeds)
        if key(name, start, training, lesson, seed) not in results
    ]
    if not wanted:
        return
    arrays, teachers = _teachers(name, seeds)
    begun = _students(KINDS[name], start, teachers, seeds, torch.from_numpy(arrays[0]["x_train"][:8]))
    taught = Many(teachers, arrays)
    for seed, error in zip(seeds, taught.errors("test")[0].tolist(), strict=True):
        results[f"{name}/teacher/{seed}"] = error
    chosen = [index for _, index in wanted]
    many = Many([begun[index] for index in chosen], [arrays[index] for index in chosen])
    answers = taught.answers("train")[chosen]
    many.fit([lesson for lesson, _ in wanted], answers, [seeds[index] for index in chosen], training)
    for (lesson, index), error in zip(wanted, many.errors("test")[0].tolist(), strict=True):
        results[key(name, start, training, lesson, seeds[index])] = error
    print(f"{name}, {start}, {training}: {len(wanted)} students", flush=True)


def key(name: str, start: str, training: Training, lesson: Lesson, seed: int) -> str:
    """What an error is kept under."""
    return f"{name}/{start}/{training}/{lesson}/{seed}"


def _teachers(name: str, seeds: Sequence[int]) -> tuple[list[Arrays], list[nn.Module]]:
    """Of each seed its splits and its teacher, which is kept in a file."""
    kind = KINDS[name]
    arrays = [kind.arrays(WORK, seed) for seed in seeds]
    modules: list[nn.Module] = []
    for seed, splits in zip(seeds, arrays, strict=True):
        file = WORK / f"{''.join(letter for letter in name if letter.isalnum())}-{seed}.pt"
        if not file.exists():
            torch.save(kind.teacher(splits, seed).state_dict(), file)
        modules.append(kind.network(1.0, seed).eval())
        modules[-1].load_state_dict(torch.load(file))
    return arrays, modules


def _students(
    kind: Kind, start: str, teachers: Sequence[nn.Module], seeds: Sequence[int], example: Tensor
) -> list[nn.Module]:
    """The students of a quarter of the width as they start."""
    if start == "fresh":
        return [kind.network(0.25, seed + 1000) for seed in seeds]
    loaded = [LoadedModel(each, "state_dict", "state_dict", architecture=each.architecture) for each in teachers]
    return [remove_channels(each, (example,), amount=0.75, scope="layer").loaded.module for each in loaded]


# -- the tables ----------------------------------------------------------------------------------


def section(results: dict[str, float], seeds: Sequence[int]) -> str:
    """The tables over what is there."""
    columns = [(name, start) for name in SETS for start in STARTS if _errors(results, name, start, USUAL, ALONE, seeds)]
    rows = [[str(lesson), *(_cell(results, *each, USUAL, lesson, seeds) for each in columns)] for lesson in LESSONS]
    teachers = [statistics.mean(results[f"{name}/teacher/{seed}"] for seed in seeds) for name, _ in columns]
    names = list(dict.fromkeys(name for name, _ in columns))
    of_trainings = [
        [f"{training}: {lesson}", *(_cell(results, name, STARTS[0], training, lesson, seeds) for name in names)]
        for training in (*TRAININGS, USUAL)
        for lesson in (ALONE, BEFORE, CHOSEN)
    ]
    return (
        "## Where the defaults of distillation come from\n\n"
        + table(
            ["held-out error, %", *(f"{name}, {start}" for name, start in columns)],
            [["the teacher", *(f"{error:.2f}" for error in teachers)], *rows],
        )
        + "\n\n"
        + table(["students cut from the teacher", *names], of_trainings)
        + "\n\nMean error of the seeds, and in brackets its difference to the same student on labels alone with its "
        f"standard error, on samples that neither training nor the choice of epochs saw. {len(seeds)} seeds: each has "
        "a split, a teacher and an order of samples of its own. Students have a quarter of the teacher's width, and "
        f"its weights (cut) or fresh ones; Adam in batches of {BATCH}, with a warm-up of a twentieth of the steps. α "
        f"is the weight of the squared distance, `labels` their share. Usual epochs: {TeachTrain.usual_length}. "
        f"{machine()}; torch {torch.__version__}.\n\n`make bench-distillation-defaults PARED_MNIST=mnist.npz`"
    )


def _errors(
    results: dict[str, float], name: str, start: str, training: Training, lesson: Lesson, seeds: Sequence[int]
) -> list[float]:
    keys = [key(name, start, training, lesson, seed) for seed in seeds]
    return [results[each] for each in keys] if all(each in results for each in keys) else []


def _cell(
    results: dict[str, float], name: str, start: str, training: Training, lesson: Lesson, seeds: Sequence[int]
) -> str:
    errors = _errors(results, name, start, training, lesson, seeds)
    alone = _errors(results, name, start, training, ALONE, seeds)
    if not errors or not alone:
        return ""
    if lesson == ALONE:
        return f"{statistics.mean(errors):.2f}"
    differences = np.subtract(errors, alone)
    error = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else math.nan
    return f"{statistics.mean(errors):.2f} ({differences.mean():+.2f} ± {error:.2f})"


if __name__ == "__main__":
    main()
