"""Models of every kind are pruned, taught and measured by their own task, through the library."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import distill, prune, run_spec
from pared.compression.data import load_dataset
from pared.compression.measuring import references
from pared.compression.measuring.references import Referenced, with_references
from pared.compression.measuring.running import predict
from pared.compression.tasks.references import Match, pieces_of
from pared.compression.work import DatasetFile, SilentObserver
from pared.errors import ParedError
from pared.specs import PruneSpec

N = 96
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, 3, 8, 8)).astype("float32")
MASKS = (IMAGES.mean(1) > 0.3).astype("int64") + 2 * (IMAGES[:, 0] > 1.5)
TOKENS = RNG.integers(0, 8, (N, 6))
CLASSES = MASKS.reshape(N, -1).sum(1) % 3
RETRAIN = {"epochs": 2, "lr": 0.05}


def seg(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 1)).eval()


class Words(nn.Module):
    def __init__(self, vocabulary=8):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden = nn.Embedding(8, 8), nn.Linear(8, 16)
        self.out = nn.Linear(16, vocabulary)

    def forward(self, tokens):
        return self.out(torch.relu(self.hidden(self.embedding(tokens))))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.boxes, self.classes = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x) -> dict[str, torch.Tensor]:
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        return {"boxes": self.boxes(pooled), "logits": self.classes(pooled)}


def one_vector(outputs=5):
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, nn.Linear(8, outputs)).eval()


JOBS = {
    "binary": (one_vector(1), (IMAGES, CLASSES > 0), "accuracy", set()),
    "multilabel": (one_vector(3), (IMAGES, MASKS[:, 0, :3] > 0), "f1", {"macro_f1", "label_accuracy"}),
    "segmentation": (seg(), (IMAGES, MASKS), "mean_iou", {"pixel_accuracy"}),
    "regression": (seg(3), (IMAGES, np.abs(IMAGES)), "r2", set()),
    "token_classification": (Words(3), (TOKENS, TOKENS % 3), "accuracy", set()),
    "language_modeling": (Words(), (TOKENS, np.roll(TOKENS, -1, 1)), "log_likelihood", {"perplexity", "accuracy"}),
    "match": (TwoHeads(), (IMAGES, None), "match", set()),
}


@pytest.mark.parametrize("task", JOBS)
def test_each_task_is_guessed_pruned_retrained_and_measured(task):
    model, data, metric, beside = JOBS[task]
    report = prune(model, data, amount=0.5, retrain=RETRAIN).report
    assert report.task == report.reproduce.spec["task"] == task
    assert any(f"task={task}" in warning for warning in report.warnings)
    before, after = report.before.quality, report.after.quality
    assert before.metric == after.metric == metric
    assert before.beside.keys() == after.beside.keys() == beside
    assert after.test.low <= after.test.value <= after.test.high
    assert math.isfinite(after.loss)
    assert 0 <= report.comparison.p_value <= 1
    named = prune(model, data, amount=0.5, retrain=RETRAIN, task=task).report
    assert named.after.quality == after


def test_an_embedding_is_held_to_the_original():
    fields = {"task": "embedding", "amount": 0.5}
    bare, taught = (
        prune(one_vector(), (IMAGES, None), retrain=retrain, **fields).report
        for retrain in (None, {"epochs": 10, "lr": 0.01, "optimizer": "adam"})
    )
    assert bare.before.quality.test.value == pytest.approx(1)
    assert bare.before.quality.beside == {"neighbour_overlap": 1}
    assert bare.after.quality.loss > taught.after.quality.loss


def test_match_learns_what_the_original_answers():
    bare, taught = (
        prune(TwoHeads(), (IMAGES, None), amount=0.5, retrain=retrain).report
        for retrain in (None, {"epochs": 10, "lr": 0.01, "optimizer": "adam"})
    )
    assert bare.before.quality.test.value == 1
    assert taught.after.quality.test.value > bare.after.quality.test.value + 0.05
    assert [each["output"] for each in taught.comparison.outputs] == ["boxes", "logits"]
    assert taught.comparison.outputs[0].keys() == {"output", "relative_error", "cosine", "agreement"}
    assert "beside the original's: " in str(taught)
    assert "of test match with the original" in taught.verdict


class Rare(nn.Module):
    """A heat map that is nearly 0 but for samples that come late in the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.heat = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        return torch.sigmoid(self.heat(pooled) - 30 + 34 * x[:, :1, 0, 0].gt(3).float())


def test_what_a_model_answers_seldom_tells_how_large_its_answers_are():
    seldom = IMAGES.copy()
    seldom[40:, :, 0, 0] = 5
    report = prune(Rare(), (seldom, None), amount=0.5, retrain=RETRAIN).report
    assert report.after.quality.test.value > 0.95
    assert report.after.quality.loss < 0.01


class Pair(TwoHeads):
    def forward(self, x):
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        return self.boxes(pooled), self.classes(pooled)


@pytest.mark.parametrize("labels", [None, CLASSES])
def test_a_student_without_names_answers_in_the_order_of_its_teacher(labels):
    for teacher, student, output in ((TwoHeads(), Pair(), None), (Pair(), TwoHeads(), None if labels is None else 1)):
        report = distill(teacher, student, (IMAGES, labels), output=output, train={"epochs": 1}).report
        outputs = [each["relative_error"] for each in report.comparison.outputs]
        assert len(outputs) == (2 if labels is None else 1)
        assert all(error < 0.2 for error in outputs)  # the student began with the teacher's weights


def test_labels_of_one_output_leave_the_others_as_they_were():
    retrain = {"epochs": 10, "lr": 0.01, "optimizer": "adam"}
    report = prune(TwoHeads(), (IMAGES, CLASSES), amount=0.25, retrain=retrain).report
    (boxes,) = report.comparison.outputs
    assert (report.task, boxes["output"]) == ("classification", "boxes")
    assert boxes["relative_error"] < 0.3
    assert any("labels belong to the output logits" in warning for warning in report.warnings)
    by_number = prune(TwoHeads(), (IMAGES, CLASSES), amount=0.25, output=0, retrain=None).report
    assert [each["output"] for each in by_number.comparison.outputs] == ["logits"]


def test_a_student_learns_maps_and_several_outputs():
    half = {"from_teacher": {"width": 0.5}}
    taught = distill(seg(), half, (IMAGES, MASKS), train={"epochs": 2}, compare_with_labels_only=True).report
    assert (taught.task, taught.labels_only.metric) == ("segmentation", "mean_iou")
    matched = distill(TwoHeads(), half, (IMAGES, None), train={"epochs": 2}).report
    assert (matched.task, matched.reproduce.spec["loss"]["kind"]) == ("match", "output_mse")
    with pytest.raises(ParedError, match=r"task=match, and .*no labels"):
        distill(TwoHeads(), half, (IMAGES, None), compare_with_labels_only=True)


def test_a_student_may_end_otherwise_than_its_teacher():
    student = {"layers": [["Flatten", {}], ["Linear", {"in_features": 192, "out_features": 3}]]}
    teacher = nn.Sequential(one_vector(3), nn.Softmax(1)).eval()
    report = distill(teacher, student, (IMAGES, CLASSES), train={"epochs": 4}).report
    assert any("ends in a softmax" in warning for warning in report.warnings)
    assert 0.9 < report.after.quality.loss < 2  # of logits, not of the logarithms of logits


def test_a_goal_is_in_the_measure_of_the_task():
    report = prune(seg(), (IMAGES, MASKS), target={"max_quality_drop": 0.9}, retrain={"epochs": 1}).report
    assert report.goal.target == {"max_quality_drop": 0.9}
    assert report.goal.status == "met"
    assert "points of test mean IoU lost" in report.goal.sentence
    older = prune(seg(), (IMAGES, MASKS), target={"max_accuracy_drop": 0.9}, retrain={"epochs": 1}).report
    assert older.goal.reached == {"max_accuracy_drop": report.goal.reached["max_quality_drop"]}


def test_class_weights_are_those_of_the_loss():
    def after(**training):
        return prune(seg(), (IMAGES, MASKS), amount=0.25, retrain=RETRAIN | training).report.after.quality

    assert after(class_weights=[1, 1, 1, 1]).test == after().test
    assert after(class_weights="balanced", label_smoothing=0.1) != after()
    with pytest.raises(ParedError, match="3 entries, not all 0, where the model has 4 classes"):
        after(class_weights=[1, 1, 1])
    with pytest.raises(ParedError, match="label_smoothing` is of classes"):
        prune(seg(3), (IMAGES, IMAGES), amount=0.25, retrain=RETRAIN | {"label_smoothing": 0.1})


def test_answers_that_are_too_many_are_computed_beside(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, x=IMAGES)
    data = load_dataset(DatasetFile(path, path.name), task="match", preprocess=None, seed=0)
    model = TwoHeads().eval()
    with torch.no_grad():
        pieces, _ = pieces_of(*(model(*data.example(count)) for count in (2, 3)))
    data.task = Match(pieces=tuple(pieces))
    kept = with_references(data, model)
    monkeypatch.setattr(references, "KEPT_BYTES", 0)
    beside = with_references(data, model)
    assert isinstance(beside, Referenced)
    assert not isinstance(kept, Referenced)
    for split in ("train", "val"):
        both = (each.batches(split, 32, torch.Generator().manual_seed(1)) for each in (kept, beside))
        for one, other in zip(*both, strict=True):
            assert torch.equal(one[0][0], other[0][0])
            assert torch.allclose(one[1], other[1], atol=1e-6)
    assert torch.equal(*(predict(model, each, "test", data.task)[0][:, :2] for each in (kept, beside)))
    small = prune(TwoHeads(), (IMAGES, None), amount=0.5, retrain=RETRAIN).report.after.quality
    monkeypatch.undo()
    large = prune(TwoHeads(), (IMAGES, None), amount=0.5, retrain=RETRAIN).report.after.quality
    assert small.test.value == pytest.approx(large.test.value, abs=1e-3)


class Killed(Exception):
    pass


class DiesAfterItsFirstCheckpoint(SilentObserver):
    def __init__(self, last):
        self.last = last

    def resume(self):
        return None if self.last is None else torch.load(io.BytesIO(self.last), weights_only=True)

    def checkpoint(self, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.last = buffer.getvalue()
        raise Killed


class Goes(DiesAfterItsFirstCheckpoint):
    def checkpoint(self, state):
        pass


@pytest.mark.parametrize("labelled", [False, True])
def test_an_interrupted_job_ends_as_an_uninterrupted_one(tmp_path, labelled):
    """By match alone, and with labels of one output."""
    torch.jit.save(torch.jit.script(TwoHeads().eval()), tmp_path / "m.pt")
    np.savez(tmp_path / "d.npz", x=IMAGES, **({"y": CLASSES} if labelled else {}))
    files = {"model": str(tmp_path / "m.pt"), "dataset": str(tmp_path / "d.npz")}
    ids = {"model": f"mdl_{'0' * 26}", "dataset": f"dst_{'0' * 26}"}
    spec = PruneSpec.model_validate({"type": "prune", **ids, "amount": 0.5, "retrain": {"epochs": 2, "lr": 0.05}})
    whole = run_spec(spec, files, tmp_path / "whole", Goes(None))
    killed = DiesAfterItsFirstCheckpoint(None)
    with pytest.raises(Killed):
        run_spec(spec, files, tmp_path / "pieces", killed)
    pieces = run_spec(spec, files, tmp_path / "pieces", Goes(killed.last))
    assert pieces.reproduce.outputs == whole.reproduce.outputs
    assert pieces.comparison == whole.comparison


@pytest.mark.parametrize("task", ["match", "embedding"])
@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_gradients_tell_what_matters_to_answers_that_are_met_already(task, criterion):
    """All channels of a layer are alike but for what reads them: the two that matter are the last ones."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].abs().expand(8, 4))
        model[0].bias.fill_(1)
        model[2].weight[:, :6] *= 1e-3
    table = RNG.normal(size=(N, 4)).astype("float32")
    fields = {"task": task, "criterion": criterion, "granularity": "channel", "retrain": None, "seed": 3}
    report = prune(model, (table, None), amount=0.75, scope="layer", **fields).report
    assert report.after.parameters < report.before.parameters
    assert report.after.quality.test.value > 0.9
