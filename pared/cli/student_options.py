"""Options of `pared distill` that say what the student is cut from, where it begins, and who else teaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from pared.cli.parsers import input_shape, model_upload, share, student_goal, without_none

_STUDENT, _TEACHERS = "Student", "Teachers"


@dataclass(frozen=True)
class StudentOptions:
    """What a student that is cut from its teacher keeps, and what teaches beside the teacher."""

    width: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="Make the student from the teacher by this share of its channels, such as 50%.",
            rich_help_panel=_STUDENT,
        ),
    ] = None
    depth: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="Make it by this share of the residual blocks, or of a transformer's layers, alone or with --width.",
            rich_help_panel=_STUDENT,
        ),
    ] = None
    drop: Annotated[
        Literal["evenly", "least_important"],
        typer.Option(help="Which blocks go: evenly spaced, or those that add the least.", rich_help_panel=_STUDENT),
    ] = "evenly"
    target: Annotated[
        list[Any] | None,
        typer.Option(
            parser=student_goal,
            metavar="GOAL=SHARE",
            help="Make the largest student that has at most this share of the teacher's params, macs or latency, such "
            "as params=25%. What --width or --depth does not say is found. Once for each.",
            show_default="none",
            rich_help_panel=_STUDENT,
        ),
    ] = None
    take_weights: Annotated[
        bool,
        typer.Option(
            "--take-weights",
            help="Begin an uploaded student, or an architecture, with the teacher's weights of equal name and shape.",
            rich_help_panel=_STUDENT,
        ),
    ] = False
    also_teacher: Annotated[
        list[str] | None,
        typer.Option(
            parser=model_upload,
            metavar="FILE",
            help="A further model that teaches, with outputs of the same shape. Once for each.",
            show_default="none",
            rich_help_panel=_TEACHERS,
        ),
    ] = None
    combine: Annotated[
        Literal["mean", "best"],
        typer.Option(
            help="Of several teachers: the mean of their answers, or for each sample that of the best by its label.",
            rich_help_panel=_TEACHERS,
        ),
    ] = "mean"
    input_shape: Annotated[
        list[Any] | None,
        typer.Option(
            parser=input_shape,
            metavar="SHAPE",
            help="The shape of an argument of the teacher, such as 1,3,32,32 or 1,16:int64, or its value, such as "
            "=16000; once for each. With --data only where some are values.",
            show_default="guessed",
        ),
    ] = None
    made_samples: Annotated[
        int | None,
        typer.Option(help="Without --data: how many inputs are made up.", show_default="1024"),
    ] = None

    def spec(self) -> dict[str, Any] | None:
        """What `from_teacher` takes; None: the student is not cut from the teacher."""
        cut = without_none(width=self.width, depth=self.depth, target=dict(self.target) if self.target else None)
        if not cut:
            if self.drop != "evenly":
                raise typer.BadParameter("--drop says which blocks go: give --depth or --target, too")
            return None
        return cut | ({"drop": self.drop} if self.drop != "evenly" else {})

    def beside(self) -> dict[str, Any]:
        """The fields of a distill spec; a field that was not given is left out."""
        return without_none(
            student_weights="teacher" if self.take_weights else None,
            combine=self.combine if self.combine != "mean" else None,
            example_inputs=self.input_shape,
            made_samples=self.made_samples,
        )
