"""What a student learns without data: `make bench-distill-without-data`.

A network is trained on 12,000 images of MNIST, and teaches a student of half its width by as many made-up inputs as the
service makes by itself. Beside it stand students taught the same way by noise, and by as many real images without
labels. Nothing is chosen by the test images.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import numpy as np
import torch
from results import machine, mnist_file, table, write_section
from torch import Tensor, nn
from without_data import NETWORKS, accuracy, trained

from pared.compression import distill

SEEDS = tuple(range(int(os.environ.get("PARED_SEEDS", "3"))))
NAMES = ("strided convolutions, ReLU", "residual blocks")
MADE = 1024
TRAIN: dict[str, Any] = {"epochs": 30, "lr": 0.002}


def main() -> None:
    """Teach, score, and write the section `distill-without-data`."""
    torch.set_num_threads(1)
    given = np.load(mnist_file())
    x = {split: (given[f"x_{split}"].reshape(-1, 1, 28, 28) / 255).astype(np.float32) for split in ("train", "test")}
    train = torch.from_numpy(x["train"][:12000]), torch.from_numpy(given["y_train"][:12000].astype(np.int64))
    test = torch.from_numpy(x["test"]), torch.from_numpy(given["y_test"].astype(np.int64))
    rows = []
    for name in NAMES:
        found: dict[str, list[float]] = {}
        for seed in SEEDS:
            teacher = trained(NETWORKS[name], *train, seed)
            found.setdefault("teacher", []).append(accuracy(teacher, *test))
            noise = torch.randn(MADE, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
            arms: dict[str, Tensor | None] = {"noise": noise, "made": None, "real": train[0][12000 - MADE :]}
            for arm, inputs in arms.items():
                found.setdefault(arm, []).append(taught(teacher, inputs, seed, test))
            print(f"{name}, seed {seed}: " + ", ".join(f"{arm} {scores[-1]:.2f}" for arm, scores in found.items()))
        rows.append([name, *(spread(scores) for scores in found.values())])
    header = ["test accuracy, %", "teacher", "noise", "batch-norm statistics", "real, without labels"]
    text = (
        f"## Distillation without data\n\n{table(header, rows)}\n\n"
        f"Mean and standard deviation over the seeds {', '.join(map(str, SEEDS))}. Students of half the width, cut "
        f"from the teacher, {TRAIN['epochs']} epochs on {MADE:,} inputs with the default loss. The constants of the "
        f"made inputs were chosen on scikit-learn's digits. {machine()}; torch {torch.__version__}.\n\n"
        "`make bench-distill-without-data PARED_MNIST=mnist.npz`"
    )
    print(text)
    write_section("distill-without-data", text)


def taught(teacher: nn.Module, inputs: Tensor | None, seed: int, test: tuple[Tensor, Tensor]) -> float:
    """The test accuracy of a student that learned from these inputs; None: from those that are made up."""
    job: dict[str, Any] = {"task": "classification", "train": TRAIN, "seed": seed}
    if inputs is None:
        job |= {"example_inputs": [{"shape": [2, 1, 28, 28]}], "made_samples": MADE}
    data = None if inputs is None else (inputs.numpy(), None)
    script = torch.jit.script(teacher)
    return accuracy(distill(script, {"from_teacher": {"width": 0.5}}, data, **job).model.eval(), *test)


def spread(scores: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(scores):.1f}" + (f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else "")


if __name__ == "__main__":
    main()
