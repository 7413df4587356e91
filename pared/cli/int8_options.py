"""The options of `pared quantize`, with the fields of a spec that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from pared.cli.parsers import drop, without_none
from pared.cli.shared_options import InputShape
from pared.specs import Calibration, QuantizeSpec
from pared.specs.quantization import Method


@dataclass(frozen=True)
class Int8Options:
    """Which int8, calibrated how, and what it may cost."""

    method: Annotated[
        Method | None,
        typer.Option(
            help="weight_only: a quarter of the bytes, float32 arithmetic. dynamic: linear and LSTM layers multiply "
            "in int8. static: convolutions and linear layers do, by ranges found on --data. The last two write .onnx.",
            show_default=str(QuantizeSpec.model_fields["method"].default),
        ),
    ] = None
    max_quality_drop: Annotated[
        float | None,
        typer.Option(
            parser=drop,
            metavar="DROP",
            help="How much of the task's measure may be lost, such as 1% or 0.01 of accuracy; the layers that cost "
            "most are left out of int8 until no more is.",
            show_default="whatever int8 costs",
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(parser=drop, metavar="DROP", help="The older name of --max-quality-drop.", show_default="none"),
    ] = None
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches this pattern.", show_default="*")
    ] = None
    exclude: Annotated[list[str] | None, typer.Option(help="These layers stay float32.", show_default="none")] = None
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="static: training samples that the ranges are found on.",
            show_default=str(Calibration.model_fields["samples"].default),
        ),
    ] = None
    calibration_method: Annotated[
        Literal["min_max", "percentile", "entropy"] | None,
        typer.Option(
            help="static: how a range is made of the numbers that were met.",
            show_default=str(Calibration.model_fields["method"].default),
        ),
    ] = None
    input_shape: InputShape = None

    def spec(self) -> dict[str, Any]:
        """The fields of a quantize spec; what was not given is left out."""
        calibration = without_none(samples=self.calibration_samples, method=self.calibration_method)
        goals = without_none(max_quality_drop=self.max_quality_drop, max_accuracy_drop=self.max_accuracy_drop)
        return without_none(
            method=self.method,
            calibration=calibration or None,
            target=goals or None,
            include=self.include or None,
            exclude=self.exclude or None,
            example_inputs=self.input_shape or None,
        )
