"""Opens an ONNX file: converted to TorchScript, and taken only where it answers as onnxruntime does."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.loading.folding import folded
from pared.compression.loading.loaded import LoadedModel, first_line
from pared.compression.loading.onnx.converting import Converted, convert, refuse_undefined, refuse_unknown
from pared.compression.loading.onnx.graph import Graph, in_layers, read_graph
from pared.compression.loading.onnx.reading import PLAIN, OnnxModel, dtype_of, parsed, read_onnx, value_types
from pared.compression.loading.own_form import typed, usual_type
from pared.compression.loading.programs import repeated, takes_any_batch
from pared.compression.onnx_form import OnnxForm
from pared.compression.work import ModelFile
from pared.errors import UnsupportedModel

TOLERANCE = 1e-3
"""Largest difference from onnxruntime's answer, relative to the largest of it (and to 1)."""

_ROWS = 4
_MOST_ELEMENTS = 1 << 26
_SIDES = (64, 32, 224, 48, 28, 256, 96, 128, 640, 16, 512)
_LENGTHS = (64, 128, 16, 100, 512, 32, 256, 1000, 16000)
_TOKENS = (16, 32, 128, 512, 8, 64, 256, 1, 576, 16000)
_BATCH = "the batch"


@dataclass(frozen=True)
class _Input:
    """An input of the graph; each dimension has a size, or the name of a free one."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]


def load_onnx(file: ModelFile) -> LoadedModel:
    """Open an ONNX file, or a zip of one with its data beside it.

    Raises:
        UnsupportedModel: it cannot be read, has operators that pared does not open, or answers here otherwise than in
            onnxruntime.
    """
    read = read_onnx(file.path)
    graph = read_graph(read.proto.graph)
    refuse_unknown(graph)
    refuse_undefined(graph)
    inputs = _inputs(read.proto.graph, graph.inputs)
    if not inputs:
        raise UnsupportedModel("This ONNX file takes no input, so there is nothing to run it on.")
    runtime = _Runtime(read)
    sizes, example = _found(inputs, runtime)
    graph = in_layers(graph, _ranks(read))
    made = convert(graph, example, read.opset)
    _compare(made.module, runtime, example)
    free = _free(inputs, sizes, made, runtime)
    notes: list[str] = []
    freed = False
    if _BATCH not in free and all(tensor.dim() and len(tensor) == len(example[0]) for tensor in example):
        made, example, freed, notes = _with_any_batch(graph, read.opset, made, example)
    loaded = LoadedModel(
        module=made.module,
        format="onnx",
        flavour="onnx",
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=[*_notes(read, inputs, free), *notes],
        example=tuple(example),
        arguments=tuple(each.name for each in inputs),
        free_dims=tuple(
            frozenset(dim for dim, size in enumerate(each.dims) if size in free or (dim == 0 and freed))
            for each in inputs
        ),
        forms=typed(_types(read, made.module)),
        onnx=_form(read.proto, read.original, inputs),
    )
    return folded(loaded)


def form_of(path: Path) -> OnnxForm:
    """What an ONNX file calls its inputs and outputs, without its tensors.

    Raises:
        UnsupportedModel: it cannot be read, or has inputs that pared does not open.
    """
    proto, _ = parsed(path, with_data=False)
    tensors = {tensor.name for tensor in proto.graph.initializer}
    inputs = _inputs(proto.graph, [value.name for value in proto.graph.input if value.name not in tensors])
    return _form(proto, value_types(proto), inputs)


def _inputs(graph: Any, names: Collection[str]) -> list[_Input]:
    """The inputs that a caller gives. First dimensions that are free are the batch, and so is what is called alike."""
    values = [value for value in graph.input if value.name in names]
    for value in values:
        if value.type.WhichOneof("value") != "tensor_type" or dtype_of(value.type.tensor_type.elem_type) is None:
            raise UnsupportedModel(
                f"The input {value.name[:100]} of this ONNX file is no tensor of numbers, which is all that pared "
                "takes. Export the model without it."
            )
        if not value.type.tensor_type.HasField("shape"):
            raise UnsupportedModel(
                f"The input {value.name[:100]} of this ONNX file has no shape. Export the model with one; sizes may be "
                "free."
            )
    firsts = [value.type.tensor_type.shape.dim[0] for value in values if value.type.tensor_type.shape.dim]
    batches = {dim.dim_param for dim in firsts if dim.dim_value <= 0 and dim.dim_param}
    return [_input(value, batches) for value in values]


def _input(value: Any, batches: set[str]) -> _Input:
    dims: list[int | str] = []
    for position, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        elif position == 0 or dim.dim_param in batches:
            dims.append(_BATCH)
        else:
            dims.append(dim.dim_param if dim.dim_param.strip("?") else f"{value.name}, dimension {position}")
    dtype = dtype_of(value.type.tensor_type.elem_type) or torch.float32
    return _Input(value.name, dtype, tuple(dims))


def _ranks(read: OnnxModel) -> dict[str, int]:
    """Numbers of dimensions as ONNX infers them, where it can."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(read.proto).graph
    except Exception:  # noqa: BLE001 - it only helps to find layer norms
        return {}
    values = [*inferred.input, *inferred.value_info]
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


# -- answers --------------------------------------------------------------------------------------


class _Runtime:
    """The file as onnxruntime runs it, without rewriting it."""

    def __init__(self, read: OnnxModel) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UnsupportedModel(
                "This is an ONNX file, and this server was set up without onnxruntime, which its answers are compared "
                "with. Install pared[worker,onnx] on its workers."
            ) from error
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                read.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnsupportedModel(
                f"onnxruntime cannot load this ONNX file: {first_line(error)[:300]}. It may be damaged; "
                "onnx.checker.check_model says more."
            ) from error
        self._names = [each.name for each in self._session.get_inputs()]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(self._names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, given)]


def _compare(module: torch.jit.ScriptModule, runtime: _Runtime, example: Sequence[Tensor]) -> None:
    """Refuse a module that answers otherwise than the file."""
    difference = _difference(module, runtime(example), example)
    if difference is not None:
        raise UnsupportedModel(
            f"Opened as a PyTorch model, this ONNX file answers otherwise than onnxruntime does: {difference}. Upload "
            "the model as TorchScript or a torch.export program instead."
        )


def _difference(module: torch.jit.ScriptModule, expected: Sequence[Tensor], example: Sequence[Tensor]) -> str | None:
    """How the module's answer differs; None: not by more than rounding.

    Raises:
        RuntimeError: the module does not run.
    """
    with torch.no_grad(), optimized_execution(False):
        answers = flat_tensors(module(*example))
    for position, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
            return (
                f"output {position} is {answer.dtype} {list(answer.shape)}, where it is {wanted.dtype} "
                f"{list(wanted.shape)}"
            )
        if not torch.equal(answer.isfinite(), wanted.isfinite()):
            return f"output {position} is not finite where it is finite there, or the other way round"
        finite = wanted.isfinite()
        if not finite.any():
            continue
        difference = relative_difference(answer[finite], wanted[finite])
        if not difference <= TOLERANCE:
            return f"output {position} differs by {difference:.2g}"
    return None


# -- sizes ----------------------------------------------------------------------------------------


def _found(inputs: Sequence[_Input], runtime: _Runtime) -> tuple[dict[str, int], list[Tensor]]:
    """Sizes of the free dimensions with which onnxruntime runs the file, and inputs of these sizes."""
    why: Exception | None = None
    for sizes in itertools.islice(_sizes(inputs), 80):
        example = _example(inputs, sizes)
        if sum(tensor.numel() for tensor in example) > _MOST_ELEMENTS:
            continue
        try:
            runtime(example)
        except Exception as error:  # noqa: BLE001 - onnxruntime has errors of its own
            why = why or error
            continue
        return sizes, example
    said = f" onnxruntime says: {first_line(why)[:200]}." if why is not None else ""
    raise UnsupportedModel(
        "No sizes of this ONNX file's inputs were found with which onnxruntime runs it. Export it with fixed sizes, "
        f"all but that of the batch.{said}"
    )


def _sizes(inputs: Sequence[_Input]) -> Iterator[dict[str, int]]:
    """Sizes to try, likeliest first."""
    free = {dim: each for each in inputs for dim in each.dims if isinstance(dim, str) and dim != _BATCH}
    has_batch = any(_BATCH in each.dims for each in inputs)
    usual = {dim: _usual(each) for dim, each in free.items()}
    combinations: Iterator[dict[str, int]] = (
        {dim: choices[min(index, len(choices) - 1)] for dim, choices in usual.items()} for index in range(len(_SIDES))
    )
    if len(free) > 1:
        mixed = itertools.product(*(choices[:6] for choices in usual.values()))
        combinations = itertools.chain(combinations, (dict(zip(usual, each, strict=True)) for each in mixed))
    for combination in combinations:
        for rows in (_ROWS, 1) if has_batch else (1,):
            yield {**combination, _BATCH: rows}
        if not free:
            return


def _usual(each: _Input) -> tuple[int, ...]:
    if not each.dtype.is_floating_point or len(each.dims) < 3:
        return _TOKENS
    return _LENGTHS if len(each.dims) == 3 else _SIDES


def _example(inputs: Sequence[_Input], sizes: Mapping[str, int]) -> list[Tensor]:
    """Normal numbers, and zeros and ones of any other type."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for each in inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in each.dims]
        if math.prod(shape) > _MOST_ELEMENTS:
            made.append(torch.zeros(1).expand(shape))  # too large, which the caller sees
        elif each.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(each.dtype))
    return made


def _free(inputs: Sequence[_Input], sizes: Mapping[str, int], made: Converted, runtime: _Runtime) -> set[str]:
    """Those of the free dimensions that may have another size here, too.

    Raises:
        UnsupportedModel: with another size it answers otherwise than onnxruntime.
    """
    free = set()
    for name in {dim: None for each in inputs for dim in each.dims if isinstance(dim, str)}:
        if _takes_another(inputs, sizes, name, made, runtime):
            free.add(name)
    return free


def _takes_another(
    inputs: Sequence[_Input], sizes: Mapping[str, int], name: str, made: Converted, runtime: _Runtime
) -> bool:
    """Whether another size is right: the first that onnxruntime takes; or three, where sizes decide on the way."""
    usual = sorted(next((_usual(each) for each in inputs if name in each.dims), ()))
    others = [size for size in ((3, 2, 1) if name == _BATCH else usual) if size != sizes[name]][:6]
    right = 0
    for size in others:
        example = _example(inputs, {**sizes, name: size})
        if sum(tensor.numel() for tensor in example) > _MOST_ELEMENTS:
            continue
        try:
            expected = runtime(example)
        except Exception:  # noqa: BLE001, S112 - the file does not take this size
            continue
        try:
            difference = _difference(made.module, expected, example)
        except RuntimeError:
            return False
        if difference is not None:
            raise UnsupportedModel(
                f"Opened as a PyTorch model, this ONNX file answers otherwise than onnxruntime does where {name} is "
                f"{size}: {difference}. Export it with a fixed size there."
            )
        right += 1
        if not made.by_sizes or right == 3:
            break
    return right > 0


def _with_any_batch(
    graph: Graph, opset: int, made: Converted, example: Sequence[Tensor]
) -> tuple[Converted, list[Tensor], bool, list[str]]:
    """A model that was exported for one batch size, taking any if it can; whether it does, and what to say of that."""
    rows = len(example[0])
    freed = None
    with contextlib.suppress(UnsupportedModel):
        freed = convert(graph, example, opset, free_batch=True)
    if freed is not None and takes_any_batch(made.module, freed.module, example):
        note = (
            f"This ONNX file is written for a batch of {rows} alone. Its own steps take any, which was checked, so the "
            "result takes any batch too."
        )
        return freed, [repeated(tensor, _ROWS) for tensor in example], True, [note]
    note = (
        f"This ONNX file takes a batch of {rows} alone, where training and measuring need others: export it with a "
        "free first dimension (dynamic_shapes of torch.onnx.export)."
    )
    return made, list(example), False, [note]


# -- what is said and kept ------------------------------------------------------------------------


def _notes(read: OnnxModel, inputs: Sequence[_Input], free: set[str]) -> list[str]:
    from onnx import TensorProto

    notes = []
    others = {*read.weight_types.values()} - {TensorProto.FLOAT}
    kinds = sorted(TensorProto.DataType.Name(kind).lower() for kind in others)
    if kinds:
        notes.append(f"Weights in {', '.join(kinds)} were converted to float32, in which the model computes here.")
    fixed = [dim for each in inputs for dim in each.dims if isinstance(dim, str) and dim not in free and dim != _BATCH]
    if fixed:
        named = ", ".join(dict.fromkeys(fixed))[:200]
        notes.append(
            f"The size of {named} is free in the file; no second size was found that works, so it is fixed here."
        )
    return notes


def _types(read: OnnxModel, module: torch.jit.ScriptModule) -> dict[str, torch.dtype]:
    """The type that the file has each floating-point tensor of the module in; of one by another name, that of most."""
    types = {name: PLAIN[kind] for name, kind in read.weight_types.items()}
    usual = usual_type(types.values())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: types.get(name, usual) for name, tensor in tensors.items() if tensor.is_floating_point()}


def _form(proto: Any, types: Mapping[str, int], inputs: Sequence[_Input]) -> OnnxForm:
    return OnnxForm(
        inputs=tuple(each.name for each in inputs),
        outputs=tuple(value.name for value in proto.graph.output),
        types=types,
        dims={
            each.name: {
                dim: size for dim, size in enumerate(each.dims) if isinstance(size, str) and size.isidentifier()
            }
            for each in inputs
        },
        metadata={entry.key: entry.value for entry in proto.metadata_props},
    )
