"""What students are made of: cut from the teacher by width, depth or to a size, or begun with its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import distill, run_spec
from pared.compression.distillation.students import cut_student, take_weights
from pared.compression.loading import LoadedModel
from pared.compression.measuring.size import count_macs, count_parameters
from pared.compression.pruning.importance import CalibrationStatistics
from pared.errors import NothingToPrune, ValidationError
from pared.specs import DistillSpec, TeacherCut
from tests.support.campaign import each_nth
from tests.support.observers import Kept

X = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :, :3].sum(1).argmax(1)
EXAMPLE = (X[:4],)


class Layer(nn.Module):
    """Attention and MLP of a transformer, each a residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(self.norm1(x))
        x = x + self.o(torch.softmax(q @ q.transpose(1, 2), -1) @ q)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, layers: int = 4, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(layers)
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, classes)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def loaded(module: nn.Module | None = None) -> LoadedModel:
    module = Encoder() if module is None else module
    return LoadedModel(torch.jit.trace(module.eval(), EXAMPLE, check_trace=False), "torchscript", "traced")


def cut(model: LoadedModel, statistics: CalibrationStatistics | None = None, **how):
    return cut_student(TeacherCut(**how), model, EXAMPLE, statistics=statistics)


def layers_of(student: LoadedModel) -> set[str]:
    return {name.split(".")[1] for name, _ in student.module.named_parameters() if name.startswith("layers.")}


@pytest.mark.parametrize(
    ("depth", "stay"), [(0.5, {"0", "3"}), (0.75, {"0", "2", "3"}), (0.1, {"0"})], ids=["half", "three", "one"]
)
def test_layers_of_a_transformer_go_whole_and_evenly(depth, stay):
    student = cut(loaded(), depth=depth)
    assert layers_of(student.loaded) == stay
    assert student.layers == 4
    assert len(student.dropped) == 4 - len(stay)
    assert all("q" in each and "down" in each for each in student.dropped)


def test_a_student_without_layers_answers_as_the_teacher_without_what_they_add():
    teacher = Encoder()
    student = cut(loaded(teacher), depth=0.5)
    teacher.layers = nn.ModuleList([teacher.layers[0], teacher.layers[3]])
    torch.testing.assert_close(student.loaded.module(*EXAMPLE), teacher(*EXAMPLE))


@pytest.mark.parametrize("measured", [True, False], ids=["on samples", "by weights"])
def test_the_layers_that_add_the_least_go_where_it_is_asked_for(measured):
    teacher = Encoder()
    with torch.no_grad():
        for index in (1, 3):
            for weight in teacher.layers[index].parameters():
                weight.mul_(1e-3)
    statistics = CalibrationStatistics(list, dict, lambda: [EXAMPLE]) if measured else None
    student = cut(loaded(teacher), statistics, depth=0.5, drop="least_important")
    assert layers_of(student.loaded) == {"0", "2"}


@pytest.mark.parametrize(
    "how",
    each_nth(
        [
            {"target": {"macs": 0.4, "params": 0.5}, "depth": 0.5},
            {"target": {"params": 0.3}},
            {"target": {"params": 0.6}, "depth": 1},
            {"target": {"params": 0.6}, "width": 0.9},
            {"target": {"params": 0.9}, "width": 0.5},
        ],
        3,
    ),
    ids=str,
)
def test_the_largest_student_within_the_target_is_made(how):
    teacher = loaded()
    student = cut(teacher, **how)
    whole = count_parameters(teacher.module)[0], count_macs(teacher.module, EXAMPLE)
    left = count_parameters(student.loaded.module)[0], count_macs(student.loaded.module, EXAMPLE)
    shares = dict(zip(("params", "macs"), (part / all_ for part, all_ in zip(left, whole, strict=True)), strict=True))
    assert all(shares[name] <= most for name, most in how["target"].items())
    if "width" not in how:  # a channel more in each layer would be too many
        assert any(shares[name] > 0.9 * most for name, most in how["target"].items())
    else:
        assert student.width == how["width"]
    if how.get("depth") == 1 or how == {"target": {"params": 0.9}, "width": 0.5}:
        assert not student.dropped
    if set(how) == {"target"}:
        assert student.dropped
        assert student.width < 1


def test_a_size_that_no_student_has_is_told_with_the_smallest():
    with pytest.raises(ValidationError, match=r"smallest has [\d.]+% of the params, and at most 0.1%") as caught:
        cut(loaded(), target={"params": 0.001})
    assert caught.value.errors[0]["pointer"] == "/student/from_teacher/target"


def by_macs(teacher: LoadedModel, batch_sizes: list[int]):
    """Takes the share of multiply-adds for that of the time, and writes down the batch sizes it is asked for."""

    def timed(student: LoadedModel, batch_size: int) -> float:
        batch_sizes.append(batch_size)
        return count_macs(student.module, EXAMPLE) / count_macs(teacher.module, EXAMPLE)

    return timed


@pytest.mark.parametrize("further", each_nth([{}, {"width": 0.9}], 2), ids=str)
def test_the_largest_student_that_is_fast_enough_is_made(further):
    teacher, batch_sizes = loaded(), []
    asked = TeacherCut(target={"latency": 0.7, "latency_batch_size": 8}, **further)
    timed = by_macs(teacher, batch_sizes)
    student = cut_student(asked, teacher, EXAMPLE, timed=timed)
    assert set(batch_sizes) == {8}
    left = timed(student.loaded, 8)
    assert left <= 0.95 * 0.7  # it is measured again at the end, which may say a little more
    if "width" not in further:
        assert left > 0.6
    again = cut_student(
        asked,
        teacher,
        EXAMPLE,
        found=(student.width, None if student.layers is None else student.layers - len(student.dropped)),
    )
    assert [each.shape for each in again.loaded.module.parameters()] == [
        each.shape for each in student.loaded.module.parameters()
    ]
    assert again.dropped == student.dropped


def test_a_student_is_timed_beside_its_teacher_and_keeps_its_width_over_a_restart(tmp_path):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(),
                            nn.Linear(400, 3))  # fmt: skip
    torch.jit.script(teacher).save(tmp_path / "teacher.pt")
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    files = {"teacher": str(tmp_path / "teacher.pt"), "dataset": str(tmp_path / "data.npz")}
    target = {"latency": 0.8, "latency_batch_size": 64}
    spec = DistillSpec(
        type="distill",
        teacher="mdl_" + "0" * 26,
        dataset="dst_" + "0" * 26,
        task="classification",
        student={"from_teacher": {"target": target}},
        train={"epochs": 2},
    )
    first = Kept()
    report = run_spec(spec, files, tmp_path / "first", first)
    before, after = (
        next(each.p50_ms for each in one.latency if each.batch_size == 64) for one in (report.before, report.after)
    )
    assert report.after.macs < report.before.macs
    said = any("of the teacher's time at batch 64, and at most 80.0% was asked for" in each for each in report.warnings)
    assert said == (after / before > 0.8)
    second = Kept(first.checkpoints[0])
    resumed = run_spec(spec, files, tmp_path / "second", second)
    assert resumed.student.width == report.student.width
    assert not any("the largest student within the target" in line for line in second.lines)
    assert resumed.after.quality == report.after.quality


def test_no_student_is_fast_enough(tmp_path):
    with pytest.raises(ValidationError, match=r"has .* of the latency, and at most 0\.0% of the latency") as caught:
        distill(Encoder(), {"from_teacher": {"target": {"latency": 1e-6}}}, (X, Y), task="classification")
    assert caught.value.errors[0]["pointer"] == "/student/from_teacher/target"


def test_depth_of_a_teacher_without_residual_blocks_is_refused():
    chain = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(NothingToPrune, match="No residual block"):
        cut(loaded(chain), depth=0.5)
    # Left to the search, there is the width.
    student = cut(loaded(chain), target={"params": 0.5})
    assert student.layers is None
    assert student.width < 1


def test_a_student_takes_what_has_name_and_shape_of_the_teachers():
    teacher, student = Encoder(layers=3), Encoder(layers=2, classes=5)
    taken = take_weights(teacher, student)
    assert torch.equal(student.layers[1].q.weight, teacher.layers[1].q.weight)
    assert student.head.weight.shape == (5, 16)
    kept = count_parameters(student)[0] - student.head.weight.numel() - student.head.bias.numel()
    assert taken.parameters == kept
    assert "head.weight" not in taken.tensors


def test_a_student_of_other_names_can_take_nothing():
    with pytest.raises(ValidationError, match=r"No tensor of the student.*0\.weight") as caught:
        take_weights(Encoder(), nn.Sequential(nn.Linear(4, 3)))
    assert caught.value.errors[0]["pointer"] == "/student_weights"


def test_the_report_says_where_the_student_began():
    job = {"train": {"epochs": 0}, "task": "classification"}
    teacher = Encoder()
    report = distill(teacher, {"from_teacher": {"depth": 0.5, "width": 0.5}}, (X, Y), **job).report
    assert report.student.source == "from_teacher"
    assert report.student.parameters_from_teacher == report.student.parameters == report.after.parameters
    assert (report.student.width, report.student.layers, len(report.student.dropped)) == (0.5, 4, 2)
    gone = [layer for layer in report.layers if not layer.shape_after[0]]
    assert {layer.name.split(".")[1] for layer in gone} == {"1", "2"}
    report = distill(teacher, Encoder(layers=2), (X, Y), student_weights="teacher", **job).report
    assert report.student.parameters_from_teacher == report.student.parameters
    assert "layers.0.q.weight" in report.student.tensors_from_teacher
    report = distill(teacher, Encoder(layers=2), (X, Y), **job).report
    assert report.student.parameters_from_teacher == 0


def test_a_student_that_is_better_than_its_teacher_already_is_said():
    good = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    with torch.no_grad():
        good[1].bias.zero_()
        good[1].weight.copy_(torch.eye(4)[:3].repeat(1, 5))
    report = distill(Encoder(), good, (X, Y), train={"epochs": 1}, task="classification").report
    assert report.student.validation == 1.0
    assert any("better than its teacher already" in warning for warning in report.warnings)
