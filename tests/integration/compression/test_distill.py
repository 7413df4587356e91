"""Distillation: losses against hand arithmetic, and what students learn from teachers."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression.data import Data
from pared.compression.distillation.features import Probe
from pared.compression.distillation.losses import knowledge, output_mse, softened_kl, with_labels
from pared.compression.distillation.objective import make_objective
from pared.compression.tasks.classification import Classification
from pared.compression.training.augmentation import Augmentation
from pared.compression.training.loop import fit
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Augment, Knowledge, OutputMse, Train


def test_output_mse_and_its_gradient_equal_hand_arithmetic():
    student = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    loss = output_mse(student, teacher)
    # ‖(1, −2)‖² = 5, ‖(0, 2)‖² = 4; the mean over two samples.
    assert loss.item() == 4.5
    loss.backward()
    # 2 (s − t) / N
    assert student.grad.tolist() == [[-1.0, 2.0], [0.0, -2.0]]


def test_softened_kl_and_its_gradient_equal_hand_arithmetic():
    # With T = 2 and logits 2·log 3 the teacher's softened answer is (3/4, 1/4); the student's is (1/2, 1/2).
    teacher = torch.tensor([[2 * torch.log(torch.tensor(3.0)), 0.0]])
    student = torch.zeros(1, 2, requires_grad=True)
    loss = softened_kl(student, teacher, 2.0)
    # T² · (3/4 · log(3/4 ÷ 1/2) + 1/4 · log(1/4 ÷ 1/2)) = 4 · 0.130812
    assert loss.item() == pytest.approx(4 * 0.130812, abs=1e-5)
    loss.backward()
    # T² · (p_s − p_t) / T = 2 · (−1/4, 1/4)
    assert student.grad.tolist()[0] == pytest.approx([-0.5, 0.5])


def test_softened_kl_is_a_mean_over_the_batch_and_asymmetric():
    teacher, student = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    # Only the first sample differs: KL((0.7311, 0.2689) ‖ (½, ½)) = 0.110944, halved by the mean.
    assert softened_kl(student, teacher, 1.0).item() == pytest.approx(0.110944 / 2, abs=1e-5)
    # The other way round it is 0.120115: the teacher's is the reference distribution.
    assert softened_kl(teacher, student, 1.0).item() == pytest.approx(0.120115 / 2, abs=1e-5)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 1.0), (0.0, 0.110944), (0.25, 0.25 + 0.75 * 0.110944)])
def test_knowledge_weighs_output_distance_and_kl(alpha, expected):
    student, teacher = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    loss = knowledge(student, teacher, [(student, teacher)], alpha=alpha, temperature=1.0)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_labels_share_the_loss():
    assert with_labels(torch.tensor(2.0), torch.tensor(1.0), 0.25).item() == 1.75


class Net(nn.Module):
    def __init__(self, width, classes=3):
        super().__init__()
        self.conv = nn.Conv1d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(nn.Linear(width * 4, width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.conv(x.unsqueeze(1)))
        return self.head(self.blocks(x.flatten(1)))


def make(kind, width, classes=3):
    torch.manual_seed(width)
    module = Net(width, classes)
    if kind == "eager":
        return module
    script = torch.jit.script(module) if kind == "scripted" else torch.jit.trace(module.eval(), torch.randn(2, 4))
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def samples():
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    splits = ("train", "val", "test")
    return Data({split: [x] for split in splits}, dict.fromkeys(splits, y), Classification(), 3, "given", "npz")


EXAMPLE = (torch.randn(4, 4),)
PAIRS = [("blocks.0", "blocks.0"), ("conv", "conv")]


def prepared(kind, teacher, student, **kwargs):
    return make_objective(kind, teacher, student, samples(), EXAMPLE, task=Classification(), seed=0, **kwargs)


@pytest.mark.parametrize("kind", ["eager", "scripted", "traced"])
def test_named_layers_are_read_from_any_module(kind):
    eager, module = make("eager", 6).eval(), make(kind, 6).eval()
    output, (conv, wide, narrow) = Probe(module, ["conv", "blocks.0", "blocks.1"], "teacher")(EXAMPLE, Classification())
    x = EXAMPLE[0]
    expected = eager.conv(x.unsqueeze(1))
    assert torch.equal(output, eager(x))
    assert torch.allclose(conv, expected)
    hidden = eager.blocks[0](torch.relu(expected).flatten(1))
    assert torch.allclose(wide, hidden)
    assert torch.allclose(narrow, torch.relu(hidden))


@pytest.mark.parametrize("kind", ["eager", "scripted"])
def test_features_follow_the_weights_and_the_training_flag_of_the_module(kind):
    module = make(kind, 6).eval()
    probe = Probe(module, ["blocks.0", "blocks.2"], "student")
    with torch.no_grad():
        module.conv.weight.zero_()
        module.conv.bias.zero_()
        getattr(module.blocks, "0").bias.fill_(7.0)
    _, (hidden, dropped) = probe(EXAMPLE, Classification())
    assert (hidden == 7).all()
    assert torch.equal(dropped, hidden)
    module.train()
    _, (_, dropped) = probe(EXAMPLE, Classification())
    assert (dropped != hidden).any()
    dropped.sum().backward()
    assert getattr(module.blocks, "0").bias.grad is not None


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(torch.relu(self.shared(x)))


@pytest.mark.parametrize("kind", ["eager", "scripted", "traced"])
def test_of_a_layer_that_runs_twice_the_last_output_counts(kind):
    module = Twice().eval()
    if kind != "eager":
        module = torch.jit.script(module) if kind == "scripted" else torch.jit.trace(module, EXAMPLE)
    output, (features,) = Probe(module, ["shared"], "student")(EXAMPLE, Classification())
    assert torch.equal(output, features)


def test_a_file_whose_calls_are_inlined_still_shows_its_layers():
    module = make("scripted", 6).eval()
    torch._C._jit_pass_inline(module._c._get_method("forward").graph)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    inlined = torch.jit.load(buffer)
    expected = Probe(make("eager", 6).eval(), ["conv", "blocks.0"], "student")(EXAMPLE, Classification())[1]
    found = Probe(inlined, ["conv", "blocks.0"], "student")(EXAMPLE, Classification())[1]
    assert all(torch.allclose(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["eager", "scripted", "traced"])
def test_an_unknown_layer_is_answered_with_those_there_are(kind):
    with pytest.raises(ValidationError, match=r"no layer 'convv'.*conv.*blocks\.0.*head") as caught:
        Probe(make(kind, 6), ["convv"], "student")
    assert caught.value.errors[0]["pointer"] == "/loss/features"


def test_features_that_are_too_wide_to_project_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.import_module("pared.compression.distillation.choosing"), "MAX_PROJECTION", 10)
    with pytest.raises(ValidationError, match="too many to project"):
        prepared(Knowledge(kind="knowledge", features=PAIRS), make("eager", 12), make("eager", 6))


def test_features_of_one_number_have_no_softmax():
    loss = Knowledge(kind="knowledge", features=[("head", "head")])
    with pytest.raises(ValidationError, match="one number") as caught:
        prepared(loss, make("eager", 12, classes=1), make("eager", 6, classes=1))
    assert caught.value.errors[0]["pointer"] == "/loss/features/0"


def test_a_student_with_other_outputs_is_refused():
    with pytest.raises(ShapeMismatch, match=r"\(4, 3\).*\(4, 5\)"):
        prepared(OutputMse(kind="output_mse"), make("eager", 12), make("eager", 6, classes=5))


KINDS = [
    OutputMse(kind="output_mse"),
    Knowledge(kind="knowledge", alpha=0.5, labels=0.0),
    Knowledge(kind="knowledge", alpha=0.5, labels=0.1),
    Knowledge(kind="knowledge", alpha=0.5, features=PAIRS, labels=0.0),
]


@pytest.mark.parametrize("form", ["eager", "scripted"])
@pytest.mark.parametrize("kind", KINDS, ids=["output_mse", "logits", "labels", "features"])
def test_the_student_nears_the_teacher_and_the_teacher_stays_as_it_is(kind, form):
    data, teacher, student = samples(), make(form, 12).eval(), make(form, 6)
    (x,) = data.inputs["train"]
    labels = teacher(x).argmax(1)
    data.targets = dict.fromkeys(data.targets, labels)  # the best epoch is chosen on labels: let the teacher be right
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teaching = make_objective(kind, teacher, student, data, EXAMPLE, task=Classification(), seed=0)

    def distance():
        with torch.no_grad():
            student.eval()
            return output_mse(student(x), teacher(x)).item()

    start = distance()
    config = Train(epochs=30, optimizer="adam", lr=0.01, batch_size=30)
    fit(
        student,
        teaching.data,
        config,
        teaching.loss,
        task=Classification(),
        seed=0,
        phase="x",
        companion=teaching.companion,
    )
    assert distance() < 0.9 * start
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    if kind is KINDS[3]:
        projection = teaching.companion[0]
        assert projection.weight.shape == (12, 6)
        assert projection.weight.grad is not None


def test_answers_computed_once_travel_with_their_samples():
    data, teacher = samples(), make("eager", 12).eval()
    teaching = prepared(OutputMse(kind="output_mse"), teacher, make("eager", 6))
    batches = list(teaching.data.batches("train", 32, torch.Generator().manual_seed(5)))
    plain = list(data.batches("train", 32, torch.Generator().manual_seed(5)))
    for ((x, answers), y), ((same_x,), same_y) in zip(batches, plain, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)
        assert torch.allclose(answers, teacher(x), atol=1e-6)
    assert len(next(iter(teaching.data.batches("val", 32)))[0]) == 1


@pytest.mark.parametrize("kind", KINDS, ids=["output_mse", "logits", "labels", "features"])
def test_a_teacher_answers_the_samples_as_they_were_changed(kind):
    augment = Augment(mixup={})
    teacher, student = make("eager", 12).eval(), make("eager", 6)
    teaching = prepared(kind, teacher, student, augment=augment)
    (x,), y = next(iter(teaching.data.batches("train", 32)))
    changed, _ = Augmentation(augment, 1)((x,), y, 0)
    mixed, other, share = changed
    found = teaching.loss(student, changed, y)
    answers, expected = teacher(mixed), output_mse(student(mixed), teacher(mixed))
    if isinstance(kind, Knowledge):
        softened = [(student(mixed), answers)]
        if kind.features:
            wide, narrow = (
                Probe(module, [pair[index] for pair in PAIRS], "x")((mixed,), Classification())[1]
                for index, module in enumerate((teacher, student))
            )
            softened = [
                (p(z_s.flatten(1)), z_t.flatten(1))
                for p, z_s, z_t in zip(teaching.companion, narrow, wide, strict=True)
            ]
        taught = knowledge(student(mixed), answers, softened, alpha=kind.alpha, temperature=kind.temperature)
        of_labels = [functional.cross_entropy(student(mixed), each) for each in (y, other)]
        expected = with_labels(taught, share[0] * of_labels[0] + (1 - share[0]) * of_labels[1], kind.labels)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_resumed_lesson_with_projections_ends_with_the_same_bits():
    config = Train(epochs=4, optimizer="adam", lr=0.01, batch_size=30)

    def run(keep=lambda _: None, resume=None):
        teacher, student = make("scripted", 12), make("scripted", 6)
        teaching = make_objective(KINDS[3], teacher, student, samples(), EXAMPLE, task=Classification(), seed=0)
        fit(
            student,
            teaching.data,
            config,
            teaching.loss,
            task=Classification(),
            seed=0,
            phase="x",
            companion=teaching.companion,
            keep=keep,
            resume=resume,
        )
        return student.state_dict()

    states = []
    whole = run(keep=states.append)
    resumed = run(resume=states[1])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
