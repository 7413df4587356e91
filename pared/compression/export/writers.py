"""Writes a compressed model in the formats asked for, and believes a file only when it answers as the model does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.export.checking import COARSER, OutputDiffers, check, of_the_machine, reason
from pared.compression.export.checkpoints import write_checkpoint
from pared.compression.export.folders import write_folder
from pared.compression.export.free_sizes import Sized, sized
from pared.compression.export.onnx import write_onnx
from pared.compression.export.own_types import own_state, round_to_own_types
from pared.compression.export.programs import load_program, program_of, save_program
from pared.compression.export.scripting import as_torchscript
from pared.compression.export.settings import Settings
from pared.compression.loading import LoadedModel, in_own_form, own_inputs, usual_type
from pared.errors import ExportFailed
from pared.specs import Output
from pared.weights import packed, program
from pared.weights.coding import BFLOAT16
from pared.weights.program import write_record


def export(
    loaded: LoadedModel,
    example: Sequence[Tensor],
    outputs: Sequence[Output],
    directory: Path,
    settings: Settings | None = None,
) -> list[Path]:
    """Write the model into a directory, once for each format.

    `torchscript`: model.pt, loads with torch alone. `state_dict`: model.safetensors, and architecture.json where
    the architecture is known. `exported_program`: model.pt2, which torch.export loads, with a free batch size.
    `onnx`: model.onnx with a free batch size. `packed`: model.packed, sparse and compressed (docs/packed-format.md), of
    the architecture and the tensors, or else of the TorchScript; of weights without an architecture, of the tensors
    alone. `checkpoint`: model.ckpt, the upload with the module's weights. `huggingface`: model.zip, a model folder as
    the upload was one. The same model gives the same bytes in every process that is run alike and with the same
    PYTHONHASHSEED, which orders what scripting writes.

    Args:
        example: inputs of the model on the CPU, in float32, to check each file with.
        settings: free sizes and the like.

    Raises:
        ExportFailed: a format cannot hold this model, or a written file answers otherwise; names the operator.
    """
    settings = settings or Settings()
    place(loaded.module.eval(), CPU)
    round_to_own_types(loaded)
    module, inputs, why = _in_own_form(loaded, tuple(example))
    written: list[Path] = []
    for output in outputs:
        if not loaded.runs and output not in _OF_WEIGHTS:
            raise ExportFailed(
                "The upload is weights without an architecture, and this format holds code that runs them: give the "
                "`architecture` that they belong to, or ask for `state_dict`, `checkpoint` or `packed`."
            )
        written += _WRITERS[output](loaded, module, inputs, directory, settings)
        if why and output not in _OF_WEIGHTS:
            settings.note(output, why)
    return written


def _in_own_form(loaded: LoadedModel, example: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """The module that results with code hold, its inputs, and why it is in float32 where its file is not.

    A state dict may be in types that only save space; a file with code has run in its own.
    """
    if not loaded.runs or not loaded.computed_forms:
        return loaded.module, example, ""
    module = in_own_form(loaded.module, loaded.computed_forms)
    inputs = own_inputs(module, example, loaded.computed_forms)
    try:
        _check_own_form(loaded.module, example, module, inputs)
    except ExportFailed as error:
        if loaded.format != "state_dict":
            raise type(error)(f"{error.detail} Upload it in float32.") from error
        return loaded.module, example, f"It is in float32. {error.detail}"
    return module, inputs, ""


def _check_own_form(module: nn.Module, example: Sequence[Tensor], own: nn.Module, inputs: Sequence[Tensor]) -> None:
    """The model in its file's own types answers as it does in float32, as far as their digits go."""
    if not example:
        return
    with torch.no_grad():
        expected = flat_tensors(module(*example))
        try:
            actual = flat_tensors(own(*inputs))
        except Exception as error:
            raise ExportFailed(
                f"The model runs in float32 and not in the types of its file: {reason(error)}."
            ) from error
    for one, other in zip(actual, expected, strict=True):
        if other.is_floating_point() and not relative_difference(one, other) <= _COARSEST:
            raise OutputDiffers(
                f"In the types of its file ({one.dtype}) the model answers otherwise than in float32, by "
                f"{relative_difference(one, other):.2g}."
            )


_COARSEST = 0.1
"""Rounding adds up over the layers of a deep model in bfloat16, which has three digits."""


def usual_outputs(upload: LoadedModel, *, folder: bool = False) -> list[Output]:
    """The formats to write where none was asked for: that of the upload, so that files compare like with like.

    Args:
        folder: whether the result of a model folder is one.
    """
    if not upload.runs:
        return ["state_dict" if upload.origin is None or upload.origin.container == "safetensors" else "checkpoint"]
    if upload.format in ("exported_program", "onnx"):
        return [upload.format]
    return ["huggingface" if upload.folder is not None and folder else "torchscript"]


_NO_INPUTS = (
    "It is made by running the model, and what the model takes is not known: give `example_inputs`, such as "
    '[{"shape": [1, 512]}, {"value": 16000}]'
)


def _write_torchscript(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    path = directory / "model.pt"
    torch.jit.save(as_uploaded(loaded, as_torchscript(module, example)), path, _extra_files=dict(loaded.extra_files))
    if loaded.inlined or not isinstance(module, torch.jit.ScriptModule):
        # Positions in a source that the code no longer follows, or that this process made and counted.
        _drop_source_positions(path)
    again: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    check("model.pt", module, example, again if loaded.given is None else loaded.given.given_to(again))
    return [path]


def as_uploaded(loaded: LoadedModel, script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The model with the arguments that the forward of its file takes."""
    return script if loaded.given is None else loaded.given.taken_from(script)


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
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    # Copies, because safetensors refuses two names of one tensor; both names are kept for the loader.
    state = {name: tensor.clone().contiguous() for name, tensor in own_state(loaded).items()}
    save_file(state, path, metadata={"format": "pt"})
    again = load_file(path)
    if set(again) != set(state) or not all(torch.equal(again[name], tensor) for name, tensor in state.items()):
        raise ExportFailed("model.safetensors does not hold what was written into it. Submit the job again.")
    if loaded.architecture is None:
        return [path]
    described = directory / "architecture.json"
    described.write_text(json.dumps(loaded.architecture, indent=1) + "\n")
    return [path, described]


def _write_onnx(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    if not example:
        raise ExportFailed(_NO_INPUTS)
    path = directory / "model.onnx"
    usual = usual_type(form.dtype for form in loaded.forms.values())
    notes = []

    def write(module: nn.Module, example: tuple[Tensor, ...], stored: torch.dtype | None) -> str:
        return write_onnx(
            module,
            example,
            path,
            program=lambda: _sized(loaded, module, example, settings),
            free=loaded.free_dims,
            asked=settings.free,
            opset=settings.opset,
            form=loaded.onnx,
            stored=stored,
        )

    half = usual if usual in COARSER else None
    try:
        notes = [write(module, example, half if module is loaded.module else None)]
    except ExportFailed as error:
        if module is loaded.module:
            raise
        wide = tuple(x.float() if x.is_floating_point() else x for x in example)
        notes = [write(loaded.module, wide, half), f"It computes in float32, and takes inputs in it. {error.detail}"]
    if any(notes):
        settings.note("onnx", " ".join(filter(None, notes)))
    return [path]


def _write_program(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    if not example:
        raise ExportFailed(_NO_INPUTS)
    path = directory / "model.pt2"
    try:
        made = _sized(loaded, module, example, settings)
        save_program(made.program, path)
    except Exception as error:
        if of_the_machine(error) or isinstance(error, ExportFailed):
            raise
        raise ExportFailed(f"torch.export cannot hold this model: {reason(error)}.") from error
    any_batch = loaded.free_dims is None or all(0 in dims for dims in loaded.free_dims)
    program = load_program(path)

    def run(*inputs: Tensor) -> Any:
        try:
            return program(*inputs)
        except AssertionError as error:
            raise AssertionError(f"torch.export fixed a size of its inputs ({reason(error)})") from error

    check("model.pt2", module, example, run, single=any_batch)
    for inputs in made.others:
        check("model.pt2", module, inputs, run, single=False)
    if made.note:
        settings.note("exported_program", made.note)
    return [path]


def _sized(loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], settings: Settings) -> Sized:
    """A torch.export program of the model."""
    batch = loaded.free_dims or [frozenset({0})] * len(example)
    return sized(
        lambda free: program_of(module, example, free, unsaved=loaded.unsaved), module, example, batch, settings.free
    )


def _write_packed(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    path = directory / "model.packed"
    if not loaded.runs:
        arrays = {name: _as_array(tensor) for name, tensor in own_state(loaded).items()}
        packed.write(path, arrays)
        again = packed.read(path)
    elif loaded.architecture is not None:
        arrays = {name: _as_array(tensor) for name, tensor in own_state(loaded).items()}
        packed.write(path, arrays, architecture=loaded.architecture)
        again = packed.read(path)
        unpacked: nn.Module = build(again.architecture)
        tensors = {name: _as_tensor(array) for name, array in again.tensors.items()}
        unpacked.load_state_dict(tensors, assign=module is not loaded.module)
        unpacked.eval()
    else:
        archive = io.BytesIO()
        script = as_uploaded(loaded, as_torchscript(module, example))
        torch.jit.save(script, archive, _extra_files=dict(loaded.extra_files))
        records, arrays = program.split(archive)
        packed.write(path, arrays, program=records)
        again = packed.read(path)
        restored = io.BytesIO()
        program.join(again.program or [], again.tensors, restored)
        restored.seek(0)
        opened: torch.jit.ScriptModule = torch.jit.load(restored, map_location="cpu")  # type: ignore[no-untyped-call]
        unpacked = opened if loaded.given is None else loaded.given.given_to(opened)
    if any(again.tensors[name].tobytes() != array.tobytes() for name, array in arrays.items()):
        raise ExportFailed("model.packed does not hold what was written into it. Submit the job again.")
    if loaded.runs:
        check("model.packed", module, example, unpacked)
    return [path]


def _write_checkpoint(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    return write_checkpoint(loaded, directory)


def _write_folder(
    loaded: LoadedModel, module: nn.Module, example: tuple[Tensor, ...], directory: Path, settings: Settings
) -> list[Path]:
    path = directory / "model.zip"
    check("model.zip", module, example, write_folder(loaded, module, example, path))
    return [path]


def _as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor of any type as an array; numpy has no bfloat16, so of this the bits."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """The tensor of such an array."""
    bits = torch.from_numpy(array.view(np.int16) if array.dtype == BFLOAT16 else array)
    return bits.view(torch.bfloat16) if array.dtype == BFLOAT16 else bits


_WRITERS: dict[Output, Callable[[LoadedModel, nn.Module, tuple[Tensor, ...], Path, Settings], list[Path]]] = {
    "torchscript": _write_torchscript,
    "state_dict": _write_state_dict,
    "exported_program": _write_program,
    "onnx": _write_onnx,
    "packed": _write_packed,
    "checkpoint": _write_checkpoint,
    "huggingface": _write_folder,
}
_OF_WEIGHTS: tuple[Output, ...] = ("state_dict", "packed", "checkpoint")
"""Formats that need no code."""
