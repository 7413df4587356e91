"""TorchScript and torch.export files of one input, as the documentation of torch saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.support.files.base import HeldFile

DATALESS = {"amount": 0.5, "example_inputs": [{"shape": [2, 8]}]}


def network() -> nn.Sequential:
    """A small net of linear layers, in eval mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def scripted(folder: Path) -> Path:
    """`torch.jit.script` of it."""
    torch.jit.save(torch.jit.script(network()), path := folder / "model.pt")
    return path


def traced(folder: Path) -> Path:
    """`torch.jit.trace` of it, with the ending that C++ programs use."""
    torch.jit.save(torch.jit.trace(network(), torch.ones(2, 8)), path := folder / "model.torchscript")
    return path


def exported(folder: Path) -> Path:
    """`torch.export` of it."""
    torch.export.save(torch.export.export(network(), (torch.ones(2, 8),)), path := folder / "model.pt2")
    return path


def truncated(folder: Path) -> Path:
    """The first half of a file."""
    path = scripted(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


ROWS = [
    HeldFile("scripted, float32", scripted, spec=DATALESS | {"outputs": ["torchscript", "onnx", "state_dict"]}),
    HeldFile("traced, float32", traced, spec=DATALESS),
    HeldFile("exported program, float32", exported, spec=DATALESS | {"outputs": ["exported_program"]}),
    HeldFile("scripted, cut off in the middle", truncated, refused="damaged"),
]
