"""TorchScript files whose forward takes more than one tensor, as people hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.files.base import HeldFile
from tests.support.models import arguments as models

RATED = [{"shape": [2, 12]}, {"value": 16000}]
ROW = {"shape": [2, 6]}
STATE = {"shape": [2, 3, 5]}


def _saved(module: Callable[[], nn.Module], **extra: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.manual_seed(0)
        path = folder / "model.pt"
        torch.jit.save(torch.jit.script(module().eval()), path, _extra_files=extra)
        return path

    return write


def _answers(*arguments: Any) -> Callable[[Mapping[str, Path]], None]:
    """A check that the TorchScript result takes these arguments."""

    def check(results: Mapping[str, Path]) -> None:
        torch.jit.load(results["model.pt"])(*arguments)

    return check


def _keeps_labels(results: Mapping[str, Path]) -> None:
    extra = {"labels.txt": ""}
    torch.jit.load(results["model.pt"], _extra_files=extra)
    assert extra == {"labels.txt": b"cat,dog"}


def _keeps_methods_that_hold(results: Mapping[str, Path]) -> None:
    names = set(torch.jit.load(results["model.pt"])._c._method_names())
    assert names == {"forward", "twice", "beside"}


X = torch.randn(1, 6)
ROWS: list[HeldFile] = [
    HeldFile(
        "TorchScript with a sampling rate, also as ONNX and .pt2",
        _saved(models.Rated),
        spec={"amount": 0.5, "example_inputs": RATED, "outputs": ["torchscript", "packed", "onnx", "exported_program"]},
        check=_answers(torch.randn(1, 12), 16000),
    ),
    HeldFile("TorchScript with defaults", _saved(models.Switched), check=_answers(X, False, "c", None)),
    HeldFile(
        "TorchScript with a tuple, a list, a dict and a number",
        _saved(models.Gathered),
        spec={
            "amount": 0.5,
            "example_inputs": [
                ROW,
                {"items": [ROW, ROW]},
                {"items": [ROW]},
                {"items": {"extra": ROW}},
                {"value": 2},
                {"value": None},
            ],
        },
        check=_answers(X, (X, X), [X, X, X], {"extra": X}, 0.5, torch.ones(1, 3)),
    ),
    HeldFile(
        "TorchScript with a state in and out",
        _saved(models.Remembering),
        spec={"amount": 0.5, "example_inputs": [{"shape": [3, 4, 6]}, {"items": [STATE, STATE]}]},
        check=_answers(torch.randn(1, 4, 6), (torch.zeros(2, 1, 5), torch.zeros(2, 1, 5))),
    ),
    HeldFile(
        "TorchScript that keeps a state itself",
        _saved(models.Streaming),
        spec={"amount": 0.5, "example_inputs": [ROW, {"value": 16000}]},
        check=_answers(X, 16000),
    ),
    HeldFile(
        "TorchScript with labels beside it", _saved(models.Exporting, **{"labels.txt": "cat,dog"}), check=_keeps_labels
    ),
    HeldFile("TorchScript with exported methods", _saved(models.Exporting), check=_keeps_methods_that_hold),
    HeldFile(
        "TorchScript of unknown inputs, single weights",
        _saved(models.Rated),
        spec={"granularity": "weight", "amount": 0.5},
        check=_answers(torch.randn(1, 6), 8000),
    ),
    HeldFile("TorchScript with a sampling rate that is not given", _saved(models.Rated), refused="x: Tensor, sr: int"),
    HeldFile(
        "TorchScript with a shape for a number",
        _saved(models.Rated),
        spec={"amount": 0.5, "example_inputs": [{"shape": [2, 12]}, {"shape": [1], "dtype": "int64"}]},
        refused='for sr a shape is given, where int is wanted: give {"value": 16000}',
    ),
]
