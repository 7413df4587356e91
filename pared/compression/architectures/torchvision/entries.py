"""Writes the layer-list entries that several torchvision families have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Layers = list[list[Any]]
Options = dict[str, Any]

RELU: list[Any] = ["ReLU", {}]
FLATTEN: list[Any] = ["Flatten", {}]
POOL: Layers = [["AdaptiveAvgPool2d", {"output_size": 1}], FLATTEN]


def members(
    write: Callable[[Any, int, int], Layers], settings: dict[str, Any], classes: int = 1000
) -> dict[str, Callable[..., Layers]]:
    """The architectures of a family, by name; `write` takes a setting, `num_classes` and `in_channels`."""

    def member(setting: Any) -> Callable[..., Layers]:
        def layers(num_classes: int = classes, in_channels: int = 3) -> Layers:
            return write(setting, num_classes, in_channels)

        return layers

    return {name: member(setting) for name, setting in settings.items()}


def conv(inputs: int, outputs: int, kernel: int = 1, name: str | None = None, **more: Any) -> list[Any]:
    """A 2-D convolution without bias, padded so that stride alone makes its output smaller, unless told otherwise."""
    options = {"bias": False} | more
    padding = options.pop("padding", (kernel - 1) // 2 * options.get("dilation", 1))
    usual = {"stride": 1, "padding": 0, "groups": 1, "dilation": 1, "bias": True}
    given = {key: value for key, value in (options | {"padding": padding}).items() if value != usual[key]}
    return _entry("Conv2d", {"in_channels": inputs, "out_channels": outputs, "kernel_size": kernel} | given, name)


def batch_norm(features: int, name: str | None = None, **options: Any) -> list[Any]:
    """A `BatchNorm2d` entry; `options` such as `eps`."""
    return _entry("BatchNorm2d", {"num_features": features} | options, name)


def layer_norm(features: int, name: str | None = None, **options: Any) -> list[Any]:
    """A `LayerNorm` entry over the last dimension."""
    return _entry("LayerNorm", {"normalized_shape": [features]} | options, name)


def linear(inputs: int, outputs: int, name: str | None = None, **options: Any) -> list[Any]:
    """A `Linear` entry."""
    return _entry("Linear", {"in_features": inputs, "out_features": outputs} | options, name)


def dropout(p: float) -> list[Any]:
    """A `Dropout` entry."""
    return ["Dropout", {"p": p}]


def max_pool(kernel: int, stride: int, **options: Any) -> list[Any]:
    """A `MaxPool2d` entry."""
    return ["MaxPool2d", {"kernel_size": kernel, "stride": stride} | options]


def sequential(layers: Layers, name: str | None = None) -> list[Any]:
    """Layers in order; those that have no name are called by their index, as in `nn.Sequential`."""
    named = [entry if len(entry) > 2 else [*entry, str(index)] for index, entry in enumerate(layers)]
    return _entry("Sequential", {"layers": named}, name)


def residual(layers: Layers, shortcut: Layers | None = None, name: str | None = None, drop: float = 0.0) -> list[Any]:
    """`layers(x) + shortcut(x)`; `drop` is how often training leaves the layers of a sample out."""
    body = [*layers, ["StochasticDepth", {"p": drop}]] if drop else layers
    return _entry("Residual", {"layers": body} | ({"shortcut": shortcut} if shortcut else {}), name)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    activation: str | None = "ReLU",
    norm: Options | None = None,
    name: str | None = None,
    **more: Any,
) -> list[Any]:
    """A convolution, batch norm and an activation (or none), called 0, 1 and 2."""
    layers = [conv(inputs, outputs, kernel, **more), batch_norm(outputs, **(norm or {}))]
    return sequential([*layers, [activation, {}]] if activation else layers, name)


def squeeze_excite(channels: int, squeezed: int, activation: str, gate: str) -> list[Any]:
    """`x * gate(fc2(activation(fc1(mean of x))))`."""
    layers: Layers = [
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        conv(channels, squeezed, name="fc1", bias=True),
        [activation, {}],
        conv(squeezed, channels, name="fc2", bias=True),
        [gate, {}],
    ]
    return ["Gate", {"layers": layers}]


def divisible(value: float, by: int = 8) -> int:
    """The multiple of `by` nearest to a channel count, not more than a tenth below it."""
    near = max(by, int(value + by / 2) // by * by)
    return near + by if near < 0.9 * value else near


def _entry(kind: str, arguments: Options, name: str | None) -> list[Any]:
    return [kind, arguments] if name is None else [kind, arguments, name]
