"""Chooses the steps of a pipeline for a target, where nobody has said which."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pared.specs.common import Output
from pared.specs.targets import Target

_INT8_ALONE = 0.4  # of the bytes: int8 weights are about a quarter, beside what else is in a file


@dataclass(frozen=True)
class Choice:
    """Steps, and why each is one."""

    steps: list[dict[str, Any]]
    why: list[str]

    @property
    def names(self) -> list[str]:
        """The types of the steps."""
        return [next(iter(step)) for step in self.steps]


def chosen_steps(
    target: Target,
    *,
    types: Collection[str],
    with_data: bool,
    outputs: Sequence[Output] = (),
    epochs: int | None = None,
) -> Choice:
    """The steps that a target asks for.

    Bytes alone, and no fewer than int8 leaves, are for `quantize`. All else is pruned, as far as the target takes, and
    then taught by the upload, which needs data. Fewer bytes than that are for `quantize` in the end, too.

    Args:
        target: what the last result is to come to.
        types: the types of steps that there are.
        with_data: whether there is a data set.
        outputs: the formats that the result is wanted in, if any are named.
        epochs: of each training; None: as many as a step has by default.
    """
    packed = list(outputs[:1]) == ["packed"]
    bytes_left = target.file_bytes
    int8 = "quantize" in types and bytes_left is not None and not packed
    steps: list[dict[str, Any]] = []
    why = []
    if not (int8 and target.sizes.keys() == {"file_bytes"} and (bytes_left or 0.0) >= _INT8_ALONE):
        training = {} if epochs is None or not with_data else {"retrain": {"epochs": epochs}}
        what = "single weights, which make packed files smaller" if packed else "channels"
        steps.append({"prune": ({"granularity": "weight"} if packed else {}) | training})
        why.append(
            f"prune: as few {what}, as meet the target" if packed else f"prune: as few {what} as meet the target"
        )
        if with_data and "distill" in types:
            steps.append({"distill": {} if epochs is None else {"train": {"epochs": epochs}}})
            why.append("distill: the upload teaches what is left")
    if int8:
        steps.append({"quantize": {}})
        why.append("quantize: int8 weights, a quarter of their bytes")
    return Choice(steps, why)
