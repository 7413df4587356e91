"""Reads the tensors of a model folder one by one, or some rows of one, from the zip that it was uploaded as."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from pared.compression.decoders.config import LAYERS, UNUSED, Decoder, decoder_of
from pared.compression.loading.archives import BROKEN_MEMBER
from pared.compression.loading.file_format import folder_entries
from pared.compression.loading.folders.contents import Contents, read_contents, weight_files
from pared.errors import ShapeMismatch, StorageFull, UnsupportedModel
from pared.full_disk import no_room
from pared.weights.safetensors import BadSafetensors, TensorEntry, read_header, shown
from pared.wording import shortened

TYPES = MappingProxyType({"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32})
"""The types that weights may have in the files."""
_LOCAL_HEADER = 30  # bytes before the name of a zip's entry
_COPIED = 1 << 22


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in a file, the zip or one unpacked from it, which belongs to the `shard` of this name."""

    path: Path
    entry: TensorEntry
    shard: str


@dataclass
class StoredDecoder:
    """A decoder whose tensors are read from its files when they are asked for."""

    decoder: Decoder
    contents: Contents
    shards: list[str]
    places: dict[str, Place]
    """Name of each tensor -> its place, in the order of the files."""
    left_out: list[str]
    _files: dict[Path, BinaryIO] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.places[name].entry.shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which it is stored."""
        return TYPES[self.places[name].entry.dtype]

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Some rows of a tensor in its own type."""
        entry = self.places[name].entry
        found = torch.empty(end - begin, *entry.shape[1:], dtype=self.dtype(name))
        self._fill(name, found, begin)
        return found

    def read(self, name: str, target: Tensor) -> None:
        """Fill a contiguous tensor of the same shape and type."""
        self._fill(name, target, 0)

    def blocks(self, name: str, most_bytes: int) -> Iterator[tuple[int, Tensor]]:
        """The tensor in blocks of rows, each with the number of its first one."""
        count, step = self.shape(name)[0], self.step(name, most_bytes)
        for begin in range(0, count, step):
            yield begin, self.rows(name, begin, min(begin + step, count))

    def step(self, name: str, most_bytes: int) -> int:
        """How many rows of a tensor have at most so many bytes; at least one."""
        entry = self.places[name].entry
        return max(1, most_bytes * entry.shape[0] // max(entry.size_bytes, 1))

    def of_layer(self, layer: int) -> list[str]:
        """The names of a layer's tensors, without the layer's own: `mlp.up_proj.weight`."""
        prefix = f"{LAYERS}.{layer}."
        return [name.removeprefix(prefix) for name in self.places if name.startswith(prefix)]

    def layer_bytes(self) -> int:
        """What the tensors of the largest layer take, as they are stored."""
        return max(
            sum(self.places[f"{LAYERS}.{layer}.{name}"].entry.size_bytes for name in self.of_layer(layer))
            for layer in range(self.decoder.layers)
        )

    def _fill(self, name: str, target: Tensor, first_row: int) -> None:
        place = self.places[name]
        if place.path not in self._files:
            self._files[place.path] = place.path.open("rb", buffering=0)
        file, entry = self._files[place.path], place.entry
        row_bytes = entry.size_bytes // max(entry.shape[0], 1)
        file.seek(entry.start + first_row * row_bytes)
        view = target.reshape(-1).view(torch.uint8).numpy().data
        while view:
            if not (count := file.readinto(view)):  # type: ignore[attr-defined]
                raise UnsupportedModel(f"The file of {shown(name)} ends too early: zip the folder and upload it again.")
            view = view[count:]

    def close(self) -> None:
        """Close its files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


@contextmanager
def opened(path: Path, tick: Callable[[], None] = lambda: None) -> Iterator[StoredDecoder]:
    """A folder that was uploaded as a zip. Files that the zip compresses are unpacked for as long as it is used.

    Raises:
        UnsupportedModel: a decoder of another family, or files that are missing, damaged or outside of the folder.
        ShapeMismatch: config and weights do not fit.
        StorageFull: no room to unpack.
    """
    entries = folder_entries(path)
    contents = read_contents(path, entries)
    decoder = decoder_of(contents.config)
    shards = weight_files(contents)
    others = [name for name in shards if not name.endswith(".safetensors")]
    if others:
        raise UnsupportedModel(
            f"Layer by layer the weights are read from safetensors, and {others[0][:100]} is a pickle of PyTorch. Save "
            "the folder again with save_pretrained, which writes model.safetensors."
        )
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(TemporaryDirectory(prefix="pared-")))
        places: dict[str, Place] = {}
        for index, shard in enumerate(shards):
            info = next(entry for entry in entries if entry.filename == contents.root + shard)
            for place in _places(path, info, shard, temporary / str(index), tick):
                if place.entry.name in places:
                    raise UnsupportedModel(
                        f"{shown(place.entry.name)} stands in two of the folder's files: save the folder again."
                    )
                places[place.entry.name] = place
        left_out = [name for name in places if UNUSED.search(name)]
        kept = {name: place for name, place in places.items() if name not in left_out}
        stored = StoredDecoder(decoder, contents, shards, kept, left_out)
        _hold_tensors(stored)
        stack.callback(stored.close)
        yield stored


def _places(path: Path, info: zipfile.ZipInfo, shard: str, unpacked: Path, tick: Callable[[], None]) -> Iterator[Place]:
    begin, size = 0, info.file_size
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(_LOCAL_HEADER)
        lengths = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))  # of its name and extra field
        begin = info.header_offset + _LOCAL_HEADER + sum(lengths)
    else:
        _unpack(path, info, unpacked, tick)
        path = unpacked
    with path.open("rb") as file:
        file.seek(begin)
        if file.read(64).startswith(b"version https://git-lfs"):
            raise UnsupportedModel(
                f"{shard} is a Git LFS pointer, not the weights: run `git lfs pull` and zip it again."
            )
    try:
        header = read_header(path, begin, size)
    except BadSafetensors as error:
        raise UnsupportedModel(f"{shard} is damaged: {error}. Fetch or save it again, and zip the folder.") from error
    for entry in header.tensors:
        yield Place(path, entry, shard)


def _unpack(path: Path, info: zipfile.ZipInfo, target: Path, tick: Callable[[], None]) -> None:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(info) as packed, target.open("wb") as file:
            while chunk := packed.read(_COPIED):
                file.write(chunk)
                tick()
    except BROKEN_MEMBER as error:
        raise UnsupportedModel(f"{info.filename} in this folder is damaged: zip it and upload it again.") from error
    except OSError as error:
        if no_room(error, target.parent) is None:
            raise
        free = shutil.disk_usage(target.parent).free
        raise StorageFull(
            f"{info.filename} is compressed in the zip, and unpacked it has {info.file_size:,} bytes, where {free:,} "
            "are free. Zip the folder without compression (zip -0), which needs no unpacking."
        ) from error


def hold_whole(stored: StoredDecoder, tick: Callable[[], None]) -> None:
    """Read each file of weights once, against the checksum that the zip has of it.

    Raises:
        UnsupportedModel: one is damaged.
    """
    for shard in stored.shards:
        try:
            with zipfile.ZipFile(stored.contents.path) as archive, archive.open(stored.contents.root + shard) as file:
                while file.read(_COPIED):
                    tick()
        except BROKEN_MEMBER as error:
            raise UnsupportedModel(f"{shard} in this folder is damaged: zip it and upload it again.") from error


def _hold_tensors(stored: StoredDecoder) -> None:
    """Raises where the tensors are not those of the config, or of types that we do not compute with."""
    if stored.decoder.layers > len(stored.places):
        raise UnsupportedModel(
            f"config.json claims {stored.decoder.layers:,} layers, and the files have {len(stored.places):,} tensors. "
            "Take config.json and weights from one folder."
        )
    wanted = {name: (shape, optional) for name, shape, optional in stored.decoder.shapes()}
    missing = [name for name, (_, optional) in wanted.items() if not optional and name not in stored.places]
    unknown = [name for name in stored.places if name not in wanted]
    if missing or unknown:
        parts = [f"lack {shortened(missing, 4)}"] if missing else []
        parts += [f"have {shortened([shown(name) for name in unknown], 4)}, which it does not say"] if unknown else []
        raise UnsupportedModel(
            f"The weights are not those of config.json: they {' and '.join(parts)}. Take config.json and weights from "
            "one folder; or leave `streamed` out to have the model built as a whole."
        )
    wrong = [
        f"{name} is {place.entry.shape} in the file, {wanted[name][0]} by config.json"
        for name, place in stored.places.items()
        if place.entry.shape != wanted[name][0]
    ]
    if wrong:
        raise ShapeMismatch(
            f"config.json does not fit the weights: {shortened(wrong, 4, between='; ')}. Take both from one folder."
        )
    other = sorted({place.entry.dtype for place in stored.places.values()} - set(TYPES))
    if other:
        raise UnsupportedModel(
            f"Weights in {', '.join(other)} are not pruned layer by layer: save the folder in bfloat16, float16 or "
            "float32, from the model before it was quantized."
        )


def usual_dtype(stored: StoredDecoder) -> str:
    """The type that most of its weights have, as a config.json names it."""
    kinds: Counter[str] = Counter()
    for place in stored.places.values():
        kinds[place.entry.dtype] += place.entry.elements
    return str(TYPES[kinds.most_common(1)[0][0]]).removeprefix("torch.")
