"""Hinton's MNIST experiment, through jobs' own code: `make bench-hinton`.

Hinton, Vinyals and Dean 2015 (arXiv:1503.02531) train a network of two hidden layers of 1,200 units, with dropout and
images moved by up to two pixels; of 10,000 test images it gets 67 wrong. One of 800 units a layer without either gets
146 wrong on the labels, and 74 where it also learns the answers of the larger one at a temperature of 20: 91 % of the
gap closes. Here a teacher is trained so by plain PyTorch; both students are trained by `pared.compression.distill`,
from the same start, on the same images, which stay as they are. `--short`: fewer epochs and images, to see that it
runs. An interrupted run goes on where it stopped: results are kept in `build/bench-hinton`.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept, machine, mnist_file, table, write_section
from torch import Tensor, nn
from torch.nn import functional

from pared.compression import distill

SEEDS = (0, 1, 2)
SHORT = "--short" in sys.argv[1:]
TEACHER_EPOCHS, STUDENT_EPOCHS, IMAGES = (2, 2, 6000) if SHORT else (30, 20, 55000)
BATCH = 128
LOSS = {"kind": "knowledge", "alpha": 0.0, "temperature": 20, "labels": 0.1}
TRAIN = {"epochs": STUDENT_EPOCHS, "lr": 0.001, "batch_size": BATCH}
WORK = Path("build/bench-hinton-short" if SHORT else "build/bench-hinton")
STUDENT = {
    "layers": [
        ["Flatten"],
        ["Linear", {"in_features": 784, "out_features": 800}],
        ["ReLU"],
        ["Linear", {"in_features": 800, "out_features": 800}],
        ["ReLU"],
        ["Linear", {"in_features": 800, "out_features": 10}],
    ]
}


class Teacher(nn.Sequential):
    """784-1200-1200-10, with dropout of a fifth of the pixels and half of the units."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(784, 1200), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1200, 1200),
            nn.ReLU(), nn.Dropout(0.5), nn.Linear(1200, 10),
        )  # fmt: skip


def main() -> None:
    """Run the seeds that are missing, then write the section `hinton`."""
    results = Kept(WORK)
    given = np.load(mnist_file())
    for seed in SEEDS[: 1 if SHORT else None]:
        if str(seed) not in results:
            results[str(seed)] = experiment(given, seed)
            print(f"seed {seed}: {results[str(seed)]}", flush=True)
    text = section([results[str(seed)] for seed in SEEDS[: 1 if SHORT else None]])
    print(text)
    if not SHORT:
        write_section("hinton", text)


def experiment(given: Any, seed: int) -> dict[str, Any]:
    """Test errors, of 10,000, of a teacher and of a student with it and without."""
    order = np.random.default_rng(seed).permutation(len(given["x_train"]))
    parts = {"train": order[:IMAGES], "val": order[-5000:]}
    arrays = {f"x_{name}": pixels(given["x_train"][chosen]) for name, chosen in parts.items()}
    arrays |= {f"y_{name}": given["y_train"][chosen].astype(np.int64) for name, chosen in parts.items()}
    arrays |= {"x_test": pixels(given["x_test"]), "y_test": given["y_test"].astype(np.int64)}
    data = WORK / f"mnist-{seed}.npz"
    np.savez(data, **arrays)
    began = time.monotonic()
    teacher = trained(torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"]), seed)
    of_teacher = time.monotonic() - began
    began = time.monotonic()
    report = distill(
        teacher, STUDENT, data, task="classification", loss=LOSS, train=TRAIN, seed=seed, compare_with_labels_only=True
    ).report
    assert report.before.quality is not None
    assert report.after.quality is not None
    assert report.labels_only is not None
    found = {"teacher": report.before.quality, "labels": report.labels_only, "taught": report.after.quality}
    errors = {name: round(10000 * (1 - quality.test.value)) for name, quality in found.items()}
    return errors | {"teacher_s": of_teacher, "job_s": time.monotonic() - began, "verdict": report.verdict}


def pixels(images: np.ndarray) -> np.ndarray:
    """(N, 1, 28, 28), 0 to 1."""
    return (images.reshape(-1, 1, 28, 28) / 255).astype(np.float32)


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """The teacher after the last epoch."""
    torch.manual_seed(seed)
    module = Teacher()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001)
    steps = math.ceil(len(x) / BATCH) * TEACHER_EPOCHS
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(TEACHER_EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(module(moved(x[chosen])), y[chosen]).backward()
            optimizer.step()
            schedule.step()
        print(f"seed {seed}: teacher, epoch {epoch + 1} of {TEACHER_EPOCHS}", flush=True)
    return module.eval()


def moved(images: Tensor) -> Tensor:
    """Each image moved by up to two pixels, up or down, left or right."""
    count, _, size, _ = images.shape
    padded = functional.pad(images, (2, 2, 2, 2))
    down, right = (torch.randint(0, 5, (count, 1, 1, 1)) for _ in range(2))
    rows = (torch.arange(size)[:, None] + down).expand(count, 1, size, size + 4)
    columns = (torch.arange(size) + right).expand(count, 1, size, size)
    return padded.gather(2, rows).gather(3, columns)


def section(found: list[dict[str, Any]]) -> str:
    """The table, with the share of the gap that closed."""
    closed = [100 * (one["labels"] - one["taught"]) / (one["labels"] - one["teacher"]) for one in found]
    rows = [
        [f"seed {seed}", str(one["teacher"]), str(one["labels"]), str(one["taught"]), f"{share:.0f} %"]
        for seed, one, share in zip(SEEDS, found, closed, strict=False)
    ]
    means = [f"{statistics.mean(one[name] for one in found):.0f}" for name in ("teacher", "labels", "taught")]
    rows += [["mean", *means, f"{statistics.mean(closed):.0f} %"], ["published", "67", "146", "74", "91 %"]]
    header = ["wrong of 10,000", "teacher 1200-1200", "800-800, labels alone", "800-800, taught", "gap closed"]
    return (
        f"## Hinton's MNIST\n\n{table(header, rows)}\n\n"
        f"The teacher has dropout and images moved by up to two pixels, {TEACHER_EPOCHS} epochs of Adam 0.001 along a "
        f"cosine; the students neither, {STUDENT_EPOCHS} epochs each in one job, at a temperature of "
        f"{LOSS['temperature']} with a tenth of the loss on the labels. {IMAGES:,} images train, and 5,000 held out by "
        f"seed choose the epoch. Seconds a seed: {statistics.mean(one['teacher_s'] for one in found):.0f} for the "
        f"teacher, {statistics.mean(one['job_s'] for one in found):.0f} for the job. {machine()}; torch "
        f"{torch.__version__}.\n\n`make bench-hinton PARED_MNIST=mnist.npz`"
    )


if __name__ == "__main__":
    main()
