"""The methods as functions of modules and arrays, for use without any server: the same code that jobs run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import pydantic
import torch
from torch import nn

from pared import specs
from pared.compression import jobs
from pared.compression.architectures import LayeredModule
from pared.compression.export.writers import as_uploaded
from pared.compression.loading import (
    LoadedModel,
    in_own_form,
)
from pared.compression.work import DatasetFile, Observer
from pared.compression.workplace import workplace
from pared.errors import DeviceUnavailable, ValidationError
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
    """Remove weights or channels of a trained model, and retrain it where there is data: for 5 epochs, if not told.

    `retrain={"epochs": 0}` or `retrain=None` only prunes and measures.

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
    with workplace(directory) as place:
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
    with workplace(directory) as place:
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
    with workplace(directory) as place:
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
    with workplace(directory) as place:
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
    with workplace(directory) as place:
        dataset = place.dataset(files.get("dataset"))
        models = {name: place.file(path, name) for name, path in files.items() if name != "dataset"}
        work = place.work(models, dataset, _device_for(spec), getattr(spec, "latency_device", None))
        return type_of(spec).load_method()(spec, replace(work, observer=observer))


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
