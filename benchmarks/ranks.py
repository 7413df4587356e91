"""The same jobs trained by one process with all threads, and by two that share them: seconds, weights and scores.

A job removes half of the channels and retrains on labels, once on a service as it is and once on one with
`PARED_RANKS=2`, in turns. Both have the same samples, batches, epochs and cores. An epoch's seconds include its
validation, which ranks do not share. `python benchmarks/ranks.py`
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loop import NETWORKS, SPLITS, images
from results import machine, table, write_section
from server import running_pared

import pared

ROUNDS, EPOCHS, BATCH = 5, 4, 128


class Measured(NamedTuple):
    """What came of a job."""

    seconds: float
    """Of the fastest epoch after the first."""
    score: float
    weights: dict[str, torch.Tensor]
    ranks: int


def main() -> None:
    """Run all networks in turns, print the ratios and write them down."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="pared-ranks-") as name:
        folder = Path(name)
        with running_pared(folder / "one") as one, running_pared(folder / "two", PARED_RANKS="2") as two:
            clients = [pared.Client(one), pared.Client(two)]
            for network, (kind, size) in NETWORKS.items():
                torch.manual_seed(0)
                data, model = folder / f"{size}.npz", folder / "model.pt"
                np.savez(data, **images(size))
                torch.jit.save(torch.jit.script(kind().eval()), model)
                rounds = [[measured(client, model, data, folder) for client in clients] for _ in range(ROUNDS)]
                rows.append([network, *compared(rounds)])
                print(" | ".join(rows[-1]), flush=True)
    header = ["network", "one process, s an epoch", "two, s an epoch", "speed of two", "weights apart", "score of one",
              "of two"]  # fmt: skip
    write_section("ranks", f"## One job trained by two processes\n\n{table(header, rows)}\n\n{NOTE}")


NOTE = (
    f"Seconds of an epoch of {SPLITS['train']:,} samples in batches of {BATCH} with the validation of "
    f"{SPLITS['val']:,} more: medians over {ROUNDS} rounds of both in turns, each the fastest of {EPOCHS - 1} epochs "
    "after the first. Weights apart: the largest difference of any weight between both results after "
    f"{EPOCHS} epochs, as a share of the largest weight; batch norms take their statistics from shares of a batch, so "
    "nets that have them go other ways. Score: of the result on the test split. "
    f"{machine()}; torch {torch.__version__}, {len(os.sched_getaffinity(0))} threads.\n\n`make bench-ranks`"
)


def compared(rounds: list[list[Measured]]) -> list[str]:
    """The cells of a row."""
    assert {(first.ranks, second.ranks) for first, second in rounds} == {(1, 2)}
    one, two = (statistics.median(each.seconds for each in column) for column in zip(*rounds, strict=True))
    speeds = [first.seconds / second.seconds for first, second in rounds]
    first, second = rounds[0]
    largest = max(float(each.abs().max()) for each in first.weights.values())
    apart = max(float((first.weights[each] - second.weights[each]).abs().max()) for each in first.weights) / largest
    spread = f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})"
    return [f"{one:.2f}", f"{two:.2f}", spread, f"{apart:.0e}", f"{first.score:.4f}", f"{second.score:.4f}"]


def measured(client: pared.Client, model: Path, data: Path, folder: Path) -> Measured:
    """One job."""
    job = client.prune(
        model, data, granularity="channel", amount=0.5, preprocess={"scale": 1 / 255}, outputs=["torchscript"],
        retrain={"epochs": EPOCHS, "lr": 0.03, "batch_size": BATCH, "teach": False},
    )  # fmt: skip
    job.wait()
    job.download(folder / "pruned.pt")
    report = job.report()
    weights = {
        name: tensor.detach().float() for name, tensor in torch.jit.load(folder / "pruned.pt").named_parameters()
    }
    seconds = min(epoch.seconds for epoch in report.history[1:])  # others at work on the machine only make it longer
    return Measured(seconds, report.after.quality.test.value, weights, report.reproduce.ranks)


if __name__ == "__main__":
    main()
