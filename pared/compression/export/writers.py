"""Writes a compressed model in the formats asked for, and believes a file only when it answers as the model does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.coupling.interpreter import reloaded
from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.devices.memory import ran_out_of_memory
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.export.folders import write_folder
from pared.compression.export.programs import export_program, load_program, quiet
from pared.compression.loading import LoadedModel
from pared.errors import ExportFailed, ModelFailed, telling_line
from pared.specs import Output
from pared.weights import packed, program
from pared.weights.coding import BFLOAT16
from pared.weights.program import write_record

TOLERANCE = 1e-4
"""Largest difference between a written file's output and the model's, relative to the largest output (and to 1)."""


class OutputDiffers(ExportFailed):
    """A file was written and runs, and answers otherwise than the model: by its weights, or by its structure."""


def export(loaded: LoadedModel, example: Sequence[Tensor], outputs: Sequence[Output], directory: Path) -> list[Path]:
    """Write the model into a directory, once for each format.

    `torchscript`: model.pt, loads with torch alone. `state_dict`: model.safetensors, and architecture.json where
    the architecture is known. `exported_program`: model.pt2, which torch.export loads, with a free batch size.
    `onnx`: model.onnx with a free batch size. `packed`: model.packed, sparse and compressed (docs/packed-format.md), of
    the architecture and the tensors, or else of the TorchScript. `huggingface`: model.zip, a model folder as the upload
    was one. The same model gives the same bytes in every process
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


def usual_outputs(upload: LoadedModel, *, folder: bool = False) -> list[Output]:
    """The formats to write where none was asked for: that of the upload, so that files compare like with like.

    Args:
        folder: whether the result of a model folder is one.
    """
    if upload.folder is not None and folder:
        return ["huggingface"]
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
            raise ExportFailed(f"The model can be neither scripted nor traced: {_reason(error)}") from error
        return traced


def _write_torchscript(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path
) -> list[Path]:
    path = directory / "model.pt"
    torch.jit.save(as_torchscript(module, example), path)
    if loaded.inlined or not isinstance(module, torch.jit.ScriptModule):
        # Positions in a source that the code no longer follows, or that this process made and counted.
        _drop_source_positions(path)
    again: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    _check("model.pt", module, example, again)
    return [path]


def _drop_source_positions(path: Path) -> None:
    """Write a TorchScript archive again without its `.debug_pkl` records, which only serve messages of errors.

    The `serialization_id`, which hashes them too, goes with them; torch reads archives without one.
    """
    whole = path.rename(path.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith((".debug_pkl", "/serialization_id")):
                continue
            write_record(new, entry.filename, old.read(entry), compressed=entry.compress_type != zipfile.ZIP_STORED)
    whole.unlink()


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
    # A copy, because the exporter inlines calls in a ScriptModule's own code, which other formats then would hold.
    exported = reloaded(module) if isinstance(module, torch.jit.ScriptModule) else module
    try:
        with quiet(), _nothing_printed():
            # The exporter for TorchScript: the newer one takes no ScriptModule.
            torch.onnx.export(
                exported, example, path, dynamo=False, input_names=names, output_names=["y"], dynamic_axes=axes
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        if of_the_machine(error):
            raise
        raise ExportFailed(f"ONNX cannot hold this model: {_reason(error)}.") from error

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(output) for output in session.run(None, arrays)]

    _check("model.onnx", module, example, run)
    return [path]


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


def _write_program(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path) -> list[Path]:
    path = directory / "model.pt2"
    try:
        export_program(module, example, path, free_dims=loaded.free_dims, unsaved=loaded.unsaved)
    except Exception as error:
        if of_the_machine(error):
            raise
        raise ExportFailed(f"torch.export cannot hold this model: {_reason(error)}.") from error
    any_batch = loaded.free_dims is None or all(0 in dims for dims in loaded.free_dims)
    program = load_program(path)

    def run(*inputs: Tensor) -> Any:
        try:
            return program(*inputs)
        except AssertionError as error:
            raise AssertionError(f"torch.export fixed a size of its inputs ({_reason(error)})") from error

    _check("model.pt2", module, example, run, single=any_batch)
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


def _write_folder(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path) -> list[Path]:
    path = directory / "model.zip"
    stored, again = write_folder(loaded, module, example, path)
    _check("model.zip", stored, example, again)
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
    "huggingface": _write_folder,
}


def _check(
    name: str, module: nn.Module, example: tuple[Tensor, ...], written: Callable[..., Any], *, single: bool = True
) -> None:
    """The written file answers as the model does: on the example and, where that takes one, on a single sample.

    That the model gives no NaN of its own has been seen to by `finite`: where it does, the upload does.
    """
    for inputs in (example, tuple(x[:1] for x in example)) if single else (example,):
        with torch.no_grad():
            try:
                expected = flat_tensors(module(*inputs))
            except Exception as error:
                if inputs is not example:
                    continue
                raise ModelFailed(f"The model failed on an example of its inputs: {_reason(error)}.") from error
            try:
                actual = flat_tensors(written(*inputs))
            except Exception as error:
                raise ExportFailed(f"{name} was written but does not run: {_reason(error)}") from error
        if [a.shape for a in actual] != [e.shape for e in expected]:
            shapes = ([list(tensor.shape) for tensor in tensors] for tensors in (actual, expected))
            raise ExportFailed("{} gives the shapes {}, the model {}.".format(name, *shapes))
        for one, other in zip(actual, expected, strict=True):
            difference = relative_difference(one, other)
            if not difference <= TOLERANCE:  # NaN is no agreement either
                raise OutputDiffers(f"{name} was written but its output differs from the model's by {difference:.2g}.")


def repeats(module: nn.Module, example: Sequence[Tensor]) -> bool:
    """Whether a model, in eval mode and on the CPU, answers alike when it is asked twice.

    Raises:
        ModelFailed: it does not answer.
    """
    try:
        _check("the model", module, tuple(example), module, single=False)
    except ExportFailed:
        return False
    return True


def of_the_machine(error: BaseException) -> bool:
    """Whether an error says that memory or disk gave out, and nothing of the model."""
    return isinstance(error, OSError) or ran_out_of_memory(error)


def _reason(error: Exception) -> str:
    return telling_line(error, words=("nsupported", "operator"), limit=400).rstrip(".")
