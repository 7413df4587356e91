"""Owns turning what the library is given, modules and arrays, into the files that methods work on."""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pared import specs
from pared.compression.architectures import LayeredModule
from pared.compression.data import Data, load_dataset
from pared.compression.data.names import arrange_inputs
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.export.scripting import as_torchscript
from pared.compression.jobs.fitting import answer_to
from pared.compression.jobs.fitting_texts import takes_mask
from pared.compression.loading import (
    Folded,
    LoadedModel,
    example_from_specs,
    fold_module,
    folding_difference,
    forward_arguments,
    usual_type,
)
from pared.compression.loading.file_format import refuse_damaged
from pared.compression.tasks.base import NoLabels
from pared.compression.work import DatasetFile, ModelFile, Work
from pared.errors import ExportFailed, ValidationError
from pared.folders import pack

_Arrays = tuple[Any, Any]
_Spec = specs.PruneSpec | specs.DistillSpec | specs.QuantizeSpec | specs.PipelineSpec


@contextmanager
def workplace(directory: str | Path | None) -> Iterator[Workplace]:
    """Folders for what a method reads and leaves, the first gone afterwards; without a directory, the second too."""
    # Whoever calls may have switched gradients off, which training and scores need.
    gradients = torch.inference_mode(False), torch.enable_grad()
    with tempfile.TemporaryDirectory(prefix="pared-") as temporary, gradients[0], gradients[1]:
        inputs, outputs = Path(temporary, "in"), Path(directory or Path(temporary, "out"))
        inputs.mkdir()
        outputs.mkdir(parents=True, exist_ok=True)
        yield Workplace(inputs, outputs)


@dataclass(frozen=True)
class Workplace:
    """Turns modules and arrays into the files that the methods work on, and back."""

    inputs: Path
    outputs: Path

    def model(
        self,
        model: nn.Module | str | Path,
        role: str,
        architecture: Any | None,
        spec: _Spec,
        dataset: DatasetFile | None,
    ) -> ModelFile:
        """A file of the model: itself, its weights where its architecture is known, or else TorchScript."""
        if not isinstance(model, nn.Module):
            if not isinstance(model, (str, Path)):
                raise ValidationError(
                    f"The {role} is a {type(model).__name__}, where a torch.nn.Module or the path of a model file is "
                    "wanted. Load a state dict into its module first, or give the file's path and its `architecture`."
                )
            return self.file(model, role, architecture)
        path = self.inputs / f"{role}.pt"
        if isinstance(model, torch.jit.ScriptModule):
            torch.jit.save(model, path)
            return ModelFile(path, path.name, _digest(path))
        example = () if isinstance(model, LayeredModule) else _fitting(model, _example(spec, dataset, model))
        module, folded = _plain(model, example)
        notes = folded.notes(sum(parameter.numel() for parameter in module.parameters()))
        sparse = frozenset(folded.sparse)
        if isinstance(module, LayeredModule):
            torch.save(module.state_dict(), path)
            return ModelFile(path, path.name, _digest(path), module.architecture, tuple(notes), sparse)
        try:
            script = as_torchscript(module, example, notes.append)
        except ExportFailed:
            if dataset is not None:  # that it does not take these data, as a job would say it
                answer_to(LoadedModel(module, "torchscript", "scripted"), _data(spec, dataset))
            raise
        torch.jit.save(script, path)
        return ModelFile(path, path.name, _digest(path), None, tuple(notes), sparse)

    def file(self, model: str | Path, role: str, architecture: Any | None = None) -> ModelFile:
        """A file of a model as it lies on disk; of a Hugging Face model folder a zip."""
        path = Path(model)
        if path.is_dir():
            packed = self.inputs / f"{role}.zip"
            try:
                pack(path, packed)
            except ValueError as error:
                raise ValidationError(str(error)) from error
            path = packed
        if path.is_file():
            refuse_damaged(path)
        return ModelFile(path, path.name, _digest(path), architecture)

    def dataset(self, data: _Arrays | str | Path | None, model: Any = None) -> DatasetFile | None:
        """A file of the data. `model`: which takes them, if it is a module."""
        if data is None:
            return None
        if isinstance(data, (str, Path)):
            if str(data) in specs.BUILTIN_DATASETS:
                return DatasetFile(None, str(data))
            path = Path(data)
            return DatasetFile(path, path.name, _digest(path))
        if not isinstance(data, (list, tuple)) or len(data) != 2:  # type: ignore[redundant-expr]
            raise ValidationError(
                f"The data is a {type(data).__name__}, where two arrays are wanted: (x, y), without labels "
                "(x, None), or the path of a data set file. Stack what a Dataset or DataLoader gives into two arrays "
                "first."
            )
        x, y = data
        if isinstance(x, Mapping):
            named = _by_order(x, model)
        elif isinstance(x, (list, tuple)) and len(x) != 1:
            named = {f"x{index}": part for index, part in enumerate(x)}
        else:
            named = {"x": x[0] if isinstance(x, (list, tuple)) else x}
        arrays = {name: _array(part) for name, part in named.items()} | ({} if y is None else {"y": _array(y)})
        path = self.inputs / "data.npz"
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return DatasetFile(path, path.name, _digest(path))

    def work(
        self, files: dict[str, ModelFile], dataset: DatasetFile | None, device: str, latency_device: str | None
    ) -> Work:
        """The work on these files, on this machine as it stands."""
        threads = torch.get_num_threads()
        return Work(files, dataset, self.outputs, device=device, latency_device=latency_device, threads=threads)


def _by_order(x: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Inputs by name; by number in the model's order where one is called x, for a file then has no other names."""
    if len(x) < 2 or not any(re.fullmatch(r"[xX]\d{0,2}", name) for name in x) or not isinstance(model, nn.Module):
        return dict(x)
    arguments = [name for name, _ in forward_arguments(model) or ()]
    if not set(x) <= set(arguments):
        return dict(x)
    return {f"x{index}": x[name] for index, name in enumerate(name for name in arguments if name in x)}


def _plain(model: nn.Module, example: Sequence[Tensor]) -> tuple[nn.Module, Folded]:
    """A copy of a module in eval mode and on the CPU, as tracing looks at it, with plain weights for computed ones."""
    module = _copy(model).eval()
    place(module, CPU)
    folded = fold_module(module)
    if folded.sources and example:
        original = _copy(model).eval()
        place(original, CPU)
        if folding_difference(original, module, example) is not None:
            return original, Folded()  # its file is opened as any other, and tells what stays
    return module, folded


def _copy(model: nn.Module) -> nn.Module:
    """A copy, with the values of computed tensors, which torch does not copy: the model will compute them again."""
    items = (item for part in model.modules() for value in vars(part).values() for item in _items(value))
    computed = {id(item): item.detach().clone() for item in items if isinstance(item, Tensor) and not item.is_leaf}
    try:
        return copy.deepcopy(model, computed)
    except Exception as error:
        text = f"The model cannot be copied: {error}. Give the path of its TorchScript file."
        raise ValidationError(text) from error


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _array(value: Any) -> np.ndarray:
    """An array or tensor as numpy has it; bfloat16, which numpy lacks, as float32.

    Raises:
        ValidationError: it is none, such as rows of different lengths.
    """
    if not isinstance(value, Tensor):
        try:
            found = np.asarray(value)
        except ValueError as error:  # of rows that differ in length
            raise ValidationError(f"The data hold no array, but a {type(value).__name__}: {error}.") from error
        if found.dtype.hasobject:
            raise ValidationError(
                f"The data hold no array of numbers, but a {type(value).__name__} of Python objects. Inputs and labels "
                "are arrays or tensors whose first dimension is the sample; without labels give (x, None)."
            )
        return found
    tensor = value.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _example(spec: _Spec, dataset: DatasetFile | None, model: nn.Module) -> tuple[Tensor, ...]:
    """Inputs to trace a module with, where it cannot be scripted."""
    if dataset is not None:
        data = _data(spec, dataset)
        if data.padding is None:
            arrange_inputs(data, forward_arguments(model))
        else:
            data.masked = takes_mask(forward_arguments(model))
        return data.example()
    if spec.example_inputs and all(each.is_plain for each in spec.example_inputs):
        return example_from_specs(spec.example_inputs)
    return ()


def _fitting(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The example in the type of the model's weights, or as it is where the model runs on that alone."""
    usual = usual_type(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    if usual == torch.float32:
        return example
    cast = tuple(x.to(usual) if x.is_floating_point() else x for x in example)
    try:
        with torch.no_grad():
            _copy(model).eval()(*cast)
    except Exception:  # noqa: BLE001 - whatever it says, the other type is left
        return example
    return cast


def _data(spec: _Spec, dataset: DatasetFile) -> Data:
    """The data set, of which a model looks at the inputs alone."""
    load = partial(load_dataset, dataset, preprocess=spec.preprocess, seed=spec.seed)
    try:
        return load(task=spec.task, ignored=spec.ignore_index)
    except NoLabels:  # of which the job says what it means
        return load(task="match")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
