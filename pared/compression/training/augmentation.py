"""Augmentation: draws how the samples of a training batch change, and holds a spec's changes against the data.

Every number hangs on (seed, epoch, step, the change's name) alone: a resumed run draws what the first one would have,
and naming one change more alters no other. They are drawn on the CPU and sent, so that devices do not differ.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pared.compression.data.samples import Inputs
from pared.compression.measuring.references import Reference
from pared.compression.tasks import TaskRules
from pared.compression.tasks.labels import IGNORED
from pared.compression.training.seeds import seed_of
from pared.compression.training.transforms import blended, cropped, erased, flipped, jittered, pasted, resized
from pared.errors import ValidationError
from pared.specs import Augment, Erasing, ResizedCrop

_TRIES = 10  # rectangles that are drawn until one fits
_OF_IMAGES = ("horizontal_flip", "vertical_flip", "crop", "resized_crop", "color_jitter", "erasing", "cutmix")
_MOVE = ("horizontal_flip", "vertical_flip", "crop", "resized_crop", "cutmix")


class Mix(NamedTuple):
    """What else the samples of a batch are: `share` of each is what the batch says, the rest is `other`.

    `other`: the targets of the samples mixed in. `share`: (N,) float32, the same for all.
    """

    other: Tensor
    share: Tensor


def parted(inputs: Inputs, augment: Augment | None) -> tuple[Inputs, Mix | None]:
    """The inputs of a batch as a loss is handed them, and what was mixed into them, which travels behind them."""
    if augment is None or not augment.mixes:
        return inputs, None
    *samples, other, share = inputs
    return tuple(samples), Mix(other, share)


def label_loss(task: TaskRules, output: Tensor, target: Tensor, mix: Mix | None) -> Tensor:
    """The loss on labels, a scalar: of mixed samples λ · loss(output, target) + (1 − λ) · loss(output, other).

    Answers of the original are those to the samples as they were mixed.
    """
    if mix is None or task.has_references:
        return task.loss(output, target)
    share = mix.share[0]
    return share * task.loss(output, target) + (1 - share) * task.loss(output, mix.other)


@dataclass(frozen=True)
class Augmentation:
    """Changes the batches of one training run.

    `seed`: of the run and epoch. `reference`: what answers the changed samples in the place of labels. `padding`: of
    texts, the id that they are padded by, which stays.
    """

    augment: Augment
    seed: int
    reference: Reference | None = None
    padding: int | None = None

    def __call__(self, inputs: Inputs, target: Tensor, step: int) -> tuple[Inputs, Tensor]:
        """A batch, changed. Where samples are mixed, the inputs end with what `parted` takes off again."""
        augment, draw = self.augment, _Draw(seed_of(self.seed, "augment", step), len(target), str(target.device))
        changed = [_changed(each, augment, draw) if _is_image(each) else each for each in inputs]
        if (size := _lies_over(target, inputs)) is not None:
            target = _moved(target, augment, draw, size)
        if (dropout := augment.token_dropout) is not None:
            index = next(index for index, each in enumerate(inputs) if _is_tokens(each))
            dropped = draw.sent(draw.uniform("token_dropout", inputs[index].shape[1]) < dropout.p)
            if self.padding is not None:
                dropped &= inputs[index] != self.padding
            changed[index] = inputs[index].masked_fill(dropped, dropout.id)
        inputs = tuple(changed)
        if augment.mixes:
            inputs, target = _mixed(inputs, target, augment, draw)
        if self.reference is not None:
            target = self.reference.answer(parted(inputs, augment)[0])
        return inputs, target


# -- drawing --------------------------------------------------------------------------------------


class _Draw:
    """The random numbers of one step; the same for all images of a sample, whatever their sizes."""

    def __init__(self, seed: int, samples: int, device: str) -> None:
        self._seed, self._samples, self._device = seed, samples, device

    def seed(self, change: str) -> int:
        return seed_of(self._seed, change)

    def uniform(self, change: str, count: int) -> Tensor:
        """(N, count) double, 0 to below 1, on the CPU."""
        generator = torch.Generator().manual_seed(self.seed(change))
        return torch.rand(self._samples, count, generator=generator, dtype=torch.float64)

    def order(self) -> Tensor:
        return self.sent(torch.randperm(self._samples, generator=torch.Generator().manual_seed(self.seed("order"))))

    def sent(self, drawn: Tensor) -> Tensor:
        """Drawn numbers on the device of the batch, without waiting for it."""
        if torch.device(self._device).type == "cpu":
            return drawn
        return drawn.pin_memory().to(self._device, non_blocking=True)


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers from 0 to `count` − 1, of numbers from 0 to below 1."""
    return (uniform * count).long()


def _boxes(draw: _Draw, change: str, drawn: ResizedCrop | Erasing, size: torch.Size) -> tuple[Tensor, Tensor]:
    """A rectangle for each sample (top, left, height, width), (N, 4), and which of them fit into the image, (N,)."""
    height, width = size
    numbers = draw.uniform(change, 2 * _TRIES + 2)
    areas, forms, places = numbers[:, :_TRIES], numbers[:, _TRIES:-2], numbers[:, -2:]
    low, high = drawn.scale
    area = height * width * (low + (high - low) * areas)
    low, high = (math.log(each) for each in drawn.ratio)
    ratio = torch.exp(low + (high - low) * forms)  # as likely twice as wide as half as wide
    heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    if isinstance(drawn, Erasing):
        fits &= (heights < height) & (widths < width)  # something of the image is left
    first = fits.int().argmax(1, keepdim=True)
    h, w = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    top, left = _whole(places[:, 0], height - h + 1), _whole(places[:, 1], width - w + 1)
    return torch.stack([top, left, h, w], 1), fits.any(1)


def _crop_boxes(draw: _Draw, crop: ResizedCrop, size: torch.Size) -> Tensor:
    """What is left of each image: where nothing drawn fits, the largest part of the middle that has an allowed form."""
    boxes, fits = _boxes(draw, "resized_crop", crop, size)
    height, width = size
    least, most = crop.ratio
    h, w = height, width
    if width / height < least:
        h = max(1, round(width / least))
    elif width / height > most:
        w = max(1, round(height * most))
    middle = torch.tensor([(height - h) // 2, (width - w) // 2, h, w])
    return torch.where(fits[:, None], boxes, middle)


def _erased_boxes(draw: _Draw, erasing: Erasing, size: torch.Size) -> Tensor:
    boxes, fits = _boxes(draw, "erasing", erasing, size)
    chosen = fits & (draw.uniform("erasing?", 1)[:, 0] < erasing.p)
    return boxes * chosen[:, None]


# -- changing -------------------------------------------------------------------------------------


def _is_image(each: Tensor) -> bool:
    return each.dim() == 4 and each.is_floating_point()


def _is_tokens(each: Tensor) -> bool:
    return each.dim() == 2 and each.dtype == torch.int64


def _lies_over(target: Tensor, inputs: Inputs) -> torch.Size | None:
    """The size of the image that a target has a value for each pixel of, if there is one."""
    sizes = [each.shape[-2:] for each in inputs if _is_image(each)]
    return next((size for size in sizes if target.dim() > 2 and target.shape[-2:] == size), None)


def _changed(images: Tensor, augment: Augment, draw: _Draw) -> Tensor:
    """The images of one input, changed."""
    fill = 0.0 if augment.crop is None else augment.crop.fill
    images = _geometry(images, augment, draw, fill)
    if (jitter := augment.color_jitter) is not None:
        numbers = draw.sent(draw.uniform("color_jitter", 3).to(images.dtype))
        strengths = (jitter.brightness, jitter.contrast, jitter.saturation)
        factors = [
            max(0.0, 1 - strength) + (1 + strength - max(0.0, 1 - strength)) * number if strength else None
            for strength, number in zip(strengths, numbers.unbind(1), strict=True)
        ]
        images = jittered(images, *factors)
    if (erasing := augment.erasing) is not None:
        images = erased(images, draw.sent(_erased_boxes(draw, erasing, images.shape[-2:])), erasing.value)
    return images


def _moved(target: Tensor, augment: Augment, draw: _Draw, size: torch.Size) -> Tensor:
    """Labels over an image, moved as the image is."""
    return _geometry(target, augment, draw, IGNORED)


def _geometry(batch: Tensor, augment: Augment, draw: _Draw, fill: float) -> Tensor:
    for name, dim in (("horizontal_flip", -1), ("vertical_flip", -2)):
        flip = getattr(augment, name)
        if flip is not None:
            batch = flipped(batch, draw.sent(draw.uniform(name, 1)[:, 0] < flip.p), dim)
    if (crop := augment.crop) is not None:
        corners = draw.sent(_whole(draw.uniform("crop", 2), 2 * crop.padding + 1))
        batch = cropped(batch, corners[:, 0], corners[:, 1], crop.padding, fill)
    if augment.resized_crop is not None:
        batch = resized(batch, draw.sent(_crop_boxes(draw, augment.resized_crop, batch.shape[-2:])))
    return batch


def _mixed(inputs: Inputs, target: Tensor, augment: Augment, draw: _Draw) -> tuple[Inputs, Tensor]:
    """Samples mixed with others of their batch, followed by the others' targets and the shares, (N,)."""
    chance = random.Random(draw.seed("mix"))
    both = augment.mixup is not None and augment.cutmix is not None
    mixup = augment.mixup if not both or chance.random() < 0.5 else None
    how: Any = mixup or augment.cutmix
    share, applies = chance.betavariate(how.alpha, how.alpha), chance.random() < how.p
    order, other = draw.order(), target
    if not applies:
        share = 1.0
    elif mixup is not None:
        inputs = tuple(blended(each, order, share) for each in inputs)
        other = target[order]
    else:
        box = _cutmix_box(chance.random(), chance.random(), share, inputs[0].shape[-2:])
        over = _lies_over(target, inputs)
        inputs = tuple(pasted(each, order, box) for each in inputs)
        if over is not None:
            target, share = pasted(target, order, box), 1.0
            other = target
        else:
            share, other = 1 - box[2] * box[3] / math.prod(inputs[0].shape[-2:]), target[order]
    return (*inputs, other, torch.full((len(target),), share, device=target.device)), target


def _cutmix_box(x: float, y: float, share: float, size: torch.Size) -> tuple[int, int, int, int]:
    """A rectangle of the image's form around a point, cut off at the edges: top, left, height, width.

    Args:
        x, y: of the point, 0 to below 1.
        share: of the image's area, what is to be left of it.
    """
    height, width = size
    half = 0.5 * math.sqrt(1 - share)
    across, down, half_width, half_height = int(x * width), int(y * height), int(half * width), int(half * height)
    top, bottom = max(down - half_height, 0), min(down + half_height, height)
    left, right = max(across - half_width, 0), min(across + half_width, width)
    return top, left, bottom - top, right - left


# -- whether it can be done -----------------------------------------------------------------------


def check_augmentation(augment: Augment, inputs: Inputs, target: Tensor, pointer: str) -> None:
    """Refuse changes that these data do not allow.

    Args:
        inputs, target: some samples.
        pointer: where the spec names the changes, such as `/retrain/augment`.

    Raises:
        ValidationError: says which change does not fit, and why.
    """
    named = [name for name in Augment.model_fields if getattr(augment, name) is not None]
    for name in named:
        why = _refusal(name, augment, inputs, target)
        if why is not None:
            text = f"`{name}` {why}"
            raise ValidationError(text, errors=[{"pointer": f"{pointer}/{name}", "detail": text}])


def _refusal(name: str, augment: Augment, inputs: Inputs, target: Tensor) -> str | None:
    images = [each for each in inputs if _is_image(each)]
    holds = " and ".join(f"{'numbers' if each.is_floating_point() else 'token ids'} {_shape(each)}" for each in inputs)
    if name == "token_dropout" and not any(map(_is_tokens, inputs)):
        return f"replaces token ids, int64 (N, T), but the data holds {holds}: leave it out."
    if name == "mixup" and not all(each.is_floating_point() for each in inputs):
        return f"blends numbers, but the data holds {holds}, and token ids have nothing between them: leave it out."
    if name in _OF_IMAGES and not images:
        return f"changes images (N, C, H, W), but the data holds {holds}: leave it out."
    if name == "cutmix" and (len(images) < len(inputs) or len({each.shape[-2:] for each in images}) > 1):
        return f"pastes parts of images of one size, but the data holds {holds}: leave it out, or use `mixup`."
    if name in _MOVE and target.dim() > 2 and _lies_over(target, inputs) is None:
        return (
            f"moves what lies in an image, and the labels {_shape(target)} do not lie over the images "
            f"{_shape(images[0])} pixel by pixel, so they cannot be moved alike: leave it out."
        )
    if name == "crop":
        return _refusal_of_crop(augment, images, target, inputs)
    others = [each.shape[1] for each in images if each.shape[1] not in {1, 3}]
    if name == "color_jitter" and augment.color_jitter is not None and augment.color_jitter.saturation and others:
        return f"changes the saturation of three colour channels, but there are {others[0]}: make `saturation` 0."
    return None


def _refusal_of_crop(augment: Augment, images: list[Tensor], target: Tensor, inputs: Inputs) -> str | None:
    assert augment.crop is not None  # noqa: S101 - the caller has seen to it
    least = min(min(each.shape[-2:]) for each in images)
    if augment.crop.padding >= least:
        return f"pads by {augment.crop.padding} pixels, and the images have {least} on one side: pad by fewer."
    if target.is_floating_point() and _lies_over(target, inputs) is not None:
        return "has no label for what it pads with, where each pixel has a number as its label: use `resized_crop`."
    return None


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(['N', *map(str, tensor.shape[1:])])}{',' if tensor.dim() == 1 else ''})"
