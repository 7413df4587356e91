"""Words that messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def shortened(items: Sequence[str], most: int = 10, *, between: str = ", ") -> str:
    """The first items of a list, and how many more there are: `a, b, … and 12 more`."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return between.join([*items[:most], *more])


def listed(parts: Iterable[str], conjunction: str) -> str:
    """As in a sentence: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} {conjunction} {last}" if first else last


_METRICS = {
    "accuracy": "accuracy",
    "r2": "R²",
    "f1": "F1",
    "mean_iou": "mean IoU",
    "log_likelihood": "log-likelihood",
    "cosine": "cosine to the original",
    "match": "match with the original",
}
_SHARES = ("accuracy", "f1", "mean_iou")


def metric_name(metric: str) -> str:
    """A report's metric, as sentences name it."""
    return _METRICS[metric]


def in_points(metric: str) -> bool:
    """Whether a metric is a share, whose differences are told in points."""
    return metric in _SHARES
