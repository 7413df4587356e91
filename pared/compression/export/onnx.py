"""Writes ONNX files, by whichever of torch's two exporters makes one that answers as the model does."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.reloading import reloaded
from pared.compression.export.checking import check, of_the_machine, reason
from pared.compression.export.free_sizes import BATCH, Asked, Names, Sized, symbols, tried
from pared.compression.export.onnx_files import like_the_upload, store_in, with_types
from pared.compression.export.programs import quiet
from pared.compression.measuring.onnx_runtime import running
from pared.compression.onnx_form import OnnxForm
from pared.errors import ExportFailed

_OLD_OPSETS = range(9, 21)
"""Of torch's exporter for TorchScript."""


def write_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    program: Callable[[], Sized],
    free: Sequence[frozenset[int]] | None,
    asked: Asked,
    opset: int | None,
    form: OnnxForm | None,
    stored: torch.dtype | None,
) -> str:
    """Write the module as ONNX, with a free batch size and whatever else is asked for.

    torch's exporter for TorchScript comes first: it takes a twentieth of the time. What it cannot do (transformer
    layers, sizes that hang on each other, newer opsets) goes through the current exporter, from a torch.export program.

    Args:
        program: makes that program.
        free: the dimensions of each input that may have any size; without them, the batch alone.
        opset: the version of ONNX's operators; without one, torch's own choice.
        form: what the ONNX file that the model came from looks like; the new one looks like it.
        stored: the half precision in which the weights of a module in float32 are to be kept.

    Returns:
        what is free and what stays, where free sizes were asked for.

    Raises:
        ExportFailed: ONNX cannot hold the model.
    """
    try:
        import onnx  # noqa: F401 - the exporters need it
        import onnxruntime  # noqa: F401 - the check needs it
    except ImportError as error:
        raise ExportFailed("This server was set up without ONNX. Install pared[worker,onnx] on its workers.") from error
    if any(tensor.dtype == torch.bfloat16 for tensor in [*module.parameters(), *module.buffers()]):
        raise ExportFailed(
            "ONNX Runtime does not compute in bfloat16 on a processor, so no such file could be checked."
        )
    failure: Exception | None = None
    sizes = tuple(
        {dim: BATCH if dim == 0 else f"{name}_{dim}" for dim in dims}
        for name, dims in zip(_input_names(example), free or [frozenset({0})] * len(example), strict=True)
    )
    usual: tuple[Names, list[tuple[Tensor, ...]], str] = sizes, [], ""
    found = usual if asked.names is None else tried(module, example, asked)
    if found is not None and (opset is None or opset in _OLD_OPSETS):
        names, others, note = found
        try:
            with _apart(path) as file:
                with quiet(), _nothing_printed():
                    _through_torchscript(module, example, file, names, opset)
                _check_file(file, module, example, others, opset, form, stored)
        except Exception as error:
            if of_the_machine(error):
                raise
            failure = error
        else:
            return note
    try:
        with _apart(path) as file:
            with quiet(), _nothing_printed():
                made = program()
                _through_program(made, file, opset)
            _check_file(file, module, example, made.others, opset, form, stored)
    except Exception as error:
        if of_the_machine(error) or isinstance(error, ExportFailed):
            raise
        other = "" if failure is None else reason(failure)
        told = f" (torch's older exporter: {other})" if other not in {"", reason(error)} else ""
        raise ExportFailed(f"ONNX cannot hold this model: {reason(error)}{told}.") from error
    return made.note


@contextlib.contextmanager
def _apart(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own, from which all files move to the first one's if nothing fails.

    ONNX puts large tensors aside, in files beside the model.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for file in Path(folder).iterdir():
            file.replace(path.parent / file.name)


def _through_torchscript(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, sizes: Names, opset: int | None
) -> None:
    names = _input_names(example)
    axes = {**dict(zip(names, sizes, strict=True)), "y": {0: BATCH}}
    # A copy, because the exporter inlines calls in a ScriptModule's own code, which other formats then would hold.
    exported = reloaded(module) if isinstance(module, torch.jit.ScriptModule) else module
    torch.onnx.export(
        exported,
        example,
        path,
        dynamo=False,
        input_names=names,
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=opset,
    )


def _through_program(made: Sized, path: Path, opset: int | None) -> None:
    names = _input_names(made.names)
    count = len(made.program.graph_signature.user_outputs)
    outputs = ["y", *(f"y{index}" for index in range(1, count))]
    with operators_read_once():
        written = torch.onnx.export(
            made.program, (), dynamo=True, verbose=False, input_names=names, output_names=outputs, opset_version=opset
        )
    if written is None:
        raise ExportFailed("torch's exporter gave no ONNX program.")
    _tidy(written.model, symbols(made.program, made.names))
    written.save(path)


_tables: dict[int, Any] = {}
"""What torch's current exporter makes of each operator: opset -> its table."""


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Let torch's current exporter read its table of operators once in a process: that takes longer than an export.

    Each export has a copy, as it may add to it. The class is private to torch: where another release has it elsewhere,
    each export reads the table. `tests/integration/compression/test_onnx.py` pins what is relied on.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        registry: Any = _registration.ONNXRegistry
        reading = vars(registry)["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def from_torchlib(opset_version: int) -> Any:
        if opset_version not in _tables:
            _tables[opset_version] = reading.__get__(None, registry)(opset_version=opset_version)
        table = copy.copy(_tables[opset_version])
        table.functions = {target: [*found] for target, found in table.functions.items()}
        return table

    registry.from_torchlib = staticmethod(from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = reading


def _tidy(model: Any, called: dict[str, str]) -> None:
    """Call the free sizes what the spec calls them, and leave out how the file was made, with this machine's paths."""
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
            for dim, size in enumerate(value.shape or ()):
                text = str(getattr(size, "value", ""))  # which numbers have not
                if text.isdecimal() or text in called:  # one that turned out to be fixed, or a free one
                    value.shape[dim] = int(text) if text.isdecimal() else called[text]
        graph.metadata_props.clear()
    model.metadata_props.clear()


def _input_names(inputs: Any) -> list[str]:
    return [f"x{index}" for index in range(len(inputs))]


def _check_file(
    path: Path,
    module: nn.Module,
    example: tuple[Tensor, ...],
    others: list[tuple[Tensor, ...]],
    opset: int | None,
    form: OnnxForm | None,
    stored: torch.dtype | None,
) -> None:
    """The file runs at the example, at one sample and at other sizes, and has the version that was asked for.

    It is given the names, texts and types of the upload, where that was ONNX, and checked as it will be.
    """
    import onnx

    if opset is not None:
        model = onnx.load(path, load_external_data=False)
        found = next((each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), None)
        if found != opset:
            raise ExportFailed(
                f"torch's exporter wrote opset {found}, where {opset} is asked for: it does not convert this model's "
                "operators. Leave `onnx_opset` out, or ask for 18 or 20."
            )
    if form is not None:
        like_the_upload(path, form)
    if stored is not None:
        store_in(path, stored)
    batches = all(size.dim_param for size in _first_sizes(onnx.load(path, load_external_data=False)))
    run = running(path, None if form is None else form.inputs)
    check(path.name, module, example, run, single=batches)
    for inputs in others:
        check(path.name, module, inputs, run, single=False)
    if form is not None and with_types(path, form):
        halves = tuple(x.half().float() if x.is_floating_point() else x for x in example)
        check(path.name, module, halves, running(path, form.inputs), single=batches, tolerance=_OF_HALVES)


_OF_HALVES = 4e-3
"""As `TOLERANCE`, where answers are given in float16."""


def _first_sizes(model: Any) -> list[Any]:
    return [value.type.tensor_type.shape.dim[0] for value in model.graph.input if value.type.tensor_type.shape.dim]


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Swallow what is printed by Python, and by C++ past it: the exporter prints the whole graph when it fails.

    The process's standard output is away for as long, in all threads.
    """
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryFile() as swallowed:
        kept = os.dup(_STDOUT)
        try:
            os.dup2(swallowed.fileno(), _STDOUT)
            yield
        finally:
            os.dup2(kept, _STDOUT)
            os.close(kept)


_STDOUT = 1
