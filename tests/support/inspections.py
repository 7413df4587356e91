"""Inspections of models as a worker writes them, of as many layers as are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def layer(number: int, **more: Any) -> dict[str, Any]:
    """A convolution that can lose channels. Args: more: fields that are otherwise."""
    return {
        "name": f"features.{number}",
        "kind": "conv2d",
        "weights": {f"features.{number}.weight": [32 + number, 16, 3, 3], f"features.{number}.bias": [32 + number]},
        "parameters": (32 + number) * 145,
        "macs": (32 + number) * 144 * 100,
        "channels": 32 + number,
        "prunable_channels": True,
        "reason": None,
    } | more


def layers(count: int, reasons: Sequence[str] = ("the model's output",)) -> list[dict[str, Any]]:
    """So many layers, of which every seventh stays as it is, for one of the reasons."""
    return [
        layer(number, prunable_channels=False, reason=reasons[number % len(reasons)])
        if number % 7 == 0
        else layer(number)
        for number in range(count)
    ]


def inspection(*described: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What was found in a model of these layers. Args: more: fields that are otherwise."""
    return {
        "format": "torchscript",
        "flavour": "scripted",
        "parameters": sum(each["parameters"] for each in described),
        "trainable_parameters": sum(each["parameters"] for each in described),
        "macs": sum(each["macs"] for each in described),
        "inputs": [{"shape": [2, 3, 32, 32], "dtype": "float32"}],
        "architecture": None,
        "layers": list(described),
        "warnings": [],
        "sandbox": "landlock",
    } | more
