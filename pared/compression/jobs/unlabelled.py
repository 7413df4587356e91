"""Gives samples without labels those that a model itself answers, for a student that learns from it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.data.columns import Column, in_memory
from pared.compression.data.samples import NO_CLASS, SPLITS, Split
from pared.compression.devices.memory import BatchSize
from pared.compression.devices.placement import place
from pared.compression.jobs.fitting import answer_to
from pared.compression.loading import LoadedModel
from pared.compression.measuring.running import EVALUATION_BATCH, forward, unoptimized
from pared.compression.tasks import Options, TaskRules, make_task
from pared.compression.tasks.base import StoredLabels
from pared.compression.tasks.dense import DenseClassification, Segmentation
from pared.compression.tasks.heads import head_of
from pared.compression.tasks.labels import IGNORED
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.training.calibration import copied
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Combined, DistillSpec

_MOST_BYTES = 1 << 31
"""Most bytes of answers that stand in the place of labels."""

LIKE_THE_TEACHER = (
    "The data set has no labels: in the scores the teacher's own answers stand in their place. They say how often the "
    "student answers as the teacher does, not how often either is right."
)


def labelled_by(original: LoadedModel, data: Data, options: Options, *, device: str) -> Data:
    """The same samples with the answers of a model as their labels, and the task of these.

    Args:
        original: in eval mode, on the CPU.
        data: without labels.
        options: name the task, which is one with labels.

    Raises:
        ParedError: the model's outputs are not of the task, or do not fit the data.
    """
    answer = answer_to(original, data)
    task = make_task(options, StoredLabels({}, None, {}), answer)
    example = data.example()
    if isinstance(task, Segmentation):
        output = task.taken(answer, 2)
        task = replace(task, flat=output.dim() == 3 and example[0].dim() == 4)
    data = replace(data, task=replace(task, head=head_of(original.module, example, task)))
    output = data.task.taken(answer, 2)
    dense = isinstance(data.task, DenseClassification)
    classes = output.shape[data.task.class_dim] if isinstance(data.task, DenseClassification) else None
    if classes is None and data.task.softens:
        classes = output.shape[1]
    numbers = output[0].numel() // (classes if dense and classes else 1)
    size = (8 if data.task.softens else 4) * numbers * sum(data.samples(split) for split in SPLITS)
    if size > _MOST_BYTES:
        text = (
            f"The teacher's answers to all samples would take {size / 1e9:.1f} GB in the place of labels: give fewer "
            "samples, or labels, or use task=match, which computes the answers of each batch as they are needed."
        )
        raise ValidationError(text, errors=[{"pointer": "/dataset", "detail": text}])
    module = copied(original.module).eval()
    place(module, device)
    targets: dict[Split, Column] = {split: _answers(module, data, split, device) for split in SPLITS}
    return replace(data, targets=targets, classes=classes, labelled=False)


def hold_no_labels(spec: DistillSpec) -> None:
    """Refuse what needs labels, where the data set has none.

    Raises:
        ValidationError: with a pointer to each such field.
    """
    why = {}
    if getattr(spec.loss, "labels", 0):
        why["/loss/labels"] = "is a share of the loss on labels"
    if isinstance(spec.loss, Combined):
        unfit = spec.loss.unfit(classes=True, labels=False, one_output=True)
        why |= dict.fromkeys((f"/loss/{path}" for path in unfit), "is of labels")
    if spec.compare_with_labels_only:
        why["/compare_with_labels_only"] = "trains on labels"
    if spec.combine == "best":
        why["/combine"] = "tells the best teacher by labels; make it mean"
    if spec.train.names_classes:
        why[f"/train/{spec.train.names_classes}"] = "is of the loss on labels"
    if why:
        errors = [{"pointer": pointer, "detail": f"{text}, and the data set has none"} for pointer, text in why.items()]
        text = "The data set has no labels, and what needs them must be left out: " + "; ".join(
            f"{each['pointer']} {each['detail']}" for each in errors
        )
        raise ValidationError(f"{text}.", errors=errors)


def _answers(module: nn.Module, data: Data, split: Split, device: str) -> Tensor:
    """The labels of a split, on the CPU, in its stored order."""
    task, there = data.task, data.on(device)

    def run(size: int) -> Tensor:
        parts: list[Tensor] = []
        for inputs, _ in there.batches(split, size):
            labels = _labels(task, forward(module, inputs, task)).cpu()
            done = sum(map(len, parts))
            parts.append(_padded(data, split, inputs[0], labels, done) if _is_of_tokens(data) else labels)
        return torch.cat(parts)

    with torch.no_grad(), unoptimized():
        labels = BatchSize(EVALUATION_BATCH).run(run, data.samples(split), "run the teacher")
    if isinstance(task, Segmentation) and int(labels.max()) < NO_CLASS:
        return labels.to(torch.uint8)
    return labels


def _is_of_tokens(data: Data) -> bool:
    return data.padding is not None and isinstance(data.task, DenseClassification)


def _padded(data: Data, split: Split, tokens: Tensor, labels: Tensor, first: int) -> Tensor:
    """Labels of texts as they are stored: of the width of the longest, and none where a text has ended."""
    if labels.shape[1:] != tokens.shape[1:]:
        raise ShapeMismatch(
            f"The teacher answers {tuple(labels.shape[1:])} places a text that has {tokens.shape[1]} tokens: "
            f"task={data.task.name} needs an answer to each token."
        )
    stored, lengths = data.inputs[split][:2]
    width = stored.shape[1]
    padded = torch.full((len(labels), width), IGNORED, dtype=torch.int64)
    padded[:, : labels.shape[1]] = labels
    ends = in_memory(lengths).reshape(-1, 1)[first : first + len(labels)]
    return padded.masked_fill(torch.arange(width) >= ends, IGNORED)


def _labels(task: TaskRules, output: Tensor) -> Tensor:
    """What a label is in this task, of an output of some samples."""
    if not task.softens:
        return output
    if isinstance(task, Multilabel):
        return (output > 0).float()
    return output.argmax(task.class_dim if isinstance(task, DenseClassification) else 1)
