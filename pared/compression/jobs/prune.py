"""The method of a prune job, from upload to report."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.export.formats import Formats
from pared.compression.export.settings import settings_of
from pared.compression.export.writers import usual_outputs
from pared.compression.jobs.goal_search import frontier, judge, search_for, write_frontier
from pared.compression.jobs.prune_job import PruneJob, check_patterns
from pared.compression.jobs.prune_stored import is_stored, prune_stored
from pared.compression.jobs.pruning_steps import Pruning
from pared.compression.jobs.stages import EXAMPLE_BATCH, Stages, assessed, beside, settled
from pared.compression.jobs.tasking import data_of
from pared.compression.jobs.without_architecture import open_for, upload_notes
from pared.compression.loading import (
    LoadedModel,
    called_on_tensors,
    confirmed,
    example_from_specs,
    guess_example_inputs,
    load_weights,
)
from pared.compression.loading.arguments import needs_values
from pared.compression.measuring.latency import batch_of
from pared.compression.measuring.quality import compare
from pared.compression.measuring.references import held_outputs
from pared.compression.measuring.running import own_failures
from pared.compression.measuring.size import count_bytes
from pared.compression.names import weight_layers
from pared.compression.pruning.output_projection import with_output_projections
from pared.compression.pruning.schedules import step_amounts
from pared.compression.report.parts import layer_reports, measure_both, split_warning
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import kept_as_before, prune_verdict
from pared.compression.training.loop import trainable
from pared.compression.work import ModelFile, Work
from pared.errors import ModelFailed, ValidationError
from pared.reports import Report
from pared.specs import PHYSICAL, PruneSpec, Retrain


def prune(spec: PruneSpec, work: Work) -> Report:
    """Remove weights or channels, retrain, measure against the upload, and export.

    A target is searched for first. A resumed job goes on in the step and epoch of its newest checkpoint.
    """
    if is_stored(spec, work.models["model"]):
        with settled(work):
            return prune_stored(spec, work, Stages(work.observer))
    return pruned(spec, work)[0]


def pruned(spec: PruneSpec, work: Work) -> tuple[Report, LoadedModel]:
    """`prune`, with the model itself."""
    if is_stored(spec, work.models["model"]):
        report = prune(spec, work)
        (path,) = (work.directory / name for name in report.reproduce.outputs)
        return report, load_weights(ModelFile(path, path.name, report.reproduce.outputs[path.name]))
    with settled(work):
        stages = Stages(work.observer)
        job, skipped = prepared(spec, work, stages)
        spec = job.spec
        original, example, data = job.original, job.example, job.data
        upload_bytes = beside(lambda: count_bytes(work.models["model"].path))  # compressing it takes seconds

        stages.enter("baseline")
        baseline = None if data is None else assessed(original.module, data, work, stages)
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
            measured = measure_both(original, smaller, example, work, stages.beat, _batch_sizes(spec))
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
            outputs = held_outputs(data, original.module, smaller.module, tick=stages.beat)
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
    original = _on_tensors(spec, original, work)
    spec, data = data_of(spec, work, original, beside=not to_train)
    example = _example(spec, original, data)
    original = confirmed(original, example)
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
    job = PruneJob(spec, work, stages, original, example, data, retrain, formats, projected=projected, uniform=uniform)
    return job, skipped


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


def _batch_sizes(spec: PruneSpec) -> list[int]:
    """Where latency is measured: also at the batch that a target names."""
    named = set() if spec.target is None or spec.target.latency is None else {spec.target.latency_batch_size}
    return sorted({1, 32} | named)


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


def _example(spec: PruneSpec, loaded: LoadedModel, data: Data | None) -> tuple[Tensor, ...]:
    """A few inputs of the model: from the data, from the spec, or guessed."""
    if data is not None:
        return data.example(EXAMPLE_BATCH)
    if not loaded.runs:
        return ()
    if spec.example_inputs:
        example = example_from_specs(spec.example_inputs if loaded.given is None else loaded.given.specs)
        example = example if len(example[0]) > 1 else batch_of(example, EXAMPLE_BATCH)
        _check_runs(loaded.module, example)
        return example
    guessed = guess_example_inputs(loaded)
    if guessed is None and spec.granularity not in PHYSICAL:
        return ()
    if guessed is None:
        text = (
            "The shape of the model's inputs could not be guessed. Name a data set, or give `example_inputs` such as "
            '[{"shape": [2, 3, 32, 32]}].'
        )
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])
    return guessed


def _on_tensors(spec: PruneSpec, loaded: LoadedModel, work: Work) -> LoadedModel:
    """The model as it is called on tensors alone, its other arguments with the values that the spec gives."""
    is_run = spec.example_inputs or work.dataset is not None or spec.granularity in PHYSICAL
    if not is_run and isinstance(loaded.module, torch.jit.ScriptModule) and needs_values(loaded.module):
        return loaded
    return called_on_tensors(loaded, spec.example_inputs or [])


def _check_runs(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Raises ValidationError unless the model takes the inputs that the spec describes."""
    try:
        with torch.no_grad(), own_failures():
            module(*example)
    except ModelFailed as error:
        shapes = " and ".join(str(list(tensor.shape)) for tensor in example)
        text = f"The model does not run on inputs of the shape {shapes}. {error.detail}"
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}]) from error
