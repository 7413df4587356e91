"""Reads arrays by name: .npz and .safetensors, mapped where they lie, unpacked first where they are compressed."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pared.compression.data.columns import Rows
from pared.compression.data.mapped import MappedFile, MappedRows, bfloat16_as_float32
from pared.compression.data.names import LEFT_OUT
from pared.compression.data.room import room_for, temporary_file
from pared.compression.data.samples import SPLIT_NAMES, Split
from pared.compression.data.stored import FORMATS, Stored
from pared.compression.data.zip_members import Member, Zip
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, ParedError, UnsupportedDataset
from pared.weights.safetensors import TensorEntry, read_header
from pared.wording import shortened

TARGET_NAMES = ("y", "target", "targets", "label", "labels", "class", "classes")
_HEADER_BYTES = 64 << 10  # of an .npy; numpy writes about a hundred


def by_split(arrays: Mapping[str, Rows], kind: str) -> Stored:
    """Sort arrays into splits by their names, alone or with `_train`, `_val`, `_test`.

    Inputs are `x` or `x0`, `x1`, …, and targets `y`; without any x, a name of targets (such as `labels`) is the target,
    and all else are inputs by their own names. Without targets the data set has no labels.
    """
    parsed = {name: _parsed(name) for name in arrays}
    numbered = any(re.fullmatch(r"x\d{0,2}", stem.lower()) for stem, _ in parsed.values())
    inputs: dict[Split, dict[str, Rows]] = {}
    targets: dict[Split, Rows] = {}
    ignored = []
    for name, array in arrays.items():
        stem, split = parsed[name]
        if stem.lower() == "y" or (not numbered and stem.lower() in TARGET_NAMES):
            known: dict[Any, Rows] = targets
            key: Any = split
        elif numbered and not re.fullmatch(r"x\d{0,2}", stem.lower()):
            ignored.append(name[:60])
            continue
        else:
            known, key = inputs.setdefault(split, {}), f"x{int(stem[1:] or 0)}" if numbered else stem
        if key in known:
            raise InvalidData(
                f"Two arrays could be {name!r}: name the training samples with or without _train, not both ways."
            )
        known[key] = array
    _check_splits(arrays, inputs, targets)
    names = sorted(inputs["train"], key=lambda name: int(name[1:])) if numbered else list(inputs["train"])
    if numbered and names != [f"x{index}" for index in range(len(names))]:
        raise InvalidData("Inputs must be numbered x0, x1, … without gaps, and be the same in every split.")
    notes = [f"{LEFT_OUT}: {shortened(ignored)}."] if ignored else []
    if not targets and (ignored or (not numbered and len(names) > 1)):
        notes.append(f"No array is called y. If one holds the labels, call it so: {shortened(ignored or names)}.")
    return Stored(
        format=kind,
        inputs={split: [named[name] for name in names] for split, named in inputs.items()},
        targets=targets,
        notes=notes,
        names=None if numbered else names,
    )


def _parsed(name: str) -> tuple[str, Split]:
    """What an array is called without its split, and the split."""
    match = re.fullmatch(r"(.+?)_(train|val|valid|validation|test)", name, re.IGNORECASE)
    return (name, "train") if match is None else (match[1], SPLIT_NAMES[match[2].lower()])


def _check_splits(arrays: Mapping[str, Rows], inputs: dict[Split, dict[str, Rows]], targets: dict[Split, Rows]) -> None:
    shapes = shortened([f"{name[:60]} {tuple(array.shape)}" for name, array in arrays.items()]) or "nothing"
    if "train" not in inputs or (targets and inputs.keys() != targets.keys()):
        raise InvalidData(
            "Every split needs inputs, and targets where any split has them: name the arrays x (or x0, x1, … for "
            "several inputs, or as the model calls them) and y; own splits as x_train, y_train, x_val, y_val, x_test, "
            f"y_test. The file holds {shapes}."
        )
    for split, named in inputs.items():
        if named.keys() != inputs["train"].keys():
            raise InvalidData(
                f"Every split needs the same inputs: train has {shortened(list(inputs['train']))}, {split} has "
                f"{shortened(list(named))}. The file holds {shapes}."
            )
    for name, array in arrays.items():
        if not array.shape:
            raise InvalidData(
                f"Inputs and targets must be arrays with one entry a sample, not single numbers, as {name[:60]} is."
            )


# -- .npz ---------------------------------------------------------------------------------------


def read_npz(archive: Zip, file: DatasetFile) -> Stored:
    """The arrays of an .npz. Those that were saved without compression stay in the file.

    Raises:
        UnsupportedDataset: damaged.
        InvalidData: arrays are missing, misnamed or not numbers, or too large to be unpacked.
        StorageFull: the disk has no room to unpack them.
    """
    try:
        headers = {member: _npy_header(archive, member) for member in archive.members}
        homes = _homes(archive, headers, file)
        arrays = {
            member.name.removesuffix(".npy"): _array(*homes[member], header) for member, header in headers.items()
        }
    except ParedError:
        raise
    except Exception as error:
        raise UnsupportedDataset(
            f"This .npz is damaged: {str(error)[:200]}. Save it with np.savez(…, x=x, y=y) and upload it again."
        ) from error
    return by_split(arrays, "npz")


class _Header(NamedTuple):
    """What an array's header says, the bytes that it takes itself, and whether the first dimension is the fastest."""

    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def _npy_header(archive: Zip, member: Member) -> _Header:
    """What one array says of itself, held against its size in the archive."""
    head = io.BytesIO()
    for part in archive.chunks(member):
        head.write(part)
        if head.tell() >= _HEADER_BYTES:
            break
    head.seek(0)
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise InvalidData(
            f"The array {member.name[:60]} holds Python objects; opening them would run code. Rows of unequal length "
            "become one. Make it an array of numbers, for example with np.stack or astype(np.float32)."
        )
    if math.prod(shape) * dtype.itemsize > member.size - head.tell():
        raise ValueError(f"{member.name[:60]} claims more than the archive holds")
    return _Header(head.tell(), shape, dtype, fortran and len(shape) > 1)


def _homes(archive: Zip, headers: Mapping[Member, _Header], file: DatasetFile) -> dict[Member, tuple[Any, int]]:
    """Where the bytes of each array are: (mapped file or array of bytes, offset)."""
    room = room_for(file)
    packed = [member for member in headers if member.deflated]
    unpacked = sum(member.size for member in packed)
    homes: dict[Member, tuple[Any, int]] = {
        member: (archive.file, member.start) for member in headers if not member.deflated
    }
    for member in homes:
        archive.check(member)
    if unpacked <= room.held:
        homes |= {member: (np.frombuffer(archive.read(member), np.uint8), 0) for member in packed}
    elif unpacked > room.unpacked:
        raise InvalidData(
            f"The compressed arrays unpack to {unpacked:,} bytes; with this memory at most {room.unpacked:,} are "
            "unpacked. Save them with np.savez instead of np.savez_compressed: such a file is read where it is."
        )
    else:
        homes |= _unpacked_to_disk(archive, packed)
    for member, header in headers.items():
        if header.fortran and math.prod(header.shape) * header.dtype.itemsize > room.held:
            raise InvalidData(
                f"The array {member.name[:60]} is stored column by column and too large to be turned round in memory. "
                "Save numpy.ascontiguousarray(x) as x."
            )
    return homes


def _unpacked_to_disk(archive: Zip, members: Sequence[Member]) -> dict[Member, tuple[Any, int]]:
    starts = {}
    with temporary_file() as unpacked:
        for member in members:
            starts[member] = unpacked.tell()
            for part in archive.chunks(member):
                unpacked.write(part)
    with unpacked:
        home = MappedFile(unpacked.fileno())
    return {member: (home, start) for member, start in starts.items()}


def _array(home: Any, start: int, header: _Header) -> Rows:
    shape, dtype = header.shape, header.dtype
    begin, size = start + header.size, math.prod(shape) * dtype.itemsize
    if isinstance(home, MappedFile):
        if shape and size and not header.fortran and dtype.kind not in "US":
            return MappedRows(home, begin, shape, dtype)
        home = home.bytes
    numbers = home[begin : begin + size].tobytes()
    return np.frombuffer(numbers, dtype).reshape(shape, order="F" if header.fortran else "C")


# -- .safetensors -------------------------------------------------------------------------------

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8", "BOOL": "?",
    **{f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
}  # fmt: skip


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file that begins so is one."""
    return size > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def read_safetensors(file: DatasetFile) -> Stored:
    """The arrays of a safetensors file, which stay there.

    Raises:
        UnsupportedDataset: damaged.
        InvalidData: arrays are missing, misnamed or not numbers that numpy has.
    """
    assert file.path is not None  # noqa: S101 - it was recognised by its content
    try:
        entries = read_header(file.path).tensors
        with file.path.open("rb") as opened:
            home = MappedFile(opened.fileno())
    except Exception as error:
        raise UnsupportedDataset(f"This safetensors file is damaged: {str(error)[:200]}. Upload it again.") from error
    return by_split({entry.name: _tensor(home, entry) for entry in entries}, "safetensors")


def _tensor(home: MappedFile, entry: TensorEntry) -> Rows:
    if entry.dtype not in _DTYPES:
        raise InvalidData(f"The array {entry.name[:60]!r} holds {entry.dtype} numbers. Save it as float32. {FORMATS}")
    dtype = np.dtype(_DTYPES[entry.dtype])
    widen = bfloat16_as_float32 if entry.dtype == "BF16" else None
    if entry.shape and entry.elements:
        return MappedRows(home, entry.start, entry.shape, dtype, widen)
    empty = np.frombuffer(home.bytes[entry.start : entry.stop].tobytes(), dtype).reshape(entry.shape)
    return empty if widen is None else widen(empty)
