"""Typed keywords of what models and data are: architectures, inputs, preprocessing."""

from typing import Any, Literal, Required, TypedDict


class NamedArchitectureFields(TypedDict, total=False):
    """An architecture that pared knows by name."""

    name: Required[str]
    """Such as `lenet5` or torchvision's `resnet50`."""
    kwargs: dict[str, Any]
    """Arguments of the architecture, such as `num_classes`."""


class LayeredArchitectureFields(TypedDict, total=False):
    """An architecture as its layers in order."""

    layers: Required[list[Any]]
    """Each `["Conv2d", {kwargs}]`, or `["Conv2d", {kwargs}, "conv1"]` with the name that its weights have."""


ArchitectureFields = str | NamedArchitectureFields | LayeredArchitectureFields
"""An architecture's name, or one of the two dicts."""


class TensorFields(TypedDict, total=False):
    """One argument of a model: a tensor by its `shape`, a fixed `value`, or the `items` of a list, tuple or dict."""

    shape: list[int] | None
    """Sizes of a tensor, the batch first or where `batch_dim` says."""
    dtype: Literal["float32", "int64"]
    """Type of a tensor's elements; float32 by default."""
    batch_dim: Literal[0, 1] | None
    """Where a tensor has its batch; by default it is found by trying."""
    value: bool | int | float | str | list[bool | int | float | str] | None
    """A number, a flag, a text or a list of these; None for an optional argument that is not given."""
    items: "list[TensorFields] | dict[str, TensorFields] | None"
    """What a list, a tuple or a dict holds."""


class PreprocessFields(TypedDict, total=False):
    """How stored arrays become inputs of the model: `(x * scale - mean) / std`."""

    scale: float
    """Factor of every element; 1 by default."""
    mean: list[float] | None
    """One for each channel (dimension 1)."""
    std: list[float] | None
    """One for each channel (dimension 1), above 0."""
    max_length: int | None
    """Tokens of a text that are kept; by default 512."""
