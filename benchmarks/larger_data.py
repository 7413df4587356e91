"""A data set three times larger than the job's memory limit, against the same one in memory.

Two servers run in turns: one whose jobs may use so much memory that the samples stay in it, and one whose limit is a
third of what the samples take. The jobs are the same, and give the same bits. Run it with `make bench-data`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import machine, table, write_section
from server import running_pared
from torch import nn

import pared

SIZE, BATCH = 128, 64
TIMES = 3
"""How much larger than the memory limit the samples are."""


def main() -> None:
    """Measure, print, and write a section for each form of data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory-mib", type=int, default=896, help="the lower of the two limits")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, action="append", help="both unless given")
    options = parser.parse_args()
    for form in options.form or FORMS:
        measure(form, options.memory_mib << 20, options.rounds, options.epochs)


def measure(form: str, memory: int, rounds: int, epochs: int) -> None:
    """Run the jobs on one form of data, print the figures, and write its section."""
    count = TIMES * memory // (3 * SIZE * SIZE) + 1
    limits = (8 * TIMES * memory, memory)
    with tempfile.TemporaryDirectory(prefix="pared-data-") as name:
        folder = Path(name)
        model = folder / "model.pt"
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(network().eval()), model)
        data = FORMS[form](folder, count)
        taken = [{limit: measured(folder, model, data, limit, epochs) for limit in limits} for _ in range(rounds)]
    if len({each[limit]["digest"] for each in taken for limit in limits}) != 1:
        raise RuntimeError(f"{form}: the results differ")
    write(form, memory, count, epochs, taken)


def write(form: str, memory: int, count: int, epochs: int, taken: list[dict[int, dict[str, Any]]]) -> None:
    """The section of one form."""
    names = ("first", "later", "job")
    rows = [
        [f"{limit / 2**30:g} GiB", *(f"{statistics.median(each[limit][part] for each in taken):.1f}" for part in names)]
        for limit in taken[0]
    ]
    memory_limit = max(taken[0])
    ratio = {part: statistics.median(each[memory][part] / each[memory_limit][part] for each in taken) for part in names}
    header = [f"{form}, memory limit", "first epoch, s", "later epochs, s", "job, s"]
    text = (
        f"## Data larger than memory: {form}\n\n{table(header, rows)}\n\n{count:,} images of 3×{SIZE}×{SIZE} bytes, "
        f"{TIMES} times the lower limit. Seconds with it over those in memory: **{ratio['later']:.2f}** for an epoch "
        f"({ratio['first']:.2f} for the first), **{ratio['job']:.2f}** for the job. Rounds: {len(taken)}, in turns. "
        f"Half of the channels removed, {epochs} epochs in batches of {BATCH}, each with its validation. Both results "
        "have the same SHA-256. The network is small (three convolutions), so that reading has little computation to "
        f"hide behind. {machine()}; torch {torch.__version__}.\n\n`make bench-data`"
    )
    write_section(f"larger-data-{form}", text)
    print(text)


def network() -> nn.Module:
    """Three convolutions on 128×128 pixels, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def pixels(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image of one of four classes, (size, size, 3)."""
    chance = np.random.default_rng(index)
    coarse = chance.integers(0, 255, (8, 8, 3), np.uint8)
    coarse[index % 2 * 4 : index % 2 * 4 + 4, index // 2 % 2 * 4 : index // 2 % 2 * 4 + 4] |= 192
    return coarse.repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)


def write_npz(folder: Path, count: int) -> Path:
    """The arrays, written an image at a time."""
    path = folder / "images.npz"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, SIZE, SIZE)}
            np.lib.format.write_array_header_1_0(file, header)
            for index in range(count):
                file.write(np.ascontiguousarray(pixels(index).transpose(2, 0, 1)).data)
        with archive.open("y.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(count) % 4)
    return path


def write_images(folder: Path, count: int) -> Path:
    """JPEG files in class folders."""
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            content = io.BytesIO()
            Image.fromarray(pixels(index)).save(content, "JPEG", quality=90)
            archive.writestr(f"{index % 4}/{index:07}.jpg", content.getvalue())
    return path


FORMS = {"npz": write_npz, "images": write_images}


def measured(folder: Path, model: Path, data: Path, limit: int, epochs: int) -> dict[str, Any]:
    """Seconds of the epochs and of the whole job, under a memory limit."""
    os.environ |= {"PARED_MEMORY_BYTES": str(limit), "PARED_INSPECT_TIME_S": "600"}
    with running_pared(folder / "data") as url:
        client = pared.Client(url)
        job = client.prune(
            model, data, granularity="channel", amount=0.5, preprocess={"scale": 1 / 255}, outputs=["torchscript"],
            retrain={"epochs": epochs, "lr": 0.02, "batch_size": BATCH, "teach": False},
        )  # fmt: skip
        report = job.wait().report()
        result = job.download(folder / "pruned.pt")
    first, *later = (epoch.seconds for epoch in report.history)
    return {
        "first": first,
        "later": statistics.mean(later),
        "job": sum(report.seconds.values()),
        "digest": hashlib.sha256(result.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    main()
