"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pared.cli.completion import datasets_and_files, job_ids, models_and_files
from pared.cli.parsers import input_shape, model_upload, upload, without_none
from pared.cli.rendering import be_quiet
from pared.specs import Device, Task

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        parser=upload,
        autocompletion=datasets_and_files,
        metavar="FILE",
        help="Data set: a .npz, .safetensors, .csv, .jsonl, .parquet or .zip file, its id, or builtin:digits.",
    ),
]
InputShape = Annotated[
    list[Any] | None,
    typer.Option(
        "--input-shape",
        parser=input_shape,
        metavar="SHAPE",
        help="The shape of an input, such as 1,3,32,32 or 1,16:int64, or its value, such as =16000; once for each "
        "argument of the model. Without --data, or where some are values.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        help="Where to put the result; the ending chooses .pt, .safetensors, .pt2, .onnx, .packed, .zip (a model "
        "folder), or .ckpt (also .pth and .tar) for the uploaded checkpoint with the smaller weights.",
        show_default="it stays on the server",
    ),
]
OutputOrFolder = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        help="A folder for all files of the job, or a file for the model in the format of its ending.",
        show_default="it stays on the server",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        parser=model_upload,
        autocompletion=models_and_files,
        metavar="MODEL",
        help="TorchScript, a torch.export program, ONNX, a state dict, a model folder, or the id of an upload.",
    ),
]
JobId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The id of a job, as `pared jobs ls` prints it.", autocompletion=job_ids),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=be_quiet, help="Print nothing but errors, and JSON with --json.")
]
OnlyIds = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the ids, a line each.")]


@dataclass(frozen=True)
class WeightsOptions:
    """Which weights of a checkpoint are meant."""

    state_dict: Annotated[
        str | None,
        typer.Option(
            "--state-dict",
            metavar="NAME",
            help="Of a checkpoint with several state dicts the one that is meant, by its key: ema, or net.state_dict.",
            show_default="the only one that fits",
        ),
    ] = None
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="Of a state dict only the tensors whose names begin so: student.",
            show_default="the only one that fits",
        ),
    ] = None

    def of_upload(self) -> dict[str, str | None]:
        """What an upload of the checkpoint says of it."""
        return {"weights": self.state_dict, "prefix": self.prefix}


@dataclass(frozen=True)
class LabelOptions:
    """What labels are, and what they belong to."""

    task: Annotated[
        Task | None,
        typer.Option(
            help="What the model is for; match needs no labels, and learns its own answers.",
            show_default="what its outputs and the labels look like",
        ),
    ] = None
    model_output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a model with several outputs the one that the labels belong to: its name, or its number from 0.",
            show_default="the only one that fits",
        ),
    ] = None
    ignore_index: Annotated[
        int | None,
        typer.Option(help="A label of pixels or tokens that says nothing.", show_default="−100, −1, and 255"),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a spec; what was not given is left out."""
        return without_none(task=self.task, output=self.model_output, ignore_index=self.ignore_index)


@dataclass(frozen=True)
class DeviceOptions:
    """What a job computes on, and where latency is measured."""

    device: Annotated[
        Device,
        typer.Option(
            help="What to compute on: cuda waits for a worker with a GPU, auto takes the worker that is free first."
        ),
    ] = "auto"
    latency_device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(
            help="Where latency is measured: where the model will run.", show_default="where the job computes"
        ),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a spec."""
        return {"device": self.device, "latency_device": self.latency_device}
