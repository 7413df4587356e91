"""Configures the task of a job: by the data and the model's outputs, how the model ends, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pydantic
import torch
from torch import Tensor

from pared.compression.data import Data, load_dataset
from pared.compression.data.class_names import numbered_by_alphabet, read_as_by
from pared.compression.data.columns import chunks
from pared.compression.jobs.fitting import answer_to, check_fits
from pared.compression.jobs.unlabelled import LIKE_THE_TEACHER, hold_no_labels, labelled_by
from pared.compression.loading import LoadedModel
from pared.compression.measuring.references import with_references
from pared.compression.measuring.running import own_failures
from pared.compression.tasks import Match, Options, Piece, TaskRules, pieces_of
from pared.compression.tasks.base import NoLabels
from pared.compression.tasks.heads import head_of
from pared.compression.tasks.outputs import named_outputs, path_of, same_by_number
from pared.compression.tasks.references import scaled
from pared.compression.training.augmentation import check_augmentation
from pared.compression.training.calibration import copied
from pared.compression.work import DatasetFile, Work
from pared.errors import ModelFailed, ValidationError
from pared.specs import (
    WITHOUT_CLASSES,
    WITHOUT_LABELS,
    Augment,
    CompressionSpec,
    DistillSpec,
    Knowledge,
    PruneSpec,
    QuantizeSpec,
    Task,
    Training,
)
from pared.specs.advice import advised
from pared.specs.pruning import SOFTENED_CLASSES

_Spec = TypeVar("_Spec", bound=CompressionSpec)

_SOME = 8  # samples that tell the form of a model's answers
_MANY = 64  # that tell how large they are

_FLAT = (
    "SGD was asked to learn the original's answers, whose distance is a small number: it may get nearer with an `lr` "
    "of 0.05 to 0.1, or with `optimizer` adam, for which no size of a loss matters."
)
_OF_MADE = (
    "No `task` was named: the student learned the numbers of the teacher's outputs (task=match). Where these are odds "
    "of classes, name the task, such as classification: the student then learns the softened classes."
)
_HEADS = {
    "softmax": "a softmax, so that its outputs are probabilities. It is trained and scored on their logarithms",
    "sigmoid": "a sigmoid, so that its outputs are probabilities. It is trained and scored on the logits before it",
}


def data_of(
    spec: _Spec, work: Work, original: LoadedModel, *, beside: bool = False, made: Data | None = None
) -> tuple[_Spec, Data | None]:
    """The job's data set, if it names one, with its configured task; and the spec that names this task.

    Where a student learns a task with labels from samples without any, its teacher's answers stand in their place.

    Args:
        beside: never to compute the original's answers ahead, where a task learns these.
        made: samples that were made up for a job without a data set.

    Raises:
        ParedError: data and model, or task and model, do not fit.
    """
    data = made if work.dataset is None else _loaded(spec, work.dataset, original)
    if data is None:
        return spec, None
    if not data.labelled and isinstance(spec, DistillSpec) and spec.task not in (None, data.task.name):
        hold_no_labels(spec)
        if isinstance(spec.loss, Knowledge):
            spec = spec.model_copy(update={"loss": spec.loss.model_copy(update={"labels": 0.0})})
        data = labelled_by(original, data, Options(spec.task, spec.output_path, spec.ignore_index), device=work.device)
        if made is None:
            data.warnings.append(LIKE_THE_TEACHER)
    if isinstance(data.task, Match):
        answer_to(original, data)  # which brings inputs into the model's order, and says whether it gets a mask
        data.task = replace(data.task, pieces=_pieces(data, original, None))
    answer = check_fits(original, data)
    data.task = replace(data.task, head=head_of(original.module, data.example(), data.task))
    if data.task.head != "logits":
        data.warnings.append(f"The model ends in {_HEADS[data.task.head]}.")
    data.task = replace(data.task, held=_held(data, original, answer))
    training = getattr(spec, "retrain", None) or getattr(spec, "train", None)
    if training is not None:
        data.task = _trained_by(training, data, answer)
    if spec.task is None and data.task.name != "classification":
        data.warnings.append(_said(data.task) if made is None else _OF_MADE)
    if data.task.has_references and training is not None and training.trains and training.optimizer == "sgd":
        data.warnings.append(_FLAT)
    spec = _for_task(spec, data)
    augment = training.augment if training is not None and training.trains else None
    if augment is not None:
        pointer = f"/{'train' if isinstance(spec, DistillSpec) else 'retrain'}/augment"
        _check_changes(augment, data, original, pointer)
    if data.task.has_references:
        # Answers to texts are as long as the longest of their batch.
        beside = beside or augment is not None or data.padding is not None
        data = with_references(data, copied(original.module).eval(), device=work.device, beside=beside)
    return spec, data


def _loaded(spec: CompressionSpec, dataset: DatasetFile, original: LoadedModel) -> Data:
    if original.folder is not None:
        dataset = read_as_by(original.folder.path, dataset)
    names = dataset.classes

    def loaded(task: Task | None, output: str | None, ignored: int | None) -> Data:
        data = load_dataset(
            dataset,
            task=task,
            preprocess=spec.preprocess,
            seed=spec.seed,
            output=output,
            ignored=ignored,
            answer=lambda data: answer_to(original, data),
        )
        # Folders of images are numbered by the alphabet wherever they are read; of words nobody knows.
        if data.class_names is not None and data.format != "image_folder" and data.class_names != list(names):
            data.warnings.append(numbered_by_alphabet(data.class_names, names))
        return data

    try:
        return loaded(spec.task, spec.output_path, spec.ignore_index)
    except NoLabels:
        if not isinstance(spec, DistillSpec):
            raise
        return loaded("match", None, None)


def _check_changes(augment: Augment, data: Data, original: LoadedModel, pointer: str) -> None:
    inputs, target = data.take("train", torch.arange(2))
    check_augmentation(augment, inputs, target[:, :0] if data.task.has_references else target, pointer)
    if augment.token_dropout is None:
        return
    index = next(index for index, each in enumerate(inputs) if each.dtype == torch.int64 and each.dim() == 2)
    dropped = torch.full_like(inputs[index], augment.token_dropout.id)
    try:
        with torch.no_grad(), own_failures():
            original.module(*inputs[:index], dropped, *inputs[index + 1 :])
    except ModelFailed as error:
        text = (
            f"`token_dropout` puts in the token id {augment.token_dropout.id}, on which the model fails: name one of "
            f"its vocabulary. {error.detail}"
        )
        raise ValidationError(text, errors=[{"pointer": f"{pointer}/token_dropout/id", "detail": text}]) from error


def _said(task: TaskRules) -> str:
    """How a task was found that no spec names."""
    if task.name == "match":
        return (
            "The data set has no labels: the model is trained and scored by its own answers as it was uploaded "
            "(task=match)."
        )
    return f"No `task` was named: by the labels and the model's outputs it is task={task.name}."


def _pieces(data: Data, original: LoadedModel, main: str | None) -> tuple[Piece, ...]:
    """All that the model answers for each sample, but for its main output; what else it answers is said."""
    answers = []
    for samples in (_SOME, _SOME + 1):
        with torch.no_grad(), own_failures():
            answers.append(original.module(*data.example(samples)))
    pieces, left_out = pieces_of(answers[0], answers[1], main)
    if main is None and not any(piece.floating for piece in pieces):
        raise ModelFailed(
            "The model answers no float tensor with an entry for each sample, so that nothing can be compared with its "
            "own answers. Wrap it so that it returns one."
        )
    if left_out:
        names = ", ".join(path or "0" for path in left_out)
        data.warnings.append(f"Outputs without one entry for each sample are not held to the original's: {names}.")
    return tuple(scaled(pieces, _answers_to_some(data, original))) if pieces else ()


def _answers_to_some(data: Data, original: LoadedModel) -> Iterator[Any]:
    """Not few, for what is rare counts too."""
    for rows in torch.split(data.spread("train", _MANY), _SOME):
        with torch.no_grad(), own_failures():
            yield original.module(*data.take("train", rows)[0])


def _held(data: Data, original: LoadedModel, answer: Any) -> Match | None:
    """The rules of the outputs that no labels belong to. `answer`: of the original, to two samples."""
    outputs = named_outputs(answer)
    if isinstance(data.task, Match) or len(outputs) < 2:
        return None
    main = path_of(outputs, data.task.output)
    pieces = _pieces(data, original, main)
    if not any(piece.floating for piece in pieces):
        return None
    names = ", ".join(piece.path for piece in pieces)
    data.warnings.append(
        f"The labels belong to the output {main}; the others are held to the uploaded model's answers: {names}."
    )
    return Match(pieces=pieces)


def _trained_by(training: Training, data: Data, answer: Any) -> TaskRules:
    """The rules with what a training says of classes. `answer`: of the original, to two samples."""
    task = data.task
    if training.names_classes and task.name in WITHOUT_CLASSES:
        return task  # refused beneath
    weights = None
    if training.class_weights is not None:
        output = task.taken(answer, 2)
        classes = task.rows(output, data.take("train", torch.arange(2))[1])[0].shape[1]
        weights = _balanced(data, classes)
        if training.class_weights != "balanced":
            weights = torch.tensor(training.class_weights)
        if len(weights) != classes or not bool(weights.any()):
            text = f"class_weights has {len(weights)} entries, not all 0, where the model has {classes} classes"
            raise ValidationError(text, errors=[{"pointer": "/class_weights", "detail": text}])
    return replace(task, class_weights=weights, smoothing=training.label_smoothing)


def for_student(data: Data, student: LoadedModel, teacher: LoadedModel) -> Data:
    """The same samples with the task of a student, which may end otherwise than its teacher, and have one output alone.

    Raises:
        ParedError: the student and the data do not fit.
    """
    answers = [answer_to(each, data) for each in (student, teacher)]
    outputs, of_teacher = map(named_outputs, answers)
    task = replace(data.task, head="logits", held=None if len(outputs) == 1 else data.task.held)
    paths, of_paths = ([path for path, _ in each] for each in (outputs, of_teacher))
    if len(paths) == len(of_paths) > 1 and task.output in of_paths and same_by_number(of_paths, paths):
        task = replace(task, output=paths[of_paths.index(task.output)])
    task = replace(task, head=head_of(student.module, data.example(), task))
    if isinstance(task, Match):
        task.taken(answers[1], len(data.example()[0]))  # whose shapes a student's must be
    data = replace(data, task=task)
    check_fits(student, data)
    return data


def _balanced(data: Data, classes: int) -> Tensor:
    """n / (K · n_c) for each of the K classes that occur, by which all weigh the same; of labels, (n − n_c) / n_c."""
    counts = torch.zeros(classes, dtype=torch.float64)
    of_labels = data.targets["train"].dtype.is_floating_point
    for _, stored in chunks(data.targets["train"]):
        target = data.labels(stored)
        counts += target.double().sum(0) if of_labels else target[target >= 0].bincount(minlength=classes)
    if of_labels:
        return torch.where(counts > 0, (data.samples("train") - counts) / counts.clamp_min(1), 1.0).float()
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp_min(1)), 1.0).float()


def _for_task(spec: _Spec, data: Data) -> _Spec:
    """The spec with its task named, and with what that task learns from where the spec says nothing of it.

    Raises:
        ValidationError: what the spec says does not go with the task.
    """
    name = data.task.name
    if spec.task is not None or (name == "classification" and spec.ignore_index is None):
        return spec.model_copy(update={"task": name})
    document = spec.model_dump() | {"task": name}
    if name in WITHOUT_CLASSES and isinstance(spec, (PruneSpec, QuantizeSpec)):
        teach = None if spec.retrain is None else spec.retrain.teach
        if teach == Knowledge.model_validate(SOFTENED_CLASSES) or (name in WITHOUT_LABELS and teach is not None):
            document["retrain"] = document["retrain"] | {"teach": None}
    elif name in WITHOUT_CLASSES and isinstance(spec, DistillSpec) and spec.loss == Knowledge(kind="knowledge"):
        document["loss"] = {"kind": "output_mse"}
    try:
        return type(spec).model_validate(document)
    except pydantic.ValidationError as error:
        errors = advised(error.errors(), document, type(spec))
        why = "; ".join(f"{each['pointer']} {each['detail']}" for each in errors)
        raise ValidationError(f"By data and model this is task={name}, and {why}.", errors=errors) from error
