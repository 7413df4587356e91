"""Reads an ONNX file, or a zip of one and its data, into a model whose tensors lie inside it and are checked."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pared.compression.loading.archives import BROKEN_MEMBER
from pared.compression.loading.loaded import MAX_ELEMENTS, first_line
from pared.errors import UnsupportedModel

OLDEST_OPSET = 9
_MOST_BYTES = (1 << 31) - 1  # of one protobuf message
_FLOATS = ("FLOAT16", "BFLOAT16", "DOUBLE")
_ONE_FILE = (
    "onnx.save(onnx.load(path), new_path) writes one file up to 2 GiB; a zip of the .onnx and its data is opened as "
    "well."
)


@dataclass(frozen=True)
class OnnxModel:
    """A model in float32 with its tensors inside.

    Attributes:
        proto: the ModelProto, its floating-point types made float32.
        original: the types that its inputs and outputs had, by name, as numbers of TensorProto.DataType.
        weight_types: the type that each tensor of floating-point numbers had, by name.
        opset: of the operators of ONNX itself.
    """

    proto: Any
    original: dict[str, int]
    weight_types: dict[str, int]
    opset: int


def read_onnx(path: Path) -> OnnxModel:
    """Read an upload. The parser runs on the file's bytes: call this inside the sandbox.

    Raises:
        UnsupportedModel: damaged, too large, with data that is elsewhere, or of an unknown set of operators.
    """
    model, archive = parsed(path)
    opset = _opset(model)
    bring_in(model, archive)
    if model.functions:
        import onnx.inliner

        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise UnsupportedModel(f"The functions of this ONNX file cannot be put in: {first_line(error)}.") from error
    return OnnxModel(model, value_types(model), in_float32(model), opset)


def parsed(path: Path, *, with_data: bool = True) -> tuple[Any, dict[str, bytes]]:
    """The ModelProto as it is in the file, and the files beside it by their paths from there.

    Args:
        with_data: False: without the files beside it.

    Raises:
        UnsupportedModel: as of `read_onnx`, but for what tensors hold.
    """
    try:
        import onnx
    except ImportError as error:
        raise UnsupportedModel(
            "This is an ONNX file, and this server was set up without ONNX. Install pared[worker,onnx] on its workers."
        ) from error
    content, archive = _contents(path, with_data=with_data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf has several parsers, each with errors of its own
        raise UnsupportedModel(
            f"This ONNX file cannot be read ({first_line(error)}). It may be damaged or cut off: save it again."
        ) from error
    if not model.graph.node:
        raise UnsupportedModel("This ONNX file has no operators, so there is nothing to run. Save and upload it again.")
    return model, archive


def _contents(path: Path, *, with_data: bool) -> tuple[bytes, dict[str, bytes]]:
    """The bytes of the model, and those of the files beside it by their paths from there."""
    if path.stat().st_size > _MOST_BYTES:
        raise UnsupportedModel("This ONNX file is larger than 2 GiB, the most that pared opens of ONNX.")
    with path.open("rb") as file:  # as it was recognised: no other zip was looked at before it is opened
        is_zip = file.read(4) == b"PK\x03\x04"
    if not is_zip:
        return path.read_bytes(), {}
    try:
        with zipfile.ZipFile(path) as archive:
            return _of_archive(archive, with_data=with_data)
    except BROKEN_MEMBER as error:
        raise UnsupportedModel(f"This zip is damaged: {first_line(error)}. Make it anew.") from error


def _of_archive(archive: zipfile.ZipFile, *, with_data: bool) -> tuple[bytes, dict[str, bytes]]:
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    models = [name for name in names if name.endswith(".onnx")]
    if len(models) != 1:
        raise UnsupportedModel(f"This zip holds {len(models)} ONNX models. Upload a zip of one, with its data.")
    folder = posixpath.dirname(models[0])
    beside = {
        posixpath.relpath(name, folder or "."): archive.read(name)
        for name in names
        if with_data and name not in models and not posixpath.relpath(name, folder or ".").startswith("..")
    }
    return archive.read(models[0]), beside


def _opset(model: Any) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise UnsupportedModel("This ONNX file names no version of ONNX's own operators, so it has none of them.")
    if versions[0] < OLDEST_OPSET:
        raise UnsupportedModel(
            f"This ONNX file has operators of version {versions[0]}; pared opens {OLDEST_OPSET} and later. "
            "onnx.version_converter.convert_version(onnx.load(path), 17) makes a newer one of it."
        )
    return int(versions[0])


# -- tensors --------------------------------------------------------------------------------------


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from graphs_of(inner)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """All tensors that are written in a model, and what each is called."""
    for graph in graphs_of(model.graph):
        if graph.sparse_initializer:
            raise UnsupportedModel(
                "This ONNX file holds sparse tensors, which pared does not open. Save it with dense ones."
            )
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            name = node.output[0] if node.output else node.name
            for attribute in node.attribute:
                yield from (
                    (name, one) for one in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
                )


def bring_in(model: Any, beside: dict[str, bytes]) -> None:
    """Put the data of each tensor inside the model, and check that it is as much as the tensor claims.

    Args:
        beside: the files that lie with the model.
    """
    from onnx import TensorProto

    total = 0
    for name, tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _external(name, tensor, beside)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        total += _checked(name, tensor)
        if total > MAX_ELEMENTS:
            raise UnsupportedModel(f"The model has more than {MAX_ELEMENTS:,} elements, the most we take.")
    if model.ByteSize() > _MOST_BYTES:
        raise UnsupportedModel(
            "With its data, this ONNX model is larger than 2 GiB, the most that pared opens of ONNX."
        )


def _external(name: str, tensor: Any, beside: dict[str, bytes]) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = posixpath.normpath(entries.get("location", "").replace("\\", "/"))
    if location.startswith(("/", "..")) or ":" in location:
        raise UnsupportedModel(
            f"The tensor {name[:100]} has its data in {location[:100]!r}, outside of the model's folder. {_ONE_FILE}"
        )
    if location not in beside:
        raise UnsupportedModel(
            f"The tensor {name[:100]} has its data in another file, {location[:100]}, which was not uploaded with it. "
            f"Upload a zip of both: zip model.zip model.onnx {location[:100]}. Or save it as one: {_ONE_FILE}"
        )
    content = beside[location]
    try:
        start = int(entries.get("offset", 0))
        length = int(entries.get("length", len(content) - start))
    except ValueError as error:
        raise UnsupportedModel(f"The tensor {name[:100]} does not say where its data begins and ends.") from error
    if start < 0 or length < 0 or start + length > len(content):
        raise UnsupportedModel(
            f"The tensor {name[:100]} lies at {start:,} to {start + length:,} of {location[:100]}, which has "
            f"{len(content):,} bytes. One of the two files was cut off, or is of another model."
        )
    return content[start : start + length]


def _checked(name: str, tensor: Any) -> int:
    """The number of elements, if the tensor holds them."""
    from onnx import TensorProto, helper

    kind = tensor.data_type
    if kind not in TensorProto.DataType.values() or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise UnsupportedModel(f"The tensor {name[:100]} holds no numbers (its type is {kind}).")
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) or kind not in PLAIN:
        raise UnsupportedModel(
            f"The tensor {name[:100]} is of the type {TensorProto.DataType.Name(kind)}. pared opens plain numbers: "
            "prune and distill before quantizing, and upload the float32 model."
        )
    count = 1
    for size in tensor.dims:
        if size < 0:
            raise UnsupportedModel(f"The tensor {name[:100]} claims a size of {size}.")
        count *= size
        if count > MAX_ELEMENTS:
            break
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) // np.dtype(_width(kind)).itemsize
    else:
        held = len(getattr(tensor, helper.tensor_dtype_to_field(kind)))
    if held != count:
        raise UnsupportedModel(
            f"The tensor {name[:100]} claims {'×'.join(map(str, tensor.dims)) or 'one'} elements, and the file holds "
            f"{held:,} for it. It may be damaged: save and upload it again."
        )
    return count


def _width(kind: int) -> Any:
    from onnx import TensorProto

    return (
        np.int16
        if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        else torch.empty(0, dtype=PLAIN[kind]).numpy().dtype
    )


PLAIN: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""TensorProto.DataType -> the type in torch."""


def dtype_of(kind: int) -> torch.dtype | None:
    """The type in torch of an ONNX one, floating-point types all being float32; None: pared has none for it."""
    dtype = PLAIN.get(kind)
    return torch.float32 if dtype is not None and dtype.is_floating_point else dtype


def as_tensor(tensor: Any) -> Tensor:
    """A tensor of a model that `read_onnx` gave."""
    from onnx import numpy_helper

    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


# -- types ----------------------------------------------------------------------------------------


def value_types(model: Any) -> dict[str, int]:
    """The types of inputs and outputs by name, as numbers of TensorProto.DataType."""
    return {
        value.name: value.type.tensor_type.elem_type
        for value in [*model.graph.input, *model.graph.output]
        if value.type.HasField("tensor_type")
    }


def in_float32(model: Any) -> dict[str, int]:
    """Make float32 of every other floating-point type in a model; the types that its tensors of such numbers had."""
    from onnx import TensorProto, numpy_helper

    others = {TensorProto.DataType.Value(name) for name in _FLOATS}
    had: dict[str, int] = {}
    for name, tensor in _tensors(model):
        if tensor.data_type in (TensorProto.FLOAT, *others):
            had[name] = tensor.data_type
        if tensor.data_type in others:
            array = np.array(numpy_helper.to_array(tensor)).astype(np.float32)
            own = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array, own))
    for graph in graphs_of(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type in others:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype", "stash_type", "softmax_precision") and attribute.i in others:
                    attribute.i = TensorProto.FLOAT
    return had
