"""Reads a zip of images: one folder a class, images with masks, or images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pared.compression.data.columns import Array, Column, Rows, StoredColumn, raw_chunks
from pared.compression.data.decoding import Decoder, ImageRows, opened, picture, segments
from pared.compression.data.room import Room, room_for
from pared.compression.data.samples import NO_CLASS, SPLIT_NAMES, SPLITS, Split
from pared.compression.data.stored import FORMATS, Stored
from pared.compression.data.zip_members import Member, Zip
from pared.compression.tasks.base import OtherTask
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, UnsupportedDataset

MAX_PIXELS = 1 << 26
MAX_FILE_BYTES = 256 << 20
"""Most bytes of one image's file: those of the largest image, four bytes a pixel."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}


class _Placed(NamedTuple):
    """One image: its split, its folders and name below that, and its file."""

    split: Split
    parts: tuple[str, ...]
    member: Member


def read_images(archive: Zip, file: DatasetFile) -> Stored:
    """Images as (samples, channels, height, width) uint8, in the order of their names.

    In class folders the targets are classes, the folders in alphabetical order. With `images` and `masks` the targets
    are (samples, height, width) uint8: the value of a pixel is its class, 255 is ignored. Images in one folder, or in
    none, have no labels. Above all that there may be `train`, `val` and `test`. All images have one size. One channel
    where all are grey, else three. What does not fit into memory is decoded as it is needed.

    Raises:
        UnsupportedDataset: no images.
        InvalidData: the folders mix these forms, sizes differ, or an image or mask does not open.
    """
    placed = _placed(archive)
    if not any(each.split == "train" for each in placed):
        raise InvalidData("The zip has a val or test folder but no train folder.")
    if any(each.parts[0].lower() == "masks" for each in placed if len(each.parts) > 1):
        return _with_masks(archive, placed, room_for(file))
    decoder = _decoder(archive, [each.member for each in placed], room_for(file))
    inputs: dict[Split, list[Rows]] = {split: [rows] for split, rows in _by_split(decoder, placed).items()}
    if all(len(each.parts) == 1 for each in placed):
        return Stored("images", inputs, {})
    class_names = sorted({each.parts[0] for each in placed})
    number = {name: index for index, name in enumerate(class_names)}
    targets: dict[Split, Rows] = {
        split: np.array([number[each.parts[0]] for each in placed if each.split == split], dtype=np.int64)
        for split in inputs
    }
    return Stored("image_folder", inputs, targets, class_names)


def _placed(archive: Zip) -> list[_Placed]:
    """Every image, split by split in the order of their names."""
    images = [
        (PurePosixPath(member.name).parts, member)
        for member in sorted(archive.members, key=lambda one: one.name)
        if PurePosixPath(member.name).suffix.lower() in SUFFIXES
    ]
    # What archivers on a Mac leave behind.
    images = [(parts, member) for parts, member in images if "__MACOSX" not in parts and not parts[-1].startswith("._")]
    if not images:
        raise UnsupportedDataset(f"This zip holds no arrays and no images. {FORMATS}")
    for _, member in images:
        if member.size > MAX_FILE_BYTES:
            raise InvalidData(f"{member.name[:100]} unpacks to {member.size:,} bytes: too many for an image.")
    while len({parts[0] for parts, _ in images}) == 1 and all(len(parts) > 1 for parts, _ in images):
        images = [(parts[1:], member) for parts, member in images]
    with_splits = all(len(parts) > 1 and parts[0].lower() in SPLIT_NAMES for parts, _ in images)
    placed = [
        _Placed(SPLIT_NAMES[parts[0].lower()], parts[1:], member) if with_splits else _Placed("train", parts, member)
        for parts, member in images
    ]
    _check_depth(placed)
    return sorted(placed, key=lambda each: SPLITS.index(each.split))


def _check_depth(placed: Sequence[_Placed]) -> None:
    folders = {each.parts[0].lower() for each in placed if len(each.parts) > 1}
    if "masks" in folders:
        return
    depths = {len(each.parts) for each in placed}
    if depths in ({1}, {2}):
        return
    wrong = next(each for each in placed if len(each.parts) != 2)
    raise InvalidData(
        f"{wrong.member.name[:100]} does not lie in a class folder: the zip should hold cat/1.png, dog/2.png, … or "
        "train/cat/1.png, test/dog/2.png, … Images without labels lie all in one folder."
    )


def _by_split(decoder: Decoder, placed: Sequence[_Placed]) -> dict[Split, Rows]:
    """The decoded images of each split; they lie one split after the other."""
    parts: dict[Split, Rows] = {}
    begin = 0
    for split in SPLITS:
        count = sum(each.split == split for each in placed)
        if count:
            parts[split] = ImageRows(decoder, begin, begin + count)
        begin += count
    return parts


def _decoder(archive: Zip, members: Sequence[Member], room: Room, *, beside: int = 0) -> Decoder:
    """What decodes these images. `beside`: bytes a pixel that are kept for each image besides."""
    size, grey = _common_size(archive, members)
    channels = 1 if grey else 3
    share = channels / (channels + beside)
    return Decoder(
        archive,
        members,
        (channels, size[1], size[0]),
        picture,
        Room(int(room.held * share), int(room.unpacked * share)),
    )


def _common_size(archive: Zip, members: Sequence[Member]) -> tuple[tuple[int, int], bool]:
    """The one (width, height), and whether all images are grey, from the images' headers."""
    first: tuple[tuple[int, int], str] | None = None
    grey = True
    for member in members:
        image = opened(archive, member, header=True)
        if first is None:
            first = image.size, member.name
            if image.width * image.height > MAX_PIXELS:
                raise InvalidData(f"{member.name[:100]} has {image.width}×{image.height} pixels: too many.")
        elif image.size != first[0]:
            raise InvalidData(
                f"The images differ in size: {first[1][:100]} is {first[0][0]}×{first[0][1]}, {member.name[:100]} "
                f"is {image.width}×{image.height}. Resize or crop them to one size."
            )
        if image.mode.startswith(("I", "F")):
            raise InvalidData(
                f"{member.name[:100]} holds more than 8 bits a pixel (mode {image.mode}), which would be clipped to "
                "255. Save the images as 8-bit ones, or as arrays in an .npz."
            )
        grey = grey and image.mode in {"L", "1"}
    assert first is not None  # noqa: S101 - _placed gives at least one
    return first[0], grey


# -- masks --------------------------------------------------------------------------------------


def _with_masks(archive: Zip, placed: Sequence[_Placed], room: Room) -> Stored:
    found: dict[str, dict[tuple[Split, tuple[str, ...]], Member]] = {"images": {}, "masks": {}}
    for each in placed:
        folder, name = each.parts[0].lower(), (*each.parts[1:-1], PurePosixPath(each.parts[-1]).stem)
        if len(each.parts) < 2 or folder not in found:
            raise InvalidData(
                f"{each.member.name[:100]} lies neither in images nor in masks: the zip should hold images/1.jpg, "
                "masks/1.png, … or train/images/1.jpg, train/masks/1.png, …"
            )
        if (each.split, name) in found[folder]:
            raise InvalidData(f"Two files in {folder} have the name of {each.member.name[:100]} without its suffix.")
        found[folder][each.split, name] = each.member
    images, masks = found["images"], found["masks"]
    _check_pairs(images, masks)
    paired = [each for each in placed if each.parts[0].lower() == "images"]
    order = [masks[key] for key in images]
    decoder = _decoder(archive, list(images.values()), room, beside=1)
    channels, height, width = decoder.sample_shape
    for member in order:
        _check_mask(archive, member, (width, height))
    share = 1 / (channels + 1)
    mask_room = Room(int(room.held * share), int(room.unpacked * share))
    labels = _by_split(Decoder(archive, order, (height, width), segments, mask_room), paired)
    inputs: dict[Split, list[Rows]] = {split: [rows] for split, rows in _by_split(decoder, paired).items()}
    return Stored("image_masks", inputs, labels)


def _check_pairs(
    images: dict[tuple[Split, tuple[str, ...]], Member], masks: dict[tuple[Split, tuple[str, ...]], Member]
) -> None:
    for kind, there, other in (("a mask", images, masks), ("an image", masks, images)):
        alone = [member.name for key, member in there.items() if key not in other]
        if alone:
            raise InvalidData(
                f"{len(alone):,} file{'s' * (len(alone) != 1)} in {'images' if there is images else 'masks'} "
                f"without {kind} of the same name, such as {alone[0][:100]}: images/1.jpg belongs to masks/1.png."
            )


def _check_mask(archive: Zip, member: Member, size: tuple[int, int]) -> None:
    mask = opened(archive, member, header=True)
    if mask.format != "PNG":
        raise InvalidData(
            f"The mask {member.name[:100]} is a {mask.format}, which may change pixels' values. Save masks as PNG."
        )
    if mask.mode not in {"L", "P", "1"}:
        raise InvalidData(
            f"The mask {member.name[:100]} has the mode {mask.mode}. A mask is a grey or palette PNG of 8 bits, in "
            "which the value of a pixel is its class (255: ignored). Turn colours into class numbers first."
        )
    if mask.size != size:
        raise InvalidData(
            f"The mask {member.name[:100]} is {mask.width}×{mask.height}, its image {size[0]}×{size[1]}. They must "
            "have one size; resize masks without smoothing (nearest)."
        )


def mask_labels(masks: Mapping[Split, Rows], ignored: int | None) -> tuple[dict[Split, Column], int, list[str]]:
    """Columns of masks, (samples, height, width) uint8 with 255 where a pixel has no class, how many classes, notes.

    Args:
        ignored: a further value of pixels that have no class.

    Raises:
        InvalidData: a mask does not decode, there is nothing to tell apart, or no pixel of a split has a class.
    """
    found = {split: _values(rows) for split, rows in masks.items()}
    values = np.logical_or.reduce(list(found.values()))
    table, notes = np.arange(256, dtype=np.uint8), []
    if ignored is None and np.flatnonzero(values).tolist() == [0, NO_CLASS]:
        table[NO_CLASS] = 1
        notes.append("The masks hold 0 and 255 alone: 255 is the class 1.")
    else:
        void = {NO_CLASS} if ignored is None else {NO_CLASS, ignored}
        table[[value for value in void if 0 <= value < 256]] = NO_CLASS
        said = [str(value) for value in np.flatnonzero(values & (table == NO_CLASS))]
        if said:
            notes.append(f"Pixels with the label {' or '.join(said)} are ignored.")
        for split, present in found.items():
            if not (present & (table != NO_CLASS)).any():
                raise OtherTask(
                    f"All pixels of the {split} split are ignored, so that nothing can be learned or scored."
                )
    classes = np.unique(table[values & (table != NO_CLASS)])
    if len(classes) < 2:
        raise OtherTask(
            f"All pixels that have a class have the class {classes[0]}: there is nothing to tell apart. Give at least "
            "two classes, or use task=match, which needs no labels."
        )
    columns: dict[Split, Column] = {
        split: StoredColumn(_Recoded(rows, table), torch.uint8) for split, rows in masks.items()
    }
    return columns, int(classes[-1]) + 1, notes


def _values(masks: Rows) -> NDArray[np.bool_]:
    """Which bytes occur, (256,)."""
    found = np.zeros(256, bool)
    for _, chunk in raw_chunks(masks):
        found |= np.bincount(chunk.reshape(-1), minlength=256) > 0
    return found


class _Recoded:
    """Masks whose bytes stand for others."""

    def __init__(self, masks: Rows, table: NDArray[np.uint8]) -> None:
        self._masks, self._table = masks, table
        self.shape, self.dtype = masks.shape, masks.dtype
        self.decoded = getattr(masks, "decoded", False)

    def __getitem__(self, rows: Any, /) -> Array:
        return self._table[self._masks[rows]]
