"""Several teachers as one, students of samples without labels, and students of made-up inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression import distill
from pared.compression.data import Data
from pared.compression.distillation import kept_answers
from pared.compression.distillation.kept_answers import KeptAnswers
from pared.compression.distillation.made_inputs import make_inputs
from pared.compression.distillation.teachers import Member, Teachers, best_of, mean_of
from pared.compression.jobs.unlabelled import labelled_by
from pared.compression.loading import LoadedModel
from pared.compression.tasks import TASKS, Match, Options, TaskRules
from pared.compression.tasks.classification import Binary, Classification
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.tasks.regression import Regression
from pared.compression.work import AnswerFiles
from pared.errors import ParedError, ValidationError
from pared.specs import WITHOUT_LABELS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 6)).astype("float32")
Y = X[:, :3].argmax(1)
FIRST = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
SECOND = torch.tensor([[0.0, 3.0, -1.0], [0.5, 0.0, -2.0]])


def net(outputs: int = 3, seed: int = 0, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, outputs)).eval()


# -- several teachers ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_mean_of_softened_answers_is_that_of_the_probabilities(temperature):
    mean = mean_of([FIRST, SECOND], [3, 1], Classification(), temperature)
    expected = 0.75 * (FIRST / temperature).softmax(1) + 0.25 * (SECOND / temperature).softmax(1)
    torch.testing.assert_close((mean / temperature).softmax(1), expected)
    torch.testing.assert_close(mean.mean(1), (0.75 * FIRST + 0.25 * SECOND).mean(1))


def test_the_mean_of_one_teacher_twice_is_its_answer():
    for task in (Classification(), Multilabel(), Regression()):
        torch.testing.assert_close(mean_of([FIRST, FIRST], [1, 2], task, 4.0), FIRST)


def test_the_mean_of_yes_or_no_answers_is_that_of_each():
    mean = mean_of([FIRST, SECOND], [1, 1], Multilabel(), 2.0)
    torch.testing.assert_close((mean / 2).sigmoid(), ((FIRST / 2).sigmoid() + (SECOND / 2).sigmoid()) / 2)


def test_the_logit_of_the_first_of_two_classes_stays_zero():
    logits = [Binary().shaped(torch.tensor([[1.0], [-2.0]])), Binary().shaped(torch.tensor([[3.0], [0.5]]))]
    mean = mean_of(logits, [1, 1], Binary(), 4.0)
    torch.testing.assert_close(mean[:, 0], torch.zeros(2))


def test_numbers_and_unsoftened_odds_are_averaged_as_they_are():
    torch.testing.assert_close(mean_of([FIRST, SECOND], [3, 1], Classification(), None), 0.75 * FIRST + 0.25 * SECOND)
    torch.testing.assert_close(mean_of([FIRST, SECOND], [1, 1], Regression(), 4.0), (FIRST + SECOND) / 2)


def test_a_class_that_every_teacher_masks_stays_masked_and_nothing_is_nan():
    masked = [each.clone() for each in (FIRST, SECOND)]
    for each in masked:
        each[:, 2] = -math.inf
    mean = mean_of(masked, [1, 1], Classification(), 4.0)
    assert (mean[:, 2] == -math.inf).all()
    assert mean[:, :2].isfinite().all()
    masked[1][:, 2] = 0.0  # masked by one alone: the other one's share of it is left
    assert mean_of(masked, [1, 1], Classification(), 4.0).isfinite().all()


def test_the_best_teacher_is_told_for_each_sample_by_its_label():
    chosen = best_of([FIRST, SECOND], torch.tensor([0, 0]), Classification())
    assert torch.equal(chosen, torch.stack([FIRST[0], SECOND[1]]))
    broken = torch.full_like(FIRST, math.nan)
    assert torch.equal(best_of([broken, SECOND], torch.tensor([0, 0]), Classification()), SECOND)
    numbers = torch.tensor([[2.0, 0.0, -1.0], [0.4, 0.0, -2.0]])
    assert torch.equal(best_of([FIRST, SECOND], numbers, Regression()), chosen)


def test_answers_that_were_computed_ahead_are_those_beside_the_student():
    data = splits_of()
    for combine in ("mean", "best"):
        members = [Member(net(seed=0), Classification()), Member(net(seed=1), Classification(), 2.0)]
        teachers = Teachers(members, combine, 4.0)
        ahead = teachers.answers(data, device="cpu")
        beside = teachers.beside("cpu").answer((torch.from_numpy(X[:16]),), torch.from_numpy(Y[:16]))
        torch.testing.assert_close(ahead[:16], beside)


def test_a_student_of_several_teachers_comes_nearer_to_their_mean_than_to_one():
    first, second = net(seed=1), net(seed=2)
    job = {"train": {"epochs": 60, "lr": 0.02}, "loss": {"kind": "output_mse"}}
    result = distill(first, net(seed=3), (X, Y), teachers=[{"model": second, "weight": 2}], teacher_weight=1, **job)
    x = torch.from_numpy(X)
    with torch.no_grad():
        answers = [each(x) for each in (result.model, first, second)]
    mean = (answers[1] + 2 * answers[2]) / 3
    assert functional.mse_loss(answers[0], mean) < 0.2 * functional.mse_loss(answers[0], answers[1])
    assert [each.pointer for each in result.report.teachers] == ["/teacher", "/teachers/0"]
    assert [each.weight for each in result.report.teachers] == [1, 2]


@pytest.mark.parametrize(
    ("teachers", "fields", "pointer", "says"),
    [
        ([net(outputs=4)], {}, "/teachers/0/model", r"answers \(4, 4\), and the first teacher \(4, 3\)"),
        ([net(), torch.jit.script(nn.Linear(7, 3))], {}, "/teachers/1/model", "cannot teach beside the first one"),
        ([net()], {"task": "match"}, "/teachers", "answers of one model"),
        ([net()], {"loss": {"kind": "knowledge", "features": [["0", "0"]]}}, "/teachers", "of one teacher"),
        ([net()], {"combine": "best", "teacher_weight": 2}, "/combine", "weights say nothing"),
        ([net()], {"combine": "best", "train": {"augment": {"mixup": {}}}}, "/combine", "mixed samples"),
        ([], {"combine": "best"}, "/combine", "name further ones in `teachers`"),
    ],
)
def test_teachers_that_cannot_teach_together_are_refused(teachers, fields, pointer, says):
    with pytest.raises(ParedError, match=says) as caught:
        distill(net(), net(seed=1), (X, Y), teachers=[{"model": each} for each in teachers], **fields)
    assert caught.value.errors[0]["pointer"] == pointer


# -- without labels -----------------------------------------------------------------------------

IMAGES = RNG.normal(size=(40, 3, 6, 6)).astype("float32")
TOKENS = RNG.integers(0, 8, (40, 6))


def words(outputs: int, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, width), nn.Linear(width, outputs)).eval()


def seg(outputs: int, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, outputs, 1)).eval()


UNLABELLED = {
    "classification": (lambda width: net(3, width=width), X),
    "binary": (lambda width: net(1, width=width), X),
    "multilabel": (lambda width: net(4, width=width), X),
    "regression": (lambda width: net(2, width=width), X),
    "segmentation": (lambda width: seg(3, width), IMAGES),
    "token_classification": (lambda width: words(3, width), TOKENS),
    "language_modeling": (lambda width: words(8, width), TOKENS),
    "embedding": (lambda width: net(5, width=width), X),
    "match": (lambda width: seg(2, width), IMAGES),
}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_student_of_each_task_learns_from_samples_without_labels(task):
    make, x = UNLABELLED[task]
    report = distill(make(12), make(4), (x, None), task=task, train={"epochs": 1}).report
    assert report.task == task
    assert report.after.quality is not None
    if task == "language_modeling":  # whose labels are the next tokens
        return
    assert report.before.quality.test.value == pytest.approx(1.0)
    assert any("no labels" in warning for warning in report.warnings) or task in WITHOUT_LABELS
    assert not any("drawn by seed" in warning for warning in report.warnings)


def test_labels_are_the_teachers_own_answers():
    teacher = net(3)
    with torch.no_grad():
        wanted = teacher(torch.from_numpy(X)).argmax(1)
    splits = ("train", "val", "test")
    data = Data(
        {split: [torch.from_numpy(X)] for split in splits},
        {split: torch.zeros(len(X), 0) for split in splits},
        Match(),
        None,
        "given",
        "npz",
        labelled=False,
    )
    options = Options("classification")
    found = labelled_by(LoadedModel(teacher, "torchscript", "traced"), data, options, device="cpu")
    assert torch.equal(found.targets["val"], wanted)
    assert found.classes == 3
    # Probabilities are answers too, and half of one is where a yes begins.
    yes = nn.Sequential(net(1), nn.Sigmoid())
    script = torch.jit.trace(yes, torch.from_numpy(X))
    found = labelled_by(LoadedModel(script, "torchscript", "traced"), data, Options("binary"), device="cpu")
    with torch.no_grad():
        assert torch.equal(found.targets["test"], (yes(torch.from_numpy(X)).flatten() > 0.5).long())


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"loss": {"kind": "knowledge", "labels": 0.5}}, "/loss/labels"),
        ({"compare_with_labels_only": True}, "/compare_with_labels_only"),
        ({"teachers": [{"model": net(seed=4)}], "combine": "best"}, "/combine"),
        ({"train": {"class_weights": "balanced"}}, "/train/class_weights"),
    ],
)
def test_what_needs_labels_is_refused_where_there_are_none(fields, pointer):
    with pytest.raises(ValidationError, match="no labels") as caught:
        distill(net(), net(seed=1), (X, None), task="classification", **fields)
    assert caught.value.errors[0]["pointer"] == pointer


# -- without data -------------------------------------------------------------------------------


def normed(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def trained_on(x: torch.Tensor) -> nn.Sequential:
    """A net whose batch norm knows the statistics of these samples."""
    model = normed(6)
    model[1].momentum = None  # the mean of all batches
    model(x)
    return model.eval()


def test_made_inputs_have_the_statistics_that_batch_norms_know():
    x = 3 + 2 * torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    model = trained_on(x)
    script = torch.jit.trace(model, x[:4])
    loaded = LoadedModel(script, "torchscript", "traced")
    made = make_inputs(loaded, (x[:4],), 96, generator=torch.Generator().manual_seed(1))
    assert "1 of its batch norms" in made.note

    def distance(inputs: torch.Tensor) -> float:
        values = model[0](inputs).transpose(0, 1).flatten(1)
        return float(((values.mean(1) - model[1].running_mean).square() / model[1].running_var).mean())

    with torch.no_grad():
        noise = torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        assert distance(made.inputs[0]) < 0.05 * distance(noise)
    again = make_inputs(loaded, (x[:4],), 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made.inputs[0], again.inputs[0])


def test_inputs_of_tokens_are_ids_that_the_embedding_holds():
    model = torch.jit.trace(words(3), torch.zeros(2, 6, dtype=torch.int64))
    loaded = LoadedModel(model, "torchscript", "traced")
    made = make_inputs(loaded, (torch.zeros(2, 6, dtype=torch.int64),), 50, generator=torch.Generator().manual_seed(0))
    assert made.inputs[0].shape == (50, 6)
    assert (int(made.inputs[0].min()), int(made.inputs[0].max())) == (0, 7)
    assert "noise" in made.note


@pytest.mark.parametrize("task", ["classification", None])
def test_a_job_without_data_measures_nothing_and_says_what_it_is_worth(task):
    teacher = trained_on(torch.randn(64, 1, 6, 6))
    job = {"example_inputs": [{"shape": [1, 1, 6, 6]}], "made_samples": 64, "train": {"epochs": 1}, "task": task}
    report = distill(teacher, {"from_teacher": {"width": 0.5}}, **job).report
    assert report.before.quality is None
    assert report.after.quality is None
    assert "quality was not measured" in report.verdict
    assert any("made-up inputs" in warning and "nothing was measured" in warning for warning in report.warnings)
    assert report.history


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"loss": {"kind": "knowledge", "labels": 0.5}}, "/loss"),
        ({"compare_with_labels_only": True}, "/compare_with_labels_only"),
        ({"preprocess": {"scale": 2}}, "/preprocess"),
        ({"example_inputs": [{"shape": [1, 3, 6, 6]}]}, "/example_inputs"),
    ],
)
def test_what_needs_data_is_refused_where_there_are_none(fields, pointer):
    with pytest.raises(ParedError) as caught:
        distill(torch.jit.script(normed(6).eval()), {"from_teacher": {"width": 0.5}}, task="classification", **fields)
    assert caught.value.errors[0]["pointer"] == pointer


# -- kept answers -------------------------------------------------------------------------------


def splits_of(x: np.ndarray = X, task: TaskRules | None = None) -> Data:
    splits = ("train", "val", "test")
    inputs = {split: [torch.from_numpy(x)] for split in splits}
    return Data(inputs, dict.fromkeys(splits, torch.from_numpy(Y)), task or Classification(), 3, "given", "npz")


def kept(files: AnswerFiles | None, described: str = "teacher", task: TaskRules | None = None) -> KeptAnswers:
    return KeptAnswers({"combine": "mean", "files": described}, task or Classification(), files)


class Counted:
    """Answers, and how often they were computed."""

    def __init__(self, answers: torch.Tensor) -> None:
        self.answers, self.times = answers, 0

    def __call__(self) -> torch.Tensor:
        self.times += 1
        return self.answers


ANSWERS = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))


def test_answers_that_an_earlier_job_kept_are_those_that_this_one_would_compute(tmp_path):
    compute = Counted(ANSWERS)
    files = AnswerFiles(None, tmp_path / "made")
    first = kept(files).of(splits_of(), compute, "cpu")
    torch.testing.assert_close(first, ANSWERS, atol=2e-3, rtol=0)
    later = kept(AnswerFiles(tmp_path / "made", tmp_path / "again")).of(splits_of(), compute, "cpu")
    assert torch.equal(first, later)
    assert compute.times == 1
    assert not (tmp_path / "again").exists()
    # Without files they are rounded all the same, so that a job's result does not hang on them.
    assert torch.equal(kept(None).of(splits_of(), compute, "cpu"), first)


@pytest.mark.parametrize("what", ["other samples", "another teacher", "another version", "damaged", "cut off", "text"])
def test_answers_of_anything_else_are_computed_anew(tmp_path, monkeypatch, what):
    made = tmp_path / "made"
    kept(AnswerFiles(None, made)).of(splits_of(), Counted(ANSWERS), "cpu")
    described, x = "teacher", X
    if what == "other samples":
        x = X.copy()
        x[-1, -1] += 1
    elif what == "another teacher":
        described = "other"
    elif what == "another version":
        monkeypatch.setattr(kept_answers, "__version__", "0")
    else:
        content = bytearray(made.read_bytes())
        content[-1] ^= 1
        made.write_bytes({"damaged": content, "cut off": content[:-10], "text": b"no answers"}[what])
    compute = Counted(ANSWERS + 1)
    found = kept(AnswerFiles(made, tmp_path / "again"), described).of(splits_of(x), compute, "cpu")
    assert compute.times == 1
    torch.testing.assert_close(found, ANSWERS + 1, atol=4e-3, rtol=0)
    assert (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (ANSWERS * 1e6, Classification()),
        (torch.where(ANSWERS > 0, ANSWERS, math.nan), Classification()),
        (ANSWERS, Regression()),
    ],
    ids=["too large", "NaN", "numbers"],
)
def test_what_float16_would_change_is_neither_rounded_nor_kept(tmp_path, answers, task):
    found = kept(AnswerFiles(None, tmp_path / "made"), task=task).of(splits_of(task=task), lambda: answers, "cpu")
    assert torch.equal(found.nan_to_num(7), answers.nan_to_num(7))
    assert not (tmp_path / "made").exists()


def test_masked_classes_stay_masked_in_what_is_kept(tmp_path):
    masked = ANSWERS.clone()
    masked[:, 1] = -math.inf
    kept(AnswerFiles(None, tmp_path / "made")).of(splits_of(), lambda: masked, "cpu")
    found = kept(AnswerFiles(tmp_path / "made", tmp_path / "again")).of(splits_of(), Counted(ANSWERS), "cpu")
    assert (found[:, 1] == -math.inf).all()
    torch.testing.assert_close(found[:, 0], ANSWERS[:, 0], atol=2e-3, rtol=0)
