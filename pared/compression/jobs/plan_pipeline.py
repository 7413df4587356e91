"""Goes through a pipeline without training: what it refuses, how large each result is, and what meets its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pared.compression.jobs.distill_start import timed_target
from pared.compression.jobs.pipeline_steps import (
    MODEL_FILES,
    Beats,
    Chain,
    labelled,
    needs_training,
    trainings,
    untrained,
)
from pared.compression.jobs.plan import plan_prune
from pared.compression.report.verdict import goal_sentence, not_written, pipeline_plan_verdict
from pared.compression.work import ModelFile, Work
from pared.job_types import type_of
from pared.reports import FailedOutput, Goal, Plan, PlannedFile, PlannedLayer, PlannedStep, Report, Size
from pared.specs import PHYSICAL, CompressionSpec, DistillSpec, PipelineSpec, PruneSpec, Target

_TRIES = 8
_CLOSE = 0.97  # of what is allowed: a search ends there
_SPARED = 0.005  # of what is allowed, where a try was above it
_SPARED_OF_PACKED = 0.06  # training changes how well weights pack: measured, by up to 5 %
_SAMPLES = 256  # of each split, which tell whether a step can be done
_STAND_IN = 0.5  # an amount for one that only training tells
_STEP = 0.95  # the next share to try is at most so near to the one before, or as far above it
_MOST = 0.99


@dataclass(frozen=True)
class Ahead:
    """One step without its training."""

    row: PlannedStep
    before: Size
    files: dict[str, PlannedFile]
    failed: list[FailedOutput]
    notes: list[str]
    warnings: list[str]
    amount: float | None = None
    layers: tuple[PlannedLayer, ...] = ()
    reached: bool = True
    """False: a prune step that comes not down to what it was to come to."""


@dataclass(frozen=True)
class Outlook:
    """All steps without their training, and what the searched one is to come to."""

    steps: list[Ahead]
    target: Target | None
    reached: dict[str, float]
    """What is left of each size that the target of the whole names, as far as it is known without training."""
    tries: int | None


def plan_pipeline(spec: PipelineSpec, work: Work) -> Plan:
    """The plan of a pipeline. What its target says of quality is left out.

    Raises:
        ParedError: what the job would fail with before it trains.
    """
    chain = Chain(spec, work)
    outlook = look_ahead(chain, work.directory)
    first, last = outlook.steps[0], outlook.steps[-1]
    before, after = first.before, _plain(last.row)
    pruned = [each for each in outlook.steps if each.row.type == "prune"]
    only = pruned[0] if len(pruned) == 1 else None
    goal = _goal(spec, outlook, None if only is None else only.amount)
    verdict = pipeline_plan_verdict(chain.names, before, after) + not_written(last.failed)
    return Plan(
        verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
        amount=None if only is None else only.amount,
        goal=goal,
        exact=all(each.row.exact for each in outlook.steps),
        before=before,
        after=after,
        failed_outputs=last.failed,
        files=last.files,
        layers=[] if only is None else list(only.layers),
        steps=[each.row for each in outlook.steps],
        notes=["Quality is not planned: training tells it.", *labelled(chain, [each.notes for each in outlook.steps])],
        warnings=labelled(chain, [each.warnings for each in outlook.steps]),
    )


def look_ahead(chain: Chain, directory: Path) -> Outlook:
    """Go through all steps without training, and find what the searched one must come to for the whole target.

    Args:
        directory: where results are left on the way.

    Raises:
        ParedError: what a step would fail with before it trains.
    """
    spec, target = chain.spec, chain.spec.target
    sizes = {} if target is None else {name: share for name, share in target.sizes.items() if name != "latency"}
    if target is None or spec.searched is None or chain.is_last(spec.searched) or not sizes:
        steps = list(_steps(chain, directory, None))
        return Outlook(steps, None, {} if target is None else _shares(chain, steps, target), None)
    spared = _SPARED_OF_PACKED if spec.outputs is not None and spec.outputs[0] == "packed" else 0.0
    share, nearest, found = min(sizes.values()), float("inf"), None
    tried: dict[float, float] = {}
    while len(tried) < _TRIES and share not in tried:
        of_step = _target(target, share)
        steps = list(_steps(chain, directory, of_step))
        reached = _shares(chain, steps, target)
        excess = max(reached.get(name, 1.0) / (most * (1 - spared)) for name, most in sizes.items())
        tried[share] = excess
        # Of what meets it the one that leaves most; of what does not, the nearest.
        if found is None or (excess <= 1 and (nearest > 1 or excess > nearest)) or (1 < excess < nearest):
            nearest, found = excess, Outlook(steps, of_step, reached, len(tried))
        if _CLOSE < excess <= 1 or not steps[spec.searched].reached:
            break  # near enough, or as far down as pruning goes
        share = _next(tried)
    assert found is not None  # noqa: S101 - there is at least one try
    return replace(found, tries=len(tried))


def _next(tried: Mapping[float, float]) -> float:
    """The share to try next: where a straight line through two tries comes to what is allowed.

    What goes is whole channels, so that shares near each other may come to the same: a step is never too small.

    Args:
        tried: share -> the largest factor by which a size was above what is allowed.
    """
    aim = 1 - _SPARED
    above = min((share for share, excess in tried.items() if excess > 1), default=None)
    below = max((share for share, excess in tried.items() if excess <= 1), default=None)
    first, *others = sorted(tried, key=lambda share: abs(tried[share] - aim))
    share = first * aim / tried[first]
    for second in others[:1]:  # what does not change with the share, such as code in a file, is in both
        if (second - first) * (tried[second] - tried[first]) > 0:
            share = first + (aim - tried[first]) * (second - first) / (tried[second] - tried[first])
    if above is not None and below is not None:
        margin = (above - below) / 8
        return min(max(share, below + margin), above - margin)
    if above is not None:
        return min(max(share, above / 10), above * _STEP)
    return min(max(share, (below or 0.0) / _STEP), _MOST)


def _target(whole: Target, share: float) -> Target:
    """What the searched step is to come to, which other steps follow: parameters, for these have a part in bytes."""
    timed = {} if whole.latency is None else {"latency": whole.latency, "latency_batch_size": whole.latency_batch_size}
    return Target(params=share, **timed)


def _steps(chain: Chain, directory: Path, target: Target | None) -> Iterator[Ahead]:
    """Each step without its training, on the result of the one before."""
    previous = chain.upload
    trained = False
    for index in range(len(chain.names)):
        folder = directory / chain.label(index)
        folder.mkdir(exist_ok=True)
        with chain.telling_which(index):
            job = chain.job(index, target if index == chain.spec.searched else None)
            ahead = _step(chain, index, job, previous, folder, after_training=trained)
            if not chain.is_last(index):
                previous = chain.result(index, folder)
        trained = trained or any(training.trains for training in trainings(job).values())
        yield ahead


def _step(
    chain: Chain, index: int, job: CompressionSpec, previous: ModelFile, folder: Path, *, after_training: bool
) -> Ahead:
    work = chain.work_on(index, previous, folder, Beats(chain.work.observer), timed=False)
    name = chain.names[index]
    if isinstance(job, PruneSpec):
        return _pruned(name, job, work, after_training=after_training)
    target = getattr(job, "target", None)
    by_quality = isinstance(target, Target) and target.quality_drop is not None
    by_time = isinstance(job, DistillSpec) and timed_target(job) is not None
    exact = not by_quality and not by_time
    if by_quality:
        job = job.model_copy(update={"target": None})
    few = None if work.dataset is None else replace(work.dataset, most=_SAMPLES)
    report = type_of(job).load_method()(untrained(job), replace(work, dataset=few))
    assert isinstance(report, Report)  # noqa: S101 - all that makes a model of one reports so
    notes = ["What it leaves as it was, for the sake of quality, is found on the trained model."] if by_quality else []
    if by_time:
        notes.append("The student's latency is measured again by the job, which may find another width for it.")
    size = report.after
    files = {
        path.name: PlannedFile(size_bytes=path.stat().st_size, exact=exact and path.suffix != ".packed")
        for path in sorted(folder.iterdir())
        if path.name != "report.json"
    }
    if any(not file.exact for file in files.values()) and exact:
        notes.append("The bytes of model.packed are about so many: it codes the weights, which training changes.")
    row = PlannedStep(
        type=name,
        verdict=pipeline_plan_verdict([name], report.before, size),
        exact=exact,
        parameters=size.parameters,
        nonzero_parameters=size.nonzero_parameters,
        macs=size.macs,
        file_bytes=size.file_bytes,
    )
    return Ahead(row, report.before, files, report.failed_outputs, notes, [])


def _pruned(name: str, job: PruneSpec, work: Work, *, after_training: bool) -> Ahead:
    notes = []
    if needs_training(job):
        job = job.model_copy(update={"target": None, "amount": _STAND_IN})
        notes.append(f"How much it removes is found by training or measuring; {_STAND_IN:g} stands for it here.")
    elif job.target is not None:
        job = job.model_copy(update={"target": job.target.sizes_alone()})
    plan = plan_prune(job, work)
    exact = plan.exact and not notes
    if after_training and not (job.scope == "layer" and job.target is None and job.granularity != "block"):
        exact = False
        notes.append("It chooses by weights that an earlier step trains: its figures may come out a little otherwise.")
    row = PlannedStep(type=name, verdict=plan.verdict, exact=exact, **plan.after.model_dump())
    return Ahead(
        row,
        plan.before,
        plan.files,
        plan.failed_outputs,
        [*notes, *plan.notes],
        plan.warnings,
        amount=plan.amount,
        layers=tuple(plan.layers),
        reached=plan.goal is None or plan.goal.status == "met",
    )


def _shares(chain: Chain, steps: Sequence[Ahead], target: Target) -> dict[str, float]:
    """What is left of the upload in the end, of each size that a target names and that needs no measuring."""
    files = {name: file.size_bytes for name, file in steps[-1].files.items()}
    return shares_of(chain.spec, target, steps[0].before, steps[-1].row, first_file_bytes(chain.spec, files))


def first_file_bytes(spec: PipelineSpec, files: Mapping[str, int]) -> int | None:
    """The bytes of the result in the first format that is asked for; None: it was not written."""
    model = next((name for name in MODEL_FILES.values() if name in files), None)
    if spec.outputs is not None:
        model = MODEL_FILES[spec.outputs[0]]
    return None if model is None or model not in files else files[model]


def shares_of(
    spec: PipelineSpec, target: Target, before: Size, after: Size, file_bytes: int | None
) -> dict[str, float]:
    """What is left of each size that a target names, but for latency.

    Args:
        file_bytes: of the result in the first format.
    """
    zeroed = any(getattr(step.own, "granularity", "channel") not in PHYSICAL for step in spec.steps)
    left = {
        "params": (after.nonzero_parameters if zeroed else after.parameters) / max(before.parameters, 1),
        "macs": None if after.macs is None or not before.macs else after.macs / before.macs,
        "file_bytes": None if file_bytes is None else file_bytes / max(before.file_bytes, 1),
    }
    return {name: share for name, share in left.items() if share is not None and name in target.sizes}


def _goal(spec: PipelineSpec, outlook: Outlook, amount: float | None) -> Goal | None:
    """What the target of the whole comes to, as far as it can be known without training."""
    known = {} if spec.target is None else {name: spec.target.sizes[name] for name in outlook.reached}
    if not known:
        return None
    target = Target(**known)
    return Goal(
        status="infeasible" if target.missed(outlook.reached) else "met",
        target=known,
        reached=outlook.reached,
        amount=amount,
        sentence=goal_sentence(target, outlook.reached, None, None, outlook.tries),
    )


def _plain(row: PlannedStep) -> Size:
    return Size(**{name: getattr(row, name) for name in Size.model_fields})
