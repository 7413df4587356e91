"""Epochs of a distill job beside a plain PyTorch loop that runs the teacher live: `make bench-distillation-loop`.

Both train the same student from the same weights on the same samples, batches, rates and loss; the plain loop's loss is
torchdistill's `KDLoss`. torchdistill's own training loop (`DistillationBox`) needs torchvision, which has no build for
the torch that is pinned here, and is not beside it; the loop does what its documentation's examples do. The orders of
samples differ, so losses are compared over several seeds. Jobs and loops run in turns, with the same threads.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop import images
from results import machine, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional

import pared

TORCHDISTILL = "torchdistill==1.1.5"
ROUNDS, EPOCHS, BATCH, RATE = 5, 6, 64, 0.001
TEMPERATURE, LABELS = 4.0, 0.5
FINISH = 3  # epochs of the teacher
MEAN, STD = 0.43, 0.25  # of the images


class LeNet(nn.Sequential):
    """LeNet-5, or what is left of it at a share of its width."""

    def __init__(self, width: float = 1.0) -> None:
        a, b, c = (round(width * each) for each in (20, 50, 500))
        super().__init__(
            nn.Conv2d(1, a, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(a, b, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * b, c), nn.ReLU(), nn.Linear(c, 10),
        )  # fmt: skip


def main() -> None:
    """Run all rounds, print the ratios and write them down."""
    jobs, loops = [], []
    with tempfile.TemporaryDirectory(prefix="pared-distillation-loop-") as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "-d", name, TORCHDISTILL], check=True)
        np.savez(folder / "data.npz", **images(28))
        _save_models(folder)
        with running_pared(folder / "data") as url:
            client = pared.Client(url)
            for seed in range(ROUNDS):
                jobs.append(_of_job(client, folder, seed))
                line = [sys.executable, __file__, "loop", name, str(seed)]
                loops.append(json.loads(subprocess.run(line, check=True, capture_output=True).stdout))
                print(f"seed {seed}: job {jobs[-1]}, loop {loops[-1]}", flush=True)
    text = _section(jobs, loops)
    print(text)
    write_section("distillation-loop", text)


def _save_models(folder: Path) -> None:
    """A teacher that has learned, and a student that has not."""
    arrays = np.load(folder / "data.npz")
    x, y = _normalised(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    torch.manual_seed(0)
    teacher, student = LeNet(), LeNet(0.25)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.001)
    for _ in range(FINISH):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(teacher(x[chosen]), y[chosen]).backward()
            optimizer.step()
    for name, module in (("teacher", teacher), ("student", student)):
        torch.jit.save(torch.jit.script(module.eval()), folder / f"{name}.pt")


def _of_job(client: pared.Client, folder: Path, seed: int) -> list[dict[str, float]]:
    """Loss and seconds of each epoch of a job."""
    job = client.distill(
        folder / "teacher.pt", folder / "student.pt", folder / "data.npz", seed=seed,
        preprocess={"scale": 1 / 255, "mean": [MEAN], "std": [STD]},
        loss={"kind": "knowledge", "alpha": 0.0, "temperature": TEMPERATURE, "labels": LABELS}, outputs=["torchscript"],
        train={"epochs": EPOCHS, "lr": RATE, "warmup": 0.0, "batch_size": BATCH},
    )  # fmt: skip
    job.wait()
    return [{"loss": epoch.train_loss, "seconds": epoch.seconds} for epoch in job.report().history]


def _normalised(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).float() / 255 - MEAN) / STD


def plain_loop(folder: Path, seed: int) -> list[dict[str, float]]:
    """Loss and seconds of each epoch of the loop."""
    sys.path.insert(0, str(next(folder.glob("torchdistill-*.whl"))))
    from torchdistill.losses.mid_level import KDLoss

    arrays = np.load(folder / "data.npz")
    x, held = (_normalised(arrays[f"x_{split}"]) for split in ("train", "val"))
    y, labels = (torch.from_numpy(arrays[f"y_{split}"]) for split in ("train", "val"))
    teacher, student = (torch.jit.load(folder / f"{name}.pt") for name in ("teacher", "student"))
    criterion = KDLoss(".", "output", ".", "output", temperature=TEMPERATURE, alpha=LABELS)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(x) // BATCH))
    torch.manual_seed(seed)
    teacher.eval()
    found = []
    for _ in range(EPOCHS):
        began, total = time.monotonic(), 0.0
        student.train()
        for chosen in torch.randperm(len(x)).split(BATCH):
            with torch.no_grad():
                answers = teacher(x[chosen])
            loss: Any = criterion({".": {"output": student(x[chosen])}}, {".": {"output": answers}}, y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        student.eval()
        with torch.no_grad():
            wrong = [
                (student(x_).argmax(1) != y_).sum().item()
                for x_, y_ in zip(held.split(256), labels.split(256), strict=True)
            ]
        assert sum(wrong) < len(held)
        found.append({"loss": total / len(x), "seconds": time.monotonic() - began})
    return found


def _section(jobs: list[list[dict[str, float]]], loops: list[list[dict[str, float]]]) -> str:
    rows = []
    for epoch in range(EPOCHS):
        of_job, of_loop = ([run[epoch]["loss"] for run in runs] for runs in (jobs, loops))
        rows.append(
            [
                str(epoch + 1),
                f"{statistics.mean(of_job):.4f} ± {statistics.stdev(of_job):.4f}",
                f"{statistics.mean(of_loop):.4f} ± {statistics.stdev(of_loop):.4f}",
                *(f"{statistics.median(run[epoch]['seconds'] for run in runs):.2f}" for runs in (jobs, loops)),
            ]
        )
    # Others at work on the machine only make epochs longer.
    ratios = [
        min(each["seconds"] for each in loop[1:]) / min(each["seconds"] for each in job[1:])
        for job, loop in zip(jobs, loops, strict=True)
    ]
    header = ["epoch", "loss, job", "loss, loop", "job, s", "loop, s"]
    return (
        f"## Distillation beside a plain loop\n\n{table(header, rows)}\n\n"
        f"From the second epoch a job runs at **{statistics.median(ratios):.1f}** times the speed of the loop "
        f"({min(ratios):.1f} to {max(ratios):.1f} in {ROUNDS} rounds, the fastest epoch of each): the teacher's "
        "answers are computed once, before the first epoch; the loop runs the teacher in each. Teacher: LeNet-5; "
        "student: a quarter of its width. The loop's loss is `KDLoss` of "
        f"{TORCHDISTILL}. Losses are means with the standard deviation over the seeds 0 to {ROUNDS - 1}, of 6,000 "
        f"samples in batches of {BATCH}; seconds are medians, with the validation of 1,000 more. {machine()}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads.\n\n`make bench-distillation-loop`"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["loop"]:
        print(json.dumps(plain_loop(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
