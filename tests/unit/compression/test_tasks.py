"""Losses, their gradients and scores of every task against hand arithmetic, and intervals against what they promise."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.distillation.losses import output_mse, softened_kl
from pared.compression.tasks.classification import Binary, Classification
from pared.compression.tasks.dense import LanguageModeling, Segmentation, TokenClassification
from pared.compression.tasks.labels import IGNORED
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.tasks.references import Embedding, Match, pieces_of
from pared.compression.tasks.regression import Regression
from pared.compression.tasks.statistics import bootstrap_of_sums, jackknife_t, paired_difference, paired_t, wilson
from pared.compression.training.calibration import learn_labels
from pared.compression.training.gradients import add_gradients
from pared.errors import ModelFailed

LN = math.log


def logits(*odds):
    """Logits whose softmax is these odds, over their sum."""
    return torch.tensor([[LN(each) for each in row] for row in odds], dtype=torch.float64)


def loss_and_gradient(task, output, target):
    output = output.clone().requires_grad_()
    loss = task.loss(output, target)
    loss.backward()
    return float(loss.detach()), output.grad


# -- losses and gradients -----------------------------------------------------------------------


def test_cross_entropy_with_class_weights_is_their_weighted_mean():
    output, target = logits((1, 3), (4, 1)), torch.tensor([1, 1])  # p of class 1: 3/4, 1/5
    loss, gradient = loss_and_gradient(Classification(), output, target)
    assert loss == pytest.approx((-LN(0.75) - LN(0.2)) / 2)
    assert gradient.tolist() == [pytest.approx([0.125, -0.125]), pytest.approx([0.4, -0.4])]

    weighted = Classification(class_weights=torch.tensor([1.0, 3.0], dtype=torch.float64))
    target = torch.tensor([0, 1])  # p: 1/4 of weight 1, 1/5 of weight 3
    loss, gradient = loss_and_gradient(weighted, output, target)
    assert loss == pytest.approx((-LN(0.25) - 3 * LN(0.2)) / 4)
    assert gradient.tolist() == [pytest.approx([-0.75 / 4, 0.75 / 4]), pytest.approx([3 * 0.8 / 4, -3 * 0.8 / 4])]
    assert weighted.mean_loss(output, target) == pytest.approx((-LN(0.25) - LN(0.2)) / 2)  # scores are not weighted

    nothing = Classification(class_weights=torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert loss_and_gradient(nothing, output, torch.tensor([0, 0]))[0] == 0


def test_label_smoothing_spreads_its_share_over_all_classes():
    loss, gradient = loss_and_gradient(Classification(smoothing=0.2), logits((1, 3)), torch.tensor([1]))
    assert loss == pytest.approx(-0.9 * LN(0.75) - 0.1 * LN(0.25))
    assert gradient[0].tolist() == pytest.approx([0.25 - 0.1, 0.75 - 0.9])


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_logit_has_the_loss_and_the_classes_of_its_sigmoid(shape):
    task = Binary()
    logit = torch.tensor([LN(3), -LN(4)], dtype=torch.float64).reshape(shape).requires_grad_()  # σ: 3/4, 1/5
    output = task.taken(logit, 2)
    loss = task.loss(output, torch.tensor([1, 1]))
    loss.backward()
    assert float(loss) == pytest.approx((-LN(0.75) - LN(0.2)) / 2)
    assert logit.grad.flatten().tolist() == pytest.approx([-0.25 / 2, -0.8 / 2])
    assert task.classes(output.detach()).tolist() == [1, 0]
    assert task.score(output.detach(), torch.tensor([1, 1])) == 0.5


def test_probabilities_have_the_loss_and_gradient_of_the_logits_behind_them():
    for head, function, task in (
        ("softmax", lambda z: z.softmax(1), Classification),
        ("sigmoid", torch.sigmoid, Multilabel),
    ):
        z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        target = torch.tensor([0, 1, 2, 1, 0])
        target = nn.functional.one_hot(target, 3).double() if task is Multilabel else target
        behind, ahead = z.clone().requires_grad_(), z.clone().requires_grad_()
        task(head=head).loss(task(head=head).taken(function(behind), 5), target).backward()
        task().loss(ahead, target).backward()
        assert torch.allclose(behind.grad, ahead.grad, atol=1e-6)


def test_behind_a_sigmoid_each_class_is_told_from_the_rest():
    task = Classification(head="sigmoid")
    probabilities = torch.tensor([[0.75, 0.2, 0.5]], dtype=torch.float64)
    loss = task.loss(task.taken(probabilities, 1), torch.tensor([0]))
    assert float(loss) == pytest.approx(-LN(0.75) - LN(0.8) - LN(0.5), rel=1e-6)


def test_each_label_has_its_own_binary_cross_entropy():
    output = torch.tensor([[LN(3), 0.0], [-LN(4), LN(4)]], dtype=torch.float64)  # σ: 3/4 1/2, 1/5 4/5
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss, gradient = loss_and_gradient(Multilabel(), output, target)
    assert loss == pytest.approx((-LN(0.75) - LN(0.5) - LN(0.8) - LN(0.8)) / 4)
    assert gradient.tolist() == [pytest.approx([-0.25 / 4, 0.5 / 4]), pytest.approx([0.2 / 4, -0.2 / 4])]
    weighted = Multilabel(class_weights=torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert loss_and_gradient(weighted, output, target)[0] == pytest.approx(
        (-2 * LN(0.75) - LN(0.5) - LN(0.8) - LN(0.8)) / 4
    )


def test_pixels_without_a_label_have_neither_loss_nor_gradient():
    odds = torch.tensor([[[[1.0, 1.0, 4.0]], [[3.0, 1.0, 1.0]]]], dtype=torch.float64)  # p of class 1: 3/4 1/2 1/5
    target = torch.tensor([[[1, IGNORED, 1]]])
    loss, gradient = loss_and_gradient(Segmentation(), odds.log(), target)
    assert loss == pytest.approx((-LN(0.75) - LN(0.2)) / 2)
    assert gradient[0, 1, 0].tolist() == pytest.approx([-0.125, 0.0, -0.4])
    assert gradient[0, :, 0, 1].tolist() == [0, 0]
    weights = Segmentation(class_weights=torch.tensor([1.0, 3.0], dtype=torch.float64))
    loss, _ = loss_and_gradient(weights, odds.log(), torch.tensor([[[1, IGNORED, 0]]]))
    assert loss == pytest.approx((-3 * LN(0.75) - LN(0.8)) / 4)
    loss, gradient = loss_and_gradient(Segmentation(), odds.log(), torch.full((1, 1, 3), IGNORED))
    assert loss == 0
    assert not gradient.any()


def test_one_logit_for_each_pixel_is_that_of_class_1():
    task = Segmentation()
    output = task.taken(torch.tensor([[[[LN(3), -LN(4)]]]], dtype=torch.float64), 1)
    assert float(task.loss(output, torch.tensor([[[1, 0]]]))) == pytest.approx((-LN(0.75) - LN(0.8)) / 2)


def test_tokens_have_the_cross_entropy_of_those_with_a_label():
    output = logits((1, 3), (1, 1), (4, 1)).reshape(1, 3, 2)
    loss, gradient = loss_and_gradient(LanguageModeling(), output, torch.tensor([[1, IGNORED, 1]]))
    assert loss == pytest.approx((-LN(0.75) - LN(0.2)) / 2)
    assert gradient[0, :, 1].tolist() == pytest.approx([-0.125, 0.0, -0.4])


def test_regression_of_any_shape_has_the_mean_squared_error():
    output, target = torch.tensor([[[1.0, 2.0]], [[3.0, 5.0]]]), torch.tensor([[[1.0, 1.0]], [[0.0, 5.0]]])
    loss, gradient = loss_and_gradient(Regression(), output, target)
    assert loss == pytest.approx((1 + 9) / 4)
    assert gradient.flatten().tolist() == pytest.approx([0, 0.5, 1.5, 0])


def test_an_embedding_is_held_in_direction_and_length():
    reference = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    output = torch.tensor([[4.0, 3.0], [0.0, 4.0]], dtype=torch.float64)
    loss, gradient = loss_and_gradient(Embedding(), output, reference)
    assert loss == pytest.approx((2 / 25 + 4 / 4) / 2)
    assert gradient.tolist() == [pytest.approx([1 / 25, -1 / 25]), pytest.approx([0, 0.5])]
    assert Embedding().score(output, reference) == pytest.approx((24 / 25 + 1) / 2)


def matched(*answers):
    """A match of these answers to samples, with what it takes of each; scales are those of the first."""
    pieces, left_out = pieces_of(*(tree_cut(answers[0], count) for count in (2, 3)))
    assert not left_out
    task = Match(pieces=tuple(pieces))
    return task, [task.taken(answer, 3) for answer in answers]


def tree_cut(value, count):
    if isinstance(value, dict):
        return {name: tree_cut(item, count) for name, item in value.items()}
    return [tree_cut(item, count) for item in value] if isinstance(value, list) else value[:count]


def test_match_divides_the_distance_of_each_output_by_its_size():
    original = {"a": torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), "b": [torch.tensor([10.0, 10.0, 20.0])]}
    answer = {"a": torch.tensor([[2.0, 1.0], [0.0, 2.0], [2.0, 0.0]]), "b": [torch.tensor([10.0, 10.0, 26.0])]}
    task, (reference, output) = matched(original, answer)  # Σ b² of a sample, of the first two: 4 and 100
    loss, gradient = loss_and_gradient(task, output, reference)
    assert loss == pytest.approx((1 / 3 / 4 + 36 / 3 / 100) / 2)
    assert gradient[0].tolist() == pytest.approx([0, 2 / 3 / 4 / 2, 0])
    kept = task.condensed(output, reference)
    assert task.mean_loss(kept, reference) == pytest.approx(loss)
    assert task.score(kept, reference) == pytest.approx(1 - ((1 / 12) ** 0.5 + (36 / 600) ** 0.5) / 2)
    same = task.condensed(reference, reference)
    assert task.score(same, reference) == 1
    found = task.compare(same, kept, reference).outputs
    assert found[0] == {
        "output": "a",
        "relative_error": pytest.approx(12**-0.5),
        "cosine": pytest.approx(12 / 156**0.5),
    } | {"agreement": 1.0}
    assert found[1]["output"] == "b.0"
    assert found[1]["agreement"] is None


def test_match_leaves_out_places_where_the_original_gives_no_number():
    original = torch.tensor([[1.0, -math.inf], [1.0, 2.0], [1.0, math.nan]])
    task, (reference, output) = matched(original, torch.tensor([[1.0, 5.0], [1.0, 2.0], [2.0, 7.0]]))
    loss, gradient = loss_and_gradient(task, output, reference)
    assert loss == pytest.approx(1 / 3 / task.pieces[0].scale)
    assert gradient[:, 1].tolist() == [0, 0, 0]
    assert task.condensed(reference, reference)[:, :2].tolist() == [[0, 0]] * 3
    broken = task.condensed(torch.tensor([[math.nan, 0.0], [1.0, 2.0], [1.0, math.inf]]), reference)
    assert task.answered(broken).tolist() == [False, True, True]


def test_match_compares_integers_and_leaves_out_what_has_no_entry_for_each_sample():
    def answer(count):
        return torch.arange(count), torch.ones(4, count, 2), torch.ones(count, count), torch.ones(7)

    pieces, left_out = pieces_of(answer(2), answer(3))
    assert [(piece.path, piece.batch_dim, piece.floating) for piece in pieces] == [("0", 0, False), ("1", 1, True)]
    assert left_out == ["2", "3"]
    task = Match(pieces=tuple(pieces))
    reference, output = task.taken(answer(4), 4), task.taken((torch.zeros(4, dtype=torch.int64), *answer(4)[1:]), 4)
    assert float(task.loss(output, reference)) == 0
    assert task.score(task.condensed(output, reference), reference) == (0.25 + 1) / 2


def test_an_output_that_is_nearly_zero_drowns_no_other():
    original = {"a": torch.tensor([[2.0, 0.0]] * 3), "p": torch.full((3, 2), 1e-9), "zero": torch.zeros(3, 2)}
    answer = {"a": torch.tensor([[2.0, 1.0]] * 3), "p": torch.full((3, 2), 1e-3), "zero": torch.zeros(3, 2)}
    task, (reference, output) = matched(original, answer)
    loss, gradient = loss_and_gradient(task, output, reference)
    error = (1e-3 - 1e-9) ** 2 / 1e-18
    assert loss == pytest.approx((1 / 4 + 1 + math.log(error) + 0) / 3, rel=1e-4)
    assert gradient[0, 1] == pytest.approx(2 / 4 / 9)  # as if the others were met
    assert gradient[0, 2] == pytest.approx(1 / 1e-3 / 9, rel=1e-4)  # of log Σ p² over 6 numbers
    kept = task.condensed(output, reference)
    assert task.mean_loss(kept, reference) == pytest.approx(loss, rel=1e-4)
    assert task.score(kept, reference) == pytest.approx((0.5 + 0 + 1) / 3)
    same = task.condensed(reference, reference)
    assert (task.score(same, reference), task.mean_loss(same, reference)) == (1, 0)
    assert task.compare(same, kept, reference).outputs[1]["relative_error"] == pytest.approx(1e6, rel=1e-3)


def test_match_refuses_the_same_numbers_in_another_order_of_dimensions():
    task, _ = matched(torch.zeros(3, 2, 5))
    with pytest.raises(ModelFailed, match=r"answers \(5, 2\), where the original answers \(2, 5\)"):
        task.taken(torch.zeros(3, 5, 2), 3)


def test_names_are_matched_by_their_order_where_one_side_has_none():
    original = {"a": torch.ones(3, 2), "b": torch.ones(3, 4)}
    for teacher, student in ((original, [*original.values()]), ([*original.values()], original)):
        task, (reference, output) = matched(teacher, student)
        assert torch.equal(reference, output)
    task, _ = matched(original)
    with pytest.raises(ModelFailed, match=r"no output a .*returns c .*names of its teacher's"):
        task.taken({"c": torch.ones(3, 2), "d": torch.ones(3, 4)}, 3)


def test_an_embedding_of_nothing_has_no_direction():
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-9]])
    assert Embedding().score(reference, reference) == pytest.approx(1)
    output = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 1e-9]])
    assert Embedding().score(output, reference) == pytest.approx(2 / 3)
    loss, gradient = loss_and_gradient(Embedding(), output, reference)
    assert loss == pytest.approx(1000 / (25 / 3) / 3)  # by the thousandth part of the mean square, not by 0
    assert float(Embedding().loss(output, output * 0)) == pytest.approx(26 / 3)
    assert gradient[2].tolist() == [0, 0]


# -- scores -------------------------------------------------------------------------------------


def test_mean_iou_is_over_the_classes_that_occur_in_labels():
    from sklearn.metrics import jaccard_score  # takes a second to import

    generator = torch.Generator().manual_seed(0)
    answer, target = (torch.randint(0, 4, (6, 5, 5), generator=generator) for _ in range(2))
    target[target == 3] = 0  # no label has class 3, and class 4 is nowhere
    target[0, 0] = IGNORED
    task, output = Segmentation(), nn.functional.one_hot(answer, 5).movedim(-1, 1).float()
    kept = task.condensed(output, target)
    labelled = target != IGNORED
    expected = jaccard_score(target[labelled], answer[labelled], labels=[0, 1, 2], average=None)
    assert task.score(kept, target) == pytest.approx(expected.mean())
    assert task.beside(kept, target)["pixel_accuracy"] == pytest.approx(
        float((answer == target)[labelled].double().mean())
    )
    perfect = task.condensed(nn.functional.one_hot(target.clamp_min(0), 5).movedim(-1, 1).float(), target)
    found = task.compare(perfect, kept, target).per_class
    assert [each["class"] for each in found] == [0, 1, 2]
    assert [each["after"] for each in found] == pytest.approx(expected.tolist())
    assert [each["samples"] for each in found] == [int((target == label).sum()) for label in range(3)]


def test_perplexity_and_accuracy_of_tokens():
    output = logits((1, 3), (1, 1), (4, 1), (1, 3)).reshape(2, 2, 2)
    target = torch.tensor([[1, IGNORED], [1, 1]])
    nats = (-2 * LN(0.75) - LN(0.2)) / 3
    task = LanguageModeling()
    kept = task.condensed(output, target)
    assert task.score(kept, task.kept_targets(target)) == pytest.approx(-nats)
    assert task.beside(kept, target) == {"perplexity": pytest.approx(math.exp(nats)), "accuracy": pytest.approx(2 / 3)}
    assert TokenClassification().score(kept, target) == pytest.approx(2 / 3)


def test_sequences_of_any_length_are_kept_side_by_side():
    task, kept = TokenClassification(), []
    for length in (3, 5):
        target = torch.zeros(2, length, dtype=torch.int64)
        kept.append(task.condensed(nn.functional.one_hot(target, 4).float(), target))
    assert task.score(torch.cat(kept), torch.zeros(4, 0)) == 1


def test_f1_of_labels_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score  # takes a second to import

    generator = torch.Generator().manual_seed(1)
    output, target = torch.randn(50, 4, generator=generator), torch.rand(50, 4, generator=generator).round()
    target[:, 3] = 0  # a label that never holds
    task, said = Multilabel(), (output > 0).int()
    assert task.score(output, target) == pytest.approx(f1_score(target, said, average="micro"))
    beside = task.beside(output, target)
    assert beside["macro_f1"] == pytest.approx(f1_score(target, said, average="macro", labels=[0, 1, 2]))
    assert beside["label_accuracy"] == pytest.approx(float((target == said).double().mean()))


def test_r2_of_images_is_that_of_their_numbers():
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(40, 2, 3, generator=generator)
    output = target + 0.3 * torch.randn(40, 2, 3, generator=generator)
    images, flat = Regression(), (output.reshape(40, 6), target.reshape(40, 6))
    kept = images.condensed(output, target)
    assert kept.shape == (40, 4, 1)
    assert images.score(kept, target) == pytest.approx(images.score(*flat), abs=1e-6)
    assert images.mean_loss(kept, target) == pytest.approx(images.mean_loss(*flat))
    wide, narrow = images.interval(kept, target), images.interval(*flat)
    assert (wide.low, wide.high) == (pytest.approx(narrow.low, abs=0.01), pytest.approx(narrow.high, abs=0.01))
    assert images.compare(kept, kept, target).p_value == 1


@pytest.mark.parametrize(
    "task", [Segmentation(), TokenClassification(), LanguageModeling()], ids=lambda task: task.name
)
def test_what_is_not_a_number_is_seen_in_what_is_kept(task):
    output, target = torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.int64)
    output[1, 0, 0], output[2, 1, 1] = math.nan, -math.inf
    kept = task.condensed(output, target)
    assert kept.isfinite().all(1).tolist()[0]
    assert bool(kept[1].isnan().any())
    assert bool(kept[2].isinf().any())
    assert task.answered(kept).tolist() == [True, False, True]
    rows = task.scored(kept)
    assert math.isfinite(task.score(kept[rows], target[rows]))


def test_neighbours_of_an_embedding_are_counted_by_cosine():
    reference = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))
    assert Embedding().beside(2 * reference, reference)["neighbour_overlap"] == 1
    shuffled = reference[torch.randperm(30, generator=torch.Generator().manual_seed(4))]
    assert Embedding().beside(shuffled, reference)["neighbour_overlap"] < 0.7


# -- a batch in parts, and distillation ---------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        Segmentation(),
        Segmentation(class_weights=torch.tensor([1.0, 4.0, 0.5])),
        Classification(class_weights=torch.ones(3) / 7),
    ],
)
def test_parts_of_a_batch_add_up_to_the_whole(task):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 2, 2, 2, generator=generator)
    target = torch.randint(0, 3, (6, 2, 2), generator=generator)
    target[:2], target[3, 0] = IGNORED, IGNORED  # a part without any label among them
    module = nn.Conv2d(2, 3, 1)
    if task.name == "classification":
        module, target = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), target[:, 1, 1].clamp_min(0)
    found = []
    for most in (6, 2):
        module.zero_grad()
        loss = add_gradients(module, (inputs,), target, learn_labels(task), most, torch.enable_grad())
        found.append((float(loss), [parameter.grad.clone() for parameter in module.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0])
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found[0][1], found[1][1], strict=True))


def test_a_teacher_is_followed_where_there_are_labels_along_the_class_dimension():
    student, teacher = logits((1, 3), (1, 1)), logits((1, 1), (9, 1))  # of two positions
    kl = 0.5 * LN(0.5 / 0.25) + 0.5 * LN(0.5 / 0.75)
    for task, shape in ((Segmentation(), lambda z: z.T.reshape(1, 2, 2)), (TokenClassification(), lambda z: z[None])):
        target = torch.tensor([[0, IGNORED]])
        (own, counted), (expected, _) = (task.rows(shape(each), target) for each in (student, teacher))
        assert float(softened_kl(own, expected, 1.0, counted)) == pytest.approx(kl)
        assert float(output_mse(own, expected, counted)) == pytest.approx(LN(3) ** 2)
        assert float(softened_kl(own, expected, 1.0, torch.zeros(2, dtype=torch.bool))) == 0


def test_independent_labels_are_softened_one_by_one():
    student, teacher = (torch.tensor([[LN(odds), 0.0]], dtype=torch.float64) for odds in (3, 1))  # σ: 3/4, 1/2
    kl = 0.5 * LN(0.5 / 0.75) + 0.5 * LN(0.5 / 0.25)
    assert float(softened_kl(student, teacher, 1.0, independent=True)) == pytest.approx(kl)


# -- intervals and tests ------------------------------------------------------------------------

RUNS = 10_000


def covered(intervals, true):
    return sum(each.low <= true <= each.high for each in intervals) / len(intervals)


@pytest.mark.parametrize("count", [RUNS // 5, pytest.param(RUNS, marks=pytest.mark.campaign)])
def test_intervals_of_sums_cover_what_they_promise(count):
    """A mean of ratios of sums over clusters, as the accuracy of tokens and mean IoU are."""
    samples, generator = 40, np.random.default_rng(0)
    sizes = generator.integers(5, 20, (count, samples, 2))
    right = generator.binomial(sizes, generator.beta(4, 2, (count, samples, 2)))  # tokens of one sequence are alike
    runs = torch.from_numpy(np.concatenate([right, sizes], 2)).double()
    found = [bootstrap_of_sums(each, lambda sums: (sums[:, :2] / sums[:, 2:]).mean(1)) for each in runs]
    assert 0.94 <= covered(found, 4 / 6) <= 0.96


def test_intervals_of_shares_cover_what_they_promise():
    generator = np.random.default_rng(1)
    shares = generator.uniform(0.05, 0.95, RUNS)  # over all of them, for counts are whole and one share has its own
    right = generator.binomial(80, shares)
    found = [wilson(int(count), 80) for count in right]
    assert 0.94 <= sum(each.low <= share <= each.high for each, share in zip(found, shares, strict=True)) / RUNS <= 0.96

    cells = generator.dirichlet([5, 2, 2, 5], RUNS)
    counts = np.array([generator.multinomial(80, each) for each in cells])
    differences = [paired_difference(int(lost), int(won), 80) for lost, won in counts[:, 1:3]]
    true = cells[:, 2] - cells[:, 1]
    inside = [each.low <= difference <= each.high for each, difference in zip(differences, true, strict=True)]
    assert 0.94 <= sum(inside) / RUNS <= 0.96


def test_the_test_of_sums_errs_as_often_as_it_says():
    generator = torch.Generator().manual_seed(2)
    runs = torch.rand(RUNS, 40, 4, generator=generator, dtype=torch.float64)
    runs[:, :, 2:] += 1  # two ratios of the same expected value

    def difference(sums):
        return sums[:, 0] / sums[:, 2] - sums[:, 1] / sums[:, 3]

    assert 0.04 <= sum(jackknife_t(each, difference) < 0.05 for each in runs) / RUNS <= 0.06


def test_the_test_of_a_mean_is_the_paired_t_test():
    differences = torch.randn(30, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.3
    statistics = torch.cat([differences, torch.ones(30, 1)], 1)
    found = jackknife_t(statistics, lambda sums: sums[:, 0] / sums[:, 1])
    assert found == pytest.approx(paired_t(differences.flatten().numpy()))
