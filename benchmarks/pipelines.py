"""A tenth of the bytes at no more than a point: `make bench-pipeline`, by one pipeline job each.

LeNet-5 and a small residual network, trained here on MNIST as any user would, are uploaded to a running pared. The
steps are those that `pared compress` chooses for the target, with more epochs. 5,000 training images, drawn by seed,
are held out: epochs are chosen by them. The test split is only reported on, and measured once more from the downloaded
file by `measured.py`, a process of its own that shares no code with pared. The plan is asked for before, and held
against the bytes that came.

An interrupted run goes on where it stopped: what is finished is kept in `build/bench-pipelines`. `--short` is a try of
one seed on few samples, which writes nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import PREPROCESS, Residual
from results import Kept, machine, mnist_file, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared
from pared.compression.architectures import build
from pared.job_types import STEPS
from pared.specs import Output, Target
from pared.specs.choosing import chosen_steps

SEEDS = (0, 1, 2)
WORK = Path("build/bench-pipelines")
TARGET = {"file_bytes": 0.1, "max_quality_drop": 0.01}
EPOCHS = 6  # of each training in the pipeline
DENSE_EPOCHS = 10
NETWORKS = {"LeNet-5": lambda: build({"name": "lenet5"}), "residual network": Residual}
SIZES = {"LeNet-5": 28, "residual network": 14}
# The code of twenty layers alone is a seventh of the residual network's TorchScript: packed, a file has little of it.
OUTPUTS: dict[str, list[Output]] = {"LeNet-5": ["torchscript"], "residual network": ["packed", "torchscript"]}


def main(*, short: bool) -> None:
    """Run what is still missing, then write the section `pipelines`."""
    mnist, work = mnist_file(), WORK / "short" if short else WORK
    results = Kept(work)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with running_pared(work / "data") as url, pared.Client(url) as client:
        for name in NETWORKS:
            for seed in SEEDS[:1] if short else SEEDS:
                if f"{name} {seed}" not in results:
                    results[f"{name} {seed}"] = experiment(client, mnist, name, seed, work, short=short)
    text = section(results)
    print(text)
    if not short:
        write_section("pipelines", text)


def experiment(client: pared.Client, mnist: str, name: str, seed: int, work: Path, *, short: bool) -> dict[str, Any]:
    """One job: the network trained, the pipeline chosen, planned and run, and its result measured again."""
    folder = work / f"{name.replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = split(mnist, SIZES[name], seed, 3000 if short else 55_000)
    data, dense = folder / "mnist.npz", folder / "dense.pt"
    np.savez(data, **arrays)
    module = trained(name, arrays, seed, 2 if short else DENSE_EPOCHS)
    torch.jit.save(torch.jit.trace(module, inputs_of(arrays["x_val"][:4])), dense)
    choice = chosen_steps(
        Target(**TARGET), types=STEPS, with_data=True, outputs=OUTPUTS[name], epochs=2 if short else EPOCHS
    )
    model, dataset = client.models.upload(dense), client.datasets.upload(data)
    fields: dict[str, Any] = {"target": TARGET, "steps": choice.steps, "preprocess": PREPROCESS, "seed": seed}
    fields["outputs"] = OUTPUTS[name]
    plan = client.plan_pipeline(model, dataset, **fields)
    job = client.pipeline(model, dataset, **fields).wait()
    first = "model.packed" if OUTPUTS[name][0] == "packed" else "model.pt"
    report, result = job.report(), job.download(folder, name=first)
    again = measured(job.download(folder, name="model.pt"), arrays, folder)
    assert report.before.quality is not None
    assert report.after.quality is not None
    assert report.goal is not None
    return {
        "steps": [row.type for row in report.steps],
        "goal": report.goal.status,
        "reached": report.goal.reached,
        "before_bytes": report.before.file_bytes,
        "after_bytes": result.stat().st_size,
        "planned_bytes": plan.files[result.name].size_bytes,
        "parameters": [report.before.parameters, *(row.parameters for row in report.steps)],
        "accuracy": [
            report.before.quality.test.value,
            *(row.quality.test.value for row in report.steps if row.quality is not None),
        ],
        "accuracy_again": again,
        "seconds": report.seconds,
    }


def split(mnist: str, size: int, seed: int, samples: int) -> dict[str, np.ndarray]:
    """MNIST as bytes, (samples, 1, size, size): some training images held out by seed."""
    given = np.load(mnist)
    order = np.random.default_rng(seed).permutation(len(given["x_train"]))
    parts = {"train": order[5000 : 5000 + samples], "val": order[:5000]}

    def images(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, 1, 28, 28)
        if size == 14:
            x = x.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)).round()
        return x.astype(np.uint8)

    arrays = {f"x_{part}": images(given["x_train"][rows]) for part, rows in parts.items()}
    arrays |= {f"y_{part}": given["y_train"][rows].astype(np.int64) for part, rows in parts.items()}
    return arrays | {"x_test": images(given["x_test"]), "y_test": given["y_test"].astype(np.int64)}


def inputs_of(images: np.ndarray) -> Tensor:
    """What the network is trained on: bytes, scaled as `PREPROCESS` says."""
    x = torch.from_numpy(images.astype(np.float32)) * PREPROCESS["scale"]
    return (x - PREPROCESS["mean"][0]) / PREPROCESS["std"][0]


def trained(name: str, arrays: dict[str, np.ndarray], seed: int, epochs: int) -> nn.Module:
    """The dense network after its training: Adam, a rate that falls along half a cosine."""
    torch.manual_seed(seed)
    module = NETWORKS[name]().train()
    x, y = inputs_of(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    batches = len(x) // 64
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: batches * 64].split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
            falling.step()
    return module.eval()


def measured(file: Path, arrays: dict[str, np.ndarray], folder: Path) -> float:
    """The test accuracy of a downloaded file, in a clean process."""
    test = folder / "test.npz"
    np.savez(test, x_test=inputs_of(arrays["x_test"]).numpy(), y_test=arrays["y_test"])
    command = [sys.executable, "-I", str(Path(__file__).with_name("measured.py")), str(file), str(test), "2"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(found["accuracy"])


def section(results: dict[str, Any]) -> str:
    """The table, and how it was made."""
    rows = []
    for name in NETWORKS:
        runs = [result for key, result in results.items() if key.rpartition(" ")[0] == name]
        times = [run["before_bytes"] / run["after_bytes"] for run in runs]
        lost = [100 * (run["accuracy"][0] - run["accuracy"][-1]) for run in runs]
        again = max(abs(run["accuracy_again"] - run["accuracy"][-1]) for run in runs)
        rows.append(
            [
                name,
                f"{' → '.join(runs[0]['steps'])} ({OUTPUTS[name][0]})",
                f"{runs[0]['before_bytes']:,}",
                spread([float(run["after_bytes"]) for run in runs], ",.0f"),
                spread(times, ".1f") + "×",
                " → ".join(
                    spread([100 * run["accuracy"][step] for run in runs], ".2f")
                    for step in range(len(runs[0]["accuracy"]))
                ),
                spread(lost, ".2f"),
                f"{sum(run['goal'] == 'met' for run in runs)} of {len(runs)}",
                f"{max(abs(run['planned_bytes'] / run['after_bytes'] - 1) for run in runs):.1%}",
                f"{100 * again:.2f}",
            ]
        )
    header = ["", "steps", "bytes before", "bytes after", "fewer", "test accuracy, step by step, %", "points lost"]
    return f"""\
## Pipelines: a tenth of the bytes at no more than a point

{table([*header, "goal met", "plan apart by", "measured again, apart by"], rows)}

One job each with the target {json.dumps(TARGET)}, through the API; median (smallest … largest) of {len(SEEDS)} seeds.
The steps are those that `pared compress` chooses, with {EPOCHS} epochs a training. Accuracies: of the upload, then of
each step's result. The plan: of the bytes, at most. The last column: the accuracy of the downloaded model in a clean
process, in points from the report's.
{machine()}. `make bench-pipeline` (PARED_MNIST=mnist.npz)."""


def spread(values: list[float], form: str) -> str:
    """The median, and the ends where they differ."""
    low, middle, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} … {high})"


if __name__ == "__main__":
    main(short="--short" in sys.argv[1:])
