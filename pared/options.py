"""The options of the command line that say how a model is pruned and trained, and the fields of a spec they make."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from pared.criteria import listed, needing_data
from pared.specs import (
    Criterion,
    LrSchedule,
    Optimizer,
    Precision,
    PruneSpec,
    Retrain,
    Schedule,
    Scope,
    TeachTrain,
    Train,
)

GOALS = ("params", "macs", "file_bytes", "latency")

# -- what is typed --------------------------------------------------------------------------------


def readable(given: str) -> Path:
    """A file that is there."""
    path = Path(given)
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise typer.BadParameter(f"there is no file {given} that can be read")
    return path


def upload(given: str) -> str:
    """A file or an id; a missing file is told before another one is uploaded."""
    return given if given.startswith(("mdl_", "dst_", "builtin:")) else str(readable(given))


def share(given: str) -> float:
    """50% or 0.5."""
    try:
        number = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{given} is not a share; write 50% or 0.5") from None
    if not 0 < number < 1:
        raise typer.BadParameter(f"{given} is {100 * number:g} %, not between 0 and 100 %; write 50% or 0.5")
    return number


def architecture_of(given: str | None) -> Any:
    """A name, or the JSON in a file."""
    return json.loads(readable(given).read_text()) if given and given.endswith(".json") else given


def given_only(**options: Any) -> dict[str, Any]:
    """The options that were given, which are those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _shares(given: str) -> list[float]:
    return [share(each) for each in given.split(",")]


def _pair(between: str, example: str) -> Callable[[str], tuple[int, int]]:
    def parse(given: str) -> tuple[int, int]:
        first, _, second = given.partition(between)
        try:
            return int(first), int(second)
        except ValueError:
            raise typer.BadParameter(f"{given} is not a pair of numbers; write {example}") from None

    return parse


def _goal(given: str) -> tuple[str, float]:
    name, _, left = given.partition("=")
    if name not in GOALS:
        raise typer.BadParameter(f"{given} is no goal; write one of {', '.join(f'{goal}=25%' for goal in GOALS)}")
    return name, share(left)


def _layer_amount(given: str) -> tuple[str, float]:
    pattern, _, amount = given.rpartition("=")
    if not pattern:
        raise typer.BadParameter(f"{given} names no layers; write 'conv*=30%'")
    return pattern, 0.0 if amount in ("0", "0%") else share(amount)


def _input(text: str) -> dict[str, Any]:
    shape, _, dtype = text.partition(":")
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text} is not a shape; write 1,3,32,32 (batch first), or 1,16:int64") from None
    return {"shape": sizes, **({"dtype": dtype} if dtype else {})}


# -- options that several commands have -----------------------------------------------------------


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer, with an option for each field of its parameters that are dataclasses."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    kinds = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = kinds[name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[name] = kind
            parameters += _options_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options_of(kind: type) -> list[inspect.Parameter]:
    kinds = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(kind)
    ]


def _default(spec: type[PruneSpec | Train], field: str) -> str:
    return str(spec.model_fields[field].default)


_SCHEDULE, _TRAINING = "When it goes", "Training"


@dataclass(frozen=True)
class Pruning:
    """What goes, and when."""

    target: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_goal,
            metavar="GOAL=SHARE",
            help="What may be left of params, macs, file_bytes or latency, such as params=25%; the fewest channels go "
            "that come to it. Once for each.",
            show_default="none",
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Accuracy (0.01: one point) or R² that may be lost; without --target as many channels go as hold it.",
            show_default="none",
        ),
    ] = None
    channels: Annotated[
        float | None, typer.Option(parser=share, metavar="SHARE", help="Share of channels to remove, such as 50%.")
    ] = None
    weights: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Share of single weights to set to zero, such as 90%."),
    ] = None
    heads: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Share of heads of attention to remove, such as 25%."),
    ] = None
    n_m: Annotated[
        Any,
        typer.Option(
            "--n-m",
            parser=_pair(":", "2:4"),
            metavar="N:M",
            help="Keep so many of so many neighbouring weights, such as 2:4.",
        ),
    ] = None
    blocks: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Share of blocks of weights to set to zero, such as 80%."),
    ] = None
    block_size: Annotated[
        Any,
        typer.Option(
            parser=_pair("x", "4x4"), metavar="ROWSxCOLUMNS", help="--blocks: how large one is.", show_default="4x4"
        ),
    ] = None
    residual_blocks: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Share of whole residual blocks to remove, such as 25%."),
    ] = None
    layer_amount: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_layer_amount,
            metavar="PATTERN=SHARE",
            help="Another share for layers whose name matches, such as 'conv*=30%'; the first match counts.",
            show_default="none",
        ),
    ] = None
    round_to: Annotated[
        int | None,
        typer.Option(help="Keep a multiple of so many channels in each layer, such as 8.", show_default="any number"),
    ] = None
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches this pattern.", show_default="*")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="No layer whose name matches this pattern.", show_default="none")
    ] = None
    criterion: Annotated[
        Criterion, typer.Option(help=f"What goes first. {listed(needing_data(), 'and')} need --data.")
    ] = "magnitude"
    scope: Annotated[
        Scope | None,
        typer.Option(
            help="Rank all layers together, or each by itself.",
            show_default="global for weights and residual blocks, layer for all else",
        ),
    ] = None
    quantize: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="Then let the weights of a tensor share 2^BITS values: for -o with the ending .packed.",
            show_default="no",
        ),
    ] = None
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="All at once; in steps, by the same share of what is left each time; or fast at first and then ever "
            "slower.",
            show_default=_default(PruneSpec, "schedule"),
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            help="How often to prune and retrain.",
            show_default=_default(PruneSpec, "steps"),
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    stages: Annotated[
        Any,
        typer.Option(
            parser=_shares,
            metavar="SHARE,…",
            help="Shares to reach on the way, each with a retraining of its own, such as 90%,98%.",
            show_default="none",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    ramp: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="cubic: the share of the training over which weights go.",
            show_default=_default(PruneSpec, "ramp"),
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    regrow: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="cubic: the share of the living weights that may change places with removed ones each time.",
            show_default="none",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    input_shape: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_input,
            metavar="SHAPE",
            help="Without --data: the shape of an input, such as 1,3,32,32 or 1,16:int64; once for each.",
        ),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a prune spec; a field that was not given is left out."""
        goals = dict(self.target or []) | given_only(max_accuracy_drop=self.max_accuracy_drop)
        ways = given_only(
            channel=self.channels,
            head=self.heads,
            residual_block=self.residual_blocks,
            weight=self.weights,
            block=self.blocks,
        )
        if len(ways) + (self.n_m is not None) + bool(goals) != 1:
            raise typer.BadParameter(
                "give a goal, such as --target params=25%, or one of --channels, --heads, --residual-blocks, "
                "--weights, --blocks and --n-m, such as --channels 50%"
            )
        granularity, amount = next(iter(ways.items()), ("channel" if goals else "n:m", None))
        return {
            "granularity": granularity,
            "criterion": self.criterion,
            **given_only(
                target=goals or None,
                amount=amount,
                round_to=self.round_to,
                n_m=self.n_m,
                block=self.block_size,
                amounts=self.layer_amount and dict(self.layer_amount),
                include=self.include,
                exclude=self.exclude,
                scope=self.scope,
                schedule=self.schedule,
                steps=self.steps,
                stages=self.stages,
                ramp=self.ramp,
                regrow=self.regrow,
                quantize=None if self.quantize is None else {"bits": self.quantize},
                example_inputs=self.input_shape,
            ),
        }


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Epochs of training.", show_default=_default(Train, "epochs"), rich_help_panel=_TRAINING
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples a training step.",
            show_default=_default(Train, "batch_size"),
            rich_help_panel=_TRAINING,
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.",
            show_default=f"{Train(optimizer='sgd').lr} for sgd, {Train(optimizer='adam').lr} for adam",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    lr_schedule: Annotated[
        LrSchedule | None,
        typer.Option(
            help="Whether the learning rate stays, or falls to 0 along half a cosine.",
            show_default=_default(Train, "lr_schedule"),
            rich_help_panel=_TRAINING,
        ),
    ] = None
    warmup: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="The share of the training over which the learning rate first rises.",
            show_default="none",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    momentum: Annotated[
        float | None,
        typer.Option(help="sgd: momentum.", show_default=_default(Train, "momentum"), rich_help_panel=_TRAINING),
    ] = None
    nesterov: Annotated[
        bool | None, typer.Option("--nesterov", help="sgd: Nesterov's momentum.", rich_help_panel=_TRAINING)
    ] = None
    weight_decay: Annotated[
        float | None,
        typer.Option(help="Weight decay.", show_default=_default(Train, "weight_decay"), rich_help_panel=_TRAINING),
    ] = None
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="What convolutions and matrix products of the training compute in: bfloat16 is faster where there is "
            "hardware for it.",
            show_default=_default(Train, "precision"),
            rich_help_panel=_TRAINING,
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better validation score.",
            show_default="train all epochs",
            rich_help_panel=_TRAINING,
        ),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a training run; a field that was not given is left out."""
        return given_only(**vars(self))


@dataclass(frozen=True)
class Retraining(Training):
    """How a pruned model is retrained."""

    optimizer: Annotated[
        Optimizer | None,
        typer.Option(help="Optimizer.", show_default=_default(Retrain, "optimizer"), rich_help_panel=_TRAINING),
    ] = None
    teach: Annotated[
        bool | None,
        typer.Option(
            help="Learn from the answers of the model as it came, beside the labels.",
            show_default="teach, where SGD learns classes",
            rich_help_panel=_TRAINING,
        ),
    ] = None


@dataclass(frozen=True)
class Teaching(Training):
    """How a student is trained."""

    optimizer: Annotated[
        Optimizer | None,
        typer.Option(help="Optimizer.", show_default=_default(TeachTrain, "optimizer"), rich_help_panel=_TRAINING),
    ] = None
