"""Writes a compressed model in the formats asked for, and believes a file only when it answers as the model does."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.coupling.reference import flat_tensors
from pared.compression.devices import CPU, place
from pared.compression.intake import LoadedModel
from pared.compression.program_export import export_program, load_program, quiet
from pared.errors import ExportFailed, ModelFailed
from pared.specs import Output
from pared.weights import packed, program
from pared.weights.coding import BFLOAT16
from pared.weights.program import write_record

TOLERANCE = 1e-4
"""Largest difference between a written file's output and the model's, relative to the largest output (and to 1)."""


def export(loaded: LoadedModel, example: Sequence[Tensor], outputs: Sequence[Output], directory: Path) -> list[Path]:
    """Write the model into a directory, once for each format.

    `torchscript`: model.pt, loads with torch alone. `state_dict`: model.safetensors, and architecture.json where
    the architecture is known. `exported_program`: model.pt2, which torch.export loads, with a free batch size.
    `onnx`: model.onnx with a free batch size. `packed`: model.packed, sparse and compressed (docs/packed-format.md), of
    the architecture and the tensors, or else of the TorchScript. The same model gives the same bytes in every process
    that is run alike and with the same PYTHONHASHSEED, which orders what scripting writes.

    Args:
        example: inputs of the model on the CPU, to check each file with.

    Raises:
        ExportFailed: a format cannot hold this model, or a written file answers otherwise; names the operator.
    """
    module = loaded.module.eval()
    place(module, CPU)
    written: list[Path] = []
    for output in outputs:
        written += _WRITERS[output](loaded, module, tuple(example), directory)
    return written


def usual_outputs(upload: LoadedModel) -> list[Output]:
    """The formats to write where none was asked for: that of the upload, so that files compare like with like."""
    return ["exported_program" if upload.format == "exported_program" else "torchscript"]


def as_torchscript(module: nn.Module, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """The module as TorchScript: itself, else scripted, else traced.

    Raises:
        ExportFailed: it can be neither scripted nor traced.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # scripting keeps control flow and any batch size, where it works
            scripted: torch.jit.ScriptModule = torch.jit.script(module)
            if example:  # some modules script and then do not run, such as those with parametrized weights
                with torch.no_grad():
                    scripted(*example)
            return scripted
        try:
            traced: torch.jit.ScriptModule = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ExportFailed(f"The model can be neither scripted nor traced: {_last_line(error)}") from error
        return traced


def _write_torchscript(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path
) -> list[Path]:
    path = directory / "model.pt"
    torch.jit.save(as_torchscript(module, example), path)
    if loaded.inlined:  # positions in a source that the code no longer follows, and many of them
        _drop_source_positions(path)
    again: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    _check("model.pt", module, example, again)
    return [path]


def _drop_source_positions(path: Path) -> None:
    """Write a TorchScript archive again without its `.debug_pkl` records, which only serve messages of errors."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith(".debug_pkl"):
                continue
            write_record(new, entry.filename, old.read(entry), compressed=entry.compress_type != zipfile.ZIP_STORED)


def _write_state_dict(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path
) -> list[Path]:
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    # Copies, because safetensors refuses two names of one tensor; both names are kept for the loader.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    again = load_file(path)
    if set(again) != set(state) or not all(torch.equal(again[name], tensor) for name, tensor in state.items()):
        raise ExportFailed("model.safetensors does not hold what was written into it. Submit the job again.")
    if loaded.architecture is None:
        return [path]
    described = directory / "architecture.json"
    described.write_text(json.dumps(loaded.architecture, indent=1) + "\n")
    return [path, described]


def _write_onnx(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path) -> list[Path]:
    try:
        import onnx  # noqa: F401 - the exporter needs it
        import onnxruntime
    except ImportError as error:
        raise ExportFailed("This server was set up without ONNX. Install pared[worker,onnx] on its workers.") from error
    path = directory / "model.onnx"
    names = [f"x{index}" for index in range(len(example))]
    axes = {name: {0: "batch"} for name in [*names, "y"]}
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            # The exporter for TorchScript: the newer one takes no ScriptModule.
            torch.onnx.export(
                module, example, path, dynamo=False, input_names=names, output_names=["y"], dynamic_axes=axes
            )
    except Exception as error:
        raise ExportFailed(
            f"ONNX cannot hold this model: {_last_line(error)}. Leave `onnx` out of `outputs` to get the other formats."
        ) from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(output) for output in session.run(None, given)]

    _check("model.onnx", module, example, run)
    return [path]


def _write_program(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path) -> list[Path]:
    path = directory / "model.pt2"
    try:
        export_program(module, example, path, free_dims=loaded.free_dims, unsaved=loaded.unsaved)
    except Exception as error:
        raise ExportFailed(
            f"torch.export cannot hold this model: {_last_line(error)}. Leave `exported_program` out of `outputs` to "
            "get the other formats."
        ) from error
    any_batch = loaded.free_dims is None or all(0 in dims for dims in loaded.free_dims)
    _check("model.pt2", module, example, load_program(path), single=any_batch)
    return [path]


def _write_packed(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path) -> list[Path]:
    path = directory / "model.packed"
    if loaded.architecture is not None:
        arrays = {name: _as_array(tensor) for name, tensor in module.state_dict().items()}
        packed.write(path, arrays, architecture=loaded.architecture)
        again = packed.read(path)
        unpacked: nn.Module = build(again.architecture)
        unpacked.load_state_dict({name: _as_tensor(array) for name, array in again.tensors.items()})
        unpacked.eval()
    else:
        archive = io.BytesIO()
        torch.jit.save(as_torchscript(module, example), archive)
        records, arrays = program.split(archive)
        packed.write(path, arrays, program=records)
        again = packed.read(path)
        restored = io.BytesIO()
        program.join(again.program or [], again.tensors, restored)
        restored.seek(0)
        unpacked = torch.jit.load(restored, map_location="cpu")  # type: ignore[no-untyped-call]
    if any(again.tensors[name].tobytes() != array.tobytes() for name, array in arrays.items()):
        raise ExportFailed("model.packed does not hold what was written into it. Submit the job again.")
    _check("model.packed", module, example, unpacked)
    return [path]


def _as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor of any type as an array; numpy has no bfloat16, so of this the bits."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """The tensor of such an array."""
    bits = torch.from_numpy(array.view(np.int16) if array.dtype == BFLOAT16 else array)
    return bits.view(torch.bfloat16) if array.dtype == BFLOAT16 else bits


_WRITERS: dict[Output, Callable[[LoadedModel, nn.Module, tuple[Tensor, ...], Path], list[Path]]] = {
    "torchscript": _write_torchscript,
    "state_dict": _write_state_dict,
    "exported_program": _write_program,
    "onnx": _write_onnx,
    "packed": _write_packed,
}


def _check(
    name: str, module: nn.Module, example: tuple[Tensor, ...], written: Callable[..., Any], *, single: bool = True
) -> None:
    """The written file answers as the model does: on the example and, where that takes one, on a single sample."""
    for inputs in (example, tuple(x[:1] for x in example)) if single else (example,):
        with torch.no_grad():
            try:
                expected = flat_tensors(module(*inputs))
            except Exception as error:
                if inputs is not example:
                    continue
                raise ModelFailed(f"The model failed on an example of its inputs: {_last_line(error)}.") from error
            try:
                actual = flat_tensors(written(*inputs))
            except Exception as error:
                raise ExportFailed(f"{name} was written but does not run: {_last_line(error)}") from error
        if [a.shape for a in actual] != [e.shape for e in expected]:
            shapes = ([list(tensor.shape) for tensor in tensors] for tensors in (actual, expected))
            raise ExportFailed("{} gives the shapes {}, the model {}.".format(name, *shapes))
        for one, other in zip(actual, expected, strict=True):
            difference = _relative_difference(one, other)
            if not difference <= TOLERANCE:  # NaN is no agreement either
                raise ExportFailed(f"{name} was written but its output differs from the model's by {difference:.2g}.")


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest output (and to 1). NaN where the model gives NaN is no difference."""
    if not expected.numel():
        return 0.0
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    size = float(expected[expected.isfinite()].abs().max()) if bool(expected.isfinite().any()) else 0.0
    return float((actual - expected).abs().masked_fill(same, 0.0).max()) / max(1.0, size)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in lines if "nsupported" in line or "operator" in line), None)
    return (named or (lines[-1] if lines else type(error).__name__))[:400].rstrip(".")
