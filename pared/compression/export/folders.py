"""Writes a model as the Hugging Face folder that it came as: a smaller config, its weights, and its other files."""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.loading import LoadedModel, own_types, usual_type
from pared.compression.loading.file_format import folder_entries
from pared.compression.loading.folders import building
from pared.compression.loading.folders.contents import read_contents
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.folders.opening import open_folder
from pared.compression.loading.folders.widths import renumbered, widths_of, without_layers
from pared.compression.loading.own_form import Forms
from pared.compression.names import tensors
from pared.compression.work import ModelFile
from pared.errors import ExportFailed, ParedError
from pared.weights.program import write_record

_ALIKE = 1e-4


def write_folder(loaded: LoadedModel, module: nn.Module, example: Sequence[Tensor], path: Path) -> Callable[..., Any]:
    """Write a zip of a folder that `from_pretrained` loads.

    Args:
        module: with values that the types of the upload can hold.
        example: its inputs on the CPU.

    Returns:
        The model that transformers loads from what was written.

    Raises:
        ExportFailed: the upload was no folder; or its config cannot say what was left; the text says what to do.
    """
    folder = loaded.folder
    if folder is None:
        raise ExportFailed(
            "Only an upload that is a Hugging Face model folder gives one. Upload the folder as a zip, or ask for "
            "`torchscript`."
        )
    model, weights = _matching(folder, module, example)
    _give_types(model, loaded.forms, weights)
    _zip(folder, model, path)
    again = open_folder(ModelFile(path, path.name, ""))
    return building.Answering(again.model, folder.inputs, hidden_only=folder.hidden_only)


def _matching(folder: ModelFolder, module: nn.Module, example: Sequence[Tensor]) -> tuple[Any, Mapping[str, str]]:
    """The transformers model that answers as the module does; name of each of its tensors -> that in the upload."""
    widths = widths_of(folder)
    state = tensors(module) | dict(module.named_buffers(remove_duplicate=False))
    names = renumbered(widths, folder.dropped, state)
    settings = dict(widths.settings)
    for field, layers in widths.depths.items():
        gone = [index for index, name in enumerate(layers) if name in folder.dropped]
        settings = without_layers(settings, field, gone)
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in tensors(module).items()}
    expected = _answers(module, example)
    why = "the layers that are left have different widths, or widths that only go together with others"
    closest: tuple[float, Any] = (_ALIKE, None)
    for changed in widths.narrowed(shapes):
        try:
            model, _ = building.built(
                settings | changed,
                folder.class_name,
                folder.options,
                {names[name]: tensor.detach().clone() for name, tensor in state.items() if names[name] in shapes},
            )
            answering = building.Answering(model, folder.inputs, hidden_only=folder.hidden_only)
            difference = _difference(_answers(answering, example), expected)
        except ParedError as error:
            why = error.detail.removesuffix(".")
            continue
        why = "a model of these sizes answers otherwise"
        # Of models that answer almost alike, as barely trained ones do, the one that does so best.
        if difference < closest[0]:
            closest = difference, model
    if closest[1] is not None:
        return closest[1], {new: old for old, new in names.items()}
    raise ExportFailed(
        f"config.json cannot say what is left: {why}. With `uniform` true only what it can say is removed; or ask for "
        "`torchscript` or `exported_program`."
    )


def _difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if [one.shape for one in actual] != [other.shape for other in expected]:
        return math.inf
    return max((relative_difference(one, other) for one, other in zip(actual, expected, strict=True)), default=math.inf)


def _answers(module: nn.Module, example: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad(), building.quietly(), optimized_execution(False):
        return flat_tensors(module(*example))


def _give_types(model: Any, forms: Forms, in_upload: Mapping[str, str]) -> None:
    """The types in which the upload stores its weights, for those of the result."""
    type_of = own_types(forms)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(type_of(in_upload.get(name, name)))
    model.config.dtype = usual_type(form.dtype for form in forms.values())
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True


def _zip(folder: ModelFolder, model: Any, path: Path) -> None:
    """Write what transformers saves of the model, and the upload's other files as they are."""
    contents = read_contents(folder.path, folder_entries(folder.path))
    with tempfile.TemporaryDirectory() as temporary:
        with building.quietly():
            model.save_pretrained(temporary)
        saved = sorted(each for each in Path(temporary).iterdir() if each.is_file())
        carried = sorted(contents.carried)
        with zipfile.ZipFile(path, "w") as archive:
            for each in saved:
                if each.name not in carried:  # such as generation_config.json
                    write_record(archive, each.name, each.read_bytes(), compressed=each.suffix == ".json")
            for name in carried:
                write_record(archive, name, contents.read(name), compressed=True)
