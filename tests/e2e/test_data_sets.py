"""Data sets by real processes: previews of what was uploaded, and samples that do not fit into the job's memory."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pared
from tests.support.campaign import each_nth
from tests.support.models import zoo
from tests.support.stack import Stack

SIDE, SAMPLES = 128, 3500
"""172 MB as bytes: more than a quarter of the memory that the jobs of a small worker may use."""


def pixels(index: int) -> np.ndarray:
    """An image of one of two classes, (side, side, 3), that compresses well."""
    coarse = np.random.default_rng(index).integers(0, 120, (4, 4, 3), np.uint8)
    coarse[:, 2 * (index % 2) : 2 * (index % 2) + 2] += 100
    return coarse.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def compressed() -> bytes:
    buffer = io.BytesIO()
    x = np.stack([pixels(index).transpose(2, 0, 1) for index in range(SAMPLES)])
    np.savez_compressed(buffer, x=x, y=np.arange(SAMPLES) % 2)
    return buffer.getvalue()


def images(folders: Callable[[int], str], count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            content = io.BytesIO()
            Image.fromarray(pixels(index)).save(content, "PNG")
            archive.writestr(f"{folders(index)}/{index}.png", content.getvalue())
    return buffer.getvalue()


def network() -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model.eval()), buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def small_worker(stack: Stack) -> Iterator[None]:
    """Only a worker whose jobs may use 600 MiB; the others stand still."""
    usual = [*stack.workers]
    for worker in usual:
        worker.pause(stack.data / "pared.db")
    small = stack.start_worker(memory_bytes=str(600 << 20))
    try:
        yield
    finally:
        small.kill()
        stack.workers.remove(small)
        for worker in usual:
            worker.go_on()


@pytest.mark.parametrize("form", each_nth(["images", "compressed"], 2))
def test_samples_beyond_memory_give_the_result_of_samples_in_memory(embedded: Stack, form: str) -> None:
    content = compressed() if form == "compressed" else images(lambda index: "ab"[index % 2], SAMPLES)

    def result() -> Any:
        spec = {
            "type": "prune",
            "model": embedded.upload_model(network(), "conv.pt"),
            "dataset": embedded.upload_dataset(content, f"{form}.bin"),
            "amount": 0.5,
            "preprocess": {"scale": 1 / 255},
            "retrain": {"epochs": 1, "lr": 0.01},
            "device": "cpu",
        }
        report = embedded.succeeded(embedded.submit(spec))
        return report["reproduce"]["outputs"], report["after"]["quality"]

    with small_worker(embedded):
        read_as_needed = result()
    assert read_as_needed == result()


def test_previews_show_what_was_uploaded(embedded: Stack, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 9, (40, 6))
    uploads = {
        "pictures.zip": images(lambda index: "ab"[index % 2], 20),
        "loose.zip": images(lambda _: "all", 20),
        "tokens.npz": zoo.npz(ids, np.arange(40) % 2),
    }
    with pared.Client(embedded.url) as client:
        for name, content in uploads.items():
            (tmp_path / name).write_bytes(content)
            data = client.datasets.upload(tmp_path / name).wait()
            path = client.datasets.preview(data.id, tmp_path)
            if name.endswith(".zip"):
                assert Image.open(path).size[0] > 8 * 100
                assert data.inspection["labelled"] == (name == "pictures.zip")
            else:
                shown = json.loads(path.read_text())
                assert shown["samples"][0]["inputs"]["x"] in ids.tolist()
        printed = embedded.run("datasets", "preview", data.id, "-o", str(tmp_path / "rows.txt"))
        assert printed.strip() == str(tmp_path / "rows.json")
        assert json.loads((tmp_path / "rows.json").read_text()) == shown
