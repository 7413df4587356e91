"""Opens TorchScript, and finds out from its graph how it was made and what that forbids."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.interpreter import is_constant
from pared.compression.coupling.verify import TOLERANCE, relative_difference
from pared.compression.devices.placement import foreign_devices, place
from pared.compression.devices.values import CPU
from pared.compression.loading.archives import BROKEN_MEMBER
from pared.compression.loading.arguments import states_of
from pared.compression.loading.examples import guess_example_inputs
from pared.compression.loading.folding import folded
from pared.compression.loading.loaded import LoadedModel, check_tensors, device_notes, first_line, other_types
from pared.compression.loading.own_form import form_note, forms_of, in_float32
from pared.compression.loading.recurrent_states import hold_states
from pared.compression.work import ModelFile
from pared.errors import OutOfMemory, UnsupportedModel


def load_torchscript(file: ModelFile) -> LoadedModel:
    """Open a TorchScript file, which may run code of its own.

    Raises:
        UnsupportedModel: it does not open, has no forward, is quantized, or claims more than it holds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(file.path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except MemoryError as error:
        raise OutOfMemory("The model needs more memory than a job may use.") from error
    except Exception as error:
        raise UnsupportedModel(_torchscript_refusal(error)) from error
    try:
        nodes = list(_nodes(module.inlined_graph))
    except Exception as error:
        raise UnsupportedModel("This TorchScript file has no forward method, so there is nothing to run.") from error
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    check_tensors(tensors)
    _refuse_quantized(nodes)
    _refuse_cuda(node.kind() for node in nodes)
    notes = _put_on_cpu(module)
    states = states_of(module)
    flavour = _flavour(file.path, module, nodes)
    forms, inlined = forms_of(tensors), False
    if other_types(tensors):
        module, inlined = in_float32(module)
        notes += form_note(form.dtype for form in forms.values())
    module, checked = hold_states(module)
    notes += _torchscript_notes(flavour, nodes)
    loaded = LoadedModel(
        module=module,
        format="torchscript",
        flavour=flavour,
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=notes,
        frozen_names=[name for name, tensor in module.named_parameters() if not tensor.requires_grad],
        states=states,
        extra_files=_extra_files(file.path),
        inlined=inlined or checked,
        forms=forms,
    )
    loaded.warnings.extend(_batch_notes(loaded, nodes))
    return folded(loaded)


def _extra_files(path: Path) -> dict[str, bytes]:
    """What was saved beside the model (`_extra_files`), such as labels.txt."""
    with zipfile.ZipFile(path) as archive:
        names = [(name, name.split("/", 2)) for name in archive.namelist()]
        try:
            return {parts[2]: archive.read(name) for name, parts in names if len(parts) == 3 and parts[1] == "extra"}
        except BROKEN_MEMBER as error:
            raise UnsupportedModel(
                f"A file beside the model, in extra/, is damaged ({error}). Save it again."
            ) from error


def _put_on_cpu(module: torch.jit.ScriptModule) -> list[str]:
    """Let what is written in the code follow the tensors, which are on the CPU already; what to say of that."""
    try:
        foreign = foreign_devices(module)
        place(module, CPU)
    except RuntimeError as error:
        raise UnsupportedModel(
            "What this TorchScript file says of the device that it was made on could not be changed: "
            f"{first_line(error)}. Move the model to the CPU, and make the file anew."
        ) from error
    return device_notes(foreign)


def _torchscript_refusal(error: Exception) -> str:
    text = str(error)
    unknown = re.search(r"(?:Unknown builtin op|Unknown type name|unknown operator):?\s*'?([\w:.]+)", text)
    if unknown and re.search(r"\bcuda(::|\.)", unknown[1]):
        return _steers_cuda(unknown[1])
    if unknown:
        return (
            f"This TorchScript file uses {unknown[1]}, which plain PyTorch does not have (torchvision's and other "
            "extensions' operators are not installed here). Save a model without it."
        )
    if "required keyword attribute 'value' is undefined" in text:
        return (
            "This TorchScript file holds weights that were packed for one kind of processor, as "
            "torch.jit.optimize_for_inference does, and torch itself cannot read them back. Save the model as it was "
            "before that."
        )
    return (
        f"torch.jit.load cannot open this file: {first_line(error)}. It may be damaged, or written by a newer PyTorch "
        f"than {torch.__version__.partition('+')[0]}. Save and upload it again."
    )


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _refuse_cuda(kinds: Iterable[str]) -> None:
    kind = next((kind for kind in kinds if kind.startswith("cuda::") or kind == "aten::record_stream"), None)
    if kind is not None:
        raise UnsupportedModel(_steers_cuda(kind))


def _steers_cuda(kind: str) -> str:
    return (
        f"This model steers CUDA itself (it uses {kind}), so that it runs on a GPU alone. Leave streams and other "
        "calls of torch.cuda out of its code: PyTorch needs none of them to run a model on a GPU."
    )


def _refuse_quantized(nodes: Sequence[Any]) -> None:
    prefixes = ("quantized::", "aten::quantize_per", "aten::dequantize", "prepacked::", "mkldnn_prepacked::")
    kind = next((node.kind() for node in nodes if node.kind().startswith(prefixes)), None)
    if kind is not None:
        raise UnsupportedModel(
            f"This model is quantized or packed for one device already (it uses {kind}). Prune and distill before "
            "quantizing: upload the float32 model."
        )


def _flavour(
    path: Path, module: torch.jit.ScriptModule, nodes: Sequence[Any]
) -> Literal["scripted", "traced", "frozen"]:
    if not any(True for _ in module.parameters()) and any(_is_tensor_constant(node) for node in nodes):
        return "frozen"
    traced = any(node.kind() == "aten::_convolution" for node in nodes) or _keeps_call_stacks(path)
    return "traced" if traced else "scripted"


def _keeps_call_stacks(path: Path) -> bool:
    """Whether the debug records name sources as tracing does: `linear.py(134): forward`, not `linear.py:134`.

    Looked for in the bytes: torch's own reader of these records takes gigabytes for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".debug_pkl"):
                try:
                    if re.search(rb"\.py\(\d+\): ", archive.read(entry)):
                        return True
                except BROKEN_MEMBER:
                    continue  # damaged, and the model runs without
    return False


def _is_tensor_constant(node: Any) -> bool:
    return bool(
        node.kind() == "prim::Constant"
        and node.outputsSize() == 1
        and isinstance(node.output().type(), torch._C.TensorType)
    )


def _torchscript_notes(flavour: str, nodes: Sequence[Any]) -> list[str]:
    notes = []
    if flavour == "frozen":
        notes.append(
            "This file is frozen (torch.jit.freeze): its weights are constants of its code and can be neither pruned "
            "nor trained. Upload the model as it was saved before freezing."
        )
    if flavour == "traced":
        norms = [node for node in nodes if node.kind() == "aten::batch_norm"]
        drops = [node for node in nodes if node.kind() in {"aten::dropout", "aten::feature_dropout"}]
        if any(_constant(node, 5) is False for node in norms):
            notes.append(
                "This file was traced in eval mode: its batch-norm statistics stay as they are while it trains, and "
                "its dropout, if any, is gone."
            )
        elif any(_constant(node, 2) is False for node in drops):
            notes.append("This file was traced in eval mode: its dropout is gone.")
        if any(_constant(node, 5) is True for node in norms) or any(_constant(node, 2) is True for node in drops):
            notes.append(
                "This file was traced in training mode: dropout or batch statistics stay switched on even when it is "
                "evaluated. Call model.eval() before torch.jit.trace."
            )
    return notes


def _batch_notes(loaded: LoadedModel, nodes: Sequence[Any]) -> list[str]:
    """That a traced view has a batch size in it, unless the number is none: the model answers other batches too."""
    written = [sizes for node in nodes if (sizes := _baked_batch(node)) is not None]
    if loaded.flavour != "traced" or not written or _takes_any_batch(loaded):
        return []
    return [
        (
            f"Tracing wrote a batch size into view({', '.join(map(str, written[0]))}): the model may run with that "
            "batch size only. Use x.view(x.size(0), -1) or torch.flatten(x, 1) and trace again."
        )
    ]


def _takes_any_batch(loaded: LoadedModel) -> bool:
    """Whether the model, where inputs can be guessed, answers a larger batch row by row as it does a smaller one."""
    example = guess_example_inputs(loaded)
    if example is None or len({len(tensor) for tensor in example}) != 1:
        return False
    larger = tuple(torch.cat([tensor, tensor[:1]]) for tensor in example)
    try:
        with torch.no_grad(), optimized_execution(False):
            few, more = loaded.module(*example), loaded.module(*larger)
    except Exception:  # noqa: BLE001 - that the file runs with one batch size only is one of the ways
        return False
    return len(more) == len(few) + 1 and relative_difference(more[: len(few)], few) <= TOLERANCE


def _constant(node: Any, index: int) -> Any:
    inputs = list(node.inputs())
    return inputs[index].toIValue() if len(inputs) > index else None


def _baked_batch(node: Any) -> list[int] | None:
    """The sizes of a view whose first, which may be the batch, is a literal above 1."""
    if node.kind() not in {"aten::view", "aten::reshape"} or is_constant(node.inputsAt(0)):
        return None
    made = list(node.inputs())[1].node()
    sizes = (
        [value.toIValue() for value in made.inputs()]
        if made.kind() == "prim::ListConstruct"
        else list(node.inputs())[1].toIValue()
    )
    if not sizes or any(not isinstance(size, int) for size in sizes) or sizes[0] < 2:
        return None
    return sizes
