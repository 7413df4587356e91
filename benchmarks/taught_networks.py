"""The data sets and networks that the defaults of distillation are chosen and judged on; small enough to train often.

Each data set comes with scikit-learn, with Python itself, or in a wheel that is fetched for its data alone; MNIST is
the file that PARED_MNIST names.
"""

from __future__ import annotations

import io
import itertools
import math
import random
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from results import mnist_file
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor
from torch.nn import functional

from pared.compression.architectures import LayeredModule, build
from pared.specs.architectures import Layered

RIVER = "river==0.26.1"
BATCH = 64
PACKAGES = ("asyncio", "concurrent", "ctypes", "email", "importlib", "logging", "multiprocessing", "tkinter",
            "unittest", "xml")  # fmt: skip
Judged = Literal["held_out", "test"]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A data set and the networks for it.

    `samples`: how many are for training, for the choice of epochs, and to judge by. `layers`: the layer list of a
    network whose layers have this share of the channels. `epochs`: of the teacher. `changed`: samples as a teacher is
    trained on them, which changes them at random.
    """

    loaded: Callable[[Path, Judged], tuple[np.ndarray, np.ndarray, Arrays]]
    samples: tuple[int, int, int]
    layers: Callable[[float], list[Any]]
    epochs: int
    changed: Callable[[Tensor], Tensor]

    def arrays(self, folder: Path, seed: int, judged: Judged = "held_out") -> Arrays:
        """Three splits by seed; of a set with test samples of its own these are the last split where asked for."""
        x, y, test = self.loaded(folder, judged)
        order = np.random.default_rng(seed).permutation(len(x))
        parts = np.split(order, np.cumsum(self.samples))[:3]
        arrays = {f"{letter}_{name}": of[part] for name, part in zip(("train", "val", "test"), parts, strict=True)
                  for letter, of in (("x", x), ("y", y))}  # fmt: skip
        return arrays | test

    def teacher(self, arrays: Arrays, seed: int) -> LayeredModule:
        """The whole network after the last epoch of Adam 0.002 along a cosine, on samples that change."""
        module = self.network(1.0, seed).train()
        x, y = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
        optimizer = torch.optim.Adam(module.parameters(), lr=0.002)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * math.ceil(len(x) / BATCH))
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(module(self.changed(x[chosen])), y[chosen]).backward()
                optimizer.step()
                schedule.step()
        return module.eval()

    def network(self, width: float, seed: int) -> LayeredModule:
        """One that has learned nothing."""
        torch.manual_seed(seed)
        return build(Layered.model_validate({"layers": self.layers(width)}))


# -- data ----------------------------------------------------------------------------------------


def _digits(_: Path, __: Judged) -> tuple[np.ndarray, np.ndarray, Arrays]:
    digits = load_digits()
    return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64), {}


def _mnist(size: int) -> Callable[[Path, Judged], tuple[np.ndarray, np.ndarray, Arrays]]:
    """MNIST at 28×28 or 14×14 pixels, 0 to 1."""

    def loaded(_: Path, judged: Judged) -> tuple[np.ndarray, np.ndarray, Arrays]:
        given = np.load(mnist_file())
        x, x_test = (
            (given[name].reshape(-1, 1, size, 28 // size, size, 28 // size).mean(axis=(3, 5)) / 255).astype(np.float32)
            for name in ("x_train", "x_test")
        )
        test = {"x_test": x_test, "y_test": given["y_test"].astype(np.int64)} if judged == "test" else {}
        return x, given["y_train"].astype(np.int64), test

    return loaded


def _segments(folder: Path, _: Judged) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """UCI's Image Segmentation: 18 numbers of 2,310 patches of photographs, and which of seven things they show."""
    wheels = list(folder.glob("river-*.whl"))
    if not wheels:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "-d", str(folder), RIVER], check=True)
        wheels = list(folder.glob("river-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        packed = io.BytesIO(wheel.read("river/datasets/segment.csv.zip"))
    with zipfile.ZipFile(packed) as archive:
        rows = [line.split(",") for line in archive.read(archive.namelist()[0]).decode().split()[1:]]
    numbers = np.array([row[:-1] for row in rows], dtype=np.float32)
    names = sorted({row[-1] for row in rows})
    x = (numbers - numbers.mean(0)) / numbers.std(0)
    return x, np.array([names.index(row[-1]) for row in rows], dtype=np.int64), {}


def _lines(_: Path, __: Judged) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """Lines of ten packages of Python's standard library, as hashed groups of two to four characters; which package."""
    library = Path(sysconfig.get_paths()["stdlib"])
    chance, lines, labels = random.Random(0), [], []
    for label, package in enumerate(PACKAGES):
        text = "\n".join(path.read_text(errors="replace") for path in sorted((library / package).rglob("*.py")))
        found = sorted({line.strip() for line in text.splitlines() if len(line.strip()) >= 24})
        chosen = chance.sample(found, min(900, len(found)))
        lines += chosen
        labels += [label] * len(chosen)
    hashed = HashingVectorizer(n_features=512, analyzer="char_wb", ngram_range=(2, 4), alternate_sign=False)
    x = hashed.transform(lines).toarray().astype(np.float32) * 4
    return x, np.array(labels, dtype=np.int64), {}


# -- networks ------------------------------------------------------------------------------------


def _images(size: int) -> Callable[[float], list[Any]]:
    """Two 3×3 convolutions of 32 and 64 channels, max-pool 2 after each, and two linear layers."""

    def layers(width: float) -> list[Any]:
        a, b, c = (max(1, round(width * each)) for each in (32, 64, 64))
        return [
            ["Conv2d", {"in_channels": 1, "out_channels": a, "kernel_size": 3, "padding": 1}], ["ReLU"],
            ["MaxPool2d", {"kernel_size": 2}],
            ["Conv2d", {"in_channels": a, "out_channels": b, "kernel_size": 3, "padding": 1}], ["ReLU"],
            ["MaxPool2d", {"kernel_size": 2}],
            ["Flatten"],
            ["Linear", {"in_features": b * (size // 4) ** 2, "out_features": c}], ["ReLU"],
            ["Linear", {"in_features": c, "out_features": 10}],
        ]  # fmt: skip

    return layers


def _perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> Callable[[float], list[Any]]:
    """Linear layers with ReLU between them."""

    def layers(width: float) -> list[Any]:
        sizes = [inputs, *(max(1, round(width * each)) for each in hidden), outputs]
        pairs = [["Linear", {"in_features": a, "out_features": b}] for a, b in itertools.pairwise(sizes)]
        return [["Flatten"], *[layer for pair in pairs for layer in (pair, ["ReLU"])][:-1]]

    return layers


def _shifted(images: Tensor) -> Tensor:
    """Each image moved by up to a pixel, up or down, left or right; what leaves is lost."""
    count, channels, size, _ = images.shape
    padded = functional.pad(images, (1, 1, 1, 1))
    down, right = (torch.randint(0, 3, (count, 1, 1, 1)) for _ in range(2))
    rows = (torch.arange(size)[:, None] + down).expand(count, channels, size, size + 2)
    columns = (torch.arange(size) + right).expand(count, channels, size, size)
    return padded.gather(2, rows).gather(3, columns)


def _noisy(numbers: Tensor) -> Tensor:
    """Numbers with noise of a tenth of their spread."""
    return numbers + 0.1 * torch.randn_like(numbers)


def _thinned(counts: Tensor) -> Tensor:
    """A third of the features is gone."""
    return counts * (torch.rand_like(counts) > 1 / 3)


KINDS = {
    "digits": Kind(_digits, (1000, 200, 597), _images(8), 80, _shifted),
    "MNIST": Kind(_mnist(28), (50000, 5000, 5000), _images(28), 6, _shifted),
    "MNIST, 14×14": Kind(_mnist(14), (5000, 1000, 6000), _perceptron(196, (256, 128), 10), 20, _shifted),
    "image segments": Kind(_segments, (1200, 310, 800), _perceptron(18, (32, 32), 7), 150, _noisy),
    "lines of code": Kind(_lines, (5000, 1000, 2500), _perceptron(512, (256, 128), 10), 12, _thinned),
}
