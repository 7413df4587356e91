"""The same distillation by pared and by torchdistill: `make bench-torchdistill`.

Both teach the same student from the same start, on the same images with the same loss, optimizer and batches, three
seeds each. torchdistill runs its own DistillationBox with its KDLoss; of torchvision, which it asks for when it is
imported and which only its model zoo needs, empty modules take the place. Times of an epoch are of training alone, and
pared's, which also score the validation split in each epoch, are taken with that.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine, mnist_file, table, write_section
from torch import Tensor, nn
from torch.utils.data import RandomSampler, TensorDataset
from without_data import accuracy, norm_of, trained

from pared.compression import distill

SEEDS = tuple(range(int(os.environ.get("PARED_SEEDS", "3"))))
EPOCHS, BATCH, RATE, TEMPERATURE = 6, 128, 0.05, 4.0
LOSS = {"kind": "knowledge", "alpha": 0.0, "temperature": TEMPERATURE, "labels": 0.0}
TRAIN = {"epochs": EPOCHS, "optimizer": "sgd", "lr": RATE, "lr_schedule": "constant", "warmup": 0.0,
         "batch_size": BATCH, "precision": "float32"}  # fmt: skip


def net(width: int) -> nn.Sequential:
    """Three strided convolutions with batch norms, and one linear layer."""
    sizes = ((1, width), (width, 2 * width), (2 * width, 2 * width))
    layers: list[nn.Module] = []
    for inputs, outputs in sizes:
        layers += [norm_of(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * 16, 10))


def main() -> None:
    """Teach by both, and write the section `torchdistill`."""
    torch.set_num_threads(1)
    given = np.load(mnist_file())
    x = {split: (given[f"x_{split}"].reshape(-1, 1, 28, 28) / 255).astype(np.float32) for split in ("train", "test")}
    y = {split: given[f"y_{split}"].astype(np.int64) for split in ("train", "test")}
    train = torch.from_numpy(x["train"][:12000]), torch.from_numpy(y["train"][:12000])
    test = torch.from_numpy(x["test"]), torch.from_numpy(y["test"])
    rows, speeds = [], []
    losses: dict[str, list[list[float]]] = {"pared": [], "torchdistill": []}
    scores: dict[str, list[float]] = {"pared": [], "torchdistill": []}
    for seed in SEEDS:
        teacher = trained(lambda: net(64), *train, seed)
        torch.manual_seed(seed)
        start = net(8)
        ours = by_pared(teacher, start, x, y, seed)
        theirs = by_torchdistill(teacher, start, train, seed)
        for name, (curve, _, student) in (("pared", ours), ("torchdistill", theirs)):
            losses[name].append(curve)
            scores[name].append(accuracy(student, *test))
        speeds.append(statistics.mean(theirs[1][1:]) / statistics.mean(ours[1][1:]))
        print(f"seed {seed}: {speeds[-1]:.2f} times the speed from the second epoch on; {ours[0]} {theirs[0]}")
    for epoch in range(EPOCHS):
        cells = [spread([curve[epoch] for curve in losses[name]], 4) for name in losses]
        rows.append([f"loss, epoch {epoch + 1}", *cells])
    rows.append(["test accuracy, %", *(spread(scores[name], 2) for name in scores)])
    text = (
        f"## Beside torchdistill\n\n{table(['', 'pared', 'torchdistill'], rows)}\n\n"
        f"From the second epoch on pared is {spread(speeds, 1)} times as fast, for it computes the teacher's answers "
        "once. Teacher of 64, 128 and 128 channels, student of 8, 16 and 16, 12,000 images of MNIST; KL at "
        f"T = {TEMPERATURE:g}, SGD at {RATE} with momentum, batches of {BATCH}; mean and standard deviation over the "
        f"seeds {', '.join(map(str, SEEDS))}. {machine()}, one thread; torch {torch.__version__}.\n\n"
        "`make bench-torchdistill PARED_MNIST=mnist.npz`"
    )
    print(text)
    write_section("torchdistill", text)


Run = tuple[list[float], list[float], nn.Module]
"""The mean training loss and the seconds of each epoch, and the student."""


def by_pared(teacher: nn.Module, start: nn.Module, x: dict[str, Any], y: dict[str, Any], seed: int) -> Run:
    """Validation, of which pared keeps the best epoch, is on a thousand further images."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "mnist.npz")
        parts = {"train": slice(0, 12000), "val": slice(12000, 13000)}
        arrays = {f"{name}_{part}": v["train"][of] for part, of in parts.items() for name, v in (("x", x), ("y", y))}
        np.savez(data, **arrays, x_test=x["test"][:100], y_test=y["test"][:100])
        result = distill(
            torch.jit.script(teacher),
            torch.jit.script(start),
            data,
            loss=LOSS,
            train=TRAIN,
            seed=seed,
        )
    history = result.report.history
    return [each.train_loss for each in history], [each.seconds for each in history], result.model.eval()


def by_torchdistill(teacher: nn.Module, start: nn.Module, train: tuple[Tensor, Tensor], seed: int) -> Run:
    """Its DistillationBox, driven as its examples drive it."""
    import copy

    from torchdistill.core.distillation import DistillationBox

    loader = {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": {"batch_size": BATCH}}
    module = {"forward_proc": "forward_batch_only"}
    logits = {"student_module_path": ".", "student_module_io": "output"}
    logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 0.0}}
    config = {
        "num_epochs": EPOCHS,
        "train_data_loader": loader,
        "teacher": {**module, "requires_grad": False},
        "student": {**module, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9}},
        "criterion": {
            "key": "WeightedSumLoss",
            # Without a share of labels its KDLoss leaves T² out.
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": TEMPERATURE**2}}},
        },
    }
    torch.manual_seed(seed)
    student = copy.deepcopy(start)
    device = torch.device("cpu")
    datasets = {"train": TensorDataset(*train)}
    box = DistillationBox(copy.deepcopy(teacher), student, datasets, config, device, None, False, 1.0)
    losses, seconds = [], []
    for epoch in range(EPOCHS):
        began, total, seen = time.monotonic(), 0.0, 0
        box.pre_epoch_process(epoch=epoch)
        for batch, targets, supplement in box.train_data_loader:
            value = box.forward_process(batch, targets=targets, supp_dict=supplement)
            box.post_forward_process(value)
            total, seen = total + float(value.detach()) * len(batch), seen + len(batch)
        box.post_epoch_process()
        losses.append(total / seen)
        seconds.append(time.monotonic() - began)
    return losses, seconds, student.eval()


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


class _Empty(types.ModuleType):
    """A module that has anything that it is asked for, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class _WithoutTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives empty modules for torchvision, where it is not installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs."""


if __name__ == "__main__":
    sys.meta_path.append(_WithoutTorchvision())
    for part in ("datasets", "transforms", "models"):
        importlib.import_module(f"torchvision.{part}")
    logging.disable(logging.WARNING)
    main()
