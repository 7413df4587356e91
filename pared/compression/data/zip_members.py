"""Reads the members of a zip whose directory was checked, from any thread, and holds each against its checksum."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pared.compression.data.columns import CHUNK_BYTES
from pared.compression.data.mapped import MappedFile
from pared.compression.loading.archives import BadArchive, zip_directory
from pared.errors import UnsupportedDataset

MAX_UNPACKED = 64 << 30
"""Most bytes that a zip may unpack to: the largest file that a job may write."""

_LOCAL_HEADER_BYTES = 30


class Member(NamedTuple):
    """One file in a zip: where its bytes are, and what they unpack to."""

    name: str
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


class Zip:
    """A zip that is mapped, not loaded."""

    def __init__(self, path: Path) -> None:
        """Raises: UnsupportedDataset: damaged, unsafe, or larger than what is taken."""
        try:
            entries = zip_directory(path, max_unpacked=MAX_UNPACKED)
        except BadArchive as error:
            raise UnsupportedDataset(
                f"This is a damaged or unsafe archive: {error}. Save and upload it again."
            ) from error
        with path.open("rb") as opened:
            self.file = MappedFile(opened.fileno())
        self.members: list[Member] = []
        entries.reverse()
        while entries:  # of hundreds of thousands no two lists are kept
            entry = entries.pop()
            if not entry.is_dir():
                self.members.append(self._member(entry))

    def _member(self, entry: zipfile.ZipInfo) -> Member:
        at = entry.header_offset
        name, extra = struct.unpack("<2H", self.file.read(at + 26, 4))
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        start = at + _LOCAL_HEADER_BYTES + name + extra
        return Member(entry.filename, start, entry.compress_size, entry.file_size, entry.CRC, deflated)

    def head(self, member: Member, count: int) -> bytes:
        """What the first `count` packed bytes of a member hold, unchecked."""
        packed = self.file.read(member.start, min(count, member.packed))
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, 4 * count) if member.deflated else packed

    def read(self, member: Member) -> bytes:
        """All bytes of a member. Raises ValueError where they are damaged."""
        return b"".join(self.chunks(member))

    def chunks(self, member: Member) -> Iterator[bytes]:
        """The bytes of a member in parts. Raises ValueError where they are damaged, if only after the last part."""
        crc = size = 0
        for part in self._unpacked(member):
            size += len(part)
            if size > member.size:
                break
            crc = zlib.crc32(part, crc)
            yield part
        if size != member.size or crc != member.crc:
            raise ValueError(f"{member.name[:100]} does not unpack to what was packed")

    def check(self, member: Member) -> None:
        """Go through all bytes of a member. Raises ValueError where they are damaged."""
        for _ in self.chunks(member):
            pass

    def _unpacked(self, member: Member) -> Iterator[bytes]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        for begin in range(0, member.packed, CHUNK_BYTES):
            end = min(begin + CHUNK_BYTES, member.packed)
            packed = self.file.read(member.start + begin, end - begin)
            while packed:
                if not member.deflated:
                    yield packed
                    break
                try:
                    yield inflater.decompress(packed, CHUNK_BYTES)
                except zlib.error as error:
                    raise ValueError(f"{member.name[:100]} does not unpack: {error}") from error
                packed = inflater.unconsumed_tail
        if member.deflated:
            yield inflater.flush()
