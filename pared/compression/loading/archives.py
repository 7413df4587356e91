"""Looks at the directory of an uploaded zip before any library opens it.

Both readers of a zip, Python's and torch's, must see the same thing, and nothing may unpack to more
than it says or than we take.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 64 * 2**20

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_HAS_DESCRIPTOR = 0x8
_UTF8 = 0x800
_ENCRYPTED = 0x1
_KNOWN_FLAGS = 0x2 | 0x4 | _HAS_DESCRIPTOR | _UTF8
"""How hard it was compressed, and the two above. Others change what the bytes mean, and readers differ in them."""

_READ_BYTES = 1 << 20
BROKEN_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError)
"""What reading a member of a zip raises that is damaged, or is what Python's reader does not know."""


class BadArchive(Exception):
    """The archive is damaged, or lies about itself. The text says how."""


def zip_directory(path: Path, *, max_unpacked: int) -> list[zipfile.ZipInfo]:
    """The entries of a zip, checked against the file without unpacking anything.

    Args:
        path: the file.
        max_unpacked: most bytes that all entries together may unpack to.

    Raises:
        BadArchive: damaged, encrypted, too many or too large entries, another number of them than is announced,
            unsafe or double names, entries that overlap, or whose own header says something else than the directory.
    """
    try:
        with path.open("rb") as file:
            start, count = _directory(file, path.stat().st_size)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            _check_count(entries, count)
            _check_names(entries)
            check_total(entries, max_unpacked)
            _check_sizes(entries)
            _check_local_headers(file, entries, start)
    except BadArchive:
        raise
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
        EOFError,
        struct.error,
        RuntimeError,
    ) as error:
        raise BadArchive(f"its zip directory cannot be read ({str(error)[:200]})") from error
    return entries


def check_contents(path: Path) -> None:
    """Refuse a zip, its directory checked before, of which an entry is not what it was when it was written.

    torch looks at no checksum, so it takes weights of which a bit has flipped as they are. A checksum of 0 is none:
    torch writes it where `torch.serialization.set_crc32_options(False)` says so.

    Raises:
        BadArchive: an entry has another checksum than it says, or cannot be unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as member:
                    while entry.CRC and member.read(_READ_BYTES):
                        pass
            except BROKEN_MEMBER as error:
                name = entry.orig_filename[:100]
                raise BadArchive(f"its entry {name!r} has changed since it was written, by its checksum") from error


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Offset of the central directory and how many entries it has, by the one end record that ends with the file."""
    tail_size = min(size, _END.size + 65535)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise BadArchive("its zip directory is missing: the file was cut off")
    _, _, _, _, count, length, start, comment = _END.unpack_from(tail, at)
    end_offset = size - tail_size + at
    if end_offset + _END.size + comment != size:
        raise BadArchive("something follows its zip directory")
    if (count == 0xFFFF or length == 0xFFFFFFFF or start == 0xFFFFFFFF) and end_offset >= _END64_LOCATOR.size:
        file.seek(end_offset - _END64_LOCATOR.size)
        magic, _, end64_offset, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if magic == b"PK\x06\x07":
            file.seek(min(end64_offset, size))
            _, _, _, _, _, _, _, count, length, start = _END64.unpack(file.read(_END64.size))
    if count > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise BadArchive(f"its zip directory has {count:,} entries in {length:,} bytes: more than we take")
    if start + length > end_offset:
        raise BadArchive("its zip directory lies outside the file")
    return int(start), int(count)


def _check_count(entries: list[zipfile.ZipInfo], announced: int) -> None:
    if len(entries) != announced:  # Python reads all that are there, torch as many as are announced
        raise BadArchive(f"its zip directory announces {announced:,} entries and has {len(entries):,}")


def _check_names(entries: list[zipfile.ZipInfo]) -> None:
    seen = set()
    for entry in entries:
        name = entry.orig_filename
        if name in seen:
            raise BadArchive(f"two of its entries are called {name[:100]!r}")
        seen.add(name)
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise BadArchive(f"the name of its entry {name[:100]!r} is unsafe")
        if entry.flag_bits & _ENCRYPTED:
            raise BadArchive("it is encrypted")
        if entry.flag_bits & ~_KNOWN_FLAGS:
            raise BadArchive(f"its entry {name[:100]!r} is written in an unusual way (flags {entry.flag_bits:#x})")


def check_total(entries: list[zipfile.ZipInfo], max_unpacked: int) -> None:
    """Refuse entries that together unpack to more bytes than that.

    Raises:
        BadArchive: they do.
    """
    total = sum(entry.file_size for entry in entries)
    if total > max_unpacked:
        raise BadArchive(f"it unpacks to {total:,} bytes: more than the {max_unpacked:,} we take")


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
            raise BadArchive(f"its entry {entry.orig_filename[:100]!r} is compressed in an unusual way")
        if stored and entry.compress_size != entry.file_size:
            raise BadArchive(f"its entry {entry.orig_filename[:100]!r} gives two sizes")


def _check_local_headers(file: BinaryIO, entries: list[zipfile.ZipInfo], directory_start: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        if entry.header_offset < end:
            raise BadArchive("its entries overlap")
        file.seek(entry.header_offset)
        raw = file.read(_LOCAL.size)
        magic, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = _LOCAL.unpack(raw)
        name = file.read(name_length).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        sizes_agree = flags & _HAS_DESCRIPTOR or (
            packed in {entry.compress_size, 0xFFFFFFFF} and unpacked in {entry.file_size, 0xFFFFFFFF}
        )
        if flags & ~_KNOWN_FLAGS:
            raise BadArchive(f"its entry {entry.orig_filename[:100]!r} is written in an unusual way (flags {flags:#x})")
        if magic != b"PK\x03\x04" or name != entry.orig_filename or method != entry.compress_type or not sizes_agree:
            raise BadArchive(f"its directory and its entry {entry.orig_filename[:100]!r} disagree")
        end = entry.header_offset + _LOCAL.size + name_length + extra_length + entry.compress_size
    if end > directory_start:
        raise BadArchive("its entries reach into its directory")
