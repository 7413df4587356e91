"""The method of a prune job, from upload to report."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pared.compression.data import Data
from pared.compression.export.formats import Formats
from pared.compression.export.settings import settings_of
from pared.compression.export.writers import usual_outputs
from pared.compression.jobs.goal_search import frontier, judge, search_for, write_frontier
from pared.compression.jobs.inputs import called_on_tensors, example_of
from pared.compression.jobs.prune_job import PruneJob, check_patterns
from pared.compression.jobs.prune_stored import is_stored, prune_stored
from pared.compression.jobs.prune_streamed import MODEL, outline_of, prune_streamed
from pared.compression.jobs.pruning_steps import Pruning
from pared.compression.jobs.stages import Stages, assessed, beside, settled
from pared.compression.jobs.streamed_sizes import is_streamed
from pared.compression.jobs.tasking import data_of, for_student
from pared.compression.jobs.timing import batch_sizes
from pared.compression.jobs.without_architecture import open_for, upload_notes
from pared.compression.loading import LoadedModel, confirmed, load_model, load_weights
from pared.compression.measuring.quality import compare
from pared.compression.measuring.references import held_outputs
from pared.compression.measuring.size import count_bytes
from pared.compression.names import weight_layers
from pared.compression.pruning.output_projection import with_output_projections
from pared.compression.pruning.schedules import step_amounts
from pared.compression.report.parts import layer_reports, measure_both, split_warning
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import kept_as_before, prune_verdict, still_learning
from pared.compression.training.loop import trainable
from pared.compression.work import ModelFile, Work
from pared.errors import ValidationError
from pared.reports import Report
from pared.specs import PHYSICAL, PruneSpec, Retrain


def prune(spec: PruneSpec, work: Work) -> Report:
    """Remove weights or channels, retrain, measure against the upload, and export.

    A target is searched for first. A resumed job goes on in the step and epoch of its newest checkpoint.
    """
    if is_stored(spec, work.models["model"]):
        with settled(work):
            return prune_stored(spec, work, Stages(work.observer))
    if is_streamed(spec, work.models["model"]):
        with settled(work):
            return prune_streamed(spec, replace(work, device="cpu"), Stages(work.observer))
    return pruned(spec, work)[0]


def pruned(spec: PruneSpec, work: Work) -> tuple[Report, LoadedModel]:
    """`prune`, with the model itself."""
    if is_stored(spec, work.models["model"]):
        report = prune(spec, work)
        (path,) = (work.directory / name for name in report.reproduce.outputs)
        return report, load_weights(ModelFile(path, path.name, report.reproduce.outputs[path.name]))
    if is_streamed(spec, work.models["model"]):
        report = prune(spec, work)
        return report, outline_of(work.directory / MODEL)
    with settled(work):
        stages = Stages(work.observer)
        job, skipped = prepared(spec, work, stages)
        spec = job.spec
        original, upload, example, data = job.original, job.upload, job.example, job.data
        upload_bytes = beside(lambda: count_bytes(job.upload_path))  # compressing it takes seconds

        stages.enter("baseline")
        baseline = None
        if data is not None:
            baseline = assessed(upload.module, replace(data, task=job.reference_task or data.task), work, stages)
        job = replace(job, baseline=baseline)

        search = None if spec.target is None else search_for(job)
        checkpoint = work.observer.resume()
        if checkpoint is not None:
            job.formats.have_been_tried()
        goal = None
        while True:
            if search is None:
                state = Pruning(job)
                state.run(checkpoint, work.observer.checkpoint)
            else:
                state = search.run(checkpoint, work.observer.checkpoint)
            smaller = state.loaded
            stages.enter("evaluate")
            final = None if data is None else assessed(smaller.module, data, work, stages, upload=baseline)
            of_upload = upload_bytes()  # nothing else is to run while latency is measured
            measured = measure_both(upload, smaller, example, work, stages.beat, batch_sizes(spec.target))
            stages.enter("export")
            written = job.formats.write(smaller, work.directory)
            before, after = measured.with_files(of_upload, written.paths, baseline, final)
            if search is None:
                break
            goal = judge(job, search, before, after, written.model(job.formats.asked[0]))
            if not search.goes_on(goal):
                break
            checkpoint = None

        points = [] if search is None else frontier(search)
        if points:
            write_frontier(points, work.directory)
        comparison = None if baseline is None or final is None else compare(baseline, final)
        if comparison is not None and data is not None and data.task.held is not None:
            outputs = held_outputs(data, upload.module, smaller.module, tick=stages.beat)
            comparison = comparison.model_copy(update={"outputs": outputs})
        layers = layer_reports(original.module, smaller.module, state.removed, state.reasons, state.output_dims)
        verdict = prune_verdict(spec.granularity, before, after, comparison)
        report = publish(
            spec,
            work,
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            sizes_and_scores=(before, after),
            layers=layers,
            granularity=spec.granularity,
            baseline=baseline,
            measured=measured,
            written=written,
            training=job.retrain,
            warnings=[
                *original.warnings,
                *upload_notes(original, job.formats.asked),
                *([] if data is None else data.warnings),
                *split_warning(data),
                *skipped,
                *kept_as_before(_last_training(state.job.spec), state.best_epoch),
                *still_learning(_last_training(state.job.spec), state.job.retrain, state.best_epoch, comparison),
                *state.warnings(),
            ],
            goal=goal,
            before_retraining=state.before_retraining,
            comparison=comparison,
            removed=state.removed,
            history=state.history,
            best_epoch=state.best_epoch,
            frontier=points,
            seconds=stages.finish(),
        )
        return report, smaller


def prepared(spec: PruneSpec, work: Work, stages: Stages, *, to_train: bool = True) -> tuple[PruneJob, list[str]]:
    """What a job starts from, and why there is no retraining, where it was asked for and cannot be done.

    Args:
        to_train: whether all samples will be looked at.
    """
    stages.enter("validate")
    original = open_for(spec, work.models["model"])
    check_patterns(spec, weight_layers(original.module).values())
    physical = spec.granularity in PHYSICAL
    is_run = physical or work.dataset is not None
    original = called_on_tensors(spec.example_inputs, original, is_run=is_run)
    reference, reference_task = _reference(spec, work, is_run=is_run), None
    spec, data = data_of(spec, work, reference or original, beside=not to_train)
    if data is not None and reference is not None:
        reference_task, data = data.task, for_student(data, original, reference)
    example = example_of(spec.example_inputs, original, data, is_run=physical)
    original = confirmed(original, example)
    reference = None if reference is None else confirmed(reference, example)
    retrain, skipped = _retraining(spec, original, data)
    folder_wanted = spec.uniform is not False
    outputs = spec.outputs or usual_outputs(original, folder=folder_wanted)
    uniform = original.folder is not None and folder_wanted and (bool(spec.uniform) or "huggingface" in outputs)
    if spec.uniform and original.folder is None:
        text = "is of uploaded Hugging Face model folders, which this model is not: leave it out"
        raise ValidationError(f"`uniform` {text}.", errors=[{"pointer": "/uniform", "detail": text}])
    settings = settings_of(spec, original, example, outputs)
    formats = Formats(outputs, example, settings=settings, log=work.observer.log, tick=stages.beat)
    projected = _projected(original, example) if spec.output_width == "project" else None
    job = PruneJob(
        spec,
        work,
        stages,
        original,
        example,
        data,
        retrain,
        formats,
        reference=reference,
        reference_task=reference_task,
        projected=projected,
        uniform=uniform,
    )
    return job, skipped


def _reference(spec: PruneSpec, work: Work, *, is_run: bool) -> LoadedModel | None:
    """The upload of a pipeline, where the model is what an earlier step made of it."""
    if work.reference is None:
        return None
    return called_on_tensors(spec.example_inputs, load_model(work.reference), is_run=is_run)


def _projected(original: LoadedModel, example: tuple[Tensor, ...]) -> LoadedModel:
    """The upload with projections behind its outputs.

    Raises:
        ValidationError: it is a state dict, or has no output of a width that could shrink.
    """
    text = (
        "This model has no output whose width several of its layers share, as a model of embeddings has: leave "
        "`output_width` out."
    )
    if not isinstance(original.module, torch.jit.ScriptModule):
        text = (
            "A projection is put into the code of a TorchScript file or an exported program, and a state dict has "
            "none. Upload the model as one of these, or leave `output_width` out."
        )
    elif (projected := with_output_projections(original, example)) is not None:
        return projected
    raise ValidationError(text, errors=[{"pointer": "/output_width", "detail": text}])


def _last_training(spec: PruneSpec) -> str:
    return "retraining" if len(step_amounts(spec)) == 1 else "retraining after the last step"


def _retraining(spec: PruneSpec, original: LoadedModel, data: Data | None) -> tuple[Retrain | None, list[str]]:
    """The retraining to do, if any, and why not, where it was asked for and cannot be done."""
    if data is None or spec.retrain is None or spec.retrain.epochs == 0:
        return None, []
    if not trainable(original.module):
        if spec.ramps:
            text = (
                "cubic removes weights while training runs, and every weight of this file is marked as not to be "
                "trained (requires_grad=False): save the model with its weights unfrozen, or prune one_shot"
            )
            raise ValidationError(text, errors=[{"pointer": "/schedule", "detail": text}])
        why = (
            "There was no retraining: every weight of this file is marked as not to be trained (requires_grad=False). "
            "Save the model with its weights unfrozen to have it retrained."
        )
        return None, [why]
    return spec.retrain, []
