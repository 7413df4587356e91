"""How fast a job's training epochs run on the CPU, beside a plain PyTorch loop over the same pruned network.

A job removes half of the channels and retrains on labels. Then a loop as a careful person writes it trains the file
that came of it: samples as float tensors in memory, picked by a random permutation, SGD, and a pass over the validation
split after each epoch. Both have the same samples, batches, threads and epochs, and run in turns. An epoch's seconds
include its validation. `python benchmarks/loop.py`
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from networks import Residual
from results import machine, table, write_section
from server import running_pared
from torch import nn
from torch.nn import functional

import pared

ROUNDS, EPOCHS, BATCH = 7, 6, 64
SPLITS = {"train": 6000, "val": 1000, "test": 100}


class Cnn(nn.Sequential):
    """Two 5×5 convolutions and two linear layers on 28×28 images, as LeNet-5 has them."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip


class Mlp(nn.Sequential):
    """LeNet-300-100."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )


NETWORKS = {"MLP 784-300-100": (Mlp, 28), "CNN, 28×28": (Cnn, 28), "residual net, 14×14": (Residual, 14)}


def main() -> None:
    """Run all networks in turns, print the ratios and write them down."""
    rows, ratios = [], []
    with tempfile.TemporaryDirectory(prefix="pared-loop-") as name:
        folder = Path(name)
        with running_pared(folder / "data") as url:
            client = pared.Client(url)
            for network, (kind, size) in NETWORKS.items():
                torch.manual_seed(0)
                data, model = folder / f"{size}.npz", folder / "model.pt"
                np.savez(data, **images(size))
                torch.jit.save(torch.jit.script(kind().eval()), model)
                rounds = [measured(client, model, data, folder) for _ in range(ROUNDS)]
                of_round = [loop / job for job, loop in rounds]
                ratios.append(statistics.median(of_round))
                job, loop = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
                spread = f"{ratios[-1]:.2f} ({min(of_round):.2f} to {max(of_round):.2f})"
                rows.append([network, f"{job:.2f}", f"{loop:.2f}", spread])
                print(" | ".join(rows[-1]), flush=True)
    header = ["network", "job, s an epoch", "plain loop, s an epoch", "speed of the job"]
    write_section("loop", f"## Training on the CPU beside a plain loop\n\n{table(header, rows)}\n\n{NOTE}")


NOTE = (
    f"Seconds of an epoch of {SPLITS['train']:,} samples in batches of {BATCH} with the validation of "
    f"{SPLITS['val']:,} more: medians over {ROUNDS} rounds of a job and the loop in turns, each the fastest of "
    f"{EPOCHS - 1} epochs after the first. Channels: half. Labels alone teach. Seed 0; nothing was tuned. {machine()}; "
    f"torch {torch.__version__}, {torch.get_num_threads()} threads.\n\n`make bench-loop`"
)


def images(size: int) -> dict[str, np.ndarray]:
    """Bytes of ten classes that can be told apart, in three splits."""
    chance = np.random.default_rng(0)
    prototypes = chance.integers(0, 255, (10, 1, size, size))
    arrays = {}
    for split, count in SPLITS.items():
        y = chance.integers(0, 10, count)
        noisy = prototypes[y] * 0.35 + chance.normal(110, 60, (count, 1, size, size))
        arrays |= {f"x_{split}": np.clip(noisy, 0, 255).astype(np.uint8), f"y_{split}": y}
    return arrays


def measured(client: pared.Client, model: Path, data: Path, folder: Path) -> tuple[float, float]:
    """Seconds of an epoch of a job, and of the loop over its result."""
    job = client.prune(
        model, data, granularity="channel", amount=0.5, preprocess={"scale": 1 / 255}, outputs=["torchscript"],
        retrain={"epochs": EPOCHS, "lr": 0.01, "batch_size": BATCH, "teach": False},
    )  # fmt: skip
    job.wait()
    job.download(folder / "pruned.pt")
    of_job = [epoch.seconds for epoch in job.report().history]
    loop = [sys.executable, __file__, "loop", str(folder / "pruned.pt"), str(data)]
    of_loop = json.loads(subprocess.run(loop, check=True, capture_output=True).stdout)
    return min(of_job[1:]), min(of_loop[1:])  # others at work on the machine only make epochs longer


def plain_loop(model: Path, data: Path) -> list[float]:
    """Seconds of each epoch."""
    arrays = np.load(data)
    x, held = (torch.from_numpy(arrays[f"x_{split}"]).float() / 255 for split in ("train", "val"))
    y, labels = (torch.from_numpy(arrays[f"y_{split}"]) for split in ("train", "val"))
    module = torch.jit.load(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    seconds = []
    for _ in range(EPOCHS):
        began = time.monotonic()
        module.train()
        for chosen in torch.randperm(len(x)).split(BATCH):
            loss = functional.cross_entropy(module(x[chosen]), y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            right = sum(
                (module(x_).argmax(1) == y_).sum().item()
                for x_, y_ in zip(held.split(256), labels.split(256), strict=True)
            )
        assert right
        seconds.append(time.monotonic() - began)
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == ["loop"]:
        print(json.dumps(plain_loop(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
