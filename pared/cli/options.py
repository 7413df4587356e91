"""The options of pruning and training, with the fields of a spec that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, Literal, get_type_hints

import typer

from pared.cli.parsers import (
    change,
    class_weights,
    drop,
    goal,
    layer_amount,
    pair,
    share,
    shares,
    without_none,
)
from pared.cli.shared_options import InputShape
from pared.criteria import needing_data
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
    Training,
)
from pared.wording import listed

# -- groups of options ----------------------------------------------------------------------------


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
    def run(**options: Any) -> None:
        grouped_values = {
            name: kind(**{field.name: options.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**options, **grouped_values)

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


def _default(spec: type[PruneSpec | Training], field: str) -> str:
    return str(spec.model_fields[field].default)


def _rates(spec: type[Training]) -> str:
    return ", ".join(f"{rate} for {optimizer}" for optimizer, rate in spec.usual_rates.items())


_SCHEDULE, _TRAINING = "Schedule", "Training"


@dataclass(frozen=True)
class PruningOptions:
    """What is removed, and when."""

    target: Annotated[
        list[Any] | None,
        typer.Option(
            parser=goal,
            metavar="GOAL=SHARE",
            help="What may be left of params, macs, file_bytes or latency, such as params=25%: as few channels as "
            "possible are removed to reach it. Once for each.",
            show_default="none",
        ),
    ] = None
    max_quality_drop: Annotated[
        float | None,
        typer.Option(
            parser=drop,
            metavar="DROP",
            help="How much of the task's measure may be lost, such as 1% or 0.01 of accuracy, mean IoU or R²; "
            "without --target, as many channels are removed as that allows.",
            show_default="none",
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(parser=drop, metavar="DROP", help="The older name of --max-quality-drop.", show_default="none"),
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
            parser=pair(":", "2:4"),
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
            parser=pair("x", "4x4"), metavar="ROWSxCOLUMNS", help="--blocks: how large one is.", show_default="4x4"
        ),
    ] = None
    residual_blocks: Annotated[
        float | None,
        typer.Option(parser=share, metavar="SHARE", help="Share of whole residual blocks to remove, such as 25%."),
    ] = None
    layer_amount: Annotated[
        list[Any] | None,
        typer.Option(
            parser=layer_amount,
            metavar="PATTERN=SHARE",
            help="Another share for layers whose name matches, such as 'conv*=30%'; the first match counts.",
            show_default="none",
        ),
    ] = None
    round_to: Annotated[
        int | None,
        typer.Option(help="Keep a multiple of so many channels in each layer, such as 8.", show_default="any number"),
    ] = None
    uniform: Annotated[
        bool | None,
        typer.Option(
            "--uniform/--no-uniform",
            help="Of a Hugging Face model folder: remove only what its config.json can say.",
            show_default="uniform where the result is a folder",
        ),
    ] = None
    streamed: Annotated[
        bool | None,
        typer.Option(
            "--streamed/--no-streamed",
            help="Of a folder of a Llama, Mistral or Qwen2: layer by layer, in the memory of one, without retraining.",
            show_default="streamed above 2 GiB of weights where nothing needs all of them at once",
        ),
    ] = None
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches this pattern.", show_default="*")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="No layer whose name matches this pattern.", show_default="none")
    ] = None
    output_width: Annotated[
        Literal["keep", "project"],
        typer.Option(
            help="project: the hidden width that an embedding model answers with shrinks too, and is projected back.",
        ),
    ] = "keep"
    criterion: Annotated[
        Criterion,
        typer.Option(
            help="How importance is scored; the least important is removed first. "
            f"{listed(needing_data(), 'and')} need --data."
        ),
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
            help="Remove all at once; in steps, the same share of what is left each time; or fast at first and then "
            "ever slower.",
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
            parser=shares,
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
            help="cubic: the share of the training over which weights are removed.",
            show_default=_default(PruneSpec, "ramp"),
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    regrow: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="cubic: the share of the remaining weights that may change places with removed ones each time.",
            show_default="none",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None
    input_shape: InputShape = None

    def spec(self) -> dict[str, Any]:
        """The fields of a prune spec; a field that was not given is left out."""
        goals = dict(self.target or []) | without_none(
            max_quality_drop=self.max_quality_drop, max_accuracy_drop=self.max_accuracy_drop
        )
        amounts = without_none(
            channel=self.channels,
            head=self.heads,
            residual_block=self.residual_blocks,
            weight=self.weights,
            block=self.blocks,
        )
        if len(amounts) + (self.n_m is not None) + bool(goals) != 1:
            raise typer.BadParameter(
                "give a goal, such as --target params=25%, or one of --channels, --heads, --residual-blocks, "
                "--weights, --blocks and --n-m, such as --channels 50%"
            )
        granularity, amount = next(iter(amounts.items()), ("channel" if goals else "n:m", None))
        return {
            "granularity": granularity,
            "criterion": self.criterion,
            **without_none(
                target=goals or None,
                amount=amount,
                round_to=self.round_to,
                uniform=self.uniform,
                streamed=self.streamed,
                n_m=self.n_m,
                block=self.block_size,
                amounts=self.layer_amount and dict(self.layer_amount),
                include=self.include,
                exclude=self.exclude,
                output_width=None if self.output_width == "keep" else self.output_width,
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


def _schedule(default: str) -> Any:
    return typer.Option(
        help="Whether the learning rate stays, or falls to 0 along half a cosine.",
        show_default=default,
        rich_help_panel=_TRAINING,
    )


def _warmup(default: str) -> Any:
    return typer.Option(
        parser=share,
        metavar="SHARE",
        help="The share of the training over which the learning rate first rises.",
        show_default=default,
        rich_help_panel=_TRAINING,
    )


@dataclass(frozen=True)
class TrainingOptions:
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
            show_default=_rates(Train),
            rich_help_panel=_TRAINING,
        ),
    ] = None
    lr_schedule: Annotated[LrSchedule | None, _schedule(_default(Train, "lr_schedule"))] = None
    warmup: Annotated[float | None, _warmup("none")] = None
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
    augment: Annotated[
        list[Any] | None,
        typer.Option(
            parser=change,
            metavar="CHANGE[=NUMBER]",
            help="Change training samples at random, such as horizontal_flip, crop=4 (pixels), resized_crop=0.3 (least "
            "area), color_jitter=0.4, erasing=0.5, mixup=0.2, cutmix=1 or token_dropout=0.1. Once for each.",
            show_default="none",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    class_weights: Annotated[
        Any,
        typer.Option(
            parser=class_weights,
            metavar="WEIGHTS",
            help="Of each class in the loss on labels, such as 1,5; or balanced, by which all classes weigh the same.",
            show_default="none",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            help="Share of each label that is spread over all classes.",
            show_default=_default(Train, "label_smoothing"),
            rich_help_panel=_TRAINING,
        ),
    ] = None

    def spec(self) -> dict[str, Any]:
        """The fields of a training run; a field that was not given is left out."""
        return without_none(**{**vars(self), "augment": dict(self.augment) if self.augment else None})


@dataclass(frozen=True)
class RetrainingOptions(TrainingOptions):
    """How a pruned model is retrained."""

    optimizer: Annotated[
        Optimizer | None,
        typer.Option(help="Optimizer.", show_default=_default(Retrain, "optimizer"), rich_help_panel=_TRAINING),
    ] = None
    teach: Annotated[
        bool | None,
        typer.Option(
            help="Learn from the outputs of the original model, beside the labels.",
            show_default="teach, where SGD trains a classifier",
            rich_help_panel=_TRAINING,
        ),
    ] = None


@dataclass(frozen=True)
class StudentTrainingOptions(TrainingOptions):
    """How a student is trained."""

    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Epochs of training.", show_default=TeachTrain.usual_length, rich_help_panel=_TRAINING
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate.", show_default=_rates(TeachTrain), rich_help_panel=_TRAINING),
    ] = None
    lr_schedule: Annotated[LrSchedule | None, _schedule(_default(TeachTrain, "lr_schedule"))] = None
    warmup: Annotated[float | None, _warmup(_default(TeachTrain, "warmup"))] = None
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(help="Optimizer.", show_default=_default(TeachTrain, "optimizer"), rich_help_panel=_TRAINING),
    ] = None
