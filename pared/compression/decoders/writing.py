"""Writes what stays of a stored decoder as a model folder again, some rows of a tensor at a time."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from pared.compression.decoders.config import LAYERS, PROJECTIONS, Axis, smaller
from pared.compression.decoders.scoring import Kept
from pared.compression.decoders.stored import StoredDecoder
from pared.weights.program import write_record

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Part:
    """A tensor of the result: of which one it is a part, and which of its rows and columns stay; None: all."""

    name: str
    source: str
    rows: Tensor | None
    columns: Tensor | None
    shape: tuple[int, ...]


def write_decoder(stored: StoredDecoder, kept: Kept, path: Path, tick: Callable[[], None]) -> None:
    """Write a zip of a folder that `from_pretrained` loads: config, weights in shards as they came, and other files."""
    contents, decoder = stored.contents, stored.decoder
    config = smaller(decoder, layers=kept.layers, inner=len(kept.inner[0]), groups=len(kept.groups[0]))
    by_shard: dict[str, list[_Part]] = {}
    for part in _parts(stored, kept):
        by_shard.setdefault(stored.places[part.source].shard, []).append(part)
    shards = [by_shard[name] for name in stored.shards if name in by_shard]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    with zipfile.ZipFile(path, "w") as archive:
        write_record(archive, "config.json", _json(config), compressed=True)
        for name, parts in zip(names, shards, strict=True):
            with _entry(archive, name) as file:
                _write_shard(stored, parts, file, tick)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(_bytes(stored, part) for parts in shards for part in parts)},
                "weight_map": {part.name: name for name, parts in zip(names, shards, strict=True) for part in parts},
            }
            write_record(archive, "model.safetensors.index.json", _json(index), compressed=True)
        for name in sorted(contents.carried):
            write_record(archive, name, contents.read(name), compressed=True)


def written_bytes(stored: StoredDecoder, kept: Kept) -> int:
    """What the weights of the result take."""
    return sum(_bytes(stored, part) for part in _parts(stored, kept))


def shapes_of(stored: StoredDecoder, kept: Kept) -> dict[str, tuple[int, ...]]:
    """Name of each tensor of the upload that stays, as a whole or in part -> its shape in the result."""
    return {part.source: part.shape for part in _parts(stored, kept)}


def _parts(stored: StoredDecoder, kept: Kept) -> Iterator[_Part]:
    anew = {layer: number for number, layer in enumerate(kept.layers)}
    for source, place in stored.places.items():
        if not source.startswith(f"{LAYERS}."):
            yield _Part(source, source, None, None, place.entry.shape)
            continue
        number, _, within = source.removeprefix(f"{LAYERS}.").partition(".")
        layer = int(number)
        if layer not in anew:
            continue
        layer_name, _, kind = within.rpartition(".")
        rows, columns = (
            _indices(stored, kept, layer, axis) for axis in PROJECTIONS.get(layer_name, ("hidden", "hidden"))
        )
        columns = columns if kind == "weight" else None
        shape = tuple(
            size if index is None else len(index)
            for size, index in zip(place.entry.shape, (rows, columns), strict=False)
        )
        yield _Part(f"{LAYERS}.{anew[layer]}.{within}", source, rows, columns, shape)


def _indices(stored: StoredDecoder, kept: Kept, layer: int, axis: Axis) -> Tensor | None:
    """Which rows or columns stay that count this; None: all."""
    decoder = stored.decoder
    if axis == "hidden":
        return None
    units = kept.inner[layer] if axis == "inner" else kept.groups[layer]
    if len(units) == (decoder.inner if axis == "inner" else decoder.groups):
        return None
    if axis == "inner":
        return units
    width = decoder.size(axis) // decoder.groups  # of a group, all of its heads
    return (units[:, None] * width + torch.arange(width)).flatten()


def _bytes(stored: StoredDecoder, part: _Part) -> int:
    return math.prod(part.shape) * stored.dtype(part.source).itemsize


def _write_shard(stored: StoredDecoder, parts: list[_Part], file: IO[bytes], tick: Callable[[], None]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for part in parts:
        end = offset + _bytes(stored, part)
        header[part.name] = {
            "dtype": stored.places[part.source].entry.dtype,
            "shape": list(part.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for part in parts:
        for begin, block in stored.blocks(part.source, _BLOCK_BYTES):
            file.write(_cut(part, begin, block).reshape(-1).view(torch.uint8).numpy().data)
            tick()


def _cut(part: _Part, begin: int, block: Tensor) -> Tensor:
    if part.rows is not None:
        inside = part.rows[(part.rows >= begin) & (part.rows < begin + len(block))] - begin
        block = block.index_select(0, inside)
    return (block if part.columns is None else block.index_select(1, part.columns)).contiguous()


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """An entry that is stored as it is, so that its tensors are read by position."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_STORED
    return archive.open(info, "w", force_zip64=True)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def removed_of(stored: StoredDecoder, kept: Kept, name: str) -> dict[str, list[int]]:
    """Dimension -> indices of the upload's that go, of a tensor; all rows of a layer that goes whole."""
    if not name.startswith(f"{LAYERS}."):
        return {}
    shape = stored.shape(name)
    number, _, within = name.removeprefix(f"{LAYERS}.").partition(".")
    if int(number) not in kept.layers:
        return {"0": list(range(shape[0]))}
    axes = PROJECTIONS.get(within.rpartition(".")[0], ("hidden", "hidden"))[: len(shape)]
    staying = {str(dim): _indices(stored, kept, int(number), axis) for dim, axis in enumerate(axes)}
    found = {}
    for dim, index in staying.items():
        if index is not None:
            gone = torch.ones(shape[int(dim)], dtype=torch.bool)
            gone[index] = False
            found[dim] = gone.nonzero().flatten().tolist()
    return found
