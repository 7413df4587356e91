"""Shows what samples look like as a model gets them: a sheet of images, or rows of numbers and token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pared.compression.data.columns import Array
from pared.compression.data.inputs import dtype_name
from pared.compression.data.samples import NO_CLASS, Data
from pared.compression.tasks.labels import IGNORED

SHOWN = 48
"""Samples of a preview, evenly spaced in the training split."""
_NUMBERS = 64  # of a sample that are written out
_TOKENS = 256
_COLUMNS = 8
_TILE = 112  # pixels of an image's longer side on the sheet
_TEXT = 14  # pixels below it


def write_preview(data: Data, folder: Path) -> Path:
    """Write `preview.png` where the only input is images, with their masks beside them, else `preview.json`."""
    rows = data.spread("train", SHOWN)
    inputs, targets = data.take("train", rows)
    if len(inputs) == 1 and _are_images(inputs[0]):
        path = folder / "preview.png"
        _sheet(data, inputs[0], targets).save(path, optimize=True)
    else:
        path = folder / "preview.json"
        path.write_text(json.dumps(_listed(data, rows, inputs, targets), allow_nan=False))
    return path


def _are_images(samples: Tensor) -> bool:
    shape = samples.shape
    return samples.is_floating_point() and len(shape) == 4 and shape[1] in {1, 3} and min(shape[2:]) >= 4


# -- images -------------------------------------------------------------------------------------


def _sheet(data: Data, samples: Tensor, targets: Tensor) -> Image.Image:
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and high <= 255:  # as pixels are stored
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    pixels = ((samples - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8).numpy()
    of_pixels = data.labelled and targets.dim() == 3 and targets.dtype == torch.int64
    masks = targets.masked_fill(targets == IGNORED, NO_CLASS).numpy() & 255 if of_pixels else None
    scale = _TILE / max(samples.shape[2:])
    height, width = (max(1, round(size * scale)) for size in samples.shape[2:])
    wide = width * (1 if masks is None else 2)
    below = _TEXT if data.labelled and masks is None else 0
    columns = min(_COLUMNS // (1 if masks is None else 2), len(samples))
    sheet = Image.new("RGB", (columns * (wide + 2), -(-len(samples) // columns) * (height + below + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(pixels):
        x, y = index % columns * (wide + 2), index // columns * (height + below + 2)
        sheet.paste(_scaled(_coloured(image), (width, height)), (x, y))
        if masks is not None:
            sheet.paste(_scaled(Image.fromarray(_palette()[masks[index]]), (width, height)), (x + width, y))
        elif data.labelled:
            draw.text((x + 2, y + height + 1), _label(data, targets[index])[: width // 6], fill="black")
    return sheet


def _coloured(image: Array) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = size[0] < image.width
    return image.convert("RGB").resize(size, Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)


def _palette() -> Array:
    """A colour for each class of a mask, (256, 3): black for 0, white for what is ignored."""
    colours = np.random.default_rng(7).integers(40, 230, (256, 3), np.uint8)
    colours[0], colours[NO_CLASS] = 0, 255
    return colours


def _label(data: Data, target: Tensor) -> str:
    if target.numel() != 1:
        return ", ".join(f"{number:g}" for number in target.flatten()[:4].tolist())
    if data.class_names is not None and not target.is_floating_point():
        return data.class_names[int(target)].encode("ascii", "replace").decode()
    return f"{target.item():g}"


# -- rows ---------------------------------------------------------------------------------------


def _listed(data: Data, rows: Tensor, inputs: tuple[Tensor, ...], targets: Tensor) -> dict[str, Any]:
    names = data.names or (["x"] if len(inputs) == 1 else [f"x{index}" for index in range(len(inputs))])
    described = [
        {
            "name": name,
            "shape": list(tensor.shape[1:]),
            "dtype": dtype_name(tensor),
            "min": tensor.min().item(),
            "max": tensor.max().item(),
            "mean": round(float(tensor.double().mean()), 6),
        }
        for name, tensor in zip(names, inputs, strict=True)
    ]
    samples = []
    for place, row in enumerate(rows.tolist()):
        sample: dict[str, Any] = {
            "index": row,
            "inputs": {name: _first(tensor[place]) for name, tensor in zip(names, inputs, strict=True)},
        }
        if data.labelled:
            sample["target"] = _first(targets[place])
            if data.class_names is not None and targets[place].numel() == 1:
                sample["class"] = data.class_names[int(targets[place])]
        samples.append(sample)
    return {"split": "train", "inputs": described, "samples": samples}


def _first(sample: Tensor) -> Any:
    """The numbers of a sample, in its shape where there are few, else the first of them in a row."""
    whole = sample.dtype == torch.int64
    if sample.numel() > (_TOKENS if whole else _NUMBERS):
        sample = sample.flatten()[: _TOKENS if whole else _NUMBERS]
    listed = sample.tolist()
    return listed if whole else _rounded(listed)


def _rounded(value: Any) -> Any:
    """The shortest numbers that are the same in float32."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(np.format_float_positional(np.float32(value), unique=True)) if abs(value) < 1e15 else value
