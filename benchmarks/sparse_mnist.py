"""How few weights MNIST needs: LeNet-300-100 and LeNet-5, pruned by a running pared: `make bench-sparse`.

The dense networks are trained here, as any user would. All else happens through the API. 5,000 training images, drawn
by seed, are held out: epochs are chosen by them. So was every number in `NETWORKS`, for LeNet-5 by 10,000 more of seed
0, which were then left out of the training. The test split is only reported on. One LeNet-5 is packed as well, and its
test error measured once more from that file by `measured.py`, a process of its own that shares no code with pared.
An interrupted run goes on where it stopped: what is finished is kept in `build/bench-sparse`.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept, machine, mnist_file, table, write_section
from safetensors.numpy import load_file
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared
from pared.compression.architectures import build

SEEDS = (0, 1, 2)
WORK = Path("build/bench-sparse")
SOFTENED = {"kind": "knowledge", "alpha": 0.0, "labels": 0.1}
SGD = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "lr_schedule": "cosine",
    "warmup": 0.1,  # with less, softened classes can make a dense network diverge, or silence it for good
}


@dataclass(frozen=True)
class Goal:
    """One weight of so many is kept, and at most so many percent of the test images may be told wrong.

    `start`: the goal whose result is pruned further; without one the dense network is, which then teaches through all
    `stages`, the amounts on the way. `fields` and `retrain`: of the job and its training, beside the network's own.
    """

    times: int
    most_wrong: float
    published: str
    start: int | None = None
    stages: tuple[int, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """What is trained and pruned, and how.

    `distortion`: how strongly the images are distorted, anew in each epoch, that the dense network trains on.
    """

    title: str
    architecture: str
    distortion: float
    dense: dict[str, Any]
    retrain: dict[str, Any]
    goals: tuple[Goal, ...]


NETWORKS = (
    Network(
        "LeNet-300-100",
        "lenet300",
        1.0,
        {"epochs": 30, "lr": 0.1, "weight_decay": 1e-4},
        {
            **SGD,
            "epochs": 30,
            "lr": 0.15,
            "weight_decay": 5e-4,
            "batch_size": 128,
            "teach": {**SOFTENED, "temperature": 4},
        },
        (
            Goal(12, 1.15, "Han 2015: 12× at 1.59"),
            Goal(60, 1.5, "DNS 2016: 56× at 1.99", start=12),
            Goal(100, 2.0, "", start=12, stages=(60,)),
        ),
    ),
    Network(
        "LeNet-5",
        "lenet5",
        0.5,  # held out, at 250×: 0.76 % wrong; 0.95 % at half of it, and 1.1 % at twice, which takes more weights
        {"epochs": 12, "lr": 0.05, "weight_decay": 5e-4},
        {
            **SGD,
            "epochs": 10,
            "lr": 0.04,
            "weight_decay": 5e-4,
            "batch_size": 64,
            "precision": "bfloat16",
            "teach": {**SOFTENED, "temperature": 3},
        },
        (
            Goal(108, 0.70, "DNS 2016: 108× at 0.91"),
            Goal(250, 0.75, "progressive ADMM: 246×", stages=(108,)),
            Goal(
                500,
                1.0,
                "",
                start=250,
                fields={"criterion": "hessian", "ramp": 0.75},  # held out: 1.2 % wrong; 1.6 by magnitude
                retrain={"epochs": 20, "teach": {**SOFTENED, "temperature": 2}},
            ),
        ),
    ),
)
PACKED_TIMES, PACKED_MOST_WRONG, PACKED_SHARE = 250, 0.75, 400
PACKED = {"bits": 5, "epochs": 4}


def main() -> None:
    """Run what is still missing, then write the section `sparse`."""
    mnist = mnist_file()
    results = Kept(WORK)
    with running_pared(WORK / "data") as url, pared.Client(url) as client:
        for network in NETWORKS:
            for seed in SEEDS:
                for name, result in experiments(client, mnist, network, seed, results):
                    results[name] = result
    text = section(results)
    print(text)
    write_section("sparse", text)


def experiments(
    client: pared.Client, mnist: str, network: Network, seed: int, results: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and outcome of each job of one network and seed that is not among the results yet, as it ends."""
    names = [key(network, seed, goal.times) for goal in network.goals]
    if network.architecture == "lenet5":
        names.append(key(network, seed, "packed"))
    if all(name in results for name in names):
        return
    data, dense = prepared(mnist, network, seed)
    folders = {name: WORK / name for name in names}
    for goal, name in zip(network.goals, names, strict=False):
        if name not in results:
            start = dense if goal.start is None else folders[key(network, seed, goal.start)] / "model.safetensors"
            fields = {
                "schedule": "cubic",
                "stages": [removed(times) for times in goal.stages],
                "amount": removed(goal.times),
                "retrain": {**network.retrain, **goal.retrain},
                **goal.fields,
                "outputs": ["state_dict"],
            }
            yield name, finished(client, network, start, data, fields, seed, folders[name])
    if names[-1] not in results and network.architecture == "lenet5":
        start = folders[key(network, seed, PACKED_TIMES)] / "model.safetensors"
        fields = {
            "amount": removed(PACKED_TIMES),
            "retrain": {**network.retrain, "epochs": 1, "lr": network.retrain["lr"] / 10},
            "quantize": {**PACKED, "lr": network.retrain["lr"] / 10},
            "outputs": ["state_dict", "packed"],
        }
        result = finished(client, network, start, data, fields, seed, folders[names[-1]])
        packed = folders[names[-1]] / "model.packed"
        yield names[-1], {**result, "bytes": packed.stat().st_size, "wrong": error_from_file(packed, mnist)}


def key(network: Network, seed: int, what: object) -> str:
    """The name of a job: of its result and of its folder."""
    return f"{network.architecture}-{seed}-{what}"


def removed(times: int) -> float:
    """The share of the weights that goes where one of `times` is kept."""
    return 1 - 1 / times


def finished(
    client: pared.Client,
    network: Network,
    start: Path,
    data: Path,
    fields: dict[str, Any],
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Post one job, wait for it, fetch the model, and keep what the table needs."""
    model = client.models.upload(start, architecture=network.architecture)
    preprocess = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
    job = client.prune(model, data, granularity="weight", seed=seed, preprocess=preprocess, **fields)
    job.wait()
    report = job.report()
    folder.mkdir(exist_ok=True)
    for artifact in job.artifacts():
        job.download(folder / artifact.name, artifact.name)
    assert job.started_at is not None
    assert job.finished_at is not None
    seconds = (job.finished_at - job.started_at).total_seconds()
    print(f"{folder.name}: {report.verdict} ({seconds:.0f} s)", flush=True)
    arrays = load_file(folder / "model.safetensors").values()
    return {
        "report": report.model_dump(mode="json", exclude={"removed"}),
        "seconds": seconds,
        "weights": int(sum(np.count_nonzero(array) for array in arrays if array.ndim > 1)),
        "biases": int(sum(np.count_nonzero(array) for array in arrays if array.ndim == 1)),
    }


def error_from_file(packed: Path, mnist: str) -> float:
    """Percent of the test images that the network in a packed file tells wrong, found by a process of its own."""
    test = WORK / "test.npz"
    given = np.load(mnist)
    images = (given["x_test"].reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.1307) / 0.3081
    np.savez(test, x_test=images, y_test=given["y_test"].astype(np.int64))
    command = [sys.executable, "-I", str(Path(__file__).with_name("measured.py")), str(packed), str(test), "2"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return 100 * (1 - found["accuracy"])


# -- the dense networks -------------------------------------------------------------------------


def prepared(mnist: str, network: Network, seed: int) -> tuple[Path, Path]:
    """The data set with this seed's held-out images, and the dense network trained on the rest."""
    data, dense = WORK / f"mnist-{seed}.npz", WORK / f"{network.architecture}-{seed}-dense.pt"
    given = np.load(mnist)
    images, labels = given["x_train"].reshape(-1, 1, 28, 28), given["y_train"].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(images))
    train, held_out = order[5000:], order[:5000]
    if not data.exists():
        np.savez(
            data,
            x_train=images[train],
            y_train=labels[train],
            x_val=images[held_out],
            y_val=labels[held_out],
            x_test=given["x_test"].reshape(-1, 1, 28, 28),
            y_test=given["y_test"].astype(np.int64),
        )
    if not dense.exists():
        module = trained(network, torch.from_numpy(images[train]), torch.from_numpy(labels[train]), seed)
        torch.save(module.state_dict(), dense)
    return data, dense


def trained(network: Network, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """The dense network after SGD."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = build(network.architecture).to(memory_format=torch.channels_last)  # faster on a CPU
    epochs, rate, decay = (network.dense[name] for name in ("epochs", "lr", "weight_decay"))
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    steps = epochs * math.ceil(len(images) / 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.02, cycle_momentum=False)
    for epoch in range(epochs):
        started = time.monotonic()
        inputs = (distorted(images, network.distortion, generator) / 255 - 0.1307) / 0.3081
        for batch in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - started
        print(f"{key(network, seed, 'dense')}: epoch {epoch + 1} of {epochs}, {seconds:.0f} s", flush=True)
    return module.to(memory_format=torch.contiguous_format)


def distorted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled, sheared, moved and bent at random. Simard et al. 2003, Best Practices for CNNs.

    Args:
        images: (n, 1, side, side), of any type and range; the result is float32.
        strength: a factor of all that; at 1 up to 10 degrees, 10 %, 10 %, 1.5 pixels and about as many.
    """
    return torch.cat([_distorted(part.float(), strength, generator) for part in images.split(1000)])


def _distorted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    n, side = len(images), images.shape[-1]
    pixel = 2 / side  # in the coordinates of grid_sample, from -1 to 1

    def at_random(most: float, *shape: int) -> Tensor:
        return (2 * torch.rand(n, *(shape or (1, 1)), generator=generator) - 1) * most * strength

    turn, wide, high, shear = at_random(math.radians(10)), 1 + at_random(0.1), 1 + at_random(0.1), at_random(0.1)
    line = (torch.arange(side) + 0.5) * pixel - 1
    x, y = line[None, None, :], line[None, :, None]
    across = turn.cos() * wide * x + (shear - turn.sin() * high) * y + at_random(1.5 * pixel)
    down = turn.sin() * wide * x + turn.cos() * high * y + at_random(1.5 * pixel)
    # A field of random arrows, smoothed by a Gaussian of 4 pixels.
    places = torch.arange(side)
    smooth = torch.exp(-((places[:, None] - places) ** 2) / (2 * 4**2)) / (4 * math.sqrt(2 * math.pi))
    bend = smooth @ at_random(34 * pixel, 2, side, side) @ smooth
    return F.grid_sample(images, torch.stack([across, down], -1) + bend.movedim(1, -1), align_corners=False)


# -- the table ----------------------------------------------------------------------------------


def section(results: dict[str, Any]) -> str:
    """The tables over all seeds, with what they were measured on."""
    rows = []
    for network in NETWORKS:
        jobs = [results[key(network, seed, network.goals[0].times)] for seed in SEEDS]
        rows.append([f"{network.title}, dense", "", *errors([wrong(job, "before") for job in jobs]), "", "", ""])
        for goal in network.goals:
            jobs = [results[key(network, seed, goal.times)] for seed in SEEDS]
            kept = f"{jobs[0]['weights']:,} + {jobs[0]['biases']}"
            goal_and_time = [f"≤ {goal.most_wrong:.2f}", goal.published, mean_seconds(jobs)]
            rows.append([f"{goal.times}×", kept, *errors([wrong(job, "after") for job in jobs]), *goal_and_time])
    header = ["mean of 3 seeds", "weights + biases", "test error, %", "each", "goal", "published", "job, s"]
    lenet5 = NETWORKS[-1]
    packed = [results[key(lenet5, seed, "packed")] for seed in SEEDS]
    shares = [job["report"]["before"]["parameters"] * 4 / job["bytes"] for job in packed]
    files = [
        [f"seed {seed}", f"{job['bytes']:,}", f"1/{share:.0f}", f"{job['wrong']:.2f}", f"{wrong(job, 'after'):.2f}"]
        for seed, job, share in zip(SEEDS, packed, shares, strict=True)
    ]
    files.append(
        [
            "mean",
            f"{statistics.mean(job['bytes'] for job in packed):,.0f}",
            f"1/{statistics.mean(shares):.0f}",
            errors([job["wrong"] for job in packed])[0],
            errors([wrong(job, "after") for job in packed])[0],
        ]
    )
    file_header = ["LeNet-5, packed", "bytes", "of float32", "test error from the file, %", "in the report, %"]
    versions = packed[0]["report"]["reproduce"]["versions"]
    return (
        f"## Few weights, MNIST\n\n{table(header, rows)}\n\n{table(file_header, files)}\n\n"
        "Test error with its standard deviation over the seeds 0, 1, 2. N×: of N weights one is kept; biases, which "
        "no method here prunes, are counted apart, as far as they are not zero. The dense networks were trained "
        "on images distorted anew in each epoch, LeNet-5 on half as strongly distorted ones; pruning and retraining "
        "see the images as they are. "
        "Weights go along a cubic ramp while the network trains, ranked all together by magnitude, at 500× by (g·w)² "
        "over the training's own slopes; the network that a job was given is its teacher, by nine parts softened "
        "classes and one part labels. Epochs were chosen on 5,000 training images held out by seed, and the settings "
        "on up to 15,000 of seed 0, never on the test split. "
        f"Packed: {PACKED_TIMES}× with {PACKED['bits']} bits a value (goals: 1/{PACKED_SHARE} at "
        f"{PACKED_MOST_WRONG} %; Deep Compression 2016: 1/39 at 0.74 %), its error measured from the file by "
        "the reader in docs/packed-format.md, in a process without pared. "
        f"{machine()}; torch {versions.get('torch', '?')}.\n\n"
        "`make bench-sparse PARED_MNIST=mnist.npz`"
    )


def wrong(job: dict[str, Any], side: str) -> float:
    """Percent of the test images told wrong, by the job's report."""
    return 100 * (1 - job["report"][side]["quality"]["test"]["value"])


def errors(percents: list[float]) -> list[str]:
    """Mean and standard deviation, and each."""
    mean = f"{statistics.mean(percents):.2f} ± {statistics.stdev(percents):.2f}"
    return [mean, ", ".join(f"{percent:.2f}" for percent in percents)]


def mean_seconds(jobs: list[dict[str, Any]]) -> str:
    """What a job took."""
    return f"{statistics.mean(job['seconds'] for job in jobs):.0f}"


if __name__ == "__main__":
    main()
