"""The options that say how the files of a result are to be, with the fields of a spec that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pared.cli.parsers import free_size, without_none
from pared.specs import ONNX_OPSETS


@dataclass(frozen=True)
class ResultOptions:
    """Free sizes, and the version of ONNX."""

    dynamic: Annotated[
        list[Any] | None,
        typer.Option(
            parser=free_size,
            metavar="INPUT:DIMENSION=NAME",
            help="A size that .onnx and .pt2 leave free beside the batch, such as x:2=height, once for each; or auto: "
            "all that the model allows.",
            show_default="the batch alone",
        ),
    ] = None
    onnx_opset: Annotated[
        int | None,
        typer.Option(
            min=ONNX_OPSETS[0], max=ONNX_OPSETS[-1], help="Version of ONNX's operators.", show_default="torch's choice"
        ),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a spec; what was not given is left out."""
        given = self.dynamic or []
        if "auto" in given and len(given) > 1:
            raise typer.BadParameter("--dynamic auto frees all that it can: leave the others out")
        sizes: dict[str, dict[str, str]] = {}
        for name, dim, called in (each for each in given if each != "auto"):
            sizes.setdefault(name, {})[dim] = called
        return without_none(dynamic="auto" if "auto" in given else sizes or None, onnx_opset=self.onnx_opset)
