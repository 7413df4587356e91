"""Models, data and fields that do not go together: each job ends with a problem that says what, and what fits."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pared.compression import distill, prune
from pared.errors import ParedError
from tests.support.texts import PETS, lines, tokenizer, zipped

N = 30
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, 3, 8, 8)).astype("float32")
TABLE = RNG.normal(size=(N, 8)).astype("float32")
TOKENS = RNG.integers(0, 8, (N, 6))
CLASSES = np.arange(N) % 3
MASKS = RNG.integers(0, 3, (N, 8, 8))
BITS = RNG.random((N, 3)) > 0.5
TEXTS = [{"text": text} for text in ("dog bark", "the cats sat", "the dog ran")] * 10


def mapped(classes=3, *more):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1), *more)


def one(outputs=3, *more):
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, nn.Linear(8, outputs), *more)


def flat(outputs=3):
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


class Words(nn.Module):
    def __init__(self, answers=3, vocabulary=10):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(vocabulary, 8), nn.Linear(8, 16), nn.Linear(16, answers)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.embedding(ids))))


class Placed(Words):
    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(2, 8)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.embedding(ids) + self.places(torch.arange(ids.shape[1])))))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 3)

    def both(self, x):
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        return self.a(pooled), self.b(pooled)


class Dict(Heads):
    def forward(self, x) -> dict[str, torch.Tensor]:
        a, b = self.both(x)
        return {"boxes": a, "logits": b}


class OtherDict(Heads):
    def forward(self, x) -> dict[str, torch.Tensor]:
        a, b = self.both(x)
        return {"bbox": a, "cls": b}


class Tuple(Heads):
    def forward(self, x):
        return self.both(x)


class Classes(Heads):
    def forward(self, x):
        return self.both(x)[1].argmax(1)


class Similar(Heads):
    def forward(self, x):
        a = self.both(x)[0]
        return a @ a.T


class Sideways(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x).permute(0, 2, 3, 1)


class Overflows(nn.Module):
    def __init__(self, by=torch.inf):
        super().__init__()
        self.fc, self.by = nn.Linear(8, 3), by

    def forward(self, x):
        return self.fc(x).abs() * self.by


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(masks) -> bytes:
    """Images of 8×8, and masks by index."""
    images = {f"images/{i}.png": png(np.full((8, 8, 3), 8 * i)) for i in range(20)}
    return zipped(**images, **{f"masks/{i}.png": png(masks(i)) for i in range(20)})


def texts(records) -> bytes:
    return zipped(tokenizer__json=tokenizer(), data__jsonl=lines(records))


def but(array, index, value):
    changed = np.array(array)
    changed[index] = value
    return changed


def retrained(**training):
    return {"retrain": {"epochs": 1, **training}}


M, D, S, V = "model-failed", "invalid-data", "shape-mismatch", "validation"
# what is wrong: (model, data, fields, code, words of the problem)
JOBS = {
    # labels and outputs of different tasks
    "one logit, three classes": (one(1), (IMAGES, CLASSES), {}, D, "0 to 2.*1 output.*task=regression"),
    "one logit, three classes, as binary": (
        one(1), (IMAGES, CLASSES), {"task": "binary"}, D, "one logit tells only.*task=classification"),
    "one logit, classes -1 and 1": (one(1), (IMAGES, CLASSES % 2 * 2 - 1), {}, D, "negative.*from 0"),
    "two outputs, three classes": (one(2), (IMAGES, CLASSES), {}, D, "up to 2, but the model has 2 outputs"),
    "two logits, as binary": (one(2), (IMAGES, CLASSES > 0), {"task": "binary"}, M, "one logit.*task=classification"),
    "a map for one class each": (mapped(), (IMAGES, CLASSES), {}, M, "task=segmentation"),
    "one class for masks": (one(), (IMAGES, MASKS), {}, M, r"\(2, 3\); segmentation needs.*task=classification"),
    "a class for tokens": (
        nn.Sequential(nn.EmbeddingBag(10, 8), nn.Linear(8, 3)), (TOKENS, TOKENS % 3), {"task": "token_classification"},
        M, "One class for a whole text is task=classification"),
    "labels of which several hold, as classes": (
        one(), (IMAGES, BITS), {"task": "classification"}, D, "task=multilabel"),
    "four labels, three outputs": (
        one(), (IMAGES, RNG.random((N, 4)) > 0.5), {"task": "multilabel"}, S, "4 labels a sample, the model 3"),
    "one label, as several": (one(1), (IMAGES, CLASSES > 0), {"task": "multilabel"}, D, "task=classification"),
    "numbers as a multilabel": (one(), (IMAGES, RNG.random((N, 3))), {"task": "multilabel"}, D, "task=regression"),
    "numbers of other shapes": (one(), (IMAGES, RNG.random((N, 4))), {}, S, r"\(3,\) numbers a sample.*\(4,\)"),
    "fractions as classes": (one(), (IMAGES, CLASSES + 0.5), {"task": "classification"}, D, "task=regression"),
    "words as numbers": (
        one(1), (IMAGES, np.array(list("abc"))[CLASSES]), {"task": "regression"}, D, "task=classification"),
    "a map as an embedding": (mapped(), (IMAGES, None), {"task": "embedding"}, M, "task=match"),
    # labels that say nothing, or too little
    "no labels": (one(), (IMAGES, None), {"task": "classification"}, D, "no labels.*task=match"),
    "no label ever holds": (one(), (IMAGES, BITS & False), {}, D, "same labels.*task=match"),
    "one class": (one(), (IMAGES, CLASSES * 0), {}, D, "nothing to tell apart"),
    "one class of pixels": (mapped(), (IMAGES, but(MASKS * 0, 0, -1)), {}, D, "the label 0.*task=match"),
    "all pixels ignored": (mapped(), (IMAGES, MASKS * 0 - 100), {}, D, "All pixels are ignored"),
    "all of the held-out pixels ignored": (
        mapped(), (IMAGES, np.where(np.arange(N)[:, None, None] == 5, MASKS, -1)), {}, D,
        "None of the pixels of the validation or test samples has a label"),
    "all ignored by a mark": (
        mapped(), (IMAGES, but(MASKS * 0, 0, 0)), {"ignore_index": 0, "task": "segmentation"}, D, "are ignored"),
    "all tokens ignored": (
        Words(), (TOKENS, TOKENS * 0 - 100), {"task": "token_classification"}, D, "All tokens are ignored"),
    "texts of one token": (
        Words(10), (TOKENS[:, :1], None), {"task": "language_modeling"}, D, "one token a sample.*longer"),
    # labels outside
    "a mask beyond the classes": (mapped(), (IMAGES, but(MASKS, 3, 7)), {}, D, "up to 7, but.*3 classes.*ignore_index"),
    "a mask below 0": (mapped(), (IMAGES, but(MASKS, 3, -7)), {}, D, "label -7"),
    "a token label outside": (Words(), (TOKENS, but(TOKENS % 3, 3, 5)), {}, D, "up to 5, but the model has 3 classes"),
    "a next token outside": (
        Words(7), (TOKENS, None), {"task": "language_modeling"}, D, "up to 7, but the model has 7 tokens.*vocabulary"),
    "token ids outside": (Words(3, 5), (TOKENS, TOKENS % 3), {}, D, "0 to 7, beyond.*vocabulary"),
    "infinite numbers": (one(1), (IMAGES, but(RNG.random(N), 4, np.inf)), {}, D, r"first is inf at \[4"),
    # sizes
    "masks of half the size": (mapped(), (IMAGES, MASKS[:, ::2, ::2]), {}, S, r"\(8, 8\) pixels.*\(4, 4\).*[Rr]esize"),
    "a map of half the size": (mapped(3, nn.MaxPool2d(2)), (IMAGES, MASKS), {}, S, "Upsample the model's output"),
    "masks larger than images": (mapped(), archive(lambda i: np.full((9, 9), i % 3)), {}, D, "is 9×9, its image 8×8"),
    "one token short": (Words(), (TOKENS, TOKENS[:, 1:] % 3), {"task": "token_classification"}, S,
        r"\(6,\) tokens.*\(5,\).*one label for each token, −100"),
    "fewer masks": (mapped(), (IMAGES, MASKS[:-1]), {}, D, "30.*29"),
    "images of one channel": (mapped(), (IMAGES[:, :1], MASKS), {}, S, r"holds \(30, 1, 8, 8\)"),
    "labels of nothing": (one(), (IMAGES, np.zeros((N, 0))), {}, D, r"y is empty: its shape is \(30, 0\)"),
    "labels that are objects": (one(), (IMAGES, [{}] * N), {}, V, "Python objects"),
    "rows of labels of different lengths": (one(), (IMAGES, [[1], [1, 2]] * 15), {}, V, "hold no array, but a list"),
    "neither inputs nor labels": (one(), (None, None), {}, V, "NoneType.*without labels give"),
    "too few samples": (mapped(), (IMAGES[:9], None), {}, D, "9 training samples; at least 10"),
    "an input too many": (one(), ([IMAGES, IMAGES], CLASSES), {}, S, "has 2 inputs. Give as many"),
    # several outputs
    "a name that no output has": (
        Dict(), (IMAGES, CLASSES), {"output": "scores"}, V, r"no output 'scores'. It returns boxes \(2, 4\)"),
    "a name that a trace lost": (
        torch.jit.trace(Tuple(), torch.zeros(2, 3, 8, 8), check_trace=False),  # to check it imports half of torch
        (IMAGES, CLASSES), {"output": "logits"}, V,
        "lost the names of a dict.*by its number"),
    "a number beyond the outputs": (Tuple(), (IMAGES, CLASSES), {"output": 2}, V, "no output '2'"),
    "an output of one tensor": (one(), (IMAGES, CLASSES), {"output": "logits"}, M, "one tensor.*leave it out"),
    "two outputs that fit": (Tuple(), (IMAGES, CLASSES), {}, S, r"fit 0, 1. Name the output"),
    "labels that fit no output": (Tuple(), (IMAGES, MASKS), {}, S, "fit none of them.*task=match"),
    "an output for a match": (Tuple(), (IMAGES, None), {"output": 1}, V, "/output has no effect where task=match"),
    "an output for a match by name": (Tuple(), (IMAGES, None), {"output": 1, "task": "match"}, V, "leave it out"),
    "whole numbers alone": (Classes(), (IMAGES, None), {}, M, "no float tensor"),
    "a similarity of all pairs": (Similar(), (IMAGES, None), {}, M, "no float tensor with an entry for each sample"),
    "infinity alone": (Overflows(), (TABLE, None), {}, M, "no finite number"),
    "NaN alone": (Overflows(torch.nan), (TABLE, None), {}, M, "no finite number.*NaN"),
    # training
    "class weights of other classes": (
        mapped(), (IMAGES, MASKS), retrained(class_weights=[1, 2]), V, "2 entries.*3 classes"),
    "class weights of 0": (one(), (IMAGES, CLASSES), retrained(class_weights=[0, 0, 0]), V, "not all 0"),
    "one class weight for a logit": (
        one(1), (IMAGES, CLASSES > 0), retrained(class_weights=[2]), V, "1 entries.*2 classes"),
    "class weights of a match": (one(), (IMAGES, None), retrained(class_weights="balanced"), V, "task=match"),
    "smoothing of numbers": (one(1), (IMAGES, CLASSES / 7), retrained(label_smoothing=0.1), V, "task=regression"),
    "a teacher of a match": (one(), (IMAGES, None), {**retrained(teach={"kind": "output_mse"}), "task": "match"}, V,
        "`teach` has no effect"),
    "flips of a table": (flat(), (TABLE, CLASSES), retrained(augment={"horizontal_flip": {}}), V, "changes images"),
    "mixup of tokens": (Words(), (TOKENS, TOKENS % 3), retrained(augment={"mixup": {}}), V, "nothing between them"),
    "dropped tokens of images": (one(), (IMAGES, CLASSES), retrained(augment={"token_dropout": {}}), V, "token ids"),
    "a dropped token outside": (
        Words(), (TOKENS, TOKENS % 3), retrained(augment={"token_dropout": {"id": 10}}), V, "token id 10.*vocabulary"),
    "a crop of maps of numbers": (
        mapped(), (IMAGES, np.abs(IMAGES)), retrained(augment={"crop": {}}), V, "use `resized_crop`"),
    "a lossless goal with two names": (
        one(), (IMAGES, CLASSES),
        {"amount": None, "target": {"max_quality_drop": 0.1, "max_accuracy_drop": 0.1}}, V, "max_accuracy_drop"),
    # texts
    "a tokenizer of more tokens": (Words(10, 5), texts(TEXTS), {}, D, "10 tokens.*5"),
    "more texts than places": (Placed(), texts(TEXTS), {}, "*", "max_length"),
    "labels of texts for a language model": (
        Words(10), texts(PETS), {"task": "language_modeling"}, D, "one label a sample.*task=classification"),
    "colours of texts": (
        Words(10), texts(TEXTS), {"preprocess": {"mean": [0], "std": [1]}}, D, "token ids only: leave it out"),
    "a length of images": (one(), (IMAGES, CLASSES), {"preprocess": {"max_length": 4}}, D, "holds none: leave it out"),
    "ragged rows": (flat(), lines([{"a": [1.5] * (7 + i % 2), "y": i % 3} for i in range(N)]), {}, D, "no vectors"),
}  # fmt: skip


def file_or_arrays(data, tmp_path):
    if not isinstance(data, bytes):
        return data
    path = tmp_path / "data"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", JOBS)
def test_a_job_that_cannot_be_meant_says_what_is_wrong_and_what_fits(case, tmp_path):
    model, data, fields, code, says = JOBS[case]
    with pytest.raises(ParedError, match=f"(?s){says}") as refused:
        prune(model, file_or_arrays(data, tmp_path), **{"amount": 0.5, "retrain": None, **fields})
    assert code in {"*", refused.value.code}


STUDENTS = {
    "other names": (Dict(), OtherDict(), (IMAGES, None), M, "no output boxes.*returns bbox.*names of its teacher"),
    "other names, with labels": (Dict(), OtherDict(), (IMAGES, CLASSES), V, "no output 'logits'. It returns bbox"),
    "one of two outputs": (Dict(), one(), (IMAGES, None), M, "no output boxes"),
    "another number of outputs": (one(3), one(4), (IMAGES, None), S, "teacher answers.*3.*student.*4"),
    "other classes": (mapped(3), mapped(5), (IMAGES, MASKS), S, "as many outputs as its teacher"),
    "a smaller map": (mapped(3), mapped(3, nn.MaxPool2d(2)), (IMAGES, MASKS), S, "Upsample"),
    "dimensions in another order": (
        mapped(3), Sideways(), (IMAGES, None), M, r"answers \(8, 8, 3\), where the original answers \(3, 8, 8\)"),
    "another vocabulary": (Words(3, 10), Words(3, 5), (TOKENS, TOKENS % 3), D, "0 to 7.*vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDENTS)
def test_a_student_that_cannot_answer_as_its_teacher_is_refused(case):
    teacher, student, data, code, says = STUDENTS[case]
    with pytest.raises(ParedError, match=f"(?s){says}") as refused:
        distill(teacher, student, data, train={"epochs": 1})
    assert refused.value.code == code
