"""Augmentation: each change by hand arithmetic, what is drawn, and what data it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression.measuring.references import Reference
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.labels import IGNORED
from pared.compression.tasks.references import Embedding
from pared.compression.training.augmentation import (
    Augmentation,
    _cutmix_box,
    check_augmentation,
    label_loss,
    parted,
)
from pared.compression.training.transforms import blended, cropped, erased, flipped, jittered, pasted, resized
from pared.errors import ValidationError
from pared.specs import Augment

GRID = torch.arange(12.0).reshape(1, 1, 3, 4)
MASK = torch.arange(12).reshape(1, 3, 4)


def images(count=6, channels=3, height=8, width=10):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def augmented(augment, inputs, target, seed=1, step=0):
    return Augmentation(Augment.model_validate(augment), seed)(inputs, target, step)


# -- by hand --------------------------------------------------------------------------------------


def test_a_flip_mirrors_the_samples_chosen_alone():
    both = torch.cat([GRID, GRID])
    result = flipped(both, torch.tensor([True, False]), -1)
    assert result[0, 0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]
    assert torch.equal(result[1], both[1])
    assert flipped(MASK, torch.tensor([True]), -2)[0].tolist() == [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_a_padded_crop_shifts_and_fills():
    moved = cropped(GRID, torch.tensor([0]), torch.tensor([2]), 1, 9.5)  # one row down, one column to the left
    assert moved[0, 0].tolist() == [[9.5, 9.5, 9.5, 9.5], [1, 2, 3, 9.5], [5, 6, 7, 9.5]]
    mask = cropped(MASK, torch.tensor([0]), torch.tensor([2]), 1, IGNORED)
    assert mask.dtype == torch.int64
    assert mask[0].tolist() == [[-100, -100, -100, -100], [1, 2, 3, -100], [5, 6, 7, -100]]
    assert torch.equal(cropped(GRID, torch.tensor([1]), torch.tensor([1]), 1, 0.0), GRID)


def test_a_resized_crop_is_the_rectangle_stretched():
    batch = images(5)
    boxes = torch.tensor([[0, 0, 8, 10], [2, 3, 4, 5], [7, 9, 1, 1], [1, 0, 3, 10], [0, 4, 8, 2]])
    labels = torch.randint(9, (5, 8, 10), generator=torch.Generator().manual_seed(2))
    result, moved = resized(batch, boxes), resized(labels, boxes)
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        part = (slice(top, top + height), slice(left, left + width))
        expected = functional.interpolate(batch[index : index + 1, :, *part], (8, 10), mode="bilinear")
        assert torch.allclose(result[index], expected[0], atol=1e-6)
        nearest = functional.interpolate(labels[index, *part][None, None].float(), (8, 10), mode="nearest")
        assert torch.equal(moved[index], nearest[0, 0].long())
    assert torch.equal(result[0], batch[0])
    halves = resized(torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[0, 0, 1, 2]]))
    assert halves.tolist() == [[[[0, 4]]]]
    stretched = resized(torch.tensor([[[[0.0, 4.0, 8.0, 9.0]]]]), torch.tensor([[0, 0, 1, 2]]))
    assert stretched.tolist() == [[[[0, 1, 3, 4]]]]  # at −¼ (held at the edge), ¼, ¾ and 1¼ (held) of two pixels


def test_erasing_overwrites_its_rectangle_alone():
    result = erased(torch.cat([GRID, GRID]), torch.tensor([[1, 2, 2, 1], [1, 1, 0, 0]]), -1.0)
    assert result[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, -1, 7], [8, 9, -1, 11]]
    assert torch.equal(result[1:], GRID)


def test_colours_change_as_by_hand_and_stay_in_the_range_of_their_image():
    pixels = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])
    grey = pixels[None, None]  # black −1, white 3, mean 0.75

    def one(*factors):
        return jittered(grey, *(None if each is None else torch.tensor([each]) for each in factors))[0, 0].tolist()

    assert one(0.5, None, None) == [[-1, -0.5], [0, 1]]
    assert one(2.0, None, None) == [[-1, 1], [3, 3]]
    assert one(None, 0.0, None) == [[0.75, 0.75], [0.75, 0.75]]
    assert one(None, 2.0, None) == [[-1, -0.75], [1.25, 3]]
    assert one(None, None, 0.0) == pixels.tolist()  # grey images have no saturation
    colour = torch.stack([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])])[None]
    drained = jittered(colour, None, None, torch.tensor([0.0]))[0, :, 0]
    assert torch.allclose(drained, torch.tensor([[0.2989, 0.701]] * 3))  # red, and green with blue


def test_brightness_and_contrast_are_the_same_before_and_after_preprocessing():
    batch = images()
    scale, shift = torch.tensor([2.0, 0.5, 3.0])[:, None, None], torch.tensor([1.0, -4.0, 0.2])[:, None, None]
    factors = (torch.linspace(0.5, 1.5, 6), torch.linspace(1.5, 0.5, 6), None)
    first = jittered(batch, *factors) * scale + shift
    assert torch.allclose(first, jittered(batch * scale + shift, *factors), atol=1e-5)


def test_mixed_losses_and_their_gradient_equal_hand_arithmetic():
    order = torch.tensor([1, 2, 0])
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    mixed = blended(x, order, 0.75)
    assert torch.equal(mixed, torch.tensor([[0.5, 0.75], [1.75, 0.25], [0.75, 1.0]]))
    target = torch.tensor([0, 1, 1])
    output = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]], requires_grad=True)
    _, mix = parted((mixed, target[order], torch.full((3,), 0.75)), Augment.model_validate({"mixup": {}}))
    loss = label_loss(Classification(), output, target, mix)
    soft = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]])  # what soft labels would be
    softmax = torch.tensor([[math.e, 1], [1, math.e**2], [1, 1]])
    softmax = softmax / softmax.sum(1, keepdim=True)
    assert math.isclose(loss.item(), float(-(soft * softmax.log()).sum(1).mean()), rel_tol=1e-6)
    loss.backward()
    assert torch.allclose(output.grad, (softmax - soft) / 3, atol=1e-6)


def test_a_pasted_rectangle_comes_from_the_other_image():
    other = GRID + 100
    result = pasted(torch.cat([GRID, other]), torch.tensor([1, 0]), (0, 1, 2, 2))
    assert result[0, 0].tolist() == [[0, 101, 102, 3], [4, 105, 106, 7], [8, 9, 10, 11]]
    assert result[1, 0].tolist() == [[100, 1, 2, 103], [104, 5, 6, 107], [108, 109, 110, 111]]
    assert _cutmix_box(0.5, 0.5, 0.75, (8, 8)) == (2, 2, 4, 4)  # a quarter of the area around the middle
    assert _cutmix_box(0.0, 0.99, 0.75, (8, 8)) == (5, 0, 3, 2)  # cut off at two edges
    assert _cutmix_box(0.5, 0.5, 1.0, (8, 8)) == (4, 4, 0, 0)


# -- what is drawn --------------------------------------------------------------------------------

ALL_OF_IMAGES = {
    "horizontal_flip": {},
    "vertical_flip": {"p": 0.3},
    "crop": {"padding": 2},
    "resized_crop": {},
    "color_jitter": {},
    "erasing": {},
    "mixup": {},
    "cutmix": {},
}


def test_a_step_is_changed_alike_whenever_it_comes_and_no_two_steps_are():
    batch, target = (images(),), torch.arange(6)
    first, again, later = (augmented(ALL_OF_IMAGES, batch, target, step=step) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert not torch.equal(first[0][0], later[0][0])
    assert not torch.equal(first[0][0], augmented(ALL_OF_IMAGES, batch, target, seed=2, step=3)[0][0])
    assert torch.equal(batch[0], images())  # the samples themselves stay as they are


def test_one_change_more_alters_no_other():
    batch, target = (images(),), torch.arange(6)
    alone = augmented({"crop": {}}, batch, target)[0][0]
    flipped_too = augmented({"crop": {}, "mixup": {"p": 1e-9}, "vertical_flip": {"p": 1e-9}}, batch, target)[0][0]
    assert torch.equal(alone, flipped_too)


def test_chances_and_ranges_are_those_asked_for():
    many = torch.ones(4000, 1, 8, 8)
    ramp = torch.arange(8.0).expand(4000, 1, 8, 8)
    mirrored = augmented({"horizontal_flip": {"p": 0.3}}, (ramp,), torch.zeros(4000).long())[0][0]
    assert abs(float((mirrored[:, 0, 0, 0] == 7).double().mean()) - 0.3) < 0.03
    wiped = augmented({"erasing": {"scale": [0.1, 0.3]}}, (many,), torch.zeros(4000).long())[0][0]
    areas = (wiped == 0).double().mean((1, 2, 3))
    assert abs(float((areas > 0).double().mean()) - 0.5) < 0.03
    assert float(areas.max()) <= 0.33
    shifted = augmented({"crop": {"padding": 3}}, (ramp + 1,), torch.zeros(4000).long())[0][0][:, 0, 4]
    shifts = (shifted == 0).sum(1) * torch.where(shifted[:, 0] == 0, -1, 1)
    assert [abs(int((shifts == each).sum()) - 4000 / 7) < 90 for each in range(-3, 4)] == [True] * 7
    shares = [augmented({"mixup": {"alpha": 0.2}}, (many[:4],), torch.arange(4), step=i)[0][2][0] for i in range(300)]
    assert sum(0.1 < float(share) < 0.9 for share in shares) < 120  # Beta(0.2, 0.2) is near 0 or 1
    assert abs(sum(map(float, shares)) / 300 - 0.5) < 0.1
    kept = [augmented({"cutmix": {"p": 0.25}}, (many[:4],), torch.arange(4), step=i)[0][2][0] for i in range(300)]
    assert abs(sum(float(share) < 1 for share in kept) / 300 - 0.25) < 0.1


def test_the_share_of_a_cutmix_is_the_area_that_is_left():
    first, second = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for step in range(20):
        (mixed, other, share), target = augmented(
            {"cutmix": {}}, (torch.cat([first, second]),), torch.tensor([0, 1]), step=step
        )
        if other.tolist() != target.tolist():
            assert math.isclose(float(share[0]), 1 - float(mixed[0].mean()), abs_tol=1e-6)


def test_masks_and_all_images_of_a_sample_move_alike():
    mask = torch.randint(5, (6, 8, 10), generator=torch.Generator().manual_seed(3))
    both = mask[:, None].float()
    moves = {"horizontal_flip": {}, "vertical_flip": {}, "crop": {"padding": 2, "fill": IGNORED}, "cutmix": {}}
    (image, second, other, share), target = augmented(moves, (both, both + 10), mask)
    assert torch.equal(image[:, 0], target.float())
    assert torch.equal(torch.where(second == IGNORED, second, second - 10), image)
    assert torch.equal(other, target)  # what was pasted has its own labels
    assert share.tolist() == [1.0] * 6
    assert bool((target == IGNORED).any())
    assert not torch.equal(target, mask)
    (stretched,), target = augmented({"resized_crop": {}}, (both,), mask)
    assert float((stretched[:, 0].round() == target).double().mean()) > 0.5  # bilinear beside the nearest one
    numbers = both.clone()  # a number for each pixel
    (image,), target = augmented({"horizontal_flip": {}}, (both,), numbers)
    assert torch.equal(image, target)


def test_tokens_are_replaced_at_random():
    tokens = torch.arange(1, 4001).reshape(4, 1000)
    (dropped, same), target = augmented({"token_dropout": {"p": 0.2, "id": 7}}, (tokens, images(4)), torch.arange(4))
    replaced = dropped != tokens
    assert abs(float(replaced.double().mean()) - 0.2) < 0.03
    assert dropped[replaced].unique().tolist() == [7]
    assert torch.equal(same, images(4))
    assert torch.equal(target, torch.arange(4))
    padded = torch.tensor([[5, 6, 0, 0]]).repeat(50, 1)
    mask = (padded != 0).long()
    augment = Augment.model_validate({"token_dropout": {"p": 0.5, "id": 7}})
    (dropped, same), _ = Augmentation(augment, 1, padding=0)((padded, mask), torch.zeros(50).long(), 0)
    assert torch.equal(same, mask)  # only the first input holds tokens
    assert not dropped[:, 2:].any()
    assert dropped[:, :2].unique().tolist() == [5, 6, 7]


def test_the_original_answers_the_samples_as_they_were_changed():
    module, task = nn.Sequential(nn.Flatten(), nn.Linear(240, 4)), Embedding()
    augment = Augment.model_validate(ALL_OF_IMAGES)
    change = Augmentation(augment, 1, Reference(module, task))
    changed, target = change((images(),), torch.zeros(6, 0), 0)
    (mixed,), mix = parted(changed, augment)
    assert torch.equal(target, module(mixed))
    assert not torch.equal(mixed, images())
    assert torch.equal(label_loss(task, target, target, mix), task.loss(target, target))  # no labels were mixed


# -- what is refused ------------------------------------------------------------------------------

TABLE, TOKENS, IMAGE = torch.zeros(2, 64), torch.zeros(2, 16).long(), torch.zeros(2, 3, 8, 8)
CLASSES, MASKS, NUMBERS = torch.zeros(2).long(), torch.zeros(2, 8, 8).long(), torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("augment", "inputs", "target", "field", "says"),
    [
        ({"horizontal_flip": {}}, (TABLE,), CLASSES, "horizontal_flip", r"data holds numbers \(N, 64\): leave it out"),
        ({"crop": {}}, (TOKENS,), CLASSES, "crop", r"token ids \(N, 16\)"),
        ({"cutmix": {}}, (IMAGE, TABLE), CLASSES, "cutmix", "pastes parts of images .* or use `mixup`"),
        ({"cutmix": {}}, (IMAGE, IMAGE[..., :4]), CLASSES, "cutmix", "images of one size"),
        ({"mixup": {}}, (IMAGE, TOKENS), CLASSES, "mixup", "nothing between them"),
        ({"token_dropout": {}}, (IMAGE,), CLASSES, "token_dropout", r"replaces token ids, int64 \(N, T\)"),
        ({"crop": {"padding": 8}}, (IMAGE,), CLASSES, "crop", "pads by 8 pixels, and the images have 8"),
        ({"crop": {}}, (IMAGE,), NUMBERS, "crop", "use `resized_crop`"),
        ({"vertical_flip": {}}, (IMAGE,), MASKS[:, :4, :4], "vertical_flip", r"labels \(N, 4, 4\) do not lie over"),
        ({"color_jitter": {}}, (IMAGE[:, :2],), CLASSES, "color_jitter", "there are 2: make `saturation` 0"),
    ],
)
def test_data_that_a_change_is_not_for_are_refused(augment, inputs, target, field, says):
    with pytest.raises(ValidationError, match=says) as caught:
        check_augmentation(Augment.model_validate(augment), inputs, target, "/retrain/augment")
    assert [error["pointer"] for error in caught.value.errors] == [f"/retrain/augment/{field}"]


@pytest.mark.parametrize(
    ("augment", "inputs", "target"),
    [
        (ALL_OF_IMAGES, (IMAGE,), CLASSES),
        (ALL_OF_IMAGES, (IMAGE,), MASKS),
        ({"resized_crop": {}, "horizontal_flip": {}}, (IMAGE,), NUMBERS),
        ({"color_jitter": {"saturation": 0}}, (IMAGE[:, :2],), CLASSES),
        ({"color_jitter": {}}, (IMAGE[:, :1],), CLASSES),
        ({"mixup": {}}, (TABLE,), CLASSES),
        ({"erasing": {}}, (IMAGE,), torch.zeros(2, 4, 4).long()),  # moves nothing
        ({"token_dropout": {}, "horizontal_flip": {}}, (TOKENS, IMAGE), CLASSES),
    ],
)
def test_data_that_a_change_is_for_are_accepted_and_keep_their_shapes(augment, inputs, target):
    checked = Augment.model_validate(augment)
    check_augmentation(checked, inputs, target, "/augment")
    changed, same = Augmentation(checked, 1)(inputs, target, 0)
    samples, _ = parted(changed, checked)
    assert [each.shape for each in samples] == [each.shape for each in inputs]
    assert same.shape == target.shape
    assert [each.dtype for each in samples] == [each.dtype for each in inputs]
