"""Changes batches of images, of labels that lie over them and of token ids; random numbers are drawn elsewhere.

N samples. Images are float (N, C, H, W); labels over them (N, H, W) or (N, C, H, W). Everything else has one entry a
sample and lies on the device of the batch. Nothing is changed in place, and nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # of ITU-R BT.601, the weights that torchvision and kornia use


def flipped(batch: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Mirror the samples chosen, (N,) bool, along `dim`: −1 is left and right, −2 up and down."""
    return torch.where(_per_sample(chosen, batch), batch.flip(dim), batch)


def cropped(batch: Tensor, top: Tensor, left: Tensor, padding: int, fill: float) -> Tensor:
    """Pad by `fill` on all sides, and cut windows of the former size out of it.

    top, left: where each begins in the padded sample, (N,) of 0 to 2 · padding.
    """
    rows, row_is_there = _window(top, padding, batch.shape[-2])
    columns, column_is_there = _window(left, padding, batch.shape[-1])
    moved = _picked(_picked(batch, -2, rows), -1, columns)
    there = row_is_there[:, :, None] & column_is_there[:, None, :]
    return torch.where(_over(there, batch), moved, torch.full((), fill, dtype=batch.dtype, device=batch.device))


def resized(batch: Tensor, boxes: Tensor) -> Tensor:
    """Stretch a rectangle of each sample to the size of the whole: bilinear, and whole numbers by the nearest one.

    boxes: top, left, height and width of each in pixels, (N, 4) int64, within the sample.
    """
    top, left, height, width = boxes.unbind(1)
    return _stretched(_stretched(batch, -2, top, height), -1, left, width)


def erased(images: Tensor, boxes: Tensor, value: float) -> Tensor:
    """Overwrite a rectangle of each image. boxes: as for `resized`; one of height 0 overwrites nothing."""
    top, left, height, width = (each[:, None] for each in boxes.unbind(1))
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return images.masked_fill(_over(in_rows[:, :, None] & in_columns[:, None, :], images), value)


def jittered(images: Tensor, brightness: Tensor | None, contrast: Tensor | None, saturation: Tensor | None) -> Tensor:
    """Multiply brightness, contrast and saturation by factors, (N,) each, in this order; None leaves one as it is.

    Of preprocessed numbers nobody knows which are black and white. So black is the lowest number of each channel of an
    image, and no result leaves the range from there to its highest: z → black + factor · (z − black) for brightness,
    z → mean + factor · (z − mean) of the channel for contrast. Both are then the same before and after a
    preprocessing that scales channels. Saturation is z → grey + factor · (z − grey), the grey of a pixel being
    0.2989 · red + 0.587 · green + 0.114 · blue of the preprocessed numbers, and changes only images of three channels.
    """
    black, white = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    if brightness is not None:
        images = _scaled_from(black, images, brightness).clamp(black, white)
    if contrast is not None:
        images = _scaled_from(images.mean((2, 3), keepdim=True), images, contrast).clamp(black, white)
    if saturation is not None and images.shape[1] == 3:
        red, green, blue = images.unbind(1)
        grey = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]
        images = _scaled_from(grey, images, saturation).clamp(black, white)
    return images


def blended(batch: Tensor, order: Tensor, share: float) -> Tensor:
    """share · sample + (1 − share) · the sample that `order`, (N,), puts in its place."""
    return torch.lerp(batch[order], batch, share)


def pasted(batch: Tensor, order: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Give every sample the same rectangle (top, left, height, width) of the one that `order` puts in its place."""
    top, left, height, width = box
    result = batch.clone()
    there = (..., slice(top, top + height), slice(left, left + width))
    result[there] = batch[order][there]
    return result


# -- parts ----------------------------------------------------------------------------------------


def _per_sample(values: Tensor, batch: Tensor) -> Tensor:
    """(N,) as (N, 1, …), to go with a batch."""
    return values.reshape(-1, *[1] * (batch.dim() - 1))


def _over(mask: Tensor, batch: Tensor) -> Tensor:
    """(N, H, W) as (N, 1, …, H, W), to go with a batch."""
    return mask.reshape(len(mask), *[1] * (batch.dim() - 3), *mask.shape[1:])


def _scaled_from(centre: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    return centre + _per_sample(factors, images) * (images - centre)


def _window(begin: Tensor, padding: int, length: int) -> tuple[Tensor, Tensor]:
    """For each place of each window the index in the sample, and whether it is there: (N, length) both."""
    index = begin[:, None] + torch.arange(length, device=begin.device) - padding
    return index.clamp(0, length - 1), (index >= 0) & (index < length)


def _picked(batch: Tensor, dim: int, index: Tensor) -> Tensor:
    """Along `dim`, −1 or −2, what each sample's own indices (N, length) name."""
    shape = [1] * batch.dim()
    shape[0], shape[dim] = index.shape
    return batch.gather(dim, index.reshape(shape).expand(*batch.shape))


def _stretched(batch: Tensor, dim: int, begin: Tensor, size: Tensor) -> Tensor:
    """Along `dim`, −1 or −2, the `size` pixels from `begin` on, (N,) each, stretched to the whole length."""
    length = batch.shape[dim]
    begin, size, place = begin[:, None], size[:, None], torch.arange(length, device=begin.device)
    if not batch.is_floating_point():
        return _picked(batch, dim, begin + place * size // length)
    # Pixels have their values in their middle.
    exact = ((place + 0.5) * (size / length) - 0.5).clamp(min=0)
    low = exact.long()
    high = torch.minimum(low + 1, size - 1)
    weight = (exact - low).to(batch.dtype)
    shape = [1] * batch.dim()
    shape[0], shape[dim] = weight.shape
    return torch.lerp(_picked(batch, dim, begin + low), _picked(batch, dim, begin + high), weight.reshape(shape))
