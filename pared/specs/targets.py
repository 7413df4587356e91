"""How a spec says what the result must come to."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, model_validator

from pared.specs.base import Spec


class Target(Spec):
    """What the result must come to, instead of an amount: one goal, or several that hold together.

    Sizes are shares left of the upload's. The least pruning that meets them all is looked for.
    """

    params: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the upload's parameters that may be left. For single weights and blocks only those count "
        "that are not zero.",
    )
    macs: float | None = Field(None, gt=0, lt=1, description="Share of the multiply-adds of one sample. Channels only.")
    file_bytes: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the uploaded file's bytes, for the first format in `outputs`. For single weights and "
        "blocks this must be `packed`.",
    )
    latency: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the time of a forward pass, measured in turns with the upload. Channels only.",
    )
    latency_batch_size: int = Field(1, ge=1, le=4096, description="Samples in the batch whose time is measured.")
    max_quality_drop: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="How much of the task's own measure may be lost: accuracy, mean IoU or F1 (0.01: one point), R², "
        "log-likelihood (0.01: 1 % more perplexity), cosine, or relative error to the original (0.01: 1 %). 1 and more "
        "is for the tasks regression, language_modeling and embedding, named in `task`. Alone: "
        "the job searches for the smallest model within it on the validation split. The test split decides whether the "
        "goal is met.",
    )
    max_accuracy_drop: float | None = Field(
        None, ge=0, lt=1, description="The same as `max_quality_drop`, by its older name: give one of the two."
    )

    @property
    def quality_field(self) -> str:
        """The field that says how much quality may be lost."""
        return "max_quality_drop" if self.max_accuracy_drop is None else "max_accuracy_drop"

    @property
    def needs_data(self) -> tuple[str, str]:
        """The field of quality, and why it cannot stand without a data set."""
        return self.quality_field, "is measured on data: name a `dataset`, or leave this goal out"

    @property
    def quality_drop(self) -> float | None:
        """How much quality may be lost."""
        return self.max_quality_drop if self.max_accuracy_drop is None else self.max_accuracy_drop

    @property
    def sizes(self) -> dict[str, float]:
        """The shares that may be left, of what is named."""
        named = {name: getattr(self, name) for name in ("params", "macs", "file_bytes", "latency")}
        return {name: share for name, share in named.items() if share is not None}

    @property
    def goals(self) -> dict[str, float]:
        """All that is asked for."""
        return self.sizes | ({} if self.quality_drop is None else {self.quality_field: self.quality_drop})

    def sizes_alone(self) -> Target:
        """The same without what it says of quality."""
        return self.model_copy(update={"max_quality_drop": None, "max_accuracy_drop": None})

    def missed(self, reached: Mapping[str, float]) -> list[str]:
        """Which goals are not met by what was reached of each; a last bit of arithmetic misses none.

        What was not reached at all, such as the bytes of a file that could not be written, is missed.
        """
        return missed(self.goals, reached)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Target:
        if not self.goals:
            raise ValueError("names no goal: give params, macs, file_bytes, latency or max_quality_drop")
        if self.max_accuracy_drop is not None and self.max_quality_drop is not None:
            self._refuse({"max_accuracy_drop": "is the older name of `max_quality_drop`: give one of the two"})
        if self.latency is None:
            why = "is the batch whose latency is measured: leave it out, or give `latency`"
            self._must_be_left_out({"latency_batch_size": why})
        return self


def missed(goals: Mapping[str, float], reached: Mapping[str, float]) -> list[str]:
    """Which goals are not met by what was reached of each; a last bit of arithmetic misses none."""
    return [name for name, most in goals.items() if reached.get(name, math.inf) > most + 1e-12]
