"""Puts measurements into sentences: the verdict of a report, and the warnings that its reader needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pared.compression.loading.inspection import LITTLE
from pared.report_words import speed
from pared.reports import Comparison, FailedOutput, LayerReport, Measurement, Precision, Quality, Size
from pared.specs import PHYSICAL, Granularity, Target, Training
from pared.wording import in_points, metric_name, shortened

SIGNIFICANT_P = 0.05


def prune_verdict(
    granularity: Granularity, before: Measurement, after: Measurement, comparison: Comparison | None
) -> str:
    """One sentence: what was gained in size and time, and what it cost."""
    gains = [_fewer_parameters(before, after) if granularity in PHYSICAL else _zeros(after), _file(before, after)]
    return f"{_joined(gains, before, after)} — {_quality(before, after, comparison)}."


def quantize_verdict(
    before: Measurement, after: Measurement, comparison: Comparison | None, precisions: Sequence[Precision]
) -> str:
    """One sentence: how many layers are int8, what was gained in size and time, and what it cost."""
    gains = [_in_int8(precisions), _file(before, after)]
    return f"{_joined(gains, before, after)} — {_quality(before, after, comparison)}."


def int8_plan_verdict(before: Size, after: Size, precisions: Sequence[Precision]) -> str:
    """One sentence: how many layers will be int8, and how large the file."""
    return f"{_in_int8(precisions)}, {_file(before, after)}."


def _in_int8(precisions: Sequence[Precision]) -> str:
    kinds: dict[Precision, str] = {
        "int8": "in int8",
        "int8_weights": "with int8 weights alone",
        "float32": "in float32",
    }
    told = [(precisions.count(kind), words) for kind, words in kinds.items() if kind in precisions]
    (count, words), *others = told
    layers = [f"{count} of {len(precisions)} layers {words}", *(f"{count} {words}" for count, words in others)]
    return ", ".join(layers)


def pipeline_verdict(
    steps: Sequence[str], before: Measurement, after: Measurement, comparison: Comparison | None
) -> str:
    """One sentence: which steps there were, what they gained together, and what it cost."""
    gains = [_fewer_parameters(before, after)]
    if after.nonzero_parameters < 0.95 * after.parameters:
        gains.append(_zeros(after))
    gains.append(_file(before, after))
    return f"{' → '.join(steps)}: {_joined(gains, before, after)} — {_quality(before, after, comparison)}."


def pipeline_plan_verdict(steps: Sequence[str], before: Size, after: Size) -> str:
    """One sentence: what a pipeline will gain in size."""
    return f"{' → '.join(steps)}: {_fewer_parameters(before, after)}, {_file(before, after)}."


def goal_sentence(
    target: Target, reached: Mapping[str, float], before: Quality | None, after: Quality | None, tried: int | None
) -> str:
    """A sentence on whether a goal was met, and what was reached of each of its parts.

    Args:
        reached: shares left, and the quality lost on the test split; without the bytes of a file that is missing.
        before, after: of the upload and of the result, where they were measured.
        tried: how many points the search looked at; None: nothing was searched for.
    """
    missed = target.missed(reached)
    names = {
        "params": "the parameters",
        "macs": "the multiply-adds",
        "file_bytes": "the file's bytes",
        "latency": f"the latency at batch {target.latency_batch_size}",
    }
    parts = []
    for name, share in target.goals.items():
        if name in names:
            asked = f"at most {_percent(share)}"
            known = _percent(reached[name]) if name in reached else "an unknown share"
            result = f"{known} of {names[name]}"
        elif before is not None and after is not None:
            metric = after.metric
            asked = f"at most {_lost(metric, share)}"
            lost, lost_in_validation = _lost(metric, reached[name]), _lost(metric, before.validation - after.validation)
            result = f"{lost} of test {metric_name(metric)} lost, {lost_in_validation} of validation"
        parts.append(f"{result}, where {asked} was asked" if name in missed else f"{result} (asked: {asked})")
    if not missed:
        return f"Goal met: {'; '.join(parts)}."
    nearest = "" if tried is None else f" This is the nearest of {tried} points tried."
    return f"Goal infeasible: {'; '.join(parts)}.{nearest}"


def plan_verdict(granularity: Granularity, before: Size, after: Size) -> str:
    """One sentence: what a job will gain in size."""
    gains = [_fewer_parameters(before, after) if granularity in PHYSICAL else _zeros(after)]
    if before.macs and after.macs and before.macs != after.macs:
        gains.append(f"{_change(before.macs / after.macs)} fewer multiply-adds")
    return f"{', '.join([*gains, _file(before, after)])}."


def distill_verdict(
    before: Measurement,
    after: Measurement,
    comparison: Comparison | None,
    labels_only: Quality | None,
    against_labels: Comparison | None,
) -> str:
    """Compare the student with its teacher, and with the same student trained without one.

    Args:
        against_labels: the taught student against the one trained on labels alone.
    """
    gains = _joined([_fewer_parameters(before, after), _file(before, after)], before, after)
    text = f"{gains} — {_quality(before, after, comparison)}."
    if labels_only is None or against_labels is None or after.quality is None:
        return text
    difference = against_labels.quality_difference.value
    alone = f"the same student reaches {_score(labels_only.metric, labels_only.test.value)} on labels alone"
    if difference == 0:
        return f"{text} Distillation made no difference: {alone} too."
    told = _told_from_chance(against_labels)
    if told == "no":
        outcome = "made no difference that can be told from chance"
    elif told == "hardly":
        outcome = "made a difference that can hardly be told from chance"
    else:
        outcome = f"{'beat' if difference > 0 else 'did worse than'} training on labels alone"
    return (
        f"{text} Distillation {outcome}: {alone} "
        f"({_signed(labels_only.metric, difference)} with the teacher, p = {against_labels.p_value:.2g})."
    )


def warnings_of(
    granularity: Granularity | None,
    before: Measurement,
    after: Measurement,
    layers: list[LayerReport],
    written: Mapping[str, int],
) -> list[str]:
    """What the numbers alone would let a reader overlook.

    Args:
        written: name -> bytes of each file of the result.
    """
    notes = []
    if "model.packed" in written:
        notes.append(
            f"The packed file has {_bytes(written['model.packed'])}, where the upload had {_bytes(before.file_bytes)}. "
            "It is for keeping and sending: unpacked for use the model has all its shapes again, and their speed."
        )
    if granularity not in (None, *PHYSICAL) and set(written) != {"model.packed"}:
        notes.append(
            "Zeros make this dense file neither smaller nor faster: latency does not change, and the file has "
            f"{_bytes(after.file_bytes)} where the upload had {_bytes(before.file_bytes)}. Compressed (gzip -6) it is "
            f"{_bytes(after.compressed_bytes)} against {_bytes(before.compressed_bytes)}. Granularity `channel` makes "
            "the model itself smaller."
        )
    elif after.file_bytes >= before.file_bytes:
        notes.append(
            f"The file is no smaller: {_bytes(after.file_bytes)} against {_bytes(before.file_bytes)}. A TorchScript "
            "file holds code beside the weights, a state dict none: compare like with like."
        )
    if granularity != "weight" and before.latency and after.latency:
        slower = [
            f"batch {b.batch_size}"
            for b, a in zip(before.latency, after.latency, strict=True)
            if speed(b, a) == "slower"
        ]
        if slower:
            notes.append(f"Latency got worse at {' and '.join(slower)}.")
    notes += _little_touched(before, layers)
    odd = [
        layer.name
        for layer in layers
        if layer.shape_after != layer.shape_before and layer.shape_after[0] % 8 and not layer.shape_before[0] % 8
    ]
    if odd:
        notes.append(
            f"Channels are no longer a multiple of 8 in {shortened(odd, 5)}; some devices run such layers below "
            "their speed."
        )
    return notes


def kept_as_before(training: str, best_epoch: int | None) -> list[str]:
    """Says so where a training came to nothing: its best epoch is 0, the weights that it began with."""
    if best_epoch != 0:
        return []
    note = (
        f"The {training} did not help: no epoch did better on the validation split than the weights that it began "
        "with, and these were kept. Try a smaller learning rate, or more epochs."
    )
    return [note]


def still_learning(
    training: str, config: Training | None, best_epoch: int | None, comparison: Comparison | None
) -> list[str]:
    """Says so where quality was lost, and the last epoch of a training at a constant rate was the best one."""
    if config is None or best_epoch != config.epochs or config.lr_schedule != "constant":
        return []
    if comparison is None or comparison.quality_difference.high >= 0:
        return []
    note = (
        f"The last epoch of the {training} was the best one: more than {config.epochs} `epochs` may win back more of "
        "what was lost."
    )
    return [note]


def not_written(failed: Sequence[FailedOutput]) -> str:
    """The end of a verdict, where formats are missing."""
    return f" Not written: {', '.join(failure.format for failure in failed)}." if failed else ""


def missing_formats(failed: Sequence[FailedOutput]) -> list[str]:
    """A note on each format that is missing."""
    return [f"{failure.format} is not among the files: {failure.detail}" for failure in failed]


def _little_touched(before: Measurement, layers: list[LayerReport]) -> list[str]:
    """Many channels may go and few parameters, where the large layers keep theirs."""
    sizes = {layer.name: math.prod(layer.shape_before) for layer in layers}
    touched = [layer.name for layer in layers if layer.shape_after != layer.shape_before]
    share = sum(sizes[name] for name in touched) / max(before.parameters, 1)
    if not touched or share >= LITTLE:
        return []
    largest = max(layers, key=lambda layer: sizes[layer.name])
    why = f" ({largest.reason})" if largest.reason else ""
    note = (
        f"The layers that lost channels hold only {100 * share:.1f} % of the parameters, so the model shrank little. "
        f"The largest layer is {largest.name}{why}."
    )
    return [note]


# -- parts of a sentence ------------------------------------------------------------------------


def _joined(gains: list[str], before: Measurement, after: Measurement) -> str:
    parts = [*gains, _latency(before, after)]
    return ", ".join(part for part in parts if part)


def _fewer_parameters(before: Size, after: Size) -> str:
    ratio = before.parameters / max(after.parameters, 1)
    if ratio > 1.005:
        return f"{_change(ratio)} fewer parameters"
    return "no fewer parameters" if ratio > 0.995 else f"{_times(1 / ratio)} more parameters"


def _change(ratio: float) -> str:
    """How much less is left: a factor, or a share where the factor would be rounded to 1."""
    return _times(ratio) if ratio >= 1.05 else f"{100 - 100 / ratio:.1f} %"


def _zeros(after: Size) -> str:
    share = 1 - after.nonzero_parameters / max(after.parameters, 1)
    return f"{100 * share:.1f} % of all parameters are zero"


def _file(before: Size, after: Size) -> str:
    ratio = before.file_bytes / max(after.file_bytes, 1)
    return f"{_times(ratio)} smaller file" if ratio > 1.05 else "file no smaller"


def _latency(before: Measurement, after: Measurement) -> str:
    """At the largest batch, where arithmetic weighs more than the calls around it."""
    if not before.latency or not after.latency:
        return ""
    first, second = before.latency[-1], after.latency[-1]
    ratio, place = first.p50_ms / second.p50_ms, f"at batch {first.batch_size}"
    return {
        "faster": f"{_times(ratio)} faster {place}",
        "slower": f"{_times(1 / ratio)} slower {place}",
        "same": f"latency {place} unchanged within noise",
    }[speed(first, second)]


def _quality(before: Measurement, after: Measurement, comparison: Comparison | None) -> str:
    if before.quality is None or after.quality is None:
        return "quality was not measured, for the job brought no data set"
    levels = f"{_score(after.quality.metric, before.quality.test.value)} → "
    levels += _score(after.quality.metric, after.quality.test.value)
    if comparison is None:
        return f"{levels} of test {metric_name(after.quality.metric)}, without a paired test"
    metric, difference = after.quality.metric, comparison.quality_difference
    # Both ends in the same unit, and the sign on the number.
    low, high = (_signed(metric, end).removesuffix(" points") for end in (difference.low, difference.high))
    change = f"{_signed(metric, difference.value)} of test {metric_name(metric)} (95 % CI {low} … {high})"
    judged = {
        "yes": "a real loss" if difference.value < 0 else "a real gain",
        "hardly": "which can hardly be told from chance: the interval and the paired test do not agree",
        "no": "which the paired test cannot tell from chance",
    }[_told_from_chance(comparison)]
    return f"{change}, {levels}, {judged} (p = {comparison.p_value:.2g})"


def _told_from_chance(comparison: Comparison) -> Literal["yes", "hardly", "no"]:
    """Whether a difference is one; `hardly`: the interval and the test, which are found in two ways, do not agree."""
    low, high = comparison.quality_difference.low, comparison.quality_difference.high
    by_interval, by_test = low > 0 or high < 0, comparison.p_value < SIGNIFICANT_P
    return "hardly" if by_interval != by_test else "yes" if by_test else "no"


def _score(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if in_points(metric) else f"{value:.3f}".replace("-", "−")


def _signed(metric: str, value: float) -> str:
    """`−0.6 points`, or `−0.012` of R²; with a true minus sign."""
    text = f"{100 * value:+.1f} points" if in_points(metric) else f"{value:+.3f}"
    if float(text.split(maxsplit=1)[0]) == 0:
        text = text[1:]  # no sign on a zero
    return text.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + " %"


def _lost(metric: str, value: float) -> str:
    """`0.6 points`, or `0.012` of R²."""
    number = 100 * value if in_points(metric) else value
    text = f"{number:.3f}".rstrip("0").rstrip(".").replace("-", "−")
    if not in_points(metric):
        return text
    return f"{text} point" if text == "1" else f"{text} points"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 10_000_000 else f"{count / 1e6:.1f} MB"
