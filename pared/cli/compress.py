"""Commands that make models smaller: `prune`, `distill`, `quantize`, `compress`, and `plan`: what `prune` would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pared.cli.completion import models_and_files
from pared.cli.downloads import check_writable, formats_of
from pared.cli.exits import MISSED
from pared.cli.int8_options import Int8Options
from pared.cli.jobs import submit_and_follow
from pared.cli.losses import LOSS_HELP, loss_of, loss_part
from pared.cli.missed_goals import told_of_missed_goal
from pared.cli.options import PruningOptions, RetrainingOptions, StudentTrainingOptions
from pared.cli.parsers import architecture_of, drop, goal, model_upload, without_none
from pared.cli.rendering import err, out, print_json, say
from pared.cli.result_options import ResultOptions
from pared.cli.shared_options import (
    AsJson,
    Data,
    DeviceOptions,
    LabelOptions,
    ModelArgument,
    Output,
    Quiet,
    Seed,
    WeightsOptions,
)
from pared.cli.student_options import StudentOptions
from pared.cli.uploads import stored
from pared.client import Client, Plan
from pared.job_types import STEPS
from pared.specs import Knowledge, Target
from pared.specs.choosing import chosen_steps

KNOWLEDGE = Knowledge(kind="knowledge")


def prune(
    context: typer.Context,
    model: ModelArgument,
    pruning: PruningOptions,
    training: RetrainingOptions,
    weights: WeightsOptions,
    labels: LabelOptions,
    devices: DeviceOptions,
    files: ResultOptions,
    data: Data = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="For a state dict: a name such as resnet50, vit_b_16 or lenet5 (docs/models.md lists all), or a .json "
            'file with {"name": …, "kwargs": {…}} or the layers. Published weights of torchvision need none.'
        ),
    ] = None,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove channels or weights from a model, retrain it, and download the result."""
    fields = {**pruning.spec(), **labels.spec(), **_common_fields(seed, output), **devices.spec(), **files.spec()}
    retrain = training.spec()
    if data is None and retrain:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in retrain)
        raise typer.BadParameter(f"retraining needs --data: give it too, or leave out {options}")
    if data is not None and pruning.input_shape and all(map(_is_plain, pruning.input_shape)):
        raise typer.BadParameter("give one of --data and --input-shape: the data shows the inputs")
    if pruning.quantize is not None and "packed" not in (fields["outputs"] or []):
        raise typer.BadParameter("--quantize makes packed files smaller, and no other: give -o with the ending .packed")
    if data is not None:
        fields["retrain"] = retrain
    made = architecture_of(architecture)
    with Client() as client:
        spec = {
            "type": "prune",
            "model": stored(client.models, model, err, made, **weights.of_upload()).id,
            "architecture": made,  # an upload that is given by its id may have none
            "dataset": _dataset_id(client, data),
            **fields,
        }
        if context.info_name == "plan":
            _print_plan(client.jobs.plan(spec), as_json=as_json)
        else:
            submit_and_follow(client, spec, output, as_json=as_json)


def distill(
    teacher: Annotated[
        str,
        typer.Option(
            parser=model_upload,
            autocompletion=models_and_files,
            metavar="FILE",
            help="TorchScript, a torch.export program, ONNX, a state dict, a model folder, or the id of an upload.",
        ),
    ],
    cut: StudentOptions,
    training: StudentTrainingOptions,
    weights: WeightsOptions,
    labelled: LabelOptions,
    devices: DeviceOptions,
    files: ResultOptions,
    data: Data = None,
    student: Annotated[
        str | None,
        typer.Option(
            parser=model_upload, autocompletion=models_and_files, metavar="FILE", help="The student as a file or an id."
        ),
    ] = None,
    teacher_architecture: Annotated[
        str | None, typer.Option(help="For a teacher that is a state dict: a name, or a .json file.")
    ] = None,
    student_architecture: Annotated[
        str | None, typer.Option(help="A name, or a .json file: the student itself, or that of its state dict.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help=LOSS_HELP,
            show_default="knowledge; output_mse for a regression",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="knowledge: the weight of the output distance.", show_default=str(KNOWLEDGE.alpha)),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="knowledge, kl, decoupled, dist: softens the outputs.", show_default=str(KNOWLEDGE.temperature)
        ),
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(help="knowledge: the share of the loss on the labels.", show_default=str(KNOWLEDGE.label_share)),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Also train the same student on labels alone.")] = False,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a smaller student to answer as the teacher does, and download it."""
    made, teachers = architecture_of(student_architecture), architecture_of(teacher_architecture)
    from_teacher = cut.spec()
    if [student, from_teacher].count(None) == 0 or (student is None and from_teacher is None and made is None):
        raise typer.BadParameter("give one of --student, --width (or --depth, --target) and --student-architecture")
    if from_teacher is not None and made is not None:
        raise typer.BadParameter(
            "a student of the teacher's --width or --depth has the teacher's architecture; name no other one"
        )
    if data is not None and cut.input_shape and all(map(_is_plain, cut.input_shape)):
        raise typer.BadParameter("give one of --data and --input-shape: the data shows the inputs")
    weighing = without_none(alpha=alpha, temperature=temperature, labels=labels)
    learned = loss_of([loss_part(each) for each in loss or []], weighing)
    with Client() as client:
        spec: dict[str, Any] = {
            "type": "distill",
            "teacher": stored(
                client.models, teacher, err, teachers, weights=weights.state_dict, prefix=weights.prefix
            ).id,
            "teacher_architecture": teachers,
            "dataset": _dataset_id(client, data),
            "train": training.spec(),
            "compare_with_labels_only": compare,
            **labelled.spec(),
            **_common_fields(seed, output),
            **devices.spec(),
            **files.spec(),
            **cut.beside(),
        }
        if learned is not None:
            spec["loss"] = learned
        if cut.also_teacher:
            spec["teachers"] = [{"model": stored(client.models, each, err).id} for each in cut.also_teacher]
        if student is not None:
            spec |= {"student": stored(client.models, student, err, made).id, "student_architecture": made}
        elif from_teacher is not None:
            spec["student"] = {"from_teacher": from_teacher}
        else:
            spec["student"] = {"name": made} if isinstance(made, str) else made
        submit_and_follow(client, spec, output, as_json=as_json)


def quantize(
    model: ModelArgument,
    int8: Int8Options,
    training: RetrainingOptions,
    weights: WeightsOptions,
    labels: LabelOptions,
    files: ResultOptions,
    data: Data = None,
    architecture: Annotated[
        str | None, typer.Option(help="For a state dict: a name, or a .json file. Its weights alone need none.")
    ] = None,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model int8, measure it in the runtime that runs it, and download the result.

    It is trained, while it computes with rounded weights, where an option of training is given.
    """
    fields = {**int8.spec(), **labels.spec(), **_common_fields(seed, output), **files.spec()}
    retrain = training.spec()
    if retrain and data is None:
        raise typer.BadParameter("training needs --data: give it too, or leave out the options of training")
    if retrain:
        fields["retrain"] = retrain
    if data is not None and int8.input_shape and all(map(_is_plain, int8.input_shape)):
        raise typer.BadParameter("give one of --data and --input-shape: the data shows the inputs")
    made = architecture_of(architecture)
    with Client() as client:
        spec = {
            "type": "quantize",
            "model": stored(client.models, model, err, made, **weights.of_upload()).id,
            "architecture": made,
            "dataset": _dataset_id(client, data),
            **fields,
        }
        submit_and_follow(client, spec, output, as_json=as_json)


def compress(
    model: ModelArgument,
    weights: WeightsOptions,
    labels: LabelOptions,
    devices: DeviceOptions,
    files: ResultOptions,
    target: Annotated[
        list[Any] | None,
        typer.Option(
            parser=goal,
            metavar="GOAL=SHARE",
            help="What may be left of file_bytes, params, macs or latency, such as file_bytes=10%. Once for each.",
            show_default="none",
        ),
    ] = None,
    max_quality_drop: Annotated[
        float | None,
        typer.Option(
            parser=drop,
            metavar="DROP",
            help="How much of the task's measure may be lost, such as 1% or 0.01 of accuracy.",
            show_default="none",
        ),
    ] = None,
    data: Data = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training.", show_default="as each step has")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and do nothing.")] = False,
    architecture: Annotated[str | None, typer.Option(help="For a state dict: a name, or a .json file.")] = None,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model as small as you say: the steps are chosen, run as one pipeline, and the result is downloaded."""
    goals = dict(target or []) | without_none(max_quality_drop=max_quality_drop)
    if not goals:
        raise typer.BadParameter("say what to come to, such as --target file_bytes=10% or --max-quality-drop 1%")
    if data is None and (epochs is not None or max_quality_drop is not None):
        option = "--epochs" if epochs is not None else "--max-quality-drop"
        raise typer.BadParameter(f"{option} needs --data: give it too, or leave {option} out")
    fields = {**labels.spec(), **_common_fields(seed, output), **devices.spec()}
    choice = chosen_steps(
        Target(**goals), types=STEPS, with_data=data is not None, outputs=fields["outputs"] or (), epochs=epochs
    )
    err.print(" → ".join(choice.names), style="bold")
    for reason in choice.why:
        err.print(f"  {reason}")
    made = architecture_of(architecture)
    with Client() as client:
        spec = {
            "type": "pipeline",
            "model": stored(client.models, model, err, made, **weights.of_upload()).id,
            "architecture": made,
            "dataset": _dataset_id(client, data),
            "target": goals,
            "steps": choice.steps,
            **fields,
            **files.spec(),
        }
        if only_plan:
            _print_plan(client.jobs.plan(spec), as_json=as_json)
        else:
            submit_and_follow(client, spec, output, as_json=as_json)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        out.print(plan)
    if missed := told_of_missed_goal(plan):
        say(missed)
        raise typer.Exit(MISSED)


def _is_plain(entry: dict[str, Any]) -> bool:
    """Whether an argument is a tensor as a data set has it."""
    return "shape" in entry and not entry.get("batch_dim")


def _common_fields(seed: int, output: list[Path] | None) -> dict[str, Any]:
    outputs = formats_of(output or []) or None
    check_writable(output or [])
    return {"seed": seed, "outputs": outputs}


def _dataset_id(client: Client, data: str | None) -> str | None:
    if data is None or data.startswith("builtin:"):
        return data
    return stored(client.datasets, data, err).id
