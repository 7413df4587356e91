"""Weights of architectures that have a name, as people save them, with the name given or told by the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pared.compression.architectures import build
from tests.support.files.base import HeldFile

State = dict[str, Tensor]


def _weights(name: str, **options: int) -> State:
    torch.manual_seed(0)
    module: nn.Module = build({"name": name, "kwargs": options})
    return dict(module.state_dict())


def _saved(wrapped: Callable[[], Any], file_name: str = "model.pth") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / file_name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(wrapped(), path)
        else:
            torch.save(wrapped(), path)
        return path

    return write


def _answers(*shape: int) -> Callable[[Mapping[str, Path]], None]:
    def check(results: Mapping[str, Path]) -> None:
        small = torch.jit.load(str(results["model.pt"]))
        with torch.no_grad():
            answer = small(torch.randn(3, *shape))
        assert len(answer) == 3
        assert bool(answer.isfinite().all())

    return check


def _channels(*shape: int) -> dict[str, Any]:
    return {"amount": 0.5, "example_inputs": [{"shape": [2, *shape]}]}


_WEIGHTS = {"granularity": "weight", "amount": 0.8, "outputs": ["state_dict"]}

ROWS = [
    HeldFile(
        "torchvision's SqueezeNet from DataParallel in a checkpoint of PyTorch's ImageNet example",
        _saved(
            lambda: {
                "epoch": 90,
                "arch": "squeezenet1_1",
                "best_acc1": torch.tensor(58.2),
                "state_dict": {
                    f"module.{name}": each for name, each in _weights("squeezenet1_1", num_classes=4).items()
                },
            },
            "checkpoint.pth.tar",
        ),
        spec=_channels(3, 32, 32),
        check=_answers(3, 32, 32),
    ),
    HeldFile(
        "torchvision's MobileNet v3 for grey images, safetensors, named",
        _saved(lambda: _weights("mobilenet_v3_small", in_channels=1, num_classes=4), "model.safetensors"),
        upload={"architecture": {"name": "mobilenet_v3_small", "kwargs": {"in_channels": 1, "num_classes": 4}}},
        spec=_channels(1, 32, 32),
        check=_answers(1, 32, 32),
    ),
    HeldFile(
        "torchvision's ResNet-18 with a head of ten classes, .pth",
        _saved(lambda: _weights("resnet18", num_classes=10)),
        spec=_channels(3, 32, 32),
        check=_answers(3, 32, 32),
    ),
    HeldFile(
        "torchvision's SqueezeNet, float16, weights zeroed",
        _saved(
            lambda: {name: each.half() for name, each in _weights("squeezenet1_1", num_classes=4).items()},
            "model.safetensors",
        ),
        spec=_WEIGHTS,
    ),
    HeldFile(
        "torchvision's ResNet-18, bfloat16, weights zeroed",
        _saved(lambda: {name: _bfloat16(each) for name, each in _weights("resnet18", num_classes=4).items()}),
        spec=_WEIGHTS,
    ),
    HeldFile(
        "torchvision's Lite R-ASPP, which labels pixels",
        _saved(lambda: _weights("lraspp_mobilenet_v3_large", num_classes=3)),
        spec=_WEIGHTS,
    ),
    HeldFile(
        "torchvision's SqueezeNet with one layer changed",
        _saved(
            lambda: _weights("squeezenet1_1", num_classes=4) | {"features.3.squeeze.weight": torch.zeros(8, 64, 1, 1)}
        ),
        spec=_channels(3, 32, 32),
        refused="architecture is required",
    ),
    HeldFile(
        "torchvision's ResNet-18 named as its ResNet-34",
        _saved(lambda: _weights("resnet18", num_classes=10)),
        upload={"architecture": {"name": "resnet34", "kwargs": {"num_classes": 10}}},
        refused="Missing from the file: layer1.2.conv1.weight",
    ),
    HeldFile(
        "torchvision's ResNet-18 with its name misspelt",
        _saved(lambda: _weights("resnet18", num_classes=10)),
        upload={"architecture": "resnet-18"},
        refused="There is no architecture 'resnet-18'. Did you mean resnet18",
    ),
]


def _bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor
