"""Rows of the table of files: models whose channels are read by position, over all of them, or through literals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.files.base import HeldFile
from tests.support.models import zoo
from tests.support.models.gallery import GALLERY

PLAIN = {"amount": 0.5, "outputs": ["torchscript"]}


def _written(name: str, form: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        family = GALLERY[name]
        module, example = family.make(), family.example()
        path = folder / ("model.pt2" if form == "program" else "model.pt")
        if form == "program":
            path.write_bytes(zoo.exported(module, *example))
        else:
            script = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, example)  # type: ignore[no-untyped-call]
            path.write_bytes(zoo.saved(script))
        return path

    return write


def _weight_normed(folder: Path) -> Path:
    norms = nn.utils.parametrizations
    torch.manual_seed(0)
    module = nn.Sequential(
        norms.weight_norm(nn.Conv2d(3, 12, 3)),
        nn.ReLU(),
        norms.spectral_norm(nn.Conv2d(12, 8, 3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    path = folder / "model.pt"
    path.write_bytes(zoo.saved(torch.jit.trace(module, torch.randn(3, 3, 8, 8))))  # type: ignore[no-untyped-call]
    return path


def _inputs(*shapes: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
    return {"example_inputs": [{"shape": list(shape), "dtype": dtype} for shape in shapes]}


def _shapes(**shapes: tuple[int, ...]) -> Callable[[Mapping[str, Path]], None]:
    """Args: shapes: name of a parameter, `__` for each dot -> its shape in the TorchScript result."""

    def check(files: Mapping[str, Path]) -> None:
        state = torch.jit.load(str(files["model.pt"])).state_dict()  # type: ignore[no-untyped-call]
        for name, shape in shapes.items():
            found = tuple(state[name.replace("__", ".")].shape)
            assert found == shape, f"{name} has the shape {found}, not {shape}"

    return check


IMAGE = _inputs((3, 3, 8, 8))
ROWS: list[HeldFile] = [
    HeldFile(
        "TorchScript, traced, ShuffleNet: views that shuffle channels between grouped convolutions",
        _written("ViewShuffle", "traced"),
        spec=PLAIN | IMAGE,
        check=_shapes(stem__weight=(6, 3, 3, 3), squeeze__weight=(6, 2, 1, 1)),
    ),
    HeldFile(
        "torch.export program, ShuffleNet: index_select by a buffer shuffles channels",
        _written("IndexShuffle", "program"),
        spec=PLAIN | {"outputs": ["torchscript", "exported_program"]},
        check=_shapes(squeeze__weight=(6, 2, 1, 1), order=(12,)),
    ),
    HeldFile(
        "TorchScript, scripted, CBAM and its spatial attention, with ONNX",
        _written("Cbam", "scripted"),
        spec=PLAIN | IMAGE | {"outputs": ["torchscript", "onnx"]},
        check=_shapes(stem__weight=(8, 3, 3, 3), spatial__weight=(1, 2, 3, 3)),
    ),
    HeldFile(
        "TorchScript, traced, ECA: a 1-D convolution over channels",
        _written("Eca", "traced"),
        spec=PLAIN | IMAGE,
        check=_shapes(stem__weight=(8, 3, 3, 3), eca__weight=(1, 1, 3)),
    ),
    HeldFile(
        "TorchScript, scripted, local response normalisation",
        _written("LocalNorm", "scripted"),
        spec=PLAIN | IMAGE,
        check=_shapes(a__weight=(8, 3, 3, 3), b__weight=(6, 8, 3, 3)),
    ),
    HeldFile(
        "TorchScript, traced, attention whose scale is computed in forward",
        _written("ScaleInForward", "traced"),
        spec=PLAIN | _inputs((3, 7, 6)),
        check=_shapes(enter__weight=(16, 6)),
    ),
    HeldFile(
        "TorchScript, traced, weight norm and spectral norm",
        _weight_normed,
        spec=PLAIN | IMAGE,
    ),
    HeldFile(
        "TorchScript, scripted, a model of embeddings, its output projected",
        _written("SentenceEncoder", "scripted"),
        spec=PLAIN | _inputs((3, 6), dtype="int64") | {"output_width": "project"},
        check=_shapes(words__weight=(30, 8), output_projection=(16, 8)),
    ),
    HeldFile(
        "TorchScript, scripted, a classifier whose output is asked to be projected",
        _written("LocalNorm", "scripted"),
        spec=PLAIN | IMAGE | {"output_width": "project"},
        refused="no output whose width several of its layers share",
    ),
]
