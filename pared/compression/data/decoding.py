"""Decodes images as they are needed, in threads, and keeps what was decoded in a file of bounded size."""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from pared.compression.data.columns import Array
from pared.compression.data.mapped import MappedFile, MappedRows
from pared.compression.data.room import Room, temporary_file
from pared.compression.data.zip_members import Member, Zip
from pared.errors import InvalidData

DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_HEAD_BYTES = 64 << 10  # of a file whose header alone is looked at
_AT_LEAST_EACH = 8  # images for each thread, or waking it takes longer than its work


def opened(archive: Zip, member: Member, *, header: bool = False) -> Image.Image:
    """An image that is not decoded yet.

    Args:
        header: only its size and mode are wanted, for which the beginning of the file mostly suffices.

    Raises:
        InvalidData: it is none, or damaged.
    """
    if header and member.packed > _HEAD_BYTES:
        try:
            return Image.open(io.BytesIO(archive.head(member, _HEAD_BYTES)), formats=DECODERS)
        except Exception:  # noqa: BLE001 - its header is longer
            return opened(archive, member)
    try:
        return Image.open(io.BytesIO(archive.read(member)), formats=DECODERS)
    except Image.DecompressionBombError as error:
        raise InvalidData(f"{member.name[:100]} has far more pixels than an image may have: too many.") from error
    except Exception as error:
        raise InvalidData(
            f"{member.name[:100]} is not an image that opens ({', '.join(DECODERS)}): {str(error)[:200]}."
        ) from error


def picture(image: Image.Image, shape: tuple[int, ...]) -> Array:
    """Pixels as (channels, height, width) uint8, of one channel or three."""
    grey = shape[0] == 1
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def segments(image: Image.Image, shape: tuple[int, ...]) -> Array:
    """A mask as (height, width) uint8: values of grey, or indices of a palette."""
    return np.asarray(image).astype(np.uint8, copy=False)


class Decoder:
    """All images of a data set, of one shape. What was decoded once lies in a temporary file, as far as that goes."""

    def __init__(
        self,
        archive: Zip,
        members: Sequence[Member],
        sample_shape: tuple[int, ...],
        convert: Callable[[Image.Image, tuple[int, ...]], Array],
        room: Room,
    ) -> None:
        """Args: room: where all images fit into `held`, they are soon in memory, and no file is made."""
        self._archive, self._members, self._convert = archive, members, convert
        self.sample_shape = sample_shape
        self._bytes = math.prod(sample_shape)
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decoder")
        self._kept: _DecodedFile | None = None
        if self._bytes * len(members) > room.held:
            self._kept = _DecodedFile(min(len(members), room.unpacked // self._bytes), sample_shape)

    def __call__(self, rows: Array) -> Array:
        """The images of these indices, (n, …) uint8.

        Raises:
            InvalidData: one does not decode.
        """
        found: Array = np.empty((len(rows), *self.sample_shape), np.uint8)
        missing = np.arange(len(rows)) if self._kept is None else self._kept.take(rows, found)
        if len(missing):
            parts = np.array_split(missing, min(self._pool._max_workers, -(-len(missing) // _AT_LEAST_EACH)))
            for _ in self._pool.map(lambda part: self._decode(rows, part, found), parts):
                pass
            if self._kept is not None:
                self._kept.keep(rows, missing, found)
        return found

    def _decode(self, rows: Array, places: Array, found: Array) -> None:
        for place in places:
            member = self._members[rows[place]]
            image = opened(self._archive, member)
            try:
                found[place] = self._convert(image, self.sample_shape)
            except Exception as error:
                raise InvalidData(f"{member.name[:100]} does not decode: {str(error)[:200]}. Is it cut off?") from error


class ImageRows:
    """Some images that lie one after the other: `Rows` that are decoded when they are asked for."""

    dtype = np.dtype(np.uint8)
    decoded = True

    def __init__(self, decoder: Decoder, begin: int, end: int) -> None:
        self._decoder, self._begin = decoder, begin
        self.shape = (end - begin, *decoder.sample_shape)

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, slice):
            rows = np.arange(self.shape[0])[rows]
        return self._decoder(rows + self._begin)


class _DecodedFile:
    """Decoded images of the first so many indices, in a file without a name."""

    def __init__(self, count: int, sample_shape: tuple[int, ...]) -> None:
        self._bytes = math.prod(sample_shape)
        self._there = np.zeros(count, bool)
        self._lock = threading.Lock()
        if count:
            with temporary_file() as self._file:
                self._file.truncate(count * self._bytes)
            mapped = MappedFile(self._file.fileno())
            self._rows = MappedRows(mapped, 0, (count, *sample_shape), np.dtype(np.uint8))

    def take(self, rows: Array, found: Array) -> Array:
        """Fill in the images that are there. Returns the places of the others."""
        there = self._there
        kept = rows < len(there)
        kept[kept] = there[rows[kept]]
        if kept.any():
            found[kept] = self._rows[rows[kept]]
        return np.flatnonzero(~kept)

    def keep(self, rows: Array, places: Array, found: Array) -> None:
        """Write down decoded images, while the disk has room for them."""
        with self._lock:
            for place in places:
                if rows[place] < len(self._there):
                    try:
                        written = os.pwrite(self._file.fileno(), found[place].data, int(rows[place]) * self._bytes)
                    except OSError:
                        self._there = self._there[:0].copy()  # no more is kept, and all is decoded when needed
                        return
                    self._there[rows[place]] = written == self._bytes
