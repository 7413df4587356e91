"""How the files of a job are to be, beside their formats: which sizes are free, and which operators ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pared.compression.export.free_sizes import Asked
from pared.compression.loading import LoadedModel, arguments_of
from pared.errors import ValidationError
from pared.specs import WITH_FREE_SIZES, CompressionSpec, Output


@dataclass(frozen=True)
class Settings:
    """What a job asks for of its files."""

    free: Asked = field(default_factory=Asked)
    opset: int | None = None
    """The version of ONNX's operators; None: torch's choice."""
    note: Callable[[Output, str], None] = lambda output, text: None
    """Is told what sizes a file leaves free, where the job asks for some."""


def settings_of(
    spec: CompressionSpec, loaded: LoadedModel, example: Sequence[Tensor], outputs: Sequence[Output]
) -> Settings:
    """The settings in a spec, for a model with such inputs.

    Raises:
        ValidationError: `dynamic` names an input or a dimension that is not there, or no format has it.
    """
    if spec.dynamic is None:
        return Settings(opset=spec.onnx_opset)
    if not set(outputs) & set(WITH_FREE_SIZES):
        raise _refused("/dynamic", "is for the formats onnx and exported_program: name one of them in `outputs`")
    arguments = tuple(name for name, _ in arguments_of(loaded) or ())[: len(example)]
    if len(arguments) < len(example):
        arguments = tuple(f"x{index}" for index in range(len(example)))
    if isinstance(spec.dynamic, str):
        return Settings(Asked(spec.dynamic, arguments), spec.onnx_opset)
    sizes: dict[str, tuple[str, int]] = {}
    for name, dims in spec.dynamic.items():
        if name not in arguments:
            told = f"names {name}, and the inputs of this model are: {', '.join(arguments)}"
            raise _refused(f"/dynamic/{name}", told)
        shape = tuple(example[arguments.index(name)].shape)
        for dim, called in dims.items():
            place = f"/dynamic/{name}/{dim}"
            if dim >= len(shape):
                told = (
                    f"names dimension {dim} of {name}, which has the dimensions 0 to {len(shape) - 1}, of sizes {shape}"
                )
                raise _refused(place, told)
            first, size = sizes.setdefault(called, (place, shape[dim]))
            if size != shape[dim]:
                told = (
                    f"calls sizes of {size} and {shape[dim]} both {called} ({first} and {place}): give them two names"
                )
                raise _refused(place, told)
    names = tuple(dict(spec.dynamic.get(name, {})) for name in arguments)
    return Settings(Asked(names, arguments), spec.onnx_opset)


def _refused(pointer: str, told: str) -> ValidationError:
    return ValidationError(f"`dynamic` {told}.", errors=[{"pointer": pointer, "detail": told}])
