"""The dry run of a prune job: what it will do, by the same code, without training anything or keeping a result."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pared.compression.export import export, usual_outputs
from pared.compression.intake import LoadedModel
from pared.compression.measure import count_macs, count_parameters
from pared.compression.methods.goals import SizeSearch, frontier
from pared.compression.methods.parts import Stages, settled
from pared.compression.methods.pruning import prepared
from pared.compression.methods.schedule import Given, Pruning
from pared.compression.prune import step_amounts
from pared.compression.reporting import layer_reports, sizes
from pared.compression.verdict import plan_verdict
from pared.compression.work import Work
from pared.errors import ValidationError
from pared.reports import LayerReport, Plan, Size
from pared.specs import PruneSpec


def plan(spec: PruneSpec, work: Work) -> Plan:
    """What a prune job will do: what goes of each layer and what cannot, and how large each file will be.

    All that is said comes to pass as it is said. What training decides is left out: quality, the bytes of a packed file
    that is retrained, and which channels or weights go where a schedule retrains between steps.

    Raises:
        ValidationError: what is asked for hangs on training or time; or as the job itself would fail.
        NothingToPrune: nothing can go.
    """
    with settled(work):
        stages = Stages(work.observer)
        given, skipped = prepared(spec, work, stages)
        _check_foreseeable(given)
        search = None
        if spec.target is not None:
            stages.enter("compress")
            search = SizeSearch(given)
            search.look()
        state = Pruning(_at_once(given)) if search is None else search.start(_at_once(given))
        state.run(None, lambda _: None)
        stages.enter("export")
        upload_bytes = work.models["model"].path.stat().st_size
        before, after = _size(given.original, given), _size(state.loaded, given)
        if state.masks is not None and given.retrain is not None:
            # A weight that happens to be zero may change in retraining; those that are pruned stay zero.
            after.nonzero_parameters = after.parameters - state.masks.pruned()
        files = _files(given, state.loaded)
        goal = None if search is None else search.foreseen()
        verdict = plan_verdict(spec.granularity, before, after, files, upload_bytes)
        return Plan(
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            amount=step_amounts(state.given.spec)[-1].default,
            round_to=state.given.spec.round_to,
            goal=goal,
            before=before,
            after=after,
            files=files,
            layers=_layers(given, state),
            removed={} if _retrains_between(given) else state.removed,
            frontier=[] if search is None else frontier(search),
            warnings=[
                *given.original.warnings,
                *([] if given.data is None else given.data.warnings),
                *skipped,
                *state.warnings(),
            ],
        )


def _check_foreseeable(given: Given) -> None:
    spec, target = given.spec, given.spec.target
    errors = []
    if target is not None and target.latency is not None:
        errors.append(("/target/latency", "is met by measuring"))
    if target is not None and target.max_accuracy_drop is not None:
        errors.append(("/target/max_accuracy_drop", "is met by retraining"))
    if given.retrain is not None:
        if target is not None and target.file_bytes is not None and (spec.outputs or ["torchscript"])[0] == "packed":
            errors.append(("/target/file_bytes", "of a packed file hangs on the weights after retraining"))
        if spec.granularity == "channel" and spec.scope == "global" and _retrains_between(given):
            errors.append(("/schedule", "ranks all channels again after each retraining"))
    if errors:
        told = [
            {"pointer": pointer, "detail": f"{why}, and cannot be planned: submit the job"} for pointer, why in errors
        ]
        raise ValidationError("; ".join(f"{each['pointer']} {each['detail']}" for each in told), errors=told)


def _retrains_between(given: Given) -> bool:
    """Whether training has a say in what goes."""
    spec = given.spec
    return given.retrain is not None and (spec.schedule != "one_shot" or bool(spec.stages))


def _at_once(given: Given) -> Given:
    """The same without any training: sizes come out alike in one step."""
    if not _retrains_between(given):
        return replace(given, retrain=None)
    return replace(given, retrain=None, spec=given.spec.model_copy(update={"schedule": "one_shot", "stages": []}))


def _size(loaded: LoadedModel, given: Given) -> Size:
    parameters, nonzero = count_parameters(loaded.module)
    return Size(parameters=parameters, nonzero_parameters=nonzero, macs=count_macs(loaded.module, given.example))


def _files(given: Given, loaded: LoadedModel) -> dict[str, int | None]:
    """The bytes of each file, by writing it."""
    outputs = given.spec.outputs or usual_outputs(given.original)
    later = [output for output in outputs if output == "packed" and given.retrain is not None]
    with tempfile.TemporaryDirectory() as folder:
        written = export(loaded, given.example, [output for output in outputs if output not in later], Path(folder))
        return {**sizes(written), **dict.fromkeys(["model.packed"] if later else [])}


def _layers(given: Given, state: Pruning) -> list[LayerReport]:
    layers = layer_reports(given.original.module, state.loaded.module, state.removed, state.reasons, state.output_dims)
    if not _retrains_between(given):
        return layers
    if given.spec.granularity == "channel":
        return [layer.model_copy(update={"removed_units": None}) for layer in layers]
    return layers if given.spec.scope == "layer" else []
