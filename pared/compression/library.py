"""The methods as functions of modules and arrays, for use without any server: the same code that jobs run."""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from pared import specs
from pared.compression import jobs
from pared.compression.architectures import LayeredModule
from pared.compression.data import Data, load_dataset
from pared.compression.data.names import arrange_inputs
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.export.scripting import as_torchscript
from pared.compression.export.writers import as_uploaded
from pared.compression.jobs.fitting import answer_to
from pared.compression.jobs.fitting_texts import takes_mask
from pared.compression.loading import (
    Folded,
    LoadedModel,
    example_from_specs,
    fold_module,
    folding_difference,
    forward_arguments,
    in_own_form,
    usual_type,
)
from pared.compression.tasks.base import NoLabels
from pared.compression.work import DatasetFile, ModelFile, Observer, Work
from pared.errors import DeviceUnavailable, ExportFailed, ValidationError
from pared.folders import pack
from pared.job_types import type_of
from pared.reports import Report
from pared.spec_fields import DistillFields, Int8Fields, PipelineFields, PruneFields
from pared.specs.advice import advised

Arrays = tuple[Any, Any]
_Spec = specs.PruneSpec | specs.DistillSpec | specs.QuantizeSpec | specs.PipelineSpec


@dataclass(frozen=True)
class Result:
    """A compressed model and the report about it.

    A state dict or a module made by `pared.compression.architectures.build` comes back as such a module, with its
    `.architecture`. Any other module is scripted (or traced) on the way in and comes back as a ScriptModule: save it
    with `torch.jit.save`. Of a state dict without an architecture the model holds the tensors, and does not run.
    """

    model: nn.Module
    report: Report

    def __str__(self) -> str:
        """What `print` shows: the report."""
        return str(self.report)

    def __repr__(self) -> str:
        """The report's verdict."""
        return f"<Result: {self.report.verdict}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the report."""
        return self.report._repr_html_()


def prune(
    model: nn.Module | str | Path,
    data: Arrays | str | Path | None = None,
    *,
    architecture: Any | None = None,
    weights: str | None = None,
    prefix: str | None = None,
    directory: str | Path | None = None,
    **fields: Unpack[PruneFields],
) -> Result:
    """Remove weights or channels of a trained model, and retrain it where there is data.

    Args:
        model: a module (not changed), a TorchScript, torch.export, ONNX, state dict or safetensors file, or a Hugging
            Face model folder.
        data: `(x, y)` arrays or tensors, a data set file, "builtin:digits" or None. With several inputs x is a list, or
            a dict by the names of the model's arguments; without labels y is None.
        architecture: of a state dict file. Without one its weights can be pruned and packed, which runs nothing.
        weights: of a checkpoint file with several state dicts the one that is meant, such as "ema".
        prefix: of a state dict file only the tensors whose names begin so, such as "student.".
        directory: where the result files are left; without one they are gone, and the model remains. Formats that could
            not be written are under `report.failed_outputs`.
        fields: the other fields of the spec, such as `granularity="channel", amount=0.5, retrain={"epochs": 3}`, all
            described in `pared.spec_fields`. Without a `device` it computes on the GPU, if torch finds one.

    Raises:
        DeviceUnavailable: `device` is cuda, and there is none.
        ParedError: what a job would fail with.
    """
    with _workplace(directory) as place:
        dataset = place.dataset(data, model)
        document = {"type": "prune", "model": _id("mdl", "model"), "dataset": _dataset_id(dataset), **fields}
        spec = _checked(specs.PruneSpec, document, model)
        device = _device_for(spec)
        file = place.model(model, "model", architecture, spec, dataset)
        files = {"model": replace(file, weights=weights, prefix=prefix)}
        report, pruned = jobs.pruned(spec, place.work(files, dataset, device, spec.latency_device))
        return Result(_in_memory(pruned), report)


def distill(
    teacher: nn.Module | str | Path,
    student: nn.Module | str | Path | dict[str, Any],
    data: Arrays | str | Path | None = None,
    *,
    teachers: Sequence[Mapping[str, Any]] = (),
    teacher_architecture: Any | None = None,
    student_architecture: Any | None = None,
    directory: str | Path | None = None,
    **fields: Unpack[DistillFields],
) -> Result:
    """Train a student to answer as its teacher does.

    Args:
        teacher: as `model` of `prune`; not changed.
        student: the same, or an architecture (`{"name": …}`, `{"layers": …}`), or `{"from_teacher": {"width": 0.5}}`,
            which also takes `depth` and `target`.
        data: as in `prune`; without any, inputs are made up, and nothing is measured.
        teachers: further ones, each a dict of a `model` and, if need be, its `architecture` and `weight`.
        teacher_architecture, student_architecture: of state dict files.
        directory: where the result files are left, as in `prune`.
        fields: the other fields of the spec, such as `loss={"kind": "output_mse"}, train={"epochs": 10}`, all described
            in `pared.spec_fields`. Without a `device` it computes on the GPU, if torch finds one.

    Raises:
        DeviceUnavailable: `device` is cuda, and there is none.
        ParedError: what a job would fail with.
    """
    with _workplace(directory) as place:
        dataset = place.dataset(data, teacher)
        named = student if isinstance(student, dict) else _id("mdl", "student")
        others = [{**each, "model": _id("mdl", f"teachers{index}")} for index, each in enumerate(teachers)]
        document = {"type": "distill", "teacher": _id("mdl", "teacher"), "student": named, "teachers": others, **fields}
        from_teacher = isinstance(student, dict) and "from_teacher" in student
        spec = _checked(
            specs.DistillSpec, {**document, "dataset": _dataset_id(dataset)}, teacher if from_teacher else student
        )
        device = _device_for(spec)
        files = {"teacher": place.model(teacher, "teacher", teacher_architecture, spec, dataset)}
        for index, each in enumerate(teachers):
            role = f"teachers.{index}.model"
            files[role] = place.model(each["model"], role, each.get("architecture"), spec, dataset)
        if not isinstance(student, dict):
            files["student"] = place.model(student, "student", student_architecture, spec, dataset)
        report, distilled = jobs.distilled(spec, place.work(files, dataset, device, spec.latency_device))
        return Result(_in_memory(distilled), report)


def quantize(
    model: nn.Module | str | Path,
    data: Arrays | str | Path | None = None,
    *,
    architecture: Any | None = None,
    weights: str | None = None,
    prefix: str | None = None,
    directory: str | Path | None = None,
    **fields: Unpack[Int8Fields],
) -> Result:
    """Make a trained model int8.

    Args:
        model: as in `prune`.
        data: as in `prune`; None scores nothing, which weight-only and dynamic int8 do without.
        architecture, weights, prefix: of a state dict file, as in `prune`.
        directory: where the result files are left, as in `prune`. They are the result: the model that is returned runs
            the first one in this process, by ONNX Runtime or by torch.
        fields: the other fields of the spec, such as `method="static", outputs=["onnx"]`, all described in
            `pared.spec_fields`.

    Raises:
        ParedError: what a job would fail with.
    """
    with _workplace(directory) as place:
        dataset = place.dataset(data, model)
        document = {"type": "quantize", "model": _id("mdl", "model"), "dataset": _dataset_id(dataset), **fields}
        spec = _checked(specs.QuantizeSpec, document, None)
        file = place.model(model, "model", architecture, spec, dataset)
        files = {"model": replace(file, weights=weights, prefix=prefix)}
        report, module = jobs.quantized(spec, place.work(files, dataset, _device_for(spec), None))
        return Result(module, report)


def pipeline(
    model: nn.Module | str | Path,
    data: Arrays | str | Path | None = None,
    *,
    architecture: Any | None = None,
    weights: str | None = None,
    prefix: str | None = None,
    directory: str | Path | None = None,
    **fields: Unpack[PipelineFields],
) -> Result:
    """Take a trained model through several steps, each on the result of the one before.

    Args:
        model, data, architecture, weights, prefix, directory: as in `prune`.
        fields: `steps`, such as `[{"prune": {"amount": 0.5}}, {"distill": {}}]`, a `target` for the last result, and
            the other fields of the spec, all described in `pared.spec_fields`. A student that a step names is an
            architecture, or cut from its teacher.

    Raises:
        DeviceUnavailable: `device` is cuda, and there is none.
        ParedError: what a job would fail with.
    """
    with _workplace(directory) as place:
        dataset = place.dataset(data, model)
        document = {"type": "pipeline", "model": _id("mdl", "model"), "dataset": _dataset_id(dataset), **fields}
        spec = _checked(specs.PipelineSpec, document, model)
        named = [each for each in type_of(spec).references(spec.model_dump(mode="json")) if each.role not in _GIVEN]
        if named:
            text = "names an upload, and there is no server to hold it: name an architecture, or leave it out"
            raise ValidationError(f"{named[0].pointer} {text}.", errors=[{"pointer": named[0].pointer, "detail": text}])
        device = _device_for(spec)
        file = place.model(model, "model", architecture, spec, dataset)
        files = {"model": replace(file, weights=weights, prefix=prefix)}
        report = jobs.pipeline(spec, place.work(files, dataset, device, spec.latency_device))
        opened = jobs.result_module(place.outputs, place.inputs)
        return Result(opened if isinstance(opened, nn.Module) else _in_memory(opened), report)


_GIVEN = ("model", "dataset")


def run_spec(
    spec: specs.JobSpec, files: Mapping[str, str], directory: str | Path, observer: Observer
) -> pydantic.BaseModel:
    """Run a job in this process, on local files, by the code that a worker runs in its sandbox.

    Args:
        spec: the job; the ids in it only say which models and data it has.
        files: the path of each model and of the data, by the field of the spec that names it.
        directory: where the job's files go, the report among them; made if it is not there.
        observer: is told of stages, progress, metrics and log lines, and keeps checkpoints.

    Returns:
        The report that this type of job has.

    Raises:
        DeviceUnavailable: the spec asks for cuda, and there is none.
        ParedError: what a job would fail with.
    """
    with _workplace(directory) as place:
        dataset = place.dataset(files.get("dataset"))
        models = {name: place.file(path, name) for name, path in files.items() if name != "dataset"}
        work = place.work(models, dataset, _device_for(spec), getattr(spec, "latency_device", None))
        return type_of(spec).load_method()(spec, replace(work, observer=observer))


@contextmanager
def _workplace(directory: str | Path | None) -> Iterator[_Workplace]:
    # Whoever calls may have switched gradients off, which training and scores need.
    gradients = torch.inference_mode(False), torch.enable_grad()
    with tempfile.TemporaryDirectory(prefix="pared-") as temporary, gradients[0], gradients[1]:
        inputs, outputs = Path(temporary, "in"), Path(directory or Path(temporary, "out"))
        inputs.mkdir()
        outputs.mkdir(parents=True, exist_ok=True)
        yield _Workplace(inputs, outputs)


@dataclass(frozen=True)
class _Workplace:
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
        return ModelFile(path, path.name, _digest(path), architecture)

    def dataset(self, data: Arrays | str | Path | None, model: Any = None) -> DatasetFile | None:
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


def _device_for(spec: specs.JobSpec) -> str:
    """What to compute on.

    Raises:
        DeviceUnavailable: CUDA is asked for, and torch has none.
    """
    if torch.cuda.is_available():
        return "cuda" if type_of(spec).uses_gpu and getattr(spec, "device", "auto") != "cpu" else "cpu"
    if spec.needs_device == "cuda":
        field = spec.device_field
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU that it can use"
        raise DeviceUnavailable(
            f"The {field} cuda is asked for, and {why}. Leave {field} out to compute on the processor, or run it where "
            "torch.cuda.is_available() is true.",
            errors=[{"pointer": f"/{field}", "detail": why}],
        )
    return "cpu"


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


def _in_memory(loaded: LoadedModel) -> nn.Module:
    """The module in the form of its file, with the arguments that this takes."""
    module = in_own_form(loaded.module, loaded.computed_forms)
    return as_uploaded(loaded, module) if isinstance(module, torch.jit.ScriptModule) else module


_AnySpec = TypeVar("_AnySpec", specs.PruneSpec, specs.DistillSpec, specs.QuantizeSpec, specs.PipelineSpec)


def _checked(kind: type[_AnySpec], document: dict[str, Any], result_like: Any) -> _AnySpec:
    """The validated spec; a bad one raises pared's own error."""
    if isinstance(result_like, (LayeredModule, dict)):
        document = {"outputs": ["state_dict"], **document}
    try:
        return kind.model_validate(document)
    except pydantic.ValidationError as error:
        errors = advised(error.errors(), document, kind)
        raise ValidationError(
            "; ".join(f"{each['pointer']} {each['detail']}" for each in errors), errors=errors
        ) from error


def _id(prefix: str, role: str) -> str:
    """Specs name files by id; here they stand for the file in that role."""
    return f"{prefix}_{role.ljust(26, '0')}"


def _dataset_id(dataset: DatasetFile | None) -> str | None:
    if dataset is None:
        return None
    return dataset.filename if dataset.path is None else _id("dst", "data")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
