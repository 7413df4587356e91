"""The dry run of a job: what it will do, by the same code, without training anything or keeping a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import storage_key
from pared.compression.jobs.goal_search import SizeSearch, frontier
from pared.compression.jobs.plan_streamed import plan_streamed
from pared.compression.jobs.prune import prepared
from pared.compression.jobs.prune_job import PruneJob
from pared.compression.jobs.pruning_steps import Pruning
from pared.compression.jobs.stages import Stages, settled
from pared.compression.jobs.streamed_sizes import is_streamed
from pared.compression.jobs.without_architecture import upload_notes
from pared.compression.loading import LoadedModel
from pared.compression.measuring.size import count_macs, count_parameters
from pared.compression.names import tied_names
from pared.compression.pruning.schedules import step_amounts
from pared.compression.report.parts import layer_reports, rows_of, sizes, successor
from pared.compression.report.verdict import missing_formats, not_written, plan_verdict
from pared.compression.work import Work
from pared.reports import Plan, PlannedFile, PlannedLayer, Size
from pared.specs import PHYSICAL, PruneSpec


def plan_prune(spec: PruneSpec, work: Work) -> Plan:
    """The plan of a prune job. The result, as it is without training, is left in the work's directory.

    Raises:
        NothingToPrune: nothing can go.
        ParedError: whatever else the job would fail with before it trains.
    """
    with settled(work):
        stages = Stages(work.observer)
        if is_streamed(spec, work.models["model"]):
            return plan_streamed(spec, work, stages)
        job, skipped = prepared(spec, work, stages, to_train=False)
        search = None if spec.target is None else SizeSearch(job)
        formats = job.formats
        goal = None
        while True:
            state = _pruned(_untrained(job), search)
            stages.enter("export")
            written = formats.write(state.loaded, work.directory)
            files, first = sizes(written.paths), written.model(formats.asked[0])
            after = _size(job, state.loaded, files[successor(job.original.format, written.paths).name])
            if state.masks is not None and job.retrain is not None:
                # A weight that happens to be zero may change in retraining; those that are pruned stay zero.
                after.nonzero_parameters = after.parameters - state.masks.pruned()
            if search is None:
                break
            goal = search.foreseen(after, None if first is None else files[first.name])
            if not search.goes_on(goal):
                break
        before = _size(job, job.upload, job.upload_path.stat().st_size)
        doubts = _doubts(job, state.loaded.module, files)
        verdict = plan_verdict(spec.granularity, before, after) + not_written(written.failed)
        return Plan(
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            amount=step_amounts(state.job.spec)[-1].default,
            round_to=state.job.spec.round_to,
            goal=goal,
            exact=_layers_hold(job),
            before=before,
            after=after,
            failed_outputs=written.failed,
            files={name: PlannedFile(size_bytes=size, exact=name not in doubts) for name, size in files.items()},
            layers=list(_layers(state)),
            frontier=[] if search is None else frontier(search),
            notes=_notes(job, doubts),
            warnings=[
                *job.original.warnings,
                *upload_notes(job.original, job.formats.asked),
                *([] if job.data is None else job.data.warnings),
                *skipped,
                *state.warnings(),
                *written.notes,
                *missing_formats(written.failed),
            ],
        )


def _untrained(job: PruneJob) -> PruneJob:
    """The same job where nothing trains: what would go while training runs goes at once."""
    spec = job.spec.model_copy(update={"schedule": "one_shot"}) if job.spec.ramps else job.spec
    return replace(job, spec=spec, retrain=None)


def _pruned(job: PruneJob, search: SizeSearch | None) -> Pruning:
    """The model without what the spec removes, or without what the search finds."""
    job.stages.enter("compress")
    if search is not None:
        search.look()
    state = Pruning(job) if search is None else search.start(job)
    state.run(None, lambda _: None)
    return state


def _size(job: PruneJob, loaded: LoadedModel, file_bytes: int) -> Size:
    parameters, nonzero = count_parameters(loaded.module)
    macs = count_macs(loaded.module, job.example)
    return Size(parameters=parameters, nonzero_parameters=nonzero, macs=macs, file_bytes=file_bytes)


def _layers(state: Pruning) -> Iterator[PlannedLayer]:
    """Each weight tensor of two or more dimensions, as the report of the job will list them."""
    before = state.job.original.module
    names_of, kept = tied_names(before), {} if state.masks is None else state.masks.kept
    zeroed = {
        row: next((int((~kept[alias]).sum()) for alias in names_of[name] if alias in kept), 0)
        for name, row in rows_of(before).items()
    }
    for layer in layer_reports(before, state.loaded.module, state.removed, state.reasons, state.output_dims):
        yield PlannedLayer(
            name=layer.name,
            shape_before=layer.shape_before,
            shape_after=layer.shape_after,
            removed_units=len(layer.removed_units or []),
            zeroed_weights=zeroed[layer.name],
            reason=layer.reason,
        )


# -- what retraining changes ----------------------------------------------------------------------


def _chooses_again(job: PruneJob) -> bool:
    """Whether more goes after, or while, training has changed the weights that the choice is made by."""
    return job.retrain is not None and (job.spec.schedule != "one_shot" or bool(job.spec.stages))


def _packs_again(job: PruneJob) -> bool:
    """Whether the amount is that for the bytes of a packed file, which training changes."""
    target, outputs = job.spec.target, job.spec.outputs or []
    return job.retrain is not None and target is not None and bool(target.file_bytes) and outputs[:1] == ["packed"]


def _layers_hold(job: PruneJob) -> bool:
    """Whether each layer loses just as much: all does that is chosen now, or is a fixed number of each layer.

    Blocks at the edges of a layer are smaller, so that a number of blocks is no fixed number of weights.
    """
    if _packs_again(job):
        return False
    return not _chooses_again(job) or (job.spec.scope == "layer" and job.spec.granularity != "block")


def _shapes_hold(job: PruneJob) -> bool:
    return job.spec.granularity not in PHYSICAL or _layers_hold(job)


def _doubts(job: PruneJob, smaller: nn.Module, files: Mapping[str, int]) -> dict[str, str]:
    """File -> why it may have other bytes than these."""
    if job.retrain is None:
        return {}
    if not _shapes_hold(job):
        return dict.fromkeys(files, "its layers may have other shapes")
    doubts = {"model.packed": "it codes the weights, which retraining changes"}
    if "model.onnx" in files and _has_twins(smaller):
        doubts["model.onnx"] = "ONNX keeps equal tensors once, and the model has some that retraining makes different"
    return {name: why for name, why in doubts.items() if name in files}


def _has_twins(module: nn.Module) -> bool:
    """Whether two tensors of a module, such as untrained norms, hold the same values."""
    stored = {storage_key(tensor): tensor for tensor in module.state_dict().values() if tensor.dim()}
    return len({(tensor.shape, _digest(tensor)) for tensor in stored.values()}) < len(stored)


def _digest(tensor: Tensor) -> bytes:
    return sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).digest()


def _notes(job: PruneJob, doubts: Mapping[str, str]) -> list[str]:
    """Which figures may come out otherwise, and why."""
    notes = []
    if _packs_again(job):
        notes.append("The amount is about right: retraining changes how well the weights pack.")
    elif not _shapes_hold(job):
        notes.append(
            f"Later steps choose {job.spec.granularity.replace('_', ' ')}s of all layers together, by weights that "
            "retraining changes: what each layer loses, and with it parameters, multiply-adds and bytes, may come out "
            "a little otherwise. In one step all of it is exact."
        )
    elif not _layers_hold(job):
        notes.append(
            "Weights are chosen while retraining changes them: how many of each layer go may come out a little "
            "otherwise."
        )
    if job.spec.target is not None and (_packs_again(job) or not _shapes_hold(job)):
        notes.append("Where the result misses the goal by that, the job goes on with less left.")
    if _shapes_hold(job):
        notes += [f"The bytes of {name} are about so many: {why}." for name, why in doubts.items()]
    return notes
