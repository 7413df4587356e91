"""Models in half and double precision, other layouts and outputs in containers, and what their results are like."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.files.base import HeldFile

SHAPES: dict[str, Any] = {"amount": 0.5, "example_inputs": [{"shape": [2, 3, 8, 8]}]}
VECTORS: dict[str, Any] = {"amount": 0.5, "example_inputs": [{"shape": [2, 6]}]}


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


class _Heads(nn.Module):
    """A dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.cls, self.box = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        state = torch.relu(self.body(x))
        return {"cls": self.cls(state), "box": self.box(state)}


class _Named(nn.Module):
    """Code that names the type of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.relu(self.one(x.to(torch.float16)) + torch.zeros(x.shape[0], 8, dtype=torch.float16))
        return self.two(state).float().softmax(-1).to(torch.float16)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(1))


def _scripted(make: Callable[[], nn.Module]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.pt"
        torch.jit.save(torch.jit.script(make().eval()), path)
        return path

    return write


def _traced(make: Callable[[], nn.Module], x: Tensor) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(make().eval(), x, strict=False, check_trace=False), path)
        return path

    return write


def _exported(make: Callable[[], nn.Module], x: Tensor) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.pt2"
        torch.export.save(torch.export.export(make().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path)
        return path

    return write


def _frozen(make: Callable[[], nn.Module], *, optimized: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.pt"
        script = torch.jit.script(make().eval())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.optimize_for_inference(script) if optimized else torch.jit.freeze(script), path)
        return path

    return write


def _of_type(kind: torch.dtype, name: str = "model.pt") -> Callable[[Mapping[str, Path]], None]:
    def check(files: Mapping[str, Path]) -> None:
        if name.endswith(".pt2"):
            tensors = list(torch.export.load(files[name]).state_dict.values())
        else:
            tensors = list(torch.jit.load(files[name]).state_dict().values())
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {kind}

    return check


def _channels_last(files: Mapping[str, Path]) -> None:
    weight = torch.jit.load(files["model.pt"]).state_dict()["3.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def _free(files: Mapping[str, Path]) -> None:
    program = torch.export.load(files["model.pt2"]).module()
    assert tuple(program(torch.randn(3, 9, 8)).shape) == (3, 3)


def _keys(files: Mapping[str, Path]) -> None:
    assert set(torch.jit.load(files["model.pt"])(torch.randn(2, 6))) == {"cls", "box"}


_IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

ROWS: list[HeldFile] = [
    HeldFile(
        "TorchScript, scripted, float16", _scripted(lambda: _net().half()), spec=SHAPES, check=_of_type(torch.float16)
    ),
    HeldFile(
        "TorchScript, traced, bfloat16",
        _traced(lambda: _net().bfloat16(), _IMAGE.bfloat16()),
        spec=SHAPES | {"outputs": ["torchscript", "packed"]},
        check=_of_type(torch.bfloat16),
    ),
    HeldFile(
        "TorchScript, traced, code that names float16",
        _traced(lambda: _Named().half(), torch.zeros(2, 6, dtype=torch.float16)),
        spec=VECTORS,
        check=_of_type(torch.float16),
    ),
    HeldFile(
        "torch.export program, float64",
        _exported(lambda: _net().double(), _IMAGE.double()),
        spec=SHAPES,
        check=_of_type(torch.float64, "model.pt2"),
    ),
    HeldFile(
        "TorchScript, scripted, channels last",
        _scripted(lambda: _net().to(memory_format=torch.channels_last)),
        spec=SHAPES,
        check=_channels_last,
    ),
    HeldFile("TorchScript, scripted, a dict of outputs", _scripted(_Heads), spec=VECTORS, check=_keys),
    HeldFile("TorchScript, traced, a dict of outputs", _traced(_Heads, torch.zeros(2, 6)), spec=VECTORS, check=_keys),
    HeldFile(
        "TorchScript, scripted LSTM, to .pt2 and ONNX",
        _scripted(_Recurrent),
        spec={"amount": 0.5, "example_inputs": [{"shape": [2, 5, 6]}], "outputs": ["exported_program", "onnx"]},
    ),
    HeldFile(
        "TorchScript, scripted transformer layer, to .pt2 of any length",
        _scripted(_Encoder),
        spec={
            "amount": 0.5,
            "granularity": "weight",
            "example_inputs": [{"shape": [2, 5, 8]}],
            "outputs": ["exported_program"],
            "dynamic": {"x": {"1": "length"}},
        },
        check=_free,
    ),
    HeldFile("TorchScript, frozen", _frozen(_net), spec=SHAPES, refused="frozen"),
    HeldFile(
        "TorchScript, optimized for inference",
        _frozen(_net, optimized=True),
        spec=SHAPES,
        refused="optimize_for_inference",
    ),
]
