"""Reads a torch.export program (`.pt2`) as data: its graph from JSON and its tensors from bytes, never from a pickle.

`torch.export.load` would unpickle parts of the file and evaluate its symbolic sizes as Python, and costs seconds of
imports. The format is written down in torch's `torch/_export/serde/schema.py`, whose names are used here; what a newer
writer adds is passed over, and what it changes raises the major version.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from pared.errors import UnsupportedModel

FORMAT_RECORD = "archive_format"
"""Every such archive has this record: torch's loader demands it."""
MAX_GRAPH_BYTES = 64 * 2**20

_SCHEMA_MAJOR = 8  # of torch 2.6 to 2.13
_AGAIN = "Save it with torch.export.save(torch.export.export(model, …), …) and upload it again."
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


Argument = Annotated[dict[str, Any], Field(min_length=1, max_length=1)]
"""One value and its kind, such as `{"as_tensor": {"name": "x"}}` or `{"as_ints": [1, 1]}`."""


class _Hint(_Part):
    as_int: int | None = None


class _Expression(_Part):
    expr_str: str
    hint: _Hint | None = None


class Size(_Part):
    """A number, or an expression of the sizes that the program leaves free."""

    as_int: int | None = None
    as_expr: _Expression | None = None

    @property
    def example(self) -> int | None:
        """The number, or the one that it was exported with."""
        if self.as_expr is None:
            return self.as_int
        return None if self.as_expr.hint is None else self.as_expr.hint.as_int


class TensorMeta(_Part):
    """What a tensor is like."""

    dtype: int
    sizes: list[Size]
    strides: list[Size]
    storage_offset: Size
    requires_grad: bool

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            UnsupportedModel: one that no plain arithmetic is done in.
        """
        return torch_dtype(self.dtype)


class NamedArgument(_Part):
    """An argument under its name in the operator's schema; `kind` is 2 where it is passed by name."""

    name: str
    arg: Argument
    kind: int | None = None


class Node(_Part):
    """One call of an operator."""

    target: str
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: dict[str, str]


class Graph(_Part):
    """Calls in order, and what their tensors are like."""

    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class _Signature(_Part):
    input_specs: list[Argument]
    output_specs: list[Argument]


class Nesting(_Part):
    """How values are nested: `type` is that of the container, None for a value itself."""

    type: str | None
    children_spec: list[Nesting]


_nesting: TypeAdapter[tuple[int, Nesting]] = TypeAdapter(tuple[int, Nesting])


def _nesting_in(text: Any) -> Nesting:
    return _nesting.validate_json(text)[1]


_NestingInText = Annotated[Nesting, BeforeValidator(_nesting_in)]


class _CallSignature(_Part):
    in_spec: _NestingInText
    out_spec: _NestingInText


class _CallEntry(_Part):
    fqn: str
    signature: _CallSignature | None = None


class _GraphModule(_Part):
    graph: Graph
    signature: _Signature
    module_call_graph: list[_CallEntry]


class _Version(_Part):
    major: int
    minor: int


class _Document(_Part):
    schema_version: _Version
    torch_version: str = ""
    graph_module: _GraphModule


class _Payload(_Part):
    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class _Payloads(_Part):
    config: dict[str, _Payload]


@dataclass(frozen=True)
class Program:
    """A program as its file holds it.

    `tensors`: its parameters and buffers under their dotted names, tied ones the same object. `constants`: its other
    tensors. `input_specs` and `output_specs`: what each input and output of the graph stands for. `in_spec` and
    `out_spec`: how its caller gives and gets them.
    """

    graph: Graph
    input_specs: list[Argument]
    output_specs: list[Argument]
    in_spec: Nesting
    out_spec: Nesting
    tensors: dict[str, Tensor]
    constants: dict[str, Tensor]


def is_program(names: set[str]) -> bool:
    """Whether an archive with these entries is a torch.export program, of today's format or that before torch 2.8."""
    return "serialized_exported_program.json" in names or any(name.partition("/")[2] == FORMAT_RECORD for name in names)


def read_program(path: Path) -> Program:
    """The program in a file whose zip directory was checked.

    Raises:
        UnsupportedModel: damaged, of another version, compiled, or holding what only unpickling would open.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UnsupportedModel(f"This torch.export program is damaged: {error}. {_AGAIN}") from error


def torch_dtype(number: int) -> torch.dtype:
    """The type that torch's schema numbers so.

    Raises:
        UnsupportedModel: one that no plain arithmetic is done in.
    """
    if number not in _DTYPES:
        raise UnsupportedModel(
            f"This program holds tensors of a type (number {number} of torch's schema) that pared does not compute "
            "with. Export the model in float32."
        )
    return _DTYPES[number]


def _read(archive: zipfile.ZipFile) -> Program:
    names = archive.namelist()
    root = next((name.partition("/")[0] for name in names if name.partition("/")[2] == FORMAT_RECORD), None)
    if root is None:
        raise UnsupportedModel(
            "This torch.export program is in the format of PyTorch before 2.8. Open it there with torch.export.load "
            "and save it with a current PyTorch, or export the model anew."
        )
    models = [name for name in names if name.startswith(f"{root}/models/")]
    if any(name.startswith(f"{root}/data/aotinductor/") for name in names):
        raise UnsupportedModel(
            "This .pt2 file holds a model that was compiled for one kind of machine (AOTInductor): nothing in it can "
            f"be pruned or trained. Upload the program that it was compiled from. {_AGAIN}"
        )
    if models != [f"{root}/models/model.json"]:
        listing = ", ".join(name.rpartition("/")[2] for name in models)[:200] or "none"
        raise UnsupportedModel(
            "A .pt2 file must hold one program, called model, as torch.export.save writes it; this one holds "
            f"{listing}."
        )
    document = _parsed(_Document, archive, models[0])
    version = document.schema_version
    if version.major != _SCHEMA_MAJOR:
        raise UnsupportedModel(
            f"This program was written by PyTorch {document.torch_version[:40]} in version {version.major} of its "
            f"format; pared reads version {_SCHEMA_MAJOR} (PyTorch {torch.__version__.partition('+')[0]}). Save it "
            "with that PyTorch, or upload the model as TorchScript."
        )
    parts = document.graph_module
    signature = next((entry.signature for entry in parts.module_call_graph if entry.fqn == ""), None)
    if signature is None:
        raise _not_as_written("it does not say how it is called")
    return Program(
        parts.graph,
        parts.signature.input_specs,
        parts.signature.output_specs,
        signature.in_spec,
        signature.out_spec,
        dict(_tensors(archive, root, "weights")),
        dict(_tensors(archive, root, "constants")),
    )


_Kind = TypeVar("_Kind", bound=_Part)


def _parsed(kind: type[_Kind], archive: zipfile.ZipFile, name: str) -> _Kind:
    try:
        size = archive.getinfo(name).file_size
        if size > MAX_GRAPH_BYTES:
            raise _not_as_written(f"{name} has {size:,} bytes, and the most we take is {MAX_GRAPH_BYTES:,}")
        return kind.model_validate_json(archive.read(name))
    except KeyError as error:
        raise _not_as_written(f"it has no {name}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise _not_as_written(f"in {name}, {where or 'the whole'}: {first['msg'][:200]}") from error


def _not_as_written(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"This .pt2 file is not as torch.export.save of PyTorch {torch.__version__.partition('+')[0]} writes it: "
        f"{what}. It may be damaged, or written by another version. {_AGAIN}"
    )


def _tensors(archive: zipfile.ZipFile, root: str, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors; those that are tied are one object, and those that share memory share it here."""
    payloads = _parsed(_Payloads, archive, f"{root}/data/{kind}/model_{kind}_config.json").config
    records: dict[str, Tensor] = {}
    made: dict[tuple[str, str, bool], Tensor] = {}
    for name, payload in payloads.items():
        meta, path = payload.tensor_meta, payload.path_name
        if payload.use_pickle or meta is None:
            raise UnsupportedModel(
                f"{name[:200]} in this program is a Python or C++ object rather than a plain tensor; opening it would "
                "run code of its own. Export a model of plain tensors."
            )
        if path not in records:
            records[path] = _record(archive, f"{root}/data/{kind}/{path}")
        key = (path, meta.model_dump_json(), payload.is_param)
        if key not in made:
            made[key] = _tensor(name, records[path], meta, is_parameter=payload.is_param)
        yield name, made[key]


def _record(archive: zipfile.ZipFile, name: str) -> Tensor:
    try:
        content = bytearray(archive.read(name))
    except KeyError as error:
        raise _not_as_written(f"it has no {name}") from error
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _tensor(name: str, record: Tensor, meta: TensorMeta, *, is_parameter: bool) -> Tensor:
    numbers = [size.as_int for size in (*meta.sizes, *meta.strides, meta.storage_offset)]
    if any(number is None for number in numbers):
        raise _not_as_written(f"{name[:200]} has no fixed size")
    known = [number for number in numbers if number is not None]
    rank = len(meta.sizes)
    try:
        tensor = record.view(meta.torch_dtype).as_strided(known[:rank], known[rank:-1], known[-1])
    except RuntimeError as error:
        shape = "×".join(map(str, known[:rank]))
        raise _not_as_written(
            f"{name[:200]} claims {shape} elements, which its {len(record):,} bytes do not hold"
        ) from error
    if is_parameter and tensor.is_floating_point():
        return nn.Parameter(tensor, requires_grad=meta.requires_grad)
    return tensor


def sizes_of(meta: Mapping[str, TensorMeta], name: str) -> list[int | None]:
    """The sizes of a value of the graph where they are numbers; None where they are free, or the value is unknown."""
    return [size.as_int for size in meta[name].sizes] if name in meta else []
