"""Reads a zip of images, one folder a class."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pared.compression.data.samples import Split
from pared.compression.data.stored import FORMATS, MAX_ELEMENTS, Array, Stored
from pared.errors import InvalidData, UnsupportedDataset

MAX_PIXELS = 1 << 26
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}
_DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_image_folders(path: Path, entries: list[zipfile.ZipInfo]) -> Stored:
    """Images as (samples, channels, height, width) uint8; classes are the folders in alphabetical order.

    Above the class folders there may be `train`, `val` and `test`. All images have one size. One channel where
    all are grey, else three.

    Raises:
        UnsupportedDataset: no images in class folders.
        InvalidData: sizes differ, or an image does not decode.
    """
    placed = _placed(entries)
    class_names = sorted({name for _, name, _ in placed})
    number = {name: index for index, name in enumerate(class_names)}
    with zipfile.ZipFile(path) as archive:
        size, grey = _common_size(archive, [entry for _, _, entry in placed])
        inputs: dict[Split, list[Array]] = {}
        targets: dict[Split, Array] = {}
        for split in ("train", "val", "test"):
            mine = [(name, entry) for where, name, entry in placed if where == split]
            if mine:
                inputs[split] = [np.stack([_pixels(archive, entry, size, grey=grey) for _, entry in mine])]
                targets[split] = np.array([number[name] for name, _ in mine], dtype=np.int64)
    if "train" not in inputs:
        raise InvalidData("The zip has a val or test folder but no train folder.")
    return Stored("image_folder", inputs, targets, class_names)


def _placed(entries: list[zipfile.ZipInfo]) -> list[tuple[Split, str, zipfile.ZipInfo]]:
    """Split, class and entry of every image, in the order of their names."""
    images = [
        (PurePosixPath(entry.filename).parts, entry)
        for entry in sorted(entries, key=lambda one: one.filename)
        if PurePosixPath(entry.filename).suffix.lower() in SUFFIXES
    ]
    # What archivers on a Mac leave behind.
    images = [(p, e) for p, e in images if "__MACOSX" not in p and not p[-1].startswith("._")]
    if not images:
        raise UnsupportedDataset(f"This zip holds no arrays and no images. {FORMATS}")
    while len({parts[0] for parts, _ in images}) == 1 and all(len(parts) > 2 for parts, _ in images):
        images = [(parts[1:], entry) for parts, entry in images]
    with_splits = all(len(parts) == 3 and parts[0].lower() in _SPLITS for parts, _ in images)
    for parts, entry in images:
        if len(parts) != (3 if with_splits else 2):
            raise InvalidData(
                f"{entry.filename[:100]} does not lie in a class folder: the zip should hold cat/1.png, dog/2.png, … "
                "or train/cat/1.png, test/dog/2.png, …"
            )
    return [(_SPLITS[parts[0].lower()] if with_splits else "train", parts[-2], entry) for parts, entry in images]


def _common_size(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> tuple[tuple[int, int], bool]:
    """The one (width, height), and whether all images are grey, from the images' headers."""
    first: tuple[tuple[int, int], str] | None = None
    grey = True
    for entry in entries:
        image = _opened(archive, entry)
        if first is None:
            first = image.size, entry.filename
            if image.width * image.height > MAX_PIXELS:
                raise InvalidData(f"{entry.filename[:100]} has {image.width}×{image.height} pixels: too many.")
        elif image.size != first[0]:
            raise InvalidData(
                f"The images differ in size: {first[1][:100]} is {first[0][0]}×{first[0][1]}, {entry.filename[:100]} "
                f"is {image.width}×{image.height}. Resize or crop them to one size."
            )
        if image.mode.startswith(("I", "F")):
            raise InvalidData(
                f"{entry.filename[:100]} holds more than 8 bits a pixel (mode {image.mode}), which would be clipped to "
                "255. Save the images as 8-bit ones, or as arrays in an .npz."
            )
        grey = grey and image.mode in {"L", "1"}
    assert first is not None  # noqa: S101 - _placed gives at least one
    elements = len(entries) * first[0][0] * first[0][1] * (1 if grey else 3)
    if elements > MAX_ELEMENTS:
        raise InvalidData(f"The images hold {elements:,} numbers; the most we take is {MAX_ELEMENTS:,}.")
    return first[0], grey


def _pixels(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: tuple[int, int], *, grey: bool) -> Array:
    """One image as (channels, height, width) uint8."""
    image = _opened(archive, entry)
    try:
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:
        raise InvalidData(f"{entry.filename[:100]} does not decode: {str(error)[:200]}. Is it cut off?") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _opened(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Image.Image:
    try:
        return Image.open(io.BytesIO(archive.read(entry)), formats=_DECODERS)
    except Exception as error:
        raise InvalidData(
            f"{entry.filename[:100]} is not an image that opens ({', '.join(_DECODERS)}): {str(error)[:200]}."
        ) from error
