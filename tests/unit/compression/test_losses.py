"""The losses of distillation against hand arithmetic, torch's own, and finite differences in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pared.compression.distillation.losses import (
    activity,
    attention,
    cosine,
    decoupled,
    dist,
    hint,
    knowledge,
    output_mse,
    relational,
    softened_kl,
)

T = 2.0
LN = math.log


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_odds(*odds: float) -> Tensor:
    """One row of logits whose softmax at `T` is in proportion to these."""
    return torch.tensor([odds], dtype=torch.float64).log() * T


def close(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


# -- hand arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_torchs_own_divergence_times_the_temperature_squared(temperature: float) -> None:
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    own = nn.KLDivLoss(reduction="batchmean")(
        functional.log_softmax(student / temperature, 1), functional.softmax(teacher / temperature, 1)
    )
    assert float(softened_kl(student, teacher, temperature)) == close(float(own) * temperature**2)


def test_decoupled_weighs_the_class_of_the_label_and_the_others() -> None:
    student, teacher = (
        of_odds(2, 1, 1),
        of_odds(4, 3, 1),
    )  # the others: 1/2, 1/2 and 3/4, 1/4
    for label, target, others in (
        (0, 0.0, 0.75 * LN(1.5) + 0.25 * LN(0.5)),
        (1, 3 / 8 * LN(1.5) + 5 / 8 * LN(5 / 6), 0.8 * LN(0.8 / (2 / 3)) + 0.2 * LN(0.2 / (1 / 3))),
    ):
        found = decoupled(student, teacher, torch.tensor([label]), alpha=0.5, beta=3.0, temperature=T)
        assert float(found) == close(T**2 * (0.5 * target + 3.0 * others))


def test_decoupled_is_the_kl_where_the_others_weigh_what_the_teacher_leaves_them() -> None:
    student, teacher, labels = drawn(1, 6), drawn(1, 6, seed=1), torch.tensor([2])
    left = 1 - float((teacher / T).softmax(1)[0, 2])
    found = decoupled(student, teacher, labels, alpha=1.0, beta=left, temperature=T)
    assert float(found) == close(float(softened_kl(student, teacher, T)))


def test_dist_is_one_minus_the_correlations_of_rows_and_columns() -> None:
    student, teacher = drawn(4, 5), drawn(4, 5, seed=1)
    y_s, y_t = ((each / T).softmax(1).numpy() for each in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(y_s, y_t, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(y_s.T, y_t.T, strict=True)])
    found = dist(student, teacher, beta=2.0, gamma=3.0, temperature=T)
    assert float(found) == close(T**2 * (2 * rows + 3 * columns))


def test_dist_leaves_out_rows_that_do_not_count_and_classes_without_a_correlation() -> None:
    student, teacher = drawn(6, 3), drawn(6, 3, seed=1)
    some = torch.tensor([True, True, False, True, True, False])
    weights = {"beta": 1.0, "gamma": 1.0, "temperature": 1.0}
    expected = dist(student[some], teacher[some], **weights)
    assert float(dist(student, teacher, counted=some, **weights)) == close(float(expected))
    assert float(dist(student, torch.zeros(6, 3), **weights)) == 0
    assert float(dist(student[:1], teacher[:1], beta=0.0, gamma=1.0, temperature=1.0)) == 0


def test_hint_is_half_the_squared_distance_in_the_teachers_own_size() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert float(hint(student, teacher)) == close(0.5 * (4 + 16) / (9 + 16))
    assert float(hint(student, teacher, torch.tensor([True, False]))) == close(0.5 * 4 / 9)
    assert float(hint(10 * student, 10 * teacher)) == close(float(hint(student, teacher)))
    assert float(hint(student, 0 * teacher)) == close(0.5 * 0.25)  # of a teacher that gives 0, its own size is none


def test_attention_compares_where_layers_are_active_whatever_their_channels() -> None:
    student = activity(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]))  # squares 9 and 4
    teacher = activity(torch.tensor([[[1.0], [0.0]]]))  # 1 and 0
    size = math.hypot(9, 4)
    expected = 0.5 * ((9 / size - 1) ** 2 + (4 / size) ** 2)
    assert float(attention(student, teacher)) == close(expected)
    assert float(attention(student, teacher, torch.tensor([[True, False]]))) == close(0)


def test_relational_compares_distances_by_their_mean_and_angles() -> None:
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)  # sides 3, 4, 5: their mean is 4
    student = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # 1, 2, 1: their mean is 4/3
    sides = [(3 / 4, 3 / 4), (4 / 4, 6 / 4), (5 / 4, 3 / 4)]
    distances = sum((a - b) ** 2 / 2 for a, b in sides) / 3
    # At each corner, of the triangle with a right angle 0, 3/5, 4/5; on a line 1, −1, 1: 1.6 is beyond Huber's 1.
    angles = [(0.0, 1.0), (3 / 5, -1.0), (4 / 5, 1.0)]
    huber = [abs(a - b) - 0.5 if abs(a - b) > 1 else (a - b) ** 2 / 2 for a, b in angles]
    found = relational(student, teacher, distance=2.0, angle=3.0)
    assert float(found) == close(2 * distances + 3 * sum(huber) / 3)
    assert float(relational(5 * teacher, teacher, distance=1.0, angle=1.0)) == close(0)


def test_cosine_is_of_directions_alone() -> None:
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 1.0], [5.0, 0.0]], dtype=torch.float64)
    assert float(cosine(student, teacher)) == close((1 - math.sqrt(0.5)) / 2)
    assert float(cosine(student, teacher, torch.tensor([False, True]))) == close(0)


# -- gradients ------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 3, 1, 2, 3])
COUNTED = torch.tensor([True, False, True, True, True])
OF_ROWS = {
    "output_mse": output_mse,
    "kl": lambda s, t, c: softened_kl(s, t, T, c),
    "kl of independent labels": lambda s, t, c: softened_kl(s, t, T, c, independent=True),
    "knowledge": lambda s, t, c: knowledge(s, t, [(s, t)], alpha=0.3, temperature=T, counted=c),
    "decoupled": lambda s, t, c: decoupled(s, t, LABELS, alpha=0.5, beta=2.0, temperature=T, counted=c),
    "dist": lambda s, t, c: dist(s, t, beta=1.0, gamma=2.0, temperature=T, counted=c),
    "dist of independent labels": lambda s, t, c: dist(
        s, t, beta=1.0, gamma=2.0, temperature=T, counted=c, independent=True
    ),
    "hint": hint,
    "cosine": cosine,
}
OTHERS = {
    "attention": lambda s, t, c: attention(activity(s), activity(t), c),
    "relational": lambda s, t, _: relational(s.flatten(1), t.flatten(1), distance=1.0, angle=2.0),
}


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
def test_gradients_of_rows_are_those_of_finite_differences(name: str, counted: Tensor | None) -> None:
    student, teacher = drawn(5, 4).requires_grad_(), drawn(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda each: OF_ROWS[name](each, teacher, counted), student)


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_features_are_those_of_finite_differences(name: str) -> None:
    student, teacher = drawn(5, 4, 3).requires_grad_(), drawn(5, 4, 2, seed=1)
    assert torch.autograd.gradcheck(lambda each: OTHERS[name](each, teacher, None), student)


# -- classes that a teacher masks -----------------------------------------------------------------

MASKED = [(0, 1), (1, 0), (1, 1), (1, 2), (3, 1)]  # row 3 has its label masked
PROBABLE = [name for name in OF_ROWS if name != "hint"]


@pytest.mark.parametrize("name", PROBABLE)
@pytest.mark.parametrize("too", [False, True], ids=["student answers", "student masks too"])
@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
def test_a_teacher_that_masks_classes_gives_finite_losses_and_gradients(
    name: str, too: bool, counted: Tensor | None
) -> None:
    student, teacher = drawn(5, 4), drawn(5, 4, seed=1)
    where = tuple(torch.tensor(MASKED).T)
    teacher[where] = -torch.inf
    teacher[2] = -torch.inf  # a row that says nothing
    if too:
        student[where] = -torch.inf
        student[2] = -torch.inf
    student.requires_grad_()
    loss = OF_ROWS[name](student, teacher, counted)
    loss.backward()
    assert math.isfinite(float(loss))
    assert bool(student.grad.isfinite().all())
    assert not student.grad[2].any() or "independent" in name


def test_what_the_teacher_masks_is_0_log_0_and_the_rest_is_as_without_these_classes() -> None:
    student, teacher = drawn(3, 5), drawn(3, 5, seed=1)
    teacher[:, 4] = -torch.inf
    student[:, 4] = -torch.inf
    labels = torch.tensor([0, 1, 2])
    for loss in (
        output_mse,
        lambda s, t: softened_kl(s, t, T),
        lambda s, t: decoupled(s, t, labels, alpha=1.0, beta=8.0, temperature=T),
        lambda s, t: dist(s, t, beta=0.0, gamma=1.0, temperature=T),
        cosine,
    ):
        assert float(loss(student, teacher)) == close(float(loss(student[:, :4], teacher[:, :4])))


def test_a_student_learns_to_give_masked_classes_nothing() -> None:
    student, teacher = torch.zeros(1, 3, requires_grad=True), torch.tensor([[0.0, 0.0, -torch.inf]])
    softened_kl(student, teacher, 1.0).backward()
    assert student.grad[0].tolist() == pytest.approx([1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3])


def test_a_loss_of_alike_samples_has_a_gradient() -> None:
    for name in ("cosine", "dist", "decoupled"):
        student = torch.zeros(5, 4, requires_grad=True)
        OF_ROWS[name](student, torch.zeros(5, 4), None).backward()
        assert bool(student.grad.isfinite().all()), name
    for student in (torch.zeros(4, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)):
        relational(student, torch.zeros(len(student), 2), distance=1.0, angle=1.0).backward()
        assert bool(student.grad.isfinite().all())
