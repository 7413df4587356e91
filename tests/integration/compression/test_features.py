"""Losses between inner layers of teachers and students of any family and in any form of file."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pared.compression import distill, prune
from pared.compression.data import Data
from pared.compression.distillation.adapting import Adapter
from pared.compression.distillation.features import Layer, Probe, layers_of
from pared.compression.distillation.objective import Objective, make_objective
from pared.compression.distillation.pairs import auto_pairs
from pared.compression.loading import load_model
from pared.compression.tasks import TaskRules
from pared.compression.tasks.classification import Binary, Classification
from pared.compression.tasks.dense import TokenClassification
from pared.compression.tasks.labels import IGNORED
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.tasks.regression import Regression
from pared.compression.training.augmentation import Augmentation
from pared.compression.training.loop import fit
from pared.compression.work import ModelFile
from pared.errors import ModelFailed, ShapeMismatch, ValidationError
from pared.reports import Report
from pared.specs import Augment, Combined, Knowledge, Train


def _nets() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "feature_nets", Path(__file__).parents[3] / "benchmarks" / "feature_nets.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NETS = _nets()
IN_MAKE_TEST = ("CNN -> MLP", "transformer -> narrower with half the layers", "GRU -> CNN", "1-D CNN -> GRU")
IMAGES = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)
TASK = Classification()


def digits(task: TaskRules = TASK, samples: int = 120) -> Data:
    x = torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = (x.mean((1, 2, 3)) * 97).long() % 10
    splits = ("train", "val", "test")
    return Data({split: [x] for split in splits}, dict.fromkeys(splits, y), task, 10, "given", "npz")


def opened(path: Path) -> nn.Module:
    return load_model(ModelFile(path, path.name, "0" * 64)).module


def combined(*terms: dict[str, Any]) -> Combined:
    return Combined(kind="combined", terms=list(terms))


def lesson(kind: Any, teacher: nn.Module, student: nn.Module, data: Data | None = None, **kwargs: Any) -> Objective:
    data = data or digits()
    return make_objective(kind, teacher, student, data, data.example(4), task=data.task, seed=0, **kwargs)


def learned(made: Objective, student: nn.Module, task: TaskRules = TASK, epochs: int = 2) -> list[float]:
    config = Train(epochs=epochs, optimizer="adam", lr=0.005, batch_size=30)
    arguments = {"task": task, "seed": 0, "phase": "x", "companion": made.companion}
    return [record.train_loss for record in fit(student, made.data, config, made.loss, **arguments).history]


# -- pairs of families ----------------------------------------------------------------------------

OF_FEATURES = [
    {"kind": "hint", "weight": 0.5},
    {"kind": "relational", "weight": 0.1, "features": "auto"},
    {"kind": "cosine", "features": "auto"},
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.campaign) for name in NETS.PAIRS]
)
def test_files_of_other_families_learn_from_each_others_inner_layers(name: str, tmp_path: Path) -> None:
    make, form, make_student, student_form = NETS.PAIRS[name]
    torch.manual_seed(0)
    teacher = opened(NETS.saved(make(), form, tmp_path, "teacher"))
    student = opened(NETS.saved(make_student(), student_form, tmp_path, "student"))
    of_features = OF_FEATURES if "MLP" in name else [*OF_FEATURES, {"kind": "attention"}]
    made = lesson(combined({"kind": "kl"}, {"kind": "labels"}, *of_features), teacher, student)
    assert {pair.term for pair in made.features} == {term["kind"] for term in of_features}
    for term in of_features:
        pairs = [pair for pair in made.features if pair.term == term["kind"]]
        assert len({pair.student for pair in pairs}) == len({pair.teacher for pair in pairs}) == len(pairs) >= 2
    losses = learned(made, student, epochs=3)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_report_says_which_layers_were_paired_and_how(tmp_path: Path) -> None:
    teacher = NETS.saved(NETS.Transformer(16, 4), "scripted", tmp_path, "teacher")
    data = digits()
    done = distill(
        str(teacher),
        NETS.Transformer(8, 2),
        (data.inputs["train"][0].numpy(), data.targets["train"].numpy()),
        loss={"kind": "combined", "terms": [{"kind": "kl"}, {"kind": "hint"}]},
        train={"epochs": 1},
        compare_with_labels_only=True,
    )
    pairs = [(pair.teacher, pair.student, pair.teacher_shape) for pair in done.report.features]
    assert pairs == [("layers.1", "layers.0", [8, 16]), ("norm", "norm", [8, 16])]
    assert {pair.chosen for pair in done.report.features} == {"auto"}
    shown = str(Report.model_validate(done.report.model_dump()))
    assert "hint: layers.0 learned from the teacher's layers.1, 8 channels projected to 16" in shown


# -- which layers are read ------------------------------------------------------------------------


class Branching(nn.Module):
    """Layers inside of a condition and a loop, and a recurrent layer with its batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.steps = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.cell = nn.GRU(6, 5)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.squeeze(1))
        if x.shape[1] > 2:
            x = torch.relu(self.inner(x))
        for _ in range(3):
            x = torch.tanh(self.steps(x))
        steps, _ = self.cell(x.transpose(0, 1))
        return self.head(steps[-1])


def test_layers_in_conditions_and_loops_are_read_and_the_batch_is_found_wherever_it_is() -> None:
    module = Branching().eval()
    script = torch.jit.script(module)
    x = torch.rand(8, 1, 8, 8)  # as many samples as steps
    expected = Probe(module, ["inner", "steps", "cell"], "teacher")
    found = Probe(script, ["inner", "steps", "cell"], "teacher")
    for probe in (expected, found):
        probe.look(IMAGES)
    for one, other in zip(expected((x,), TASK)[1], found((x,), TASK)[1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(module.head(found((x,), TASK)[1][2][:, -1]), module(x))
    named = layers_of(script, IMAGES)
    assert [*named] == ["first", "inner", "steps", "cell", "head"]
    assert named["cell"].shape == (8, 5)
    assert named["head"].answers


class Encoder(nn.Module):
    """torch's own transformer layers, whose calls are nested in conditions."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 2, 16, batch_first=True), depth)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1))).mean(1))


def test_the_layers_of_a_scripted_transformer_are_read_and_paired() -> None:
    teacher, student = torch.jit.script(Encoder(16, 4).eval()), torch.jit.script(Encoder(8, 2).eval())
    pairs = auto_pairs(layers_of(teacher, IMAGES), layers_of(student, IMAGES), lambda *_: True)
    assert ("encoder.layers.1", "encoder.layers.0") in [(pair.teacher.name, pair.student.name) for pair in pairs]
    kind = named("hint", ("encoder.layers.1.linear2", "encoder.layers.0"))
    refused("/loss/terms/1/features/0", "whole transformer layer at once", kind, teacher, student)


@pytest.mark.parametrize("form", ["scripted", "traced", "exported"])
def test_a_file_in_any_form_gives_what_the_module_gives(form: str, tmp_path: Path) -> None:
    module = NETS.Convolutional(4).eval()
    found = layers_of(opened(NETS.saved(module, form, tmp_path, "m")), IMAGES)
    expected = layers_of(module, IMAGES)
    assert set(found) <= set(expected)
    assert {"body.0", "body.1", "body.4"} <= set(found)
    for name, layer in found.items():
        if form != "exported" or name not in ("body.1", "body.5"):  # which a ReLU does not change in place here
            assert torch.allclose(layer.given, expected[name].given, atol=1e-6), name
        assert (layer.shape, layer.channel_dim) == (expected[name].shape, expected[name].channel_dim)


def test_channels_of_sequences_are_where_the_layer_has_them() -> None:
    layers = layers_of(NETS.Sequence(6).eval(), IMAGES)
    assert (layers["conv1"].channels, layers["conv1"].places) == (6, (8,))
    layers = layers_of(NETS.Recurrent(6).eval(), IMAGES)
    assert (layers["cell"].channels, layers["cell"].places) == (6, (8,))


def test_auto_takes_blocks_by_relative_depth() -> None:
    teacher, student = NETS.Transformer(16, 4).eval(), NETS.Transformer(8, 2).eval()
    pairs = auto_pairs(layers_of(teacher, IMAGES), layers_of(student, IMAGES), lambda *_: True)
    assert [(pair.teacher.name, pair.student.name) for pair in pairs] == [("layers.1", "layers.0"), ("norm", "norm")]


def test_auto_of_knowledge_softens_flattened_layers() -> None:
    made = lesson(Knowledge(kind="knowledge", features="auto"), NETS.Convolutional(8), NETS.Convolutional(4))
    assert [(pair.term, pair.student) for pair in made.features][-1] == ("knowledge", "body")
    assert made.features[-1].compared == "flattened, 128 numbers projected to 256"


# -- how features are brought together ------------------------------------------------------------


def adapted(teacher: Tensor, student: Tensor, dims: tuple[int, int]) -> tuple[Tensor, Tensor]:
    layers = [
        Layer("x", "Linear", tuple(each.shape[1:]), dim, 1, each, False)
        for each, dim in zip((teacher, student), dims, strict=True)
    ]
    return Adapter(*layers)(student, teacher)


@pytest.mark.parametrize(
    ("teacher", "student", "dims", "shape"),
    [
        ((2, 6, 8, 8), (2, 3, 4, 4), (0, 0), (2, 16, 6)),
        ((2, 6, 4, 8), (2, 3, 8, 4), (0, 0), (2, 16, 6)),
        ((2, 9, 6), (2, 5, 3), (1, 1), (2, 5, 6)),
        ((2, 6, 9), (2, 5, 3), (0, 1), (2, 5, 6)),
        ((2, 6, 4, 4), (2, 8, 3), (0, 1), (2, 8, 6)),
        ((2, 6), (2, 3, 4, 4), (0, 0), (2, 1, 6)),
        ((2, 7, 6), (2, 3), (1, 0), (2, 1, 6)),
        ((2, 6), (2, 3), (0, 0), (2, 1, 6)),
    ],
)
def test_features_of_any_shape_become_the_teachers(teacher: Any, student: Any, dims: Any, shape: Any) -> None:
    own, expected = adapted(torch.rand(teacher), torch.rand(student), dims)
    assert own.shape == expected.shape == shape


def test_images_are_averaged_over_areas_and_channels_of_one_width_stay() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    own, expected = adapted(image, torch.zeros(1, 1, 2, 2), (0, 0))
    assert expected.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert not own.any()


class Tagger(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(20, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embed(tokens))))


def tokens() -> Data:
    x = torch.randint(0, 20, (40, 6), generator=torch.Generator().manual_seed(0))
    y = (x % 4).masked_fill(torch.arange(6) >= 4, IGNORED)
    splits = ("train", "val", "test")
    return Data({split: [x] for split in splits}, dict.fromkeys(splits, y), TokenClassification(), 4, "given", "npz")


TOKEN_TERMS = [
    {"kind": "kl"},
    {"kind": "output_mse"},
    {"kind": "decoupled"},
    {"kind": "dist"},
    {"kind": "labels"},
    {"kind": "cosine"},
    {"kind": "relational"},
    {"kind": "hint"},
    {"kind": "attention"},
    {"kind": "cosine", "features": "auto"},
]


@pytest.mark.parametrize("term", TOKEN_TERMS, ids=lambda term: "-".join(map(str, term.values())))
def test_positions_without_a_label_are_left_out_of_every_term(term: dict[str, Any]) -> None:
    data, student = tokens(), Tagger(6)
    made = lesson(combined(term, {"kind": "kl", "weight": 1e-6}), Tagger(12), student, data)
    inputs, targets = next(iter(made.data.batches("train", 8)))
    found = made.loss(student, inputs, targets)
    found.backward()
    # Tokens that only stand where nothing counts have no gradient.
    first = inputs[0]
    alone = set(first[:, 4:].flatten().tolist()) - set(first[:, :4].flatten().tolist())
    assert alone
    assert not student.embed.weight.grad[sorted(alone)].any()
    assert student.embed.weight.grad.any()
    losses = learned(made, student, data.task, epochs=1)
    assert np.isfinite(losses).all()


# -- tasks ----------------------------------------------------------------------------------------


def test_independent_labels_and_lone_logits_have_terms_too() -> None:
    x = torch.rand(40, 1, 8, 8)
    splits = ("train", "val", "test")
    for task, y, classes in (
        (Multilabel(), (torch.rand(40, 3) > 0.5).float(), 3),
        (Binary(), torch.arange(40) % 2, 1),
        (Regression(), torch.rand(40, 3), 3),
    ):
        data = Data({split: [x] for split in splits}, dict.fromkeys(splits, y), task, classes, "given", "npz")
        teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, w), nn.Linear(w, classes)) for w in (8, 4))
        terms = [{"kind": "output_mse"}, {"kind": "labels"}, {"kind": "relational"}, {"kind": "hint"}]
        if task.softens:
            terms += [{"kind": "kl"}, {"kind": "dist"}]
        made = lesson(combined(*terms), teacher, student, data)
        assert np.isfinite(learned(made, student, task, epochs=1)).all()


def test_terms_take_samples_that_are_mixed() -> None:
    augment, student = Augment(mixup={}), NETS.Convolutional(4)
    kind = combined({"kind": "decoupled"}, {"kind": "labels"}, {"kind": "hint"})
    made = lesson(kind, NETS.Convolutional(8), student, augment=augment)
    inputs, targets = next(iter(made.data.batches("train", 8)))
    mixed, targets = Augmentation(augment, 1)(inputs, targets, 0)
    student.eval()
    found = made.loss(student, mixed, targets)
    whole = [made.loss(student, (*mixed[:-2], each, torch.ones(8)), each) for each in (targets, mixed[-2])]
    share = mixed[-1][0]
    assert torch.allclose(found, share * whole[0] + (1 - share) * whole[1], rtol=1e-5)


def test_embeddings_learn_from_answers_and_inner_layers() -> None:
    text = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    done = distill(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 8)),
        (text, None),
        task="embedding",
        loss={"kind": "combined", "terms": [{"kind": "cosine"}, {"kind": "relational"}, {"kind": "hint"}]},
        train={"epochs": 4},
    )
    losses = [record.train_loss for record in done.report.history]
    assert losses[-1] < losses[0]
    assert [(pair.teacher, pair.student) for pair in done.report.features][-1] == ("2", "2")


# -- teachers that mask classes -------------------------------------------------------------------


class Masking(nn.Module):
    """Two of the ten classes are never answered."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.register_buffer("mask", torch.arange(10) >= 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1)))).masked_fill(self.mask, -torch.inf)


@pytest.mark.parametrize("student", [Masking, NETS.Perceptron])
def test_a_student_of_a_teacher_that_masks_classes_learns(student: Any) -> None:
    data, module = digits(), student(8)
    data.targets = {split: each % 8 for split, each in data.targets.items()}
    terms = [{"kind": kind} for kind in ("kl", "output_mse", "decoupled", "dist", "cosine", "relational", "labels")]
    made = lesson(combined(*terms), Masking(16), module, data)
    assert np.isfinite(learned(made, module)).all()
    assert all(bool(each.isfinite().all()) for each in module.parameters())


def test_a_model_that_masks_classes_is_pruned_and_retrained_as_any() -> None:
    data = digits()
    arrays = data.inputs["train"][0].numpy(), (data.targets["train"] % 8).numpy()
    done = prune(Masking(16), arrays, amount=0.5, retrain={"epochs": 1})
    assert done.report.reproduce.spec["retrain"]["teach"]["kind"] == "knowledge"
    assert np.isfinite([record.train_loss for record in done.report.history]).all()


# -- bad input ------------------------------------------------------------------------------------


def refused(
    pointer: str, says: str, kind: Any, teacher: nn.Module, student: nn.Module, data: Data | None = None
) -> None:
    with pytest.raises((ValidationError, ShapeMismatch), match=says) as caught:
        lesson(kind, teacher, student, data)
    assert [error["pointer"] for error in caught.value.errors] == [pointer]


def named(kind: str, *pairs: tuple[str, str]) -> Combined:
    return combined({"kind": "kl"}, {"kind": kind, "features": list(pairs)})


def test_layers_that_are_not_there_are_answered_with_those_there_are() -> None:
    kind = named("hint", ("body", "body"), ("body", "bodi"))
    says = r"student has no layer 'bodi'.*body\.0.*head"
    refused("/loss/terms/1/features/1", says, kind, NETS.Convolutional(8), NETS.Convolutional(4))


def test_widths_that_cannot_be_projected_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pared.compression.distillation.choosing"), "MAX_PROJECTION", 10)
    says = "8 numbers a sample.*16.*too many to project"
    refused(
        "/loss/terms/1/features/0",
        says,
        named("hint", ("body", "body")),
        NETS.Convolutional(8),
        NETS.Convolutional(4),
    )


def test_attention_of_layers_without_positions_is_refused() -> None:
    says = "hidden1 gives .16,. a sample, which has no positions"
    kind = named("attention", ("body", "hidden1"))
    refused("/loss/terms/1/features/0", says, kind, NETS.Convolutional(8), NETS.Perceptron(16))
    auto = combined({"kind": "attention"})
    refused("/loss/terms/0/features", "No layer of the teacher", auto, NETS.Convolutional(8), NETS.Perceptron(16))


class Odd(NETS.Perceptron):
    """Answers something else."""

    def __init__(self, change: Any) -> None:
        super().__init__(16)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x))


def test_other_class_counts_are_refused() -> None:
    says = r"\(4, 10\).*\(4, 9\)"
    refused("/student", says, combined({"kind": "kl"}), NETS.Perceptron(16), Odd(lambda y: y[:, :9]))


def test_teachers_and_students_without_numbers_are_refused() -> None:
    kl = combined({"kind": "kl"})
    refused("/teacher", "answers NaN or infinity for 4 of 4", kl, Odd(lambda y: y * torch.nan), NETS.Perceptron(16))
    refused("/student", "student answers NaN", kl, NETS.Perceptron(16), Odd(lambda y: y * torch.nan))
    some = Odd(lambda y: torch.where(y[:, :1] > y[:, :1].median(), y, torch.inf))
    refused("/teacher", r"of \d+ training samples", kl, some, NETS.Perceptron(16))
    says = "student masks classes with −inf that the teacher does not"
    refused("/loss/terms/0", says, kl, NETS.Perceptron(16), Masking(8))


def test_nan_in_a_later_sample_is_found_before_training() -> None:
    data = digits()
    data.inputs["train"][0] = data.inputs["train"][0].clone()
    data.inputs["train"][0][77] = 7.0
    teacher = Odd(lambda y: y)
    teacher.hidden1.register_forward_pre_hook(lambda _, x: (torch.where(x[0] > 2, torch.nan, x[0]),))
    says = r"for 1 of 120 training samples \(the first is number 77"
    refused("/teacher", says, combined({"kind": "kl"}), teacher, NETS.Perceptron(16), data)


def test_terms_without_a_part_in_the_task_are_refused() -> None:
    x, splits = torch.rand(20, 1, 8, 8), ("train", "val", "test")
    many = Data({s: [x] for s in splits}, dict.fromkeys(splits, torch.ones(20, 10)), Multilabel(), 10, "given", "npz")
    nets = NETS.Perceptron(16), NETS.Perceptron(8)
    kind = combined({"kind": "kl"}, {"kind": "decoupled"})
    refused("/loss/terms/1", "a question of its own", kind, *nets, many)
    one = Data({s: [x] for s in splits}, dict.fromkeys(splits, torch.arange(20) % 2), Binary(), 2, "given", "npz")
    lone = [nn.Sequential(nn.Flatten(), nn.Linear(64, 1)) for _ in range(2)]
    refused("/loss/terms/0", "one number has none", combined({"kind": "cosine"}), *lone, one)


def test_dicts_and_tuples_are_named_or_refused() -> None:
    class Two(NETS.Perceptron):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    with pytest.raises(ModelFailed, match="a tuple of 2 outputs"):
        lesson(combined({"kind": "kl"}, {"kind": "hint"}), Two(16), NETS.Perceptron(8))
    first = replace(TASK, output="0")
    teacher = Two(16).eval()
    made = lesson(combined({"kind": "kl"}, {"kind": "hint"}), teacher, NETS.Perceptron(8), teacher_task=first)
    assert [pair.teacher for pair in made.features] == ["hidden1", "hidden2"]
