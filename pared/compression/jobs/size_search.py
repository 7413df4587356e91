"""Searches for the least pruning that leaves no more of a model than a target allows, without training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pared.compression.export.writers import export
from pared.compression.jobs.prune_job import PruneJob, prunable_weights, removable_channels
from pared.compression.jobs.timing import candidate_time
from pared.compression.loading import LoadedModel
from pared.compression.measuring.size import count_macs, count_parameters
from pared.compression.pruning.channels import RemovableChannels
from pared.compression.pruning.weights import Masks
from pared.compression.quantization.shared_values import share_values
from pared.compression.training.calibration import copied
from pared.errors import ExportFailed, ValidationError
from pared.reports import Point, Size
from pared.specs import PHYSICAL, PruneSpec, Target

_FINEST = 1_000_000  # amounts are tried to a millionth, which costs twenty tries
_SOME = (0.25, 0.5, 0.75, 0.9)  # looked at where no amount will do, to show how far each one goes
_ROUNDINGS = (4, 8, 16, 32)  # what kernels work in
_NEAR = _FINEST // 500  # below that an amount is halved to, not drawn to
_FINEST_TIMED = 256  # where latency is a goal: what is finer is lost in its noise


@dataclass(frozen=True)
class Candidate:
    """A way to prune: how much goes, and what number of channels is kept a multiple of."""

    amount: float
    round_to: int | None

    def of(self, spec: PruneSpec) -> PruneSpec:
        """The spec with this amount."""
        return spec.model_copy(update={"amount": self.amount, "round_to": self.round_to})


class Sizes:
    """What is left of a model by amount, counted on the pruned model itself.

    The channels or weights that can go are found and scored once, for all amounts.
    """

    def __init__(self, job: PruneJob) -> None:
        """Find what can be pruned.

        Raises:
            NothingToPrune: nothing can go.
            ValidationError: the target names what cannot be counted.
        """
        self._job = job
        self.target = target_of(job.spec)
        self.prunable = prunable_of(job)
        self._upload = upload_sizes(job)
        self._known: dict[tuple[int, ...], Point] = {}

    @property
    def points(self) -> list[Point]:
        """Every point that was looked at."""
        return list(self._known.values())

    def least(self, allowed: Mapping[str, float]) -> tuple[Candidate, bool]:
        """The least pruning that leaves no more than these shares, and True; or else the nearest, and False."""
        while True:
            candidate, met = self._least(allowed)
            if self.prunable.hold(candidate):
                return candidate, met
            self._known.clear()  # some channels must stay: all that was counted without them is wrong

    def shares(self, candidate: Candidate) -> dict[str, float]:
        """What a candidate that was looked at leaves of what the target names."""
        return self._shares(self._known[self.prunable.key(self.prunable.chosen(candidate))])

    def _least(self, allowed: Mapping[str, float]) -> tuple[Candidate, bool]:
        round_to = self._job.spec.round_to

        def excess(step: int) -> float:
            point = self._point(Candidate(step / _FINEST, round_to), allowed)
            return math.inf if point is None else self._excess(point, allowed)

        low, high = 0, _FINEST - 1
        least = excess(high)
        if least > 1:
            for amount in _SOME:
                self._point(Candidate(amount, round_to), allowed)
            return self._nearest(allowed) or Candidate(high / _FINEST, round_to), False
        finest = _FINEST // _FINEST_TIMED if "latency" in allowed else 1
        # Sizes fall about with the square of what is left: straight lines between their roots lead near the answer.
        above, below, sides = math.sqrt(1 / min(allowed.values())), math.sqrt(least), ""
        while high - low > finest:
            middle = (low + high) // 2
            if high - low > _NEAR and math.inf > above > 1 > below:
                middle = min(max(low + round((high - low) * (above - 1) / (above - below)), low + 1), high - 1)
            now = excess(middle)
            if now <= 1:
                high, below, sides = middle, math.sqrt(now), sides[-1:] + "-"
                above = (1 + above) / 2 if sides == "--" else above  # or one end would stay where it is: Illinois
            else:
                low, above, sides = middle, math.sqrt(now), sides[-1:] + "+"
                below = (1 + below) / 2 if sides == "++" else below
        candidate = Candidate(high / _FINEST, round_to)
        if "latency" in allowed and round_to is None and self._job.spec.granularity == "channel":
            candidate = self._fastest_rounding(candidate, allowed)
        return candidate, True

    def _nearest(self, allowed: Mapping[str, float]) -> Candidate | None:
        """Of all that was tried, what misses by the least factor."""
        if not self._known:
            return None
        most = max(len(self._shares(point)) for point in self.points)
        points = [point for point in self.points if len(self._shares(point)) == most]
        nearest = min(points, key=lambda point: (self._excess_of_known(point, allowed), point.amount))
        return Candidate(nearest.amount, nearest.round_to)

    def _fastest_rounding(self, candidate: Candidate, allowed: Mapping[str, float]) -> Candidate:
        """The same amount with the channels that are kept rounded up, where that is the fastest that meets all."""
        latencies: dict[Candidate, float] = {}
        for option in (candidate, *(Candidate(candidate.amount, round_to) for round_to in _ROUNDINGS)):
            point = self._point(option, allowed)
            if point is not None and point.latency is not None and self._excess(point, allowed) <= 1:
                latencies[option] = point.latency
        return min(latencies, key=lambda option: latencies[option])

    def _point(self, candidate: Candidate, allowed: Mapping[str, float]) -> Point | None:
        """What a candidate leaves; None where nothing goes. Time is taken only where nothing else misses already."""
        job, chosen = self._job, self.prunable.chosen(candidate)
        key = self.prunable.key(chosen)
        if not key:
            return None
        if key not in self._known:
            job.stages.beat()
            loaded = self.prunable.without(chosen, to_count=not {"file_bytes", "latency"} & allowed.keys())
            point = self.prunable.counted(loaded, candidate)
            if "file_bytes" in allowed:
                point.file_bytes = _first_file_bytes(job, loaded, chosen if isinstance(chosen, Masks) else None)
            if "latency" in allowed and self._excess_of_known(point, allowed) <= 1:
                point.latency = _latency(job, loaded)
            met = self._excess(point, self.target.sizes) <= 1
            point.met = None if met and self.target.quality_drop is not None else met
            self._known[key] = point
        known = self._known[key]
        if candidate.round_to == known.round_to:
            known.amount = min(known.amount, candidate.amount)  # the least that comes to this
        return known

    def _shares(self, point: Point) -> dict[str, float]:
        return shares_left(self._job.spec, self._upload, point, point.file_bytes, point.latency)

    def _excess(self, point: Point, allowed: Mapping[str, float]) -> float:
        """The largest factor by which a size is above what is allowed; infinite where one was not looked at."""
        return self._excess_of_known(point, allowed) if len(self._shares(point)) == len(allowed) else float("inf")

    def _excess_of_known(self, point: Point, allowed: Mapping[str, float]) -> float:
        return max((share / allowed[name] for name, share in self._shares(point).items()), default=0.0)


def target_of(spec: PruneSpec) -> Target:
    """The target of a spec that has one."""
    assert spec.target is not None  # noqa: S101 - the caller has looked
    return spec.target


def upload_sizes(job: PruneJob) -> dict[str, int]:
    """What the shares of a target are shares of."""
    parameters, _ = count_parameters(job.upload.module)
    sizes = {"params": parameters, "file_bytes": job.upload_path.stat().st_size}
    if target_of(job.spec).macs is not None:
        macs = count_macs(job.upload.module, job.example)
        if not macs:
            text = "Multiply-adds could not be counted: the model does not run on a single sample, or has none."
            raise ValidationError(text, errors=[{"pointer": "/target/macs", "detail": text}])
        sizes["macs"] = macs
    return sizes


def shares_left(
    spec: PruneSpec,
    upload: Mapping[str, int],
    after: Point | Size,
    file_bytes: int | None,
    latency: float | None,
) -> dict[str, float]:
    """What is left of each size that the target names, as far as it is known.

    Args:
        upload: the `upload_sizes`.
        file_bytes: of the file in the first format.
        latency: as a share of the upload's already.
    """
    counted = {
        "params": after.parameters if spec.granularity in PHYSICAL else after.nonzero_parameters,
        "macs": after.macs,
        "file_bytes": file_bytes,
    }
    shares = {name: count / upload[name] for name, count in counted.items() if count is not None and upload.get(name)}
    if latency is not None:
        shares["latency"] = latency
    return {name: shares[name] for name in target_of(spec).sizes if name in shares}


# -- what can go --------------------------------------------------------------------------------


def prunable_of(job: PruneJob) -> Prunable:
    """All the ways to prune the original, found and scored once.

    Raises:
        NothingToPrune: there are none.
    """
    return _Channels(job) if job.spec.granularity in PHYSICAL else _Weights(job)


class Prunable(Protocol):
    """All the ways to prune one model, by amount."""

    @property
    def channels(self) -> RemovableChannels | None:
        """The channels that can go, where channels are pruned."""

    def chosen(self, candidate: Candidate) -> Any:
        """What a candidate removes."""

    def key(self, chosen: Any) -> tuple[int, ...]:
        """A key that is equal for choices with the same result; empty where nothing goes."""

    def without(self, chosen: Any, *, to_count: bool) -> LoadedModel:
        """The model without what was chosen, unchecked. `to_count`: it is neither timed nor saved."""

    def counted(self, pruned: LoadedModel, candidate: Candidate) -> Point:
        """How much there is of a pruned model."""

    def hold(self, candidate: Candidate) -> bool:
        """Whether all of it can go together. If not, the answers are others from now on.

        Raises:
            NothingToPrune: nothing goes.
        """


class _Channels:
    def __init__(self, job: PruneJob) -> None:
        self._example = job.example
        self.channels = removable_channels(job, job.start, 0)

    def chosen(self, candidate: Candidate) -> list[list[int]]:
        return self.channels.chosen(candidate.amount, candidate.round_to or 1)

    def key(self, chosen: list[list[int]]) -> tuple[int, ...]:
        # Of a group always the lowest-scored go: how many says which.
        return tuple(map(len, chosen)) if any(chosen) else ()

    def without(self, chosen: list[list[int]], *, to_count: bool) -> LoadedModel:
        return self.channels.without(chosen, to_count=to_count)

    def counted(self, pruned: LoadedModel, candidate: Candidate) -> Point:
        return _counted(pruned, candidate, self._example)

    def hold(self, candidate: Candidate) -> bool:
        return self.channels.hold(candidate.amount, candidate.round_to or 1)


class _Weights:
    channels: None = None

    def __init__(self, job: PruneJob) -> None:
        self._job = job
        self._weights = prunable_weights(job, job.original.module, 0)

    def chosen(self, candidate: Candidate) -> Masks:
        return self._weights.masks(candidate.amount)

    def key(self, chosen: Masks) -> tuple[int, ...]:
        pruned = chosen.pruned_of_each()
        return pruned if any(pruned) else ()

    def without(self, chosen: Masks, *, to_count: bool) -> LoadedModel:
        module = copied(self._job.original.module)
        chosen.apply(module)
        return replace(self._job.original, module=module)

    def counted(self, pruned: LoadedModel, candidate: Candidate) -> Point:
        point = _counted(pruned, candidate, self._job.example)
        if self._job.retrain is not None:
            # A weight that happens to be zero may change in retraining; those that are pruned stay zero.
            point.nonzero_parameters = point.parameters - self.chosen(candidate).pruned()
        return point

    def hold(self, candidate: Candidate) -> bool:
        return True  # a weight can always be zero


def _counted(pruned: LoadedModel, candidate: Candidate, example: Sequence[Tensor]) -> Point:
    parameters, nonzero = count_parameters(pruned.module)
    return Point(
        amount=candidate.amount,
        round_to=candidate.round_to,
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(pruned.module, example),
        met=None,
    )


# -- what a file and a pass cost ----------------------------------------------------------------


def _first_file_bytes(job: PruneJob, loaded: LoadedModel, masks: Masks | None) -> int:
    spec = job.spec
    first = job.formats.asked[0]
    if spec.quantize is not None:
        loaded = replace(loaded, module=copied(loaded.module))
        patterns = {"include": spec.include, "exclude": spec.exclude}
        share_values(loaded.module, spec.quantize.bits, **patterns, kept=masks, biases=True).apply(loaded.module)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return export(loaded, job.example, [first], Path(folder), job.formats.settings)[0].stat().st_size
        except ExportFailed as failure:
            text = (
                f"The goal `file_bytes` is for the file of the first format in `outputs`, and `{first}` cannot be "
                f"written: {failure.detail.removesuffix('.')}. Let `outputs` begin with another format."
            )
            raise ExportFailed(text, errors=[{"pointer": "/outputs", "detail": text}]) from failure


def _latency(job: PruneJob, loaded: LoadedModel) -> float:
    """Time of a forward pass, as a share of the upload's."""
    batch_size = target_of(job.spec).latency_batch_size
    return candidate_time(
        job.work, job.upload, loaded, job.example, batch_size=batch_size, pointer="/target", tick=job.stages.beat
    )
