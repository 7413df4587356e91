"""Compares the last result of a pipeline with its upload, where the last step compared it with the step before."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from json import loads
from pathlib import Path

import torch
from torch import nn

from pared.compression.jobs.pipeline_steps import MODEL_FILES, Chain
from pared.compression.jobs.stages import EXAMPLE_BATCH, Stages, assessed, settled
from pared.compression.jobs.tasking import data_of, for_student
from pared.compression.loading import LoadedModel, load_model, on_tensors
from pared.compression.measuring.onnx_runtime import OnnxModule
from pared.compression.measuring.quality import assess, compare
from pared.compression.quantization.onnx_weights import int8_weights
from pared.compression.report.parts import measure_both
from pared.compression.work import ModelFile, SilentObserver
from pared.errors import ParedError
from pared.reports import Comparison, Measurement, Report
from pared.specs import Output
from pared.weights.packed import read
from pared.weights.unpack import ending, unpack

_OPENED: tuple[Output, ...] = ("torchscript", "exported_program", "huggingface", "state_dict", "onnx")


@dataclass(frozen=True)
class Compared:
    """The upload and the last result, measured, and what is to be said of how."""

    before: Measurement
    after: Measurement
    comparison: Comparison | None
    notes: list[str]


def compared_with_upload(chain: Chain, reports: Sequence[Report], directory: Path) -> Compared:
    """The last result beside the upload.

    Args:
        reports: of all steps.
        directory: where the last one has left its files.
    """
    first, last = reports[0], reports[-1]
    # Named as the steps found it: without a name the defaults of steps are held against the task once more.
    chain = chain.of_task(first.task)
    if is_of_upload(chain, last):
        return Compared(last.before, last.after, last.comparison, [])
    if (int8 := _int8_onnx(directory)) is not None:
        return _scored_by_onnxruntime(chain, int8, first.before, last)
    note = (
        "The last result could not be opened again, so that quality is compared with the upload's without a paired "
        "test, and latency was measured in turns with the result of the step before."
    )
    without = Compared(first.before.model_copy(update={"latency": last.before.latency}), last.after, None, [note])
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _measured(chain, opened_result(directory, Path(scratch)), first.before, last.after)
    except ParedError as error:
        return replace(without, notes=[f"{note} {error.detail}"])


def is_of_upload(chain: Chain, report: Report) -> bool:
    """Whether a step compared its result with the upload, and not with what it began with."""
    return report.before.file_bytes == chain.upload.path.stat().st_size


def _measured(chain: Chain, result: LoadedModel, before: Measurement, after: Measurement) -> Compared:
    spec, work = chain.spec, replace(chain.work, observer=SilentObserver())
    with settled(work):
        stages = Stages(work.observer)
        described = spec.example_inputs or []
        upload, result = on_tensors(load_model(chain.upload), described), on_tensors(result, described)
        spec, data = data_of(spec, work, upload)
        if data is None:  # nothing to compare but sizes, which are known
            first, last = (each.model_copy(update={"latency": []}) for each in (before, after))
            return Compared(first, last, None, [])
        baseline = assessed(upload.module, data, work, stages)
        of_result = for_student(data, result, upload)
        final = assessed(result.module, of_result, work, stages, upload=baseline)
        timed = measure_both(upload, result, data.example(EXAMPLE_BATCH), work, stages.beat)
        return Compared(
            before.model_copy(update={"latency": timed.before.latency, "quality": baseline.quality}),
            after.model_copy(update={"latency": timed.after.latency, "quality": final.quality}),
            compare(baseline, final),
            timed.warnings,
        )


def _scored_by_onnxruntime(chain: Chain, path: Path, before: Measurement, last: Report) -> Compared:
    """An int8 ONNX file beside the upload. Its runtime alone runs it: its latency stays that of its own step."""
    spec, work = chain.spec, replace(chain.work, observer=SilentObserver())
    before = before.model_copy(update={"latency": last.before.latency})
    note = "Latency was measured in ONNX Runtime, in turns with the float32 result of the step before."
    with settled(work):
        stages = Stages(work.observer)
        upload = on_tensors(load_model(chain.upload), spec.example_inputs or [])
        _, data = data_of(spec, work, upload)
        if data is None:
            return Compared(before, last.after, None, [note])
        baseline = assessed(upload.module, data, work, stages)
        with torch.no_grad():
            like = upload.module(*data.example(EXAMPLE_BATCH))
        names = None if upload.onnx is None else upload.onnx.inputs
        result = OnnxModule(path, names, like, threads=max(work.threads, 1))
        final = assess(result, data, data.task, upload=baseline, tick=stages.beat)
        return Compared(
            before.model_copy(update={"quality": baseline.quality}),
            last.after.model_copy(update={"quality": final.quality}),
            compare(baseline, final),
            [note],
        )


def _result(directory: Path) -> ModelFile | None:
    """The file of a result that can be opened again, if there is one."""
    paths = [directory / MODEL_FILES[output] for output in _OPENED]
    path = next((path for path in paths if path.exists()), None)
    described = directory / "architecture.json"
    architecture = loads(described.read_text()) if described.exists() else None
    return None if path is None else ModelFile(path, path.name, "", architecture)


def _int8_onnx(directory: Path) -> Path | None:
    """The result, where it is an ONNX file with int8 weights, which cannot be opened as a model."""
    file = _result(directory)
    return file.path if file is not None and file.path.suffix == ".onnx" and int8_weights(file.path) else None


def result_module(directory: Path, scratch: Path) -> LoadedModel | nn.Module:
    """The result of a pipeline, from its files; an int8 ONNX file as a module that ONNX Runtime runs.

    Args: as `opened_result` takes them.
    """
    int8 = _int8_onnx(directory)
    return opened_result(directory, scratch) if int8 is None else OnnxModule(int8, None, threads=0)


def opened_result(directory: Path, scratch: Path) -> LoadedModel:
    """The result of a pipeline, from its files.

    Args:
        directory: where it has left them.
        scratch: where a packed file is unpacked to, if it is the only one.
    """
    file = _result(directory)
    if file is None:
        packed = read(directory / MODEL_FILES["packed"])
        path, *_ = unpack(packed, scratch / f"unpacked{ending(packed)}")
        file = ModelFile(path, path.name, "", packed.architecture)
    return load_model(file)
