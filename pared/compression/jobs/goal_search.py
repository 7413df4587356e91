"""Runs a prune job with a target: searches for the amount, and judges whether the result meets the target."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Protocol

from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.jobs.prune_job import PruneJob
from pared.compression.jobs.pruning_steps import Keep, Pruning
from pared.compression.jobs.size_search import (
    Candidate,
    Sizes,
    prunable_of,
    shares_left,
    target_of,
    upload_sizes,
)
from pared.compression.jobs.timing import result_time
from pared.compression.measuring.latency import TIMING_NOISE
from pared.compression.measuring.quality import Assessment, validation_score
from pared.compression.report.verdict import goal_sentence
from pared.errors import NotFinite
from pared.reports import Goal, Measurement, Point, Quality, Size
from pared.specs import Target

FRONTIER = "frontier.csv"

_LITTLE = 0.005  # of bytes, and of channels that are ranked anew, after a training
_TRIES = 5  # of sizes that only the result itself tells for certain
_HALVINGS = 6  # of amounts that are judged after a retraining: to a 64th


class Search(Protocol):
    """A search for the pruning that meets a target.

    `points` has each candidate that was tried; `chosen` is the candidate of the last result.
    """

    points: dict[Candidate, Point]
    chosen: Candidate

    def run(self, checkpoint: dict[str, Any] | None, keep: Keep) -> Pruning:
        """The pruned model that meets the target as far as can be told before it is measured, or the nearest.

        Args:
            checkpoint: of an earlier attempt, to go on from.
            keep: is handed checkpoints.

        Raises:
            NothingToPrune: nothing can go.
        """

    def goes_on(self, result: Goal) -> bool:
        """Whether a result that misses is to be followed by another `run`, which leaves less."""


def search_for(job: PruneJob) -> Search:
    """The search that a spec's target asks for.

    Raises:
        NothingToPrune: nothing can go.
    """
    job.stages.enter("compress")
    if target_of(job.spec).sizes:
        return SizeSearch(job)
    assert job.baseline is not None  # noqa: S101 - the spec asks for data
    return QualitySearch(job, job.baseline)


class SizeSearch:
    """The least pruning that meets all sizes, found before any retraining.

    Retraining changes how well weights pack and which channels later steps take, and a latency is measured anew: where
    the result misses what its candidate met, the search is for less, and each time for less by twice as much.
    """

    def __init__(self, job: PruneJob) -> None:
        self.points: dict[Candidate, Point] = {}
        self.chosen = Candidate(0.0, None)
        self._job = job
        self._sizes: Sizes | None = None  # what a finished search is not asked for again
        self._allowed = target_of(job.spec).sizes
        if "latency" in self._allowed:
            self._allowed["latency"] *= 1 - TIMING_NOISE
        self._met = True
        self._tries = 0

    def run(self, checkpoint: dict[str, Any] | None, keep: Keep) -> Pruning:
        """As `Search.run` says."""
        job, pruning = self._job, None
        if checkpoint is not None:
            self._restore(checkpoint)
            pruning = checkpoint["pruning"]
        else:
            self.look()
        state = self.start(job)
        state.run(pruning, lambda pruning: keep(self._state() | {"pruning": pruning}))
        return state

    def look(self) -> None:
        """Find the amount."""
        self._sizes = self._sizes or Sizes(self._job)
        self.chosen, self._met = self._sizes.least(self._allowed)
        if self._met:
            self._allowed = self._sizes.shares(self.chosen)
        self._tries += 1
        tried = {Candidate(point.amount, point.round_to): point for point in self._sizes.points}
        self.points = tried | self.points  # what has been measured stays
        self._job.work.observer.log(
            f"{len(tried)} amounts looked at: {self.chosen.amount:g} "
            f"{'is the least that meets the goal' if self._met else 'comes nearest to the goal'}"
        )

    def start(self, job: PruneJob) -> Pruning:
        """The pruning by the amount that was found."""
        return Pruning(job.of(self.chosen.of(job.spec)), None if self._sizes is None else self._sizes.prunable.channels)

    def foreseen(self, after: Size, first_file_bytes: int | None) -> Goal:
        """What the target comes to where neither training nor time has a say in it.

        Args:
            after: the model pruned by the amount that was found.
            first_file_bytes: of it in the first format that the job asks for, if that can be written.
        """
        spec = self._job.spec
        reached = shares_left(spec, upload_sizes(self._job), after, first_file_bytes, None)
        return _judged(self, target_of(spec), reached, None, None)

    def goes_on(self, result: Goal) -> bool:
        """As `Search.goes_on` says."""
        missed = target_of(self._job.spec).missed(result.reached)
        missed = [name for name in missed if name in self._allowed and name in result.reached]
        if not missed or not self._met or self._tries == _TRIES:
            return False
        for name in missed:
            spared = (TIMING_NOISE if name == "latency" else _LITTLE) * 2 ** (self._tries - 1)
            self._allowed[name] *= (1 - spared) * result.target[name] / result.reached[name]
        self._job.work.observer.log("the result misses the goal by a little: once more, with less left")
        self._job.stages.again()
        return True

    def _state(self) -> dict[str, Any]:
        return {
            "amount": self.chosen.amount,
            "round_to": self.chosen.round_to,
            "allowed": self._allowed,
            "met": self._met,
            "tries": self._tries,
            "points": [point.model_dump() for point in self.points.values()],
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.chosen = Candidate(checkpoint["amount"], checkpoint["round_to"])
        self._allowed, self._met, self._tries = (checkpoint[name] for name in ("allowed", "met", "tries"))
        self.points = _by_candidate(checkpoint["points"])


class QualitySearch:
    """The most pruning that holds the quality on the validation split, each candidate retrained and then judged.

    A candidate that answers NaN or infinity where the upload does not holds nothing, and is never the result.
    """

    def __init__(self, job: PruneJob, baseline: Assessment) -> None:
        """Args: baseline: the upload, scored."""
        self.points: dict[Candidate, Point] = {}
        self.chosen = Candidate(0.0, None)
        self._job = job
        self._ways = prunable_of(job)
        self._baseline = baseline
        self._least_score = baseline.quality.validation - (target_of(job.spec).quality_drop or 0.0)
        self._not_finite: NotFinite | None = None  # why the last such candidate was none
        self._best: Pruning | None = None
        self._best_checkpoint: dict[str, Any] | None = None

    def run(self, checkpoint: dict[str, Any] | None, keep: Keep) -> Pruning:
        """As `Search.run` says. A resumed search goes on in the candidate and epoch of its newest checkpoint."""
        job, pruning = self._job, None
        if checkpoint is not None:
            self._restore(checkpoint)
            pruning = checkpoint["pruning"]
        known = {self._ways.key(self._ways.chosen(candidate)): point for candidate, point in self.points.items()}
        low, high = 0, 1 << _HALVINGS
        for _ in range(_HALVINGS):
            middle = (low + high) // 2
            candidate = Candidate(middle / (1 << _HALVINGS), job.spec.round_to)
            key = self._ways.key(self._ways.chosen(candidate))
            if key and key not in known:
                known[key] = self._try(candidate, pruning, keep)
                pruning = None
            holds = not key or known[key].met  # where nothing goes nothing is lost
            low, high = (middle, high) if holds else (low, middle)
        if self._best is None and self._not_finite is not None:
            raise self._not_finite
        if self._best is None:
            self._ways.hold(Candidate(1 - 1e-6, job.spec.round_to))  # says why nothing goes
        assert self._best is not None  # noqa: S101 - something goes, and has been tried
        return self._best

    def goes_on(self, result: Goal) -> bool:
        """As `Search.goes_on` says: what holds on validation is not chosen anew by the test split."""
        return False

    def _try(self, candidate: Candidate, checkpoint: dict[str, Any] | None, keep: Keep) -> Point:
        job = self._job
        newest = checkpoint

        def keep_all(pruning: dict[str, Any]) -> None:
            nonlocal newest
            newest = pruning
            keep(self._state() | {"pruning": pruning})

        job.stages.narrow(len(self.points), _HALVINGS)
        state = Pruning(job.of(candidate.of(job.spec)))
        try:
            state.run(checkpoint, keep_all)
            validation = self._validated(state)
        except NotFinite as error:
            self._not_finite, validation = error, None
            outcome = f"answers NaN or infinity, which holds nothing. {error.detail}"
        point = self._ways.counted(state.loaded, candidate)
        point.validation, point.met = validation, False
        if validation is not None:
            point.met = validation >= self._least_score - 1e-12  # a last bit of arithmetic
            holds = "which holds the goal" if point.met else f"below {self._least_score:.4f}"
            outcome = f"validation {validation:.4f}, {holds}"
            if self._best is None or _better(point, self.points[self.chosen]):
                self._best, self._best_checkpoint, self.chosen = state, newest, candidate
        self.points[candidate] = point
        job.work.observer.log(f"an amount of {candidate.amount:g}: {outcome}")
        keep(self._state() | {"pruning": None})
        return point

    def _validated(self, pruned: Pruning) -> float:
        """Raises NotFinite."""
        job, module = self._job, pruned.loaded.module
        assert job.data is not None  # noqa: S101 - the spec asks for data
        device = job.work.device
        try:
            place(module, device)
            tick = job.stages.beat
            return validation_score(module, job.data, self._baseline, device=device, tick=tick)
        finally:
            place(module, CPU)

    def _state(self) -> dict[str, Any]:
        return {
            "amount": self.chosen.amount,
            "round_to": self.chosen.round_to,
            "points": [point.model_dump() for point in self.points.values()],
            "best": self._best_checkpoint,
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.points = _by_candidate(checkpoint["points"])
        if checkpoint["amount"]:  # a candidate, of those tried, that may be the result
            self.chosen = Candidate(checkpoint["amount"], checkpoint["round_to"])
            self._best_checkpoint = checkpoint["best"]
            self._job.stages.narrow(len(self.points) - 1, _HALVINGS)
            self._best = Pruning(self._job.of(self.chosen.of(self._job.spec)))
            self._best.run(self._best_checkpoint, lambda _: None)


def _better(point: Point, best: Point) -> bool:
    """What holds is better than what does not; of what holds the smaller, of what does not the more accurate."""
    if point.met and best.met:
        return point.amount > best.amount
    return bool(point.met) or (not best.met and (point.validation or 0.0) > (best.validation or 0.0))


def _by_candidate(points: list[dict[str, Any]]) -> dict[Candidate, Point]:
    parsed = map(Point.model_validate, points)
    return {Candidate(point.amount, point.round_to): point for point in parsed}


# -- the word on the result ---------------------------------------------------------------------


def judge(job: PruneJob, search: Search, before: Measurement, after: Measurement, first_file: Path | None) -> Goal:
    """Whether a result meets the target, by the report's own measurements, which also take the place of its point.

    Args:
        first_file: the result in the first format that the job asks for, if that was written. No other file takes
            its place in a goal of bytes, which is then missed.
    """
    target, chosen = target_of(job.spec), search.chosen
    latency = None
    if target.latency is not None:
        latency = result_time(before, after, batch_size=target.latency_batch_size, pointer="/target")
    upload = {"params": before.parameters, "file_bytes": before.file_bytes, "macs": before.macs or 0}
    file_bytes = None if first_file is None else first_file.stat().st_size
    reached = shares_left(job.spec, upload, after, file_bytes, latency)
    if target.quality_drop is not None and before.quality is not None and after.quality is not None:
        reached[target.quality_field] = before.quality.test.value - after.quality.test.value
    goal = _judged(search, target, reached, before.quality, after.quality)
    search.points[chosen] = Point(
        amount=chosen.amount,
        round_to=chosen.round_to,
        parameters=after.parameters,
        nonzero_parameters=after.nonzero_parameters,
        macs=after.macs,
        file_bytes=file_bytes,
        latency=latency,
        validation=None if after.quality is None else after.quality.validation,
        test=None if after.quality is None else after.quality.test.value,
        met=goal.status == "met",
    )
    return goal


def _judged(
    search: Search, target: Target, reached: dict[str, float], before: Quality | None, after: Quality | None
) -> Goal:
    return Goal(
        status="infeasible" if target.missed(reached) else "met",
        target=target.goals,
        reached=reached,
        amount=search.chosen.amount,
        round_to=search.chosen.round_to,
        sentence=goal_sentence(target, reached, before, after, len(search.points)),
    )


def frontier(search: Search) -> list[Point]:
    """All points of a search, by amount."""
    return sorted(search.points.values(), key=lambda point: (point.amount, point.round_to or 0))


def write_frontier(points: list[Point], directory: Path) -> None:
    """Write the points as `frontier.csv`; what was not measured is empty."""
    with (directory / FRONTIER).open("w", newline="") as file:
        writer = csv.DictWriter(file, Point.model_fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(point.model_dump() for point in points)
