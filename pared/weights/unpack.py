"""From a packed file to the dense model that it was made of: TorchScript, or safetensors with the architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pared.weights.packed import Packed
from pared.weights.program import join

_SAFETENSORS = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "void16": "BF16",  # numpy's name for the bits of a bfloat16
}


def ending(packed: Packed) -> str:
    """Of the dense model that a packed file holds: `.pt` of TorchScript, `.safetensors` of weights alone."""
    return ".safetensors" if packed.program is None else ".pt"


def unpack(packed: Packed, target: Path) -> list[Path]:
    """Write the dense model that a packed file holds, in the format of its `ending`.

    Beside weights goes `.architecture.json`, where the file has an architecture.

    Returns:
        The files, the model first.
    """
    if packed.program is not None:
        program = packed.program
        return [_whole(target, lambda part: join(program, packed.tensors, part))]
    written = [_whole(target, lambda part: write_safetensors(packed.tensors, part))]
    if packed.architecture is not None:
        text = json.dumps(packed.architecture, indent=1) + "\n"
        written.append(_whole(target.with_suffix(".architecture.json"), lambda part: part.write_text(text)))
    return written


def write_safetensors(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write arrays in the format of safetensors, each at a multiple of its element's size."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in ordered:
        dtype = _SAFETENSORS[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(array.tobytes())


def _whole(target: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place, then move it there: what is there is never half of it."""
    part = target.with_name(f"{target.name}.part")
    try:
        write(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
