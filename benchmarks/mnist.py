"""The classic compression experiments on MNIST, each posted as a job to a running pared: `make bench-mnist`.

A CNN with 32 and 64 channels is trained here, as any user would; all else happens through the API. The
test split is only reported on: 5,000 training images, drawn by seed, are what epochs are chosen by.
An interrupted run goes on where it stopped: finished experiments are kept in `build/bench-mnist`.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept, machine, mnist_file, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared

SEEDS = (0, 1, 2)
WORK = Path("build/bench-mnist")
PREPROCESS = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
SGD = {"epochs": 5, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "batch_size": 64}
ADAM = {"epochs": 5, "optimizer": "adam", "lr": 0.001, "lr_schedule": "constant", "warmup": 0.0, "batch_size": 64}
STUDENT = {
    "layers": [
        ["Conv2d", {"in_channels": 1, "out_channels": 12, "kernel_size": 3, "padding": 1}],
        ["ReLU"],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Conv2d", {"in_channels": 12, "out_channels": 20, "kernel_size": 3, "padding": 1}],
        ["ReLU"],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Flatten"],
        ["Linear", {"in_features": 20 * 7 * 7, "out_features": 10}],
    ]
}


class Cnn(nn.Module):
    """3×3 convolutions with 32 and 64 channels, each followed by max-pool 2, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc = nn.Linear(64 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 28, 28) to logits (batch, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


def main() -> None:
    """Run what is still missing, then write the section `mnist`."""
    mnist = mnist_file()
    results = Kept(WORK)
    with running_pared(WORK / "data") as url, pared.Client(url) as client:
        for seed in SEEDS:
            wanted = {
                name: spec
                for name, spec in experiments(seed).items()
                if results.get(f"{seed}/{name}", {}).get("spec") != spec
            }
            if not wanted:
                continue
            data, model = prepared(mnist, seed)
            for name, spec in wanted.items():
                results[f"{seed}/{name}"] = finished(client, spec, model, data, f"seed {seed}: {name}")
    text = section(results)
    print(text)
    write_section("mnist", text)


def experiments(seed: int) -> dict[str, dict[str, Any]]:
    """Name -> job spec, without the uploads."""
    specs: dict[str, dict[str, Any]] = {}
    for granularity, amounts in (("weight", (0.1, 0.5, 0.9)), ("channel", (0.5,))):
        for amount in amounts:
            for retrain, word in ((None, "as pruned"), ({**SGD, "teach": None}, "retrained")):
                name = f"{amount:.0%} of {granularity}s, {word}"
                specs[name] = {"type": "prune", "granularity": granularity, "amount": amount, "retrain": retrain}
    losses: dict[str, dict[str, Any]] = {"output distillation": {"kind": "output_mse"}}
    for alpha in (0.1, 0.5, 0.9):
        losses[f"knowledge distillation, α {alpha}"] = {
            "kind": "knowledge",
            "alpha": alpha,
            "temperature": 4,
            "labels": 0.0,
        }
    for name, loss in losses.items():
        specs[name] = {"type": "distill", "student": STUDENT, "loss": loss, "train": ADAM}
    # The student on labels alone starts alike and sees the same budget whatever the loss: once is enough.
    specs["output distillation"]["compare_with_labels_only"] = True
    return {name: {**spec, "seed": seed, "preprocess": PREPROCESS} for name, spec in specs.items()}


def prepared(mnist: str, seed: int) -> tuple[Path, Path]:
    """The data set with this seed's held-out images, and the dense model trained on the rest."""
    data, model = WORK / f"mnist-{seed}.npz", WORK / f"dense-{seed}.pt"
    given = np.load(mnist)
    order = np.random.default_rng(seed).permutation(len(given["x_train"]))
    train, held_out = order[5000:], order[:5000]
    arrays = {
        "x_train": given["x_train"].reshape(-1, 1, 28, 28)[train],
        "y_train": given["y_train"][train].astype(np.int64),
        "x_val": given["x_train"].reshape(-1, 1, 28, 28)[held_out],
        "y_val": given["y_train"][held_out].astype(np.int64),
        "x_test": given["x_test"].reshape(-1, 1, 28, 28),
        "y_test": given["y_test"].astype(np.int64),
    }
    if not data.exists():
        np.savez(data, **arrays)
    if not model.exists():
        module = trained(arrays["x_train"], arrays["y_train"], seed)
        torch.jit.script(module.eval()).save(str(model))
    return data, model


def trained(x: np.ndarray, y: np.ndarray, seed: int) -> nn.Module:
    """The dense CNN after 5 epochs of SGD 0.01, momentum 0.9, batches of 64."""
    torch.manual_seed(seed)
    module = Cnn().to(memory_format=torch.channels_last)  # faster on a CPU
    images = (torch.from_numpy(x).float() / 255 - 0.1307) / 0.3081
    labels = torch.from_numpy(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(5):
        started = time.monotonic()
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(images[batch]), labels[batch]).backward()
            optimizer.step()
        print(f"seed {seed}: dense epoch {epoch + 1} of 5, {time.monotonic() - started:.0f} s", flush=True)
    return module.to(memory_format=torch.contiguous_format)


def finished(client: pared.Client, spec: dict[str, Any], model: Path, data: Path, what: str) -> dict[str, Any]:
    """Post one experiment, wait for it, and keep what the table needs."""
    fields = {name: value for name, value in spec.items() if name not in ("type", "student")}
    if spec["type"] == "prune":
        job = client.prune(model, data, **fields)
    else:
        job = client.distill(model, spec["student"], data, **fields)
    job.wait()
    report = job.report()
    assert job.started_at is not None
    assert job.finished_at is not None
    # The student on labels alone is trained in the same job, and has a row of its own.
    alone = sum(epoch.seconds for epoch in report.history if epoch.phase == "labels only")
    seconds = (job.finished_at - job.started_at).total_seconds() - alone
    print(f"{what}: {report.verdict} ({seconds:.0f} s)", flush=True)
    kept = report.model_dump(mode="json", exclude={"history", "layers", "removed"})
    return {"spec": spec, "report": kept, "seconds": seconds}


# -- the table ----------------------------------------------------------------------------------


def section(results: dict[str, Any]) -> str:
    """The table over all seeds, with what it was measured on."""
    names = list(experiments(0))
    rows = [row("the dense CNN", [measured(results, seed, names[0], "before") for seed in SEEDS])]
    for name in names:
        if name == "output distillation":
            alone = [measured(results, seed, name, "after") for seed in SEEDS]
            for seed, one in zip(SEEDS, alone, strict=True):
                one["quality"] = results[f"{seed}/{name}"]["report"]["labels_only"]
            rows.append(row("a student of a quarter, on labels alone", alone))
            rows[-1][3] = rows[-1][5] = ""  # of these weights alone; all else is the same for every such student
        times = [results[f"{seed}/{name}"]["seconds"] for seed in SEEDS]
        rows.append(row(name, [measured(results, seed, name, "after") for seed in SEEDS], times))
    header = ["mean of 3 seeds", "test error, %", "parameters", "not zero", "file, KB", "gzip, KB", "MACs, M"]
    header += ["batch 1, ms", "batch 32, ms", "job, s"]
    versions = results[f"0/{names[0]}"]["report"]["reproduce"]["versions"]
    return (
        f"## MNIST\n\n{table(header, rows)}\n\n"
        "Test error with its standard deviation over the seeds 0, 1, 2. The CNN has 3×3 convolutions with 32 and 64 "
        "channels, max-pool 2 after each and one linear layer; 5 epochs of SGD 0.01 with momentum 0.9, batches of 64. "
        "Weights are ranked all together, channels layer by layer. Retraining is the same again, on labels alone. "
        "Students have 12 and 20 channels and learn for 5 epochs of Adam 0.001, "
        "temperature 4. Epochs are chosen on 5,000 training images held out by seed, never on the test split. "
        "Latency is the median forward pass, measured alternately with the dense CNN in the same job; "
        f"zeroed weights do not change it. {machine()}; torch {versions.get('torch', '?')}.\n\n"
        "`make bench-mnist PARED_MNIST=mnist.npz`"
    )


def measured(results: dict[str, Any], seed: int, name: str, side: str) -> dict[str, Any]:
    """One measurement of one experiment, to be changed freely."""
    return dict(results[f"{seed}/{name}"]["report"][side])


def row(name: str, measurements: list[dict[str, Any]], seconds: list[float] | None = None) -> list[str]:
    """One line: means over the seeds."""
    errors = [100 * (1 - m["quality"]["test"]["value"]) for m in measurements]
    latency = {
        batch: statistics.mean(
            entry["p50_ms"] for m in measurements for entry in m["latency"] if entry["batch_size"] == batch
        )
        for batch in (1, 32)
    }

    def mean(key: str) -> float:
        return statistics.mean(m[key] for m in measurements)

    return [
        name,
        f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}",
        f"{mean('parameters'):,.0f}",
        f"{mean('nonzero_parameters'):,.0f}",
        f"{mean('file_bytes') / 1000:.0f}",
        f"{mean('compressed_bytes') / 1000:.0f}",
        f"{mean('macs') / 1e6:.2f}",
        f"{latency[1]:.2f}",
        f"{latency[32]:.2f}",
        f"{statistics.mean(seconds):.0f}" if seconds else "",
    ]


if __name__ == "__main__":
    main()
