"""Times candidates beside the original where a target asks for a latency, and reads what the report measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.loading import LoadedModel
from pared.compression.measuring.latency import share_of_time
from pared.compression.work import Work
from pared.errors import ModelFailed, ValidationError
from pared.reports import Measurement
from pared.specs import StudentTarget, Target


def batch_sizes(target: Target | StudentTarget | None) -> list[int]:
    """Where latency is measured: also at the batch that a target names."""
    named = set() if target is None or target.latency is None else {target.latency_batch_size}
    return sorted({1, 32} | named)


def candidate_time(
    work: Work,
    original: LoadedModel,
    candidate: LoadedModel,
    example: Sequence[Tensor],
    *,
    batch_size: int,
    pointer: str,
    tick: Callable[[], None],
) -> float:
    """The time of a candidate's forward pass, as a share of the original's; both end on the CPU.

    Args:
        pointer: to the target in the spec.

    Raises:
        ValidationError: one of the two refuses such a batch.
    """
    first, second = models = [each.module.eval() for each in (original, candidate)]
    for module in models:
        place(module, work.timed_on)
    try:
        share = work.ranks.led(
            lambda: share_of_time(first, second, example, batch_size=batch_size, device=work.timed_on, tick=tick)
        )
    except ModelFailed as failure:
        raise _cannot_be_timed(failure.detail, pointer) from failure
    for module in models:
        place(module, CPU)
    return share


def result_time(before: Measurement, after: Measurement, *, batch_size: int, pointer: str) -> float:
    """The median time of the result's forward pass, as a share of the original's.

    Raises:
        ValidationError: one of the two refuses such a batch.
    """
    first, second = (
        [each.p50_ms for each in measured.latency if each.batch_size == batch_size] for measured in (before, after)
    )
    if not first or not second:
        why = f"Latency at batch {batch_size} could not be measured: the model refuses such a batch."
        raise _cannot_be_timed(why, pointer)
    return second[0] / first[0]


def _cannot_be_timed(why: str, pointer: str) -> ValidationError:
    return ValidationError(why, errors=[{"pointer": f"{pointer}/latency_batch_size", "detail": why}])
