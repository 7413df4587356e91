"""The method of a quantize job: int8 files, chosen on the validation split, measured in the runtime that runs them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.export.formats import Written
from pared.compression.export.writers import usual_outputs
from pared.compression.jobs.inputs import called_on_tensors, example_of
from pared.compression.jobs.int8_files import BATCH, Int8Files, Int8Script, int8_files
from pared.compression.jobs.rounded_training import train_rounded
from pared.compression.jobs.stages import Stages, assessed, beside, plain, settled
from pared.compression.jobs.tasking import data_of
from pared.compression.jobs.without_architecture import upload_notes
from pared.compression.loading import (
    LoadedModel,
    confirmed,
    is_without_architecture,
    load_model,
    load_weights,
    missing_architecture,
    with_architecture,
)
from pared.compression.measuring.latency import measure_latency
from pared.compression.measuring.quality import Assessment, assess, compare, validation_score
from pared.compression.measuring.references import held_outputs
from pared.compression.measuring.size import count_bytes, count_macs, count_parameters
from pared.compression.names import matches, tensors, tied_names, unmatched_patterns, weight_layers
from pared.compression.quantization.int8 import pays, rounded
from pared.compression.quantization.onnx_weights import int8_weights
from pared.compression.quantization.sensitivity import Choice, answers_to, least_left_out, relative_error
from pared.compression.report.parts import Measured, busy_warning, rows_of, split_warning
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import goal_sentence, quantize_verdict
from pared.compression.work import ModelFile, Work
from pared.errors import ExportFailed, NothingToQuantize, ValidationError
from pared.reports import FailedOutput, Goal, LayerReport, Measurement, Precision, Report
from pared.specs import Output
from pared.specs.quantization import QuantizeSpec
from pared.specs.running import why_run
from pared.wording import shortened

_COMPARED = 64  # validation samples that tell how far one layer's int8 moves the answers


@dataclass(frozen=True)
class Int8Job:
    """What a quantize job starts from.

    Attributes:
        files: by what writes them, that of the first format first.
        usual: layer -> the precision to begin with.
        method_makes: the same without the spec's patterns.
        parameters: name of each weight that may be int8 -> its layer.
    """

    spec: QuantizeSpec
    original: LoadedModel
    data: Data | None
    example: tuple[Tensor, ...]
    outputs: list[Output]
    files: list[Int8Files]
    usual: dict[str, Precision]
    method_makes: dict[str, Precision]
    parameters: dict[str, str]
    failed: list[FailedOutput]

    def write(self, precisions: dict[str, Precision], directory: Path) -> Written:
        """All files with these precisions. Raises ExportFailed: none can be written."""
        written, failures = Written({}, list(self.failed)), []
        for each in self.files:
            try:
                made = each.write(precisions, directory)
            except ExportFailed as error:
                if len(self.files) == 1:
                    raise
                failures.append(error)
                continue
            written.files.update(made.files)
            written.failed.extend(made.failed)
            written.notes.extend(made.notes)
        if not written.files:
            raise failures[0]
        return written

    def first(self, written: Written) -> tuple[Output, Int8Files]:
        """The first format that was written, which stands for the result, and what wrote it."""
        output = next(each for each in self.outputs if each in written.files)
        return output, next(each for each in self.files if (each.runtime == "onnxruntime") == (output == "onnx"))

    def precisions(self, written: Written, asked: dict[str, Precision]) -> dict[str, Precision]:
        """What the layers came out as there, where these were asked for."""
        return self.first(written)[1].precisions(asked)


def quantize(spec: QuantizeSpec, work: Work) -> Report:
    """Make the model int8, leave out the layers that cost too much, and measure the written file.

    A job that was interrupted while it trained goes on there.
    """
    return quantized(spec, work)[0]


def quantized(spec: QuantizeSpec, work: Work) -> tuple[Report, nn.Module]:
    """`quantize`, with a module that runs the file of the first format."""
    with settled(work), _scratch() as scratch:
        stages = Stages(work.observer)
        job = prepared(spec, work, stages, scratch)
        original, data = job.original, job.data
        upload_bytes = beside(lambda: count_bytes(work.models["model"].path))  # compressing it takes seconds

        stages.enter("baseline")
        baseline = None if data is None else assessed(original.module, data, work, stages)
        trained = train_rounded(job, work, stages)
        if trained is not None:
            made = int8_files(job.spec, trained.loaded, data, job.example, job.outputs, work, stages, scratch)
            job = replace(job, files=made[0], failed=made[1])
        stages.enter("compress")
        choice = _chosen(job, baseline, stages)
        stages.enter("export")
        written = job.write(choice.precisions, work.directory)
        output, files = job.first(written)
        smaller = files.written_module(written, output)
        stages.enter("evaluate")
        final = None
        if data is not None and baseline is not None:
            final = assess(smaller, data, data.task, upload=baseline, role=_ROLE, tick=stages.beat)
        precisions = files.precisions(choice.precisions)
        of_upload = upload_bytes()  # nothing else is to run while latency is measured
        measured = _measured(job, work, files, smaller, precisions, stages)
        before, after = measured.with_files(of_upload, written.paths, baseline, final)
        comparison = None if baseline is None or final is None else compare(baseline, final)
        if comparison is not None and data is not None and data.task.held is not None:
            outputs = held_outputs(data, original.module, smaller, tick=stages.beat)
            comparison = comparison.model_copy(update={"outputs": outputs})
        goal = None if spec.target is None else _goal(job, before, after, choice, precisions)
        verdict = quantize_verdict(before, after, comparison, list(precisions.values()))
        report = publish(
            job.spec,
            work,
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            sizes_and_scores=(before, after),
            layers=layers_in(job, precisions, choice.errors),
            granularity=None,
            baseline=baseline,
            measured=measured,
            written=written,
            training=None if trained is None else job.spec.retrain,
            warnings=[
                *original.warnings,
                *upload_notes(original, job.outputs),
                *([] if data is None else data.warnings),
                *split_warning(data),
                *([] if trained is None else trained.warnings),
                *_notes(job, files),
            ],
            goal=goal,
            comparison=comparison,
            history=[] if trained is None else trained.history,
            best_epoch=None if trained is None else trained.best_epoch,
            runtime=files.runtime if original.runs else None,
            seconds=stages.finish(),
        )
        return report, smaller


_ROLE = "The int8 file"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="int8-") as folder:
        yield Path(folder)


def prepared(
    spec: QuantizeSpec, work: Work, stages: Stages, scratch: Path, *, calibrated_on: int | None = None
) -> Int8Job:
    """What a job starts from. All that can be refused is refused here.

    Args:
        calibrated_on: samples, where other than the spec says.

    Raises:
        NothingToQuantize: no layer can become int8.
        ValidationError: a pattern matches no layer.
        ExportFailed: no format can be written.
        ParedError: as opening the upload and its data does.
    """
    stages.enter("validate")
    file = with_architecture(work.models["model"], plain(spec.architecture))
    why = why_run(spec)
    alone = is_without_architecture(file)
    if alone and why:
        raise missing_architecture(file, why)
    original = load_weights(file) if alone else load_model(file)
    _refuse_int8(original, file)
    original = called_on_tensors(spec.example_inputs, original, is_run=why is not None)
    spec, data = data_of(spec, work, original)
    outputs = spec.outputs or (usual_outputs(original) if original.runs else ["state_dict"])
    example = example_of(spec.example_inputs, original, data, is_run="onnx" in outputs)
    original = confirmed(original, example)
    files, failed = int8_files(spec, original, data, example, outputs, work, stages, scratch, calibrated_on)
    usual = _usual(spec, files)
    for each in files:
        if isinstance(each, Int8Script):
            each.try_out()
    first = files[0]
    return Int8Job(
        spec, original, data, example, list(outputs), files, usual, dict(first.usual), dict(first.parameters), failed
    )


def _refuse_int8(original: LoadedModel, file: ModelFile) -> None:
    """Raises NothingToQuantize: the upload has int8 weights already."""
    state = {**dict(original.module.named_parameters()), **dict(original.module.named_buffers())}
    held = [name for name, tensor in state.items() if tensor.dtype == torch.int8 and tensor.dim() > 1]
    if original.format == "onnx":  # what it computes of them is folded on opening
        held += int8_weights(file.path)
    if held:
        raise NothingToQuantize(
            f"The upload holds int8 weights already ({shortened(held, 3)}). Upload the model as it was before."
        )


def _usual(spec: QuantizeSpec, files: Sequence[Int8Files]) -> dict[str, Precision]:
    """What the method and the patterns make of each layer of the first format."""
    usual = files[0].usual
    for field, patterns in {"include": spec.include, "exclude": spec.exclude}.items():
        idle = unmatched_patterns(list(usual), patterns)
        if idle and usual:
            text = f"{', '.join(map(repr, idle))} matches no layer. The layers are: {shortened(list(usual), 20)}."
            raise ValidationError(text, errors=[{"pointer": f"/{field}", "detail": text}])
    chosen: dict[str, Precision] = {
        name: precision if matches([name], spec.include, spec.exclude) else "float32"
        for name, precision in usual.items()
    }
    if all(precision == "float32" for precision in chosen.values()):
        raise NothingToQuantize(
            "The model has no weights that take less room as int8: those of two or more dimensions, with at least 4 "
            "elements for each output channel. A frozen TorchScript file has them in its code: upload it unfrozen, or "
            "ask for onnx."
            if not usual
            else f"No layer is left by include {spec.include} and exclude {spec.exclude}: {shortened(list(usual), 20)}."
        )
    if spec.method != "weight_only" and "int8" not in chosen.values():
        known = {"dynamic": "linear and LSTM layers", "static": "convolutions and linear layers"}[spec.method]
        text = f"{spec.method} is for {known}, and none is among the layers: make `method` weight_only"
        raise NothingToQuantize(f"{text}. The layers are: {shortened(list(chosen), 20)}.")
    return chosen


def _chosen(job: Int8Job, baseline: Assessment | None, stages: Stages) -> Choice:
    """The precision of each layer: the method's, with layers left out where a goal asks for it.

    Raises:
        NothingToQuantize: every layer would have to be left out.
    """
    target, data, first = job.spec.target, job.data, job.files[0]
    if target is None or target.quality_drop is None or data is None or baseline is None:
        return Choice(dict(job.usual))
    rows = torch.split(data.spread("val", _COMPARED), BATCH)
    batches = [data.take("val", part)[0] for part in rows]
    reference = answers_to(first.float_module(), batches)

    def error(name: str, precision: Precision) -> float:
        stages.beat()
        only: dict[str, Precision] = {**dict.fromkeys(job.usual, "float32"), name: precision}
        return relative_error(first.module(only, alone=True), reference, batches)

    def lost(precisions: Any) -> float:
        score = validation_score(first.module(precisions), data, baseline, device="cpu", tick=stages.beat)
        return baseline.quality.validation - score

    choice = least_left_out(job.usual, error, lost, target.quality_drop)
    if all(precision == "float32" for precision in choice.precisions.values()):
        raise NothingToQuantize(
            f"Every layer would have to stay float32 to lose no more than {target.quality_drop:g} of the validation "
            f"{baseline.quality.metric}. Allow more in `target`, or make `method` weight_only."
        )
    return choice


def _measured(
    job: Int8Job,
    work: Work,
    files: Int8Files,
    smaller: nn.Module,
    precisions: dict[str, Precision],
    stages: Stages,
) -> Measured:
    """Sizes of both models, and their latency in the runtime that will run the file."""
    module, notes = job.original.module, []
    parameters, nonzero = count_parameters(module)
    macs = count_macs(module, job.example) if job.original.runs else None
    lost = _rounded_to_zero(module, files.parameters, precisions)
    parts = [
        Measurement(parameters=parameters, nonzero_parameters=count, macs=macs, file_bytes=0, compressed_bytes=0)
        for count in (nonzero, nonzero - lost)
    ]
    if job.original.runs and job.example:
        timed = files.timed(smaller)
        *latencies, refused = work.ranks.led(lambda: measure_latency(*timed, job.example, tick=stages.beat))
        notes += refused + busy_warning()
        parts = [part.model_copy(update={"latency": each}) for part, each in zip(parts, latencies, strict=True)]
    return Measured(parts[0], parts[1], job.original.format, notes)


def _rounded_to_zero(module: nn.Module, parameters: dict[str, str], precisions: dict[str, Precision]) -> int:
    """How many weights became zero."""
    held, count, seen = tensors(module), 0, set()
    for name, layer in parameters.items():
        tensor = held[name]
        if precisions.get(layer, "float32") == "float32" or tensor.data_ptr() in seen or not pays(tensor.shape):
            continue
        seen.add(tensor.data_ptr())
        bits = 7 if precisions[layer] == "int8" else 8
        codes = rounded(tensor.detach().float().numpy(), name=name, bits=bits).codes
        count += int(torch.count_nonzero(tensor)) - int((codes != 0).sum())
    return count


def share_in_int8(job: Int8Job, precisions: Mapping[str, Precision]) -> float:
    """The share of the parameters that are int8."""
    held, parameters = tensors(job.original.module), job.parameters
    names = {id(held[name]): name for name, layer in parameters.items() if precisions.get(layer) != "float32"}
    return sum(held[name].numel() for name in names.values()) / max(count_parameters(job.original.module)[0], 1)


def _goal(
    job: Int8Job, before: Measurement, after: Measurement, choice: Choice, precisions: Mapping[str, Precision]
) -> Goal:
    """Whether the file meets the goal, by the test split."""
    target = job.spec.target
    assert target is not None  # noqa: S101 - a goal is judged where there is one, which needs data
    assert before.quality is not None and after.quality is not None  # noqa: S101, PT018 - as above
    reached = {target.quality_field: before.quality.test.value - after.quality.test.value}
    return Goal(
        status="infeasible" if target.missed(reached) else "met",
        target=target.goals,
        reached=reached,
        amount=share_in_int8(job, precisions),
        sentence=goal_sentence(target, reached, before.quality, after.quality, choice.tried),
    )


def layers_in(
    job: Int8Job, precisions: Mapping[str, Precision], errors: Mapping[str, float] | None = None
) -> list[LayerReport]:
    """Each weight tensor, and what it is now.

    Args:
        errors: what layers were left out by, if by anything.
    """
    module, errors = job.original.module, errors or {}
    held, rows, names_of, layer_of = tensors(module), rows_of(module), tied_names(module), job.parameters
    reports = []
    for name in weight_layers(module):
        layer = next((layer_of[alias] for alias in names_of[name] if alias in layer_of), None)
        precision = precisions.get(layer, "float32") if layer is not None else "float32"
        reports.append(
            LayerReport(
                name=rows[name],
                shape_before=list(held[name].shape),
                shape_after=list(held[name].shape),
                sparsity=int((held[name] == 0).sum()) / max(held[name].numel(), 1),
                precision=precision,
                sensitivity=None if layer is None else errors.get(layer),
                reason=_reason(job, layer, precision, left_out=bool(errors)),
            )
        )
    return reports


def _reason(job: Int8Job, layer: str | None, precision: Precision, *, left_out: bool) -> str | None:
    if layer is None:
        return "no operator that reads it takes int8 weights, or it is too small for them"
    if precision == job.method_makes.get(layer):
        return None
    if job.usual.get(layer) == "float32":
        return "left out by include/exclude"
    return "left out of int8, for it changes the answers much" if left_out else "ONNX Runtime's quantizer left it alone"


def _notes(job: Int8Job, files: Int8Files) -> list[str]:
    notes = []
    if job.original.runs and job.original.forms:
        notes.append("The upload has weights in half precision; what is not int8 in the result is float32.")
    if files.runtime == "torch" and job.original.runs:
        notes.append(
            "In this format weights are int8 where they are stored, and are multiplied by their scales whenever the "
            "model runs: the file is smaller, and the model no faster. For speed, ask for `onnx`."
        )
    return notes
