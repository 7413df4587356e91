"""Checkpoints as training scripts save them: nesting × framework's habit × precision × wrapping."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.files.base import HeldFile

NET = {
    "layers": [
        ["Linear", {"in_features": 16, "out_features": 24}, "fc1"],
        ["ReLU", {}],
        ["Linear", {"in_features": 24, "out_features": 4}, "fc2"],
    ]
}
UPLOAD = {"architecture": NET}
AGAIN = {"amount": 0.5, "outputs": ["checkpoint", "state_dict"]}
ZEROS = {"granularity": "weight", "amount": 0.5}

State = dict[str, Tensor]


def _state(prefix: str = "", dtype: torch.dtype = torch.float32, seed: int = 0) -> State:
    torch.manual_seed(seed)
    net = nn.ModuleDict({"fc1": nn.Linear(16, 24), "fc2": nn.Linear(24, 4)})
    return {prefix + name: tensor.to(dtype) for name, tensor in net.state_dict().items()}


def _adam() -> dict[str, Any]:
    layer = nn.Linear(16, 24)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 16)).sum().backward()
    adam.step()
    return adam.state_dict()


def _saved(name: str, value: Callable[[], Any], *, legacy: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        torch.save(value(), path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def _safetensors(name: str, state: Callable[[], State]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file(state(), folder / name)
        return folder / name

    return write


def _holds(
    *keys: str, prefix: str = "", dtype: torch.dtype = torch.float32, same: Mapping[str, Any] | None = None
) -> Callable[[Mapping[str, Path]], None]:
    """The checkpoint has half the neurons under the old keys, names and types, and all else as it was."""

    def check(results: Mapping[str, Path]) -> None:
        whole = torch.load(results["model.ckpt"], weights_only=False)
        found = whole
        for key in keys:
            found = found[key]
        assert found[f"{prefix}fc1.weight"].shape == (12, 16)
        assert {found[f"{prefix}{name}"].dtype for name in _state()} == {dtype}
        assert all(whole[key] == value for key, value in (same or {}).items())
        assert "optimizer" not in whole
        plain = load_file(results["model.safetensors"])
        assert all(torch.equal(tensor, found[prefix + name]) for name, tensor in plain.items())

    return check


def _zeroed(*keys: str | int, dtype: torch.dtype = torch.float32) -> Callable[[Mapping[str, Path]], None]:
    """Half of the weights are zero, under the old keys and names, in the old type."""

    def check(results: Mapping[str, Path]) -> None:
        if "model.ckpt" in results:
            found = torch.load(results["model.ckpt"], weights_only=True)
            for key in keys:
                found = found[key]
        else:
            found = load_file(results["model.safetensors"])
        weights = [tensor for tensor in found.values() if tensor.dim() > 1]
        assert {tensor.dtype for tensor in weights} == {dtype}
        assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2

    return check


ROWS: list[HeldFile] = [
    HeldFile(
        "PyTorch's ImageNet example, a tensor beside, data-parallel, float32",
        _saved(
            "checkpoint.pth.tar",
            lambda: {
                "epoch": 3, "arch": "net", "state_dict": _state("module."), "best_acc1": torch.tensor(0.9),
                "optimizer": _adam(), "scheduler": {"last_epoch": 3},
            },
        ),
        UPLOAD,
        AGAIN,
        check=_holds("state_dict", prefix="module.", same={"epoch": 3, "best_acc1": torch.tensor(0.9)}),
    ),
    HeldFile(
        "Lightning, a loss and a metric beside the net, float32",
        _saved(
            "last.ckpt",
            lambda: {
                "epoch": 1, "global_step": 5, "pytorch-lightning_version": "2.1.0",
                "state_dict": _state("model.") | {"loss_fn.weight": torch.ones(4), "val_acc.total": torch.tensor(0)},
                "callbacks": {"EMA": {"shadow": _state(seed=1)}}, "optimizer_states": [_adam()], "lr_schedulers": [],
                "hyper_parameters": {"lr": 0.1, "class_weights": torch.ones(4)}, "loops": {},
            },
        ),
        UPLOAD,
        AGAIN,
        check=_holds("state_dict", prefix="model.", same={"global_step": 5, "optimizer_states": []}),
    ),
    HeldFile(
        "compiled within data-parallel, a plain state dict, float16",
        _saved("compiled.pt", lambda: _state("module._orig_mod.", torch.float16)),
        UPLOAD,
        AGAIN,
        check=_holds(prefix="module._orig_mod.", dtype=torch.float16),
    ),
    HeldFile(
        "model and its average, the average chosen, bfloat16",
        _saved("ema.pt", lambda: {"model": _state(), "ema": _state("", torch.bfloat16, 1), "start_epoch": 3}),
        UPLOAD | {"weights": "ema"},
        AGAIN,
        check=_holds("ema", dtype=torch.bfloat16, same={"start_epoch": 3}),
    ),
    HeldFile(
        "model and its average, none chosen",
        _saved("ema.pt", lambda: {"model": _state(), "ema": _state(seed=1), "start_epoch": 3}),
        UPLOAD,
        AGAIN,
        refused="weights=ema",
    ),
    HeldFile(
        "student and teacher in one state dict, the student chosen by its prefix, float32",
        _saved("distilled.pth", lambda: {"net": _state("student.") | _state("teacher.", seed=1)}),
        UPLOAD | {"prefix": "student."},
        AGAIN,
        check=_holds("net", prefix="student."),
    ),
    HeldFile(
        "the format before torch 1.6, an optimizer keyed by large integers, arguments beside, float32",
        _saved(
            "old.pt",
            lambda: {
                "model_state": _state(), "step": 10**9, "optimizer": {140178894849152: torch.ones(3)} | _adam(),
                "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5),
            },
            legacy=True,
        ),
        UPLOAD,
        AGAIN,
        check=_holds("model_state", same={"step": 10**9, "args": argparse.Namespace(lr=0.1), "best": 0.5}),
    ),
    HeldFile(
        "BasicSR's params and params_ema, without an architecture, the latter chosen, float16",
        _saved("net_g.pth", lambda: {"params": _state(), "params_ema": _state("", torch.float16, 1)}),
        {"weights": "params_ema"},
        ZEROS,
        check=_zeroed("params_ema", dtype=torch.float16),
    ),
    HeldFile(
        "safetensors without an architecture, bfloat16",
        _safetensors("model.safetensors", lambda: _state("model.", torch.bfloat16)),
        {},
        ZEROS,
        check=_zeroed(dtype=torch.bfloat16),
    ),
    HeldFile(
        "deep in lists and dicts, without an architecture, shared values in a packed file, float32",
        _saved("run.pt", lambda: {"runs": [{"best": {"net": {"weights": _state()}}}]}),
        {},
        ZEROS | {"quantize": {"bits": 4}, "outputs": ["packed", "checkpoint"]},
        check=_zeroed("runs", 0, "best", "net", "weights"),
    ),
    HeldFile(
        "channels of a state dict without an architecture",
        _saved("weights.pt", _state),
        {},
        {"amount": 0.5},
        refused="granularity channel finds out what belongs together by running it",
    ),
    HeldFile(
        "a pickled module in a checkpoint",
        _saved("yolo.pt", lambda: {"model": nn.ModuleDict({"fc": nn.Linear(4, 2)}), "epoch": 1}),
        {},
        ZEROS,
        refused="pickled nn.Module (torch.nn.modules.container.ModuleDict)",
    ),
    HeldFile(
        "an optimizer alone",
        _saved("optimizer.pt", _adam),
        {},
        ZEROS,
        refused="holds the state of an optimizer alone",
    ),
    HeldFile(
        "a list of tensors",
        _saved("weights.pt", lambda: [*_state().values()]),
        UPLOAD,
        AGAIN,
        refused="tensors without the names that they have in the model",
    ),
    HeldFile(
        "another layer beside the part that fits",
        _saved("backbone.pt", lambda: _state("backbone.") | {"head.weight": torch.ones(7, 4)}),
        UPLOAD,
        AGAIN,
        refused="prefix=backbone.",
    ),
]  # fmt: skip
