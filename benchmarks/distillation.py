"""What a teacher is worth to a student where nothing is named: `make bench-distillation`.

Students of a quarter of their teacher's width on scikit-learn's digits and MNIST, ten seeds each: as pared cuts them
from the teacher, and with fresh weights. Each is trained by `pared.compression.distill` with its defaults, and in the
same job from the same start on labels alone. The difference is paired, and judged on test samples that neither training
nor the choice of the epoch saw. `--seeds 3` takes fewer seeds, `--only digits` one data set, `--images 10000` fewer
training images of MNIST. An interrupted run goes on where it stopped: results are kept in `build/bench-distillation`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept, machine, table, write_section
from scipy import stats
from taught_networks import KINDS, Arrays, Kind

from pared.compression import distill

WORK = Path("build/bench-distillation")
SETS = ("digits", "MNIST")
STARTS = {"cut from the teacher": True, "fresh": False}


def main() -> None:
    """Run what is missing, then write the section `distillation`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=SETS)
    parser.add_argument("--images", type=int, default=KINDS["MNIST"].samples[0])
    asked = parser.parse_args()
    results = Kept(WORK)
    for name in [asked.only] if asked.only else SETS:
        for seed in range(asked.seeds):
            wanted = [start for start in STARTS if key(name, start, seed, asked.images) not in results]
            if wanted:
                arrays = samples(KINDS[name], name, seed, asked.images)
                teacher = KINDS[name].teacher(arrays, seed)
                for start in wanted:
                    found = measured(KINDS[name], teacher, arrays, start, seed)
                    results[key(name, start, seed, asked.images)] = found
                    print(f"{name}, {start}, seed {seed}: {found}", flush=True)
    text = section(results, asked.seeds, asked.images)
    print(text)
    write_section("distillation", text)


def key(name: str, start: str, seed: int, images: int) -> str:
    """What a result is kept under."""
    return f"{name}/{start}/{seed}" + (f"/{images}" if name == "MNIST" else "")


def samples(kind: Kind, name: str, seed: int, images: int) -> Arrays:
    """The data set's splits, of MNIST with so many training images."""
    arrays = kind.arrays(WORK, seed, "test")
    if name == "MNIST":
        arrays |= {each: arrays[each][:images] for each in ("x_train", "y_train")}
    return arrays


def measured(kind: Kind, teacher: Any, arrays: Arrays, start: str, seed: int) -> dict[str, Any]:
    """Test errors in percent of the teacher, the taught student and the same student on labels alone."""
    data = WORK / "data.npz"
    np.savez(data, **arrays)
    student = {"from_teacher": {"width": 0.25}} if STARTS[start] else {"layers": kind.layers(0.25)}
    began = time.monotonic()
    report = distill(teacher, student, data, seed=seed, compare_with_labels_only=True).report
    assert report.before.quality is not None
    assert report.after.quality is not None
    assert report.labels_only is not None
    found = {"teacher": report.before.quality, "taught": report.after.quality, "labels": report.labels_only}
    errors = {name: 100 * (1 - quality.test.value) for name, quality in found.items()}
    epochs = report.reproduce.spec["train"]["epochs"]
    return errors | {"epochs": epochs, "best": report.best_epoch, "seconds": time.monotonic() - began}


def section(results: dict[str, Any], seeds: int, images: int) -> str:
    """The table over the seeds that are there."""
    rows, counts = [], []
    for name in SETS:
        for start in STARTS:
            keys = [key(name, start, seed, images) for seed in range(seeds)]
            found = [results[each] for each in keys if each in results]
            if len(found) < 2:
                continue
            differences = [one["taught"] - one["labels"] for one in found]
            mean, spread = statistics.mean(differences), statistics.stdev(differences)
            half = float(stats.t.ppf(0.975, len(found) - 1)) * spread / len(found) ** 0.5
            errors = [f"{statistics.mean(one[side] for one in found):.2f}" for side in ("teacher", "labels", "taught")]
            interval = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
            seconds = f"{statistics.mean(one['seconds'] for one in found):.0f}"
            rows.append([f"{name}, {start}", str(len(found)), *errors, interval, str(found[0]["epochs"]), seconds])
            counts.append(len(found))
    header = ["test error, %", "seeds", "teacher", "labels alone", "taught", "difference", "epochs", "job, s"]
    return (
        f"## Distillation by its defaults\n\n{table(header, rows)}\n\n"
        "Students have a quarter of the teacher's channels; nothing is named but the student. Differences are the "
        "taught student's error minus that of the same student on labels alone, from the same start in the same job; "
        "the mean with its 95 % interval (Student's t over the paired seeds); below zero the teacher helps. Teachers "
        "have two 3×3 convolutions of 32 and 64 channels and two linear layers, and were trained on images moved by up "
        "to a pixel; students see them unmoved. Splits are drawn by seed: of digits 1,000 images train, 200 choose the "
        f"epoch and 597 judge; of MNIST {images:,}, 5,000 and the 10,000 test images. {machine()}; torch "
        f"{torch.__version__}.\n\n`make bench-distillation PARED_MNIST=mnist.npz`"
    )


if __name__ == "__main__":
    main()
