"""Which task a job has: by its labels and the model's outputs, by how the model ends, and what is refused and why."""

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.data import load_dataset
from pared.compression.jobs.fitting import answer_to, check_fits
from pared.compression.loading import LoadedModel
from pared.compression.tasks import TASKS, Options, StoredLabels, likely_task, make_task
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.heads import head_of
from pared.compression.tasks.labels import IGNORED
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, ModelFailed, ParedError, ShapeMismatch, ValidationError

N = 24
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, 3, 4, 4)).astype("float32")
TOKENS = RNG.integers(0, 9, (N, 5))
CLASSES = np.arange(N) % 3
MASKS = RNG.integers(0, 4, (N, 4, 4))
BITS = RNG.random((N, 4)) > 0.5
NUMBERS = RNG.normal(size=(N, 4)).astype("float32")


def stored(y, x=IMAGES, class_names=None):
    arrays = {} if y is None else {"train": np.asarray(y)}
    return StoredLabels(arrays, class_names, {"train": torch.as_tensor(x)})


def guessed(y, answer, x=IMAGES, **options):
    task = make_task(Options(**options), stored(y, x), answer)
    return task.name, task.output


@pytest.mark.parametrize(
    ("y", "shape", "x", "task"),
    [
        (CLASSES, (2, 3), IMAGES, "classification"),
        (CLASSES.astype("float64"), (2, 3), IMAGES, "classification"),
        (np.array(list("abc"))[CLASSES], (2, 3), IMAGES, "classification"),
        (np.eye(3)[CLASSES], (2, 3), IMAGES, "classification"),
        (CLASSES > 0, (2, 1), IMAGES, "binary"),
        ((CLASSES > 0)[:, None].astype("float32"), (2,), IMAGES, "binary"),
        (CLASSES > 0, (2, 2), IMAGES, "classification"),
        (NUMBERS[:, 0], (2, 1), IMAGES, "regression"),
        (NUMBERS[:, 0], (2,), IMAGES, "regression"),
        (CLASSES.astype("float32"), (2, 1), IMAGES, "regression"),
        (BITS, (2, 4), IMAGES, "multilabel"),
        (BITS.astype("float32"), (2, 4), IMAGES, "multilabel"),
        (NUMBERS, (2, 4), IMAGES, "regression"),
        (MASKS, (2, 4, 4, 4), IMAGES, "segmentation"),
        (MASKS[:, None], (2, 5, 4, 4), IMAGES, "segmentation"),
        (MASKS > 1, (2, 1, 4, 4), IMAGES, "segmentation"),
        ((MASKS > 1)[:, None] * 255, (2, 1, 4, 4), IMAGES, "segmentation"),
        (MASKS.astype("float32"), (2, 4, 4, 4), IMAGES, "segmentation"),
        (MASKS > 1, (2, 4, 4), IMAGES, "segmentation"),
        (MASKS, (2, 4, 4), IMAGES, "regression"),
        (IMAGES, (2, 3, 4, 4), IMAGES, "regression"),
        (IMAGES[:, :1], (2, 1, 4, 4), IMAGES, "regression"),
        (np.roll(TOKENS, -1, 1), (2, 5, 9), TOKENS, "language_modeling"),
        (TOKENS % 3, (2, 5, 3), TOKENS, "token_classification"),
        (TOKENS % 3, (2, 5, 5), TOKENS, "token_classification"),
        (TOKENS % 3, (2, 3, 5), IMAGES, "segmentation"),
        (None, (2, 3), IMAGES, "match"),
    ],
)
def test_a_task_is_guessed_from_labels_and_outputs(y, shape, x, task):
    assert guessed(y, torch.randn(shape), x) == (task, None)


def test_the_output_that_fits_is_found_among_several():
    several = {"boxes": torch.randn(2, 4, 3), "scores": torch.randn(2, 3), "count": torch.tensor([1, 2])}
    assert guessed(CLASSES, several) == ("classification", "scores")
    assert guessed(CLASSES, several, task="classification") == ("classification", "scores")
    assert guessed(NUMBERS, [several, torch.randn(2, 4)]) == ("regression", "1")
    assert guessed(MASKS, {"out": torch.randn(2, 5, 4, 4), "aux": torch.randn(2, 5, 4, 4)}) == ("segmentation", "out")
    assert guessed(CLASSES, (torch.randn(2, 5), torch.randn(2, 3)), output="1") == ("classification", "1")
    with pytest.raises(ShapeMismatch, match=r"fit 0, 1\. Name the output"):
        guessed(CLASSES, (torch.randn(2, 5), torch.randn(2, 3)))
    with pytest.raises(ShapeMismatch, match=r"fit none of them.*task=match"):
        guessed(NUMBERS, (torch.randn(2, 5), torch.randn(2, 3)))


def test_names_that_a_trace_has_lost_are_told():
    with pytest.raises(ValidationError, match=r"no output 'logits'. It returns 0 \(2, 3\), 1 \(2, 5\).*by its number"):
        Classification(output="logits").taken((torch.randn(2, 3), torch.randn(2, 5)), 2)
    with pytest.raises(ModelFailed, match=r"a dict of 2 outputs: a \(2, 3\), b \(2, 5\).*\"output\": \"a\""):
        Classification().taken({"a": torch.randn(2, 3), "b": torch.randn(2, 5)}, 2)
    with pytest.raises(ModelFailed, match="without tensors"):
        Classification().taken({"a": 1}, 2)


def test_what_labels_look_like_without_a_model():
    looks = {
        "classification": [CLASSES, CLASSES * 1.0, np.eye(3)[CLASSES], np.array(list("abc"))[CLASSES]],
        "regression": [NUMBERS, NUMBERS[:, 0], IMAGES],
        "multilabel": [BITS],
        "segmentation": [MASKS],
        "match": [None],
    }
    for task, examples in looks.items():
        assert [likely_task(stored(each)) for each in examples] == [task] * len(examples)
    assert likely_task(stored(np.roll(TOKENS, -1, 1), TOKENS)) == "language_modeling"
    assert likely_task(stored(TOKENS % 3, TOKENS)) == "token_classification"


# -- labels -------------------------------------------------------------------------------------


def labels(task, y, x=IMAGES, **options):
    return TASKS[task](**options).labels(stored(y, x))


def test_marks_of_pixels_without_a_label_are_ignored():
    for mark in (255, -100, -1):
        masks = np.where(MASKS == 3, mark, MASKS)
        found = labels("segmentation", masks)
        assert found.classes == 3
        assert found.targets["train"].eq(IGNORED).equal(torch.from_numpy(MASKS == 3))
        assert str(mark) in found.notes[0]
    assert labels("segmentation", MASKS, ignored=3).classes == 3
    assert labels("segmentation", MASKS.astype("uint8")).targets["train"].dtype == torch.int64
    of_256 = np.arange(256).reshape(1, 16, 16).repeat(2, 0)
    assert labels("segmentation", of_256).classes == 256  # 255 is a class among all others
    two = labels("segmentation", (MASKS > 1) * 255)
    assert (two.classes, two.notes) == (2, ["The masks hold 0 and 255 alone: 255 is the class 1."])


def test_a_language_model_learns_its_own_next_tokens():
    found = labels("language_modeling", None, TOKENS)
    assert found.targets["train"][:, :-1].equal(torch.from_numpy(TOKENS[:, 1:]))
    assert set(found.targets["train"][:, -1].tolist()) == {IGNORED}


def test_one_logit_for_each_pixel_needs_no_dimension_of_its_own():
    flat = make_task(Options(task="segmentation"), stored(MASKS > 1), torch.randn(2, 4, 4))
    plain = make_task(Options(task="segmentation"), stored(MASKS > 1), torch.randn(2, 1, 4, 4))
    output = torch.randn(N, 4, 4)
    assert flat.taken(output, N).equal(plain.taken(output[:, None], N))
    found = flat.labels(stored(MASKS > 1)).targets
    assert flat.fitted(found, flat.taken(output, N))["train"].shape == (N, 4, 4)
    assert make_task(Options(task="segmentation"), stored(MASKS[:, 0]), torch.randn(2, 5, 4)).flat is False


REFUSED = {
    "one label an image": ("segmentation", CLASSES, "one label a sample.*task=classification"),
    "masks of fractions": ("segmentation", IMAGES, "no classes.*task=regression"),
    "all ignored": ("segmentation", MASKS * 0 + 255, "All pixels are ignored"),
    "one class but the ignored": ("segmentation", np.where(MASKS > 1, -100, 0), "nothing to tell apart.*task=match"),
    "labels below 0": ("segmentation", MASKS - 7, "label -7.*ignore_index"),
    "too many classes": ("segmentation", MASKS * 100_000, "too many classes"),
    "tokens of words": ("token_classification", np.array(list("abc"))[TOKENS % 3], "no classes"),
    "three classes for one logit": ("binary", CLASSES, "one logit.*task=classification.*task=regression"),
    "labels that are no bits": ("multilabel", NUMBERS, "a 0 or a 1.*task=classification.*task=regression"),
    "one class a sample, as several": ("multilabel", CLASSES, "a 0 or a 1"),
    "bits for a classification": ("classification", BITS, "task=multilabel"),
    "masks for a classification": ("classification", MASKS, "task=segmentation"),
    "tokens for a classification": ("classification", TOKENS, "task=token_classification"),
    "no labels": ("classification", None, "no labels.*task=match"),
    "no label that ever holds": ("multilabel", BITS & False, "same labels.*task=match"),
    "labels that all hold": ("multilabel", BITS | True, "same labels.*task=match"),
    "images without labels, as a text": ("language_modeling", None, "no token ids.*task=match"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_of_another_task_are_refused_with_the_one_that_fits(case):
    task, y, says = REFUSED[case]
    with pytest.raises(InvalidData, match=says):
        labels(task, y)


OUTPUTS = {
    "masks of another size": ("segmentation", MASKS[:, :2], (2, 4, 4, 4), r"\(4, 4\) pixels.*\(2, 4\).*resize"),
    "classes beyond the model": ("segmentation", MASKS, (2, 3, 4, 4), "up to 3, but the model has 3 classes"),
    "no map": ("segmentation", MASKS, (2, 4), "task=classification"),
    "a map for one class": ("classification", CLASSES, (2, 3, 4, 4), "task=segmentation.*task=token_classification"),
    "one logit": ("classification", CLASSES > 0, (2, 1), "task=binary"),
    "one logit, flat": ("classification", CLASSES > 0, (2,), "task=binary"),
    "one number, three classes": ("classification", CLASSES, (2, 1), "task=regression"),
    "two logits": ("binary", CLASSES > 0, (2, 2), "task=classification"),
    "other labels than outputs": ("multilabel", BITS, (2, 5), "4 labels a sample, the model 5 outputs"),
    "other numbers than outputs": ("regression", NUMBERS, (2, 5), r"\(5,\) numbers a sample.*\(4,\)"),
    "a class for the whole text": ("token_classification", TOKENS, (2, 9), "task=classification"),
    "other tokens": ("token_classification", TOKENS, (2, 7, 9), r"\(7,\) tokens.*\(5,\)"),
    "an embedding of a map": ("embedding", None, (2, 3, 4, 4), "task=match"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_another_task_are_refused_with_the_one_that_fits(case):
    task, y, shape, says = OUTPUTS[case]
    rules = TASKS[task]()
    with pytest.raises(ParedError, match=says):
        rules.fitted(rules.labels(stored(y, TOKENS)).targets, rules.taken(torch.randn(shape), 2))


# -- how models end -----------------------------------------------------------------------------


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.fc, self.end = nn.Linear(4, 3), end

    def forward(self, x):
        return self.end(self.fc(x))


class Named(Ends):
    def forward(self, x) -> dict[str, torch.Tensor]:
        z = self.fc(x)
        return {"z": z, "p": self.end(z)}


INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
FORMS = {
    "as it is": lambda module: module,
    "scripted": torch.jit.script,
    "traced": lambda module: torch.jit.trace(module, INPUTS),
    "exported": lambda module: torch.export.export(module, (INPUTS,)).module(check_guards=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_softmax_or_sigmoid_at_the_end_is_recognised(form):
    ends = {
        "softmax": nn.Softmax(1),
        "sigmoid": nn.Sequential(nn.Sigmoid(), nn.Dropout(), nn.Flatten()),
        "logits": nn.Hardtanh(0.0, 1.0),
    }
    for head, end in ends.items():
        assert head_of(FORMS[form](Ends(end).eval()), [INPUTS], Classification()) == head
    assert head_of(FORMS[form](Ends(nn.LogSoftmax(1)).eval()), [INPUTS], Classification()) == "logits"


def test_the_end_of_the_chosen_output_counts():
    module = torch.jit.script(Named(nn.Sigmoid()).eval())
    assert head_of(module, [INPUTS], Classification(output="p")) == "sigmoid"
    assert head_of(module, [INPUTS], Classification(output="z")) == "logits"
    soft = Named(nn.Softmax(1)).eval()  # a dict cannot be traced: the numbers tell
    assert head_of(soft, [INPUTS], Classification(output="p")) == "softmax"
    assert head_of(soft, [INPUTS], Multilabel(output="p")) == "logits"


# -- data sets ----------------------------------------------------------------------------------


def test_a_data_set_is_read_by_what_the_model_answers(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=IMAGES, y=MASKS[:, None])
    loaded = LoadedModel(nn.Conv2d(3, 4, 1).eval(), "torchscript", "scripted")
    data = load_dataset(
        DatasetFile(path, path.name), task=None, preprocess=None, seed=0, answer=lambda data: answer_to(loaded, data)
    )
    check_fits(loaded, data)
    assert (data.task.name, data.classes) == ("segmentation", 4)
    assert {tuple(target.shape[1:]) for target in data.targets.values()} == {(4, 4)}


def test_what_a_model_does_not_take_is_told_before_any_task(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=IMAGES, y=CLASSES)
    loaded = LoadedModel(nn.Conv2d(1, 4, 1).eval(), "torchscript", "scripted")
    for task in (None, "classification"):
        with pytest.raises(ShapeMismatch, match=rf"The data set holds \({N}, 3, 4, 4\)"):
            load_dataset(
                DatasetFile(path, path.name), task=task, preprocess=None, seed=0, answer=lambda d: answer_to(loaded, d)
            )


def test_a_data_set_without_labels_is_matched(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=IMAGES)
    data = load_dataset(DatasetFile(path, path.name), task=None, preprocess=None, seed=0)
    assert data.task.name == "match"
    assert {split: tuple(target.shape) for split, target in data.targets.items()} == {
        "train": (16, 0),
        "val": (4, 0),
        "test": (4, 0),
    }
