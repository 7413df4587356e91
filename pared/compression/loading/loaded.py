"""What opening an upload gives, and the checks and words that all formats share."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pared.compression.loading.arguments import Arguments
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.own_form import Form
from pared.compression.onnx_form import OnnxForm
from pared.errors import UnsupportedModel, telling_line
from pared.wording import shortened

MAX_ELEMENTS = 2_000_000_000

SAVE_ADVICE = (
    "Save it with torch.jit.save(torch.jit.script(model), …), or as safetensors (or torch.save(model.state_dict(), …)) "
    "and name its architecture."
)


State = dict[str, Tensor]
"""Name -> tensor, as a state dict has them."""


@dataclass(frozen=True)
class Origin:
    """Where the weights of a state dict stand in its file, so that others can be put in their place.

    `keys` lead to it in the checkpoint. `names`: the module's name of each tensor -> that in the file, to which the
    module's own is added behind `prefix` where a tensor is new. `folded`: name in the file that a plain weight would
    have -> the names of what it was computed from there.
    """

    path: Path
    container: str
    keys: tuple[Any, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    folded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: Sequence[str] = ()
    """Names of the other state dicts in the checkpoint."""
    optimizers: Sequence[str] = ()
    """Names of the states of optimizers there."""


@dataclass(frozen=True)
class LoadedModel:
    """An upload, opened: its module on the CPU, in eval mode, in float32."""

    module: nn.Module
    format: Literal["torchscript", "state_dict", "exported_program", "onnx", "huggingface"]
    flavour: Literal["scripted", "traced", "frozen", "state_dict", "exported", "onnx"]
    architecture: dict[str, Any] | None = None
    sha256: str = ""
    file_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    frozen_names: list[str] = field(default_factory=list)
    """Parameters that the file itself marks as not to be trained."""
    inlined: bool = False
    """Whether the calls in its code were inlined, to change sizes that are written there."""
    example: tuple[Tensor, ...] | None = None
    """Inputs that the file itself describes."""
    arguments: tuple[str, ...] | None = None
    """What its file calls its inputs, where the module's own names for them are others."""
    free_dims: tuple[frozenset[int], ...] | None = None
    """The dimensions of each input that may have any size, where the file says so."""
    unsaved: frozenset[str] = frozenset()
    """Buffers that its state dict leaves out."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Layers whose weights are computed from others and could not be folded -> why; no single weights go there."""
    sparse: frozenset[str] = frozenset()
    """Folded weights whose computation forced some of them to zero; these zeros are held while it trains."""
    states: Mapping[str, Any] = field(default_factory=dict)
    """Attributes that its forward sets, by path, with the values that the file has for them."""
    given: Arguments | None = None
    """How the module calls the file's own forward, where it takes other arguments."""
    lost: tuple[str, ...] = ()
    """What its code no longer does as the upload's does, in sentences."""
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that its archive holds beside it."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """What its file has its floating-point tensors in, by name, where not all are plain float32; results have the
    same."""
    unfolded: torch.jit.ScriptModule | None = None
    """The model before its weights were folded, where the outcome could not be tried out for want of inputs."""
    origin: Origin | None = None
    """Of a state dict: where its tensors stand in the file."""
    runs: bool = True
    """False: weights without an architecture, which nothing can run."""
    onnx: OnnxForm | None = None
    """What its ONNX file calls inputs and outputs, and of which types it has them."""
    folder: ModelFolder | None = None
    """The Hugging Face folder that it was built from."""

    @property
    def computed_forms(self) -> Mapping[str, Form]:
        """What results that hold code have their tensors in.

        The code of an ONNX file or a folder was written for float32 on opening: what it computes stays in that.
        """
        return {} if self.format in ("onnx", "huggingface") else self.forms


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what would not survive copying: claims beyond the file, and kinds that are no plain numbers."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            what = (
                "quantized" if tensor.is_quantized else "complex" if tensor.is_complex() else "not a dense CPU tensor"
            )
            raise UnsupportedModel(
                f"The tensor {name[:200]} is {what}. Upload the model in float32, before such steps."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UnsupportedModel(
                f"The tensor {name[:200]} claims {tensor.numel():,} elements, more than the file holds for it. If it "
                "was expanded, save it with .contiguous()."
            )
        total += tensor.numel()
    if total > MAX_ELEMENTS:
        raise UnsupportedModel(f"The model has {total:,} elements; the most we take is {MAX_ELEMENTS:,}.")


def other_types(tensors: Mapping[str, Tensor]) -> str:
    """The floating-point types in use other than float32, for a message; empty if there are none."""
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}
    return ", ".join(sorted(kinds - {"float32"}))


def device_notes(devices: Sequence[str]) -> list[str]:
    """What an inspection says of the devices other than the CPU that are written into a file, if there are any."""
    if not devices:
        return []
    named = shortened(devices)
    note = (
        f"The device that was written into this file ({named}) now follows where the model runs, and is the CPU in "
        "every result."
    )
    return [note]


def listed(tensors: Mapping[str, Tensor]) -> str:
    """The first ten tensors with their shapes."""
    return shortened([f"{name[:100]} {shape_text(tensor)}" for name, tensor in tensors.items()])


def shape_text(tensor: Tensor) -> str:
    """A shape as a message shows it."""
    return str(tuple(tensor.shape))


def first_line(error: Exception) -> str:
    """What another library's error says in short, without a full stop."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is not one of plain tensors"
    return telling_line(error).rstrip(".")
