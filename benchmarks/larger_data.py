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

SIZE, BATCH = 64, 64
TIMES = 3
"""How much larger than the memory limit the samples are."""


def main() -> None:
    """Measure, print, and write the section `larger-data`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory-mib", type=int, default=640, help="the lower of the two limits")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    memory = options.memory_mib << 20
    count = TIMES * memory // (3 * SIZE * SIZE) + 1
    rows, ratios = [], []
    with tempfile.TemporaryDirectory(prefix="pared-data-") as name:
        folder = Path(name)
        model = folder / "model.pt"
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(network().eval()), model)
        for form, write in (("npz, bytes", write_npz), ("zip of JPEG files", write_images)):
            data = write(folder, count)
            rounds = [
                {limit: measured(folder, model, data, limit, options.epochs) for limit in (8 * TIMES * memory, memory)}
                for _ in range(options.rounds)
            ]
            data.unlink()
            for limit in (8 * TIMES * memory, memory):
                of_limit = [each[limit] for each in rounds]
                names = ("first", "later", "job")
                seconds = [f"{statistics.median(each[part] for each in of_limit):.1f}" for part in names]
                rows.append([f"{form}, limit {limit / 2**30:g} GiB", *seconds])
                print(" | ".join(rows[-1]), flush=True)
            if len({each[limit]["digest"] for each in rounds for limit in each}) != 1:
                raise RuntimeError(f"{form}: the results differ")
            later = [each[memory]["later"] / each[8 * TIMES * memory]["later"] for each in rounds]
            job = [each[memory]["job"] / each[8 * TIMES * memory]["job"] for each in rounds]
            ratios.append(
                f"{form}: **{statistics.median(later):.2f}** an epoch, **{statistics.median(job):.2f}** a job"
            )
    header = [f"{count:,} images of 3×{SIZE}×{SIZE}", "first epoch, s", "later epochs, s", "job, s"]
    write_section(
        "larger-data",
        f"## Data larger than memory\n\n{table(header, rows)}\n\nSeconds with the lower limit over those in memory: "
        f"{'; '.join(ratios)}. The samples take {TIMES} times the lower limit as bytes, and twelve times it as the "
        f"numbers that the model sees. Rounds: {options.rounds}, in turns, half of the channels removed, "
        f"{options.epochs} epochs in batches of {BATCH}; an epoch's seconds include its validation. "
        "Both files of a result have the same SHA-256. The network is a small one (three convolutions), so that "
        f"reading has little computation to hide behind. {machine()}; torch {torch.__version__}.\n\n`make bench-data`",
    )
    print("\n".join(ratios))


def network() -> nn.Module:
    """Three convolutions on 64×64 pixels, and a linear layer."""
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
