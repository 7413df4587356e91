"""Magnitude pruning of a state dict that need not fit in memory: file to file, a block at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Literal

import numpy as np

from pared.errors import NothingToPrune, StorageFull, UnsupportedModel, ValidationError
from pared.full_disk import FULL
from pared.specs import Scope
from pared.weights.magnitudes import UNSIGNED, Cut, Keys, common_type, find_cut, hold_nan, keys, magnitude
from pared.weights.parametrized import computed_from
from pared.weights.safetensors import BadSafetensors, Header, TensorEntry, read_header, shown
from pared.wording import shortened

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do; the latter may grow."""

BLOCK_BYTES = 1 << 20  # what is computed on stays in the processor's cache
INDEX = ".safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
SAMPLE_RUN, SAMPLE_RUNS, SAMPLE_STEP = 256, 4096, 4096


@dataclass(frozen=True)
class PrunedTensor:
    """One tensor that could be pruned, and how many of its weights are zero now; `threshold`: see `FilePruning`."""

    name: str
    weights: int
    zeros: int
    threshold: float


@dataclass(frozen=True)
class FilePruning:
    """What `prune_file` did.

    All |w| below a tensor's `threshold` are zero now, and of those equal to it as many, from the first on, as were
    needed. `zeroed`: the weights chosen to be zero, some of which may have been. `untouched`: how many tensors were
    copied as they are. `size_bytes`: of the files written, which is that of the files read.
    """

    tensors: tuple[PrunedTensor, ...]
    untouched: int
    zeroed: int
    notes: tuple[str, ...]
    size_bytes: int
    seconds: float

    @property
    def weights(self) -> int:
        """How many weights could be pruned."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def zeros(self) -> int:
        """How many of them are zero now."""
        return sum(tensor.zeros for tensor in self.tensors)


def prune_file(
    source: str | Path,
    target: str | Path,
    *,
    amount: float,
    scope: Scope = "global",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> FilePruning:
    """Set the `amount` smallest weights of a safetensors state dict to zero, exactly round(amount · n) of n.

    As `pared.compression.pruning.weights` by magnitude (Han et al. 2015, arXiv:1506.02626): eligible are float
    tensors of two or more dimensions in layers that match `include` and not `exclude`; a pruned weight is +0. Of equal
    |w| the first goes first, in the order of the data and of the files' names. Infinity is the largest weight, and NaN
    is refused. A tensor that is stored under two names counts as two. Memory does not grow with the size.

    Args:
        source: a .safetensors file, an index as Hugging Face writes it (`model.safetensors.index.json`), or a directory
            with one of them.
        target: for one file, a file; for an index or a directory, a directory. Appears whole or not at all.
        scope: rank all weights together, or those of each tensor by themselves.
        include: patterns of layer names; a layer is a tensor's name up to the last dot.
        progress: told how far it is.

    Raises:
        UnsupportedModel: damaged, no safetensors, index and files disagree, or NaN among the weights.
        NothingToPrune: no eligible tensor.
        ValidationError: the amount is not between 0 and 1.
        StorageFull: no room for the result.
        FileExistsError: there is something at `target`.
        OSError: a file cannot be read or written.
    """
    started = time.monotonic()
    if not 0 < amount < 1:
        raise ValidationError(f"The amount is {amount:g}. Give a share between 0 and 1, such as 0.9.")
    stored, target = _opened(Path(source)), Path(target)
    _check_target(stored, target)
    weights, notes = _eligible(stored, include, exclude)
    pools = [_Pool(weights)] if scope == "global" else [_Pool([weight]) for weight in weights]
    count = _Count(stored.size_bytes + sum(weight.entry.size_bytes for weight in weights), progress)
    tensors: list[PrunedTensor] = []
    with _appearing(target, "directory" if stored.index else "file") as part:
        for pool in pools:
            pool.find_cut(amount, count)
        pool_of = {weight.entry.name: pool for pool in pools for weight in pool.weights}
        for path, header in stored.files.items():
            tensors += _rewrite(path, header, part / path.name if stored.index else part, pool_of, count)
        if stored.index:
            (part / stored.index.name).write_bytes(stored.index.read_bytes())
    return FilePruning(
        tensors=tuple(tensors),
        untouched=sum(len(header.tensors) for header in stored.files.values()) - len(tensors),
        zeroed=sum(pool.zeroed for pool in pools),
        notes=tuple(notes),
        size_bytes=stored.size_bytes,
        seconds=time.monotonic() - started,
    )


# -- what is there ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """A state dict on disk: its files in the order of their names, and the index that names them, if there is one."""

    files: dict[Path, Header]
    index: Path | None

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class _Weight:
    """One tensor and the file that it lies in."""

    path: Path
    entry: TensorEntry


def _opened(source: Path) -> _Stored:
    index = None
    if source.is_dir():
        source = _in_directory(source)
    if source.suffix == ".json":
        index, by_name = source, _read_index(source)
        paths = [source.parent / name for name in sorted(set(by_name.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UnsupportedModel(
                f"{source} names files that are not beside it: {_some(missing)}. Fetch the model again, as a whole."
            )
    else:
        paths = [source]
    files = {}
    for path in paths:
        try:
            files[path] = read_header(path)
        except BadSafetensors as error:
            raise UnsupportedModel(
                f"{path} is no safetensors file, or a damaged one: {error}. Fetch it again; what torch.save wrote, "
                "load with torch and save with safetensors.torch.save_file."
            ) from error
    if index:
        _check_index(index, by_name, files)
    return _Stored(files, index)


def _in_directory(directory: Path) -> Path:
    """The one index in a directory, or else the one safetensors file."""
    for ending in (INDEX, ".safetensors"):
        files = sorted(directory.glob(f"*{ending}"))
        if len(files) == 1:
            return files[0]
        if files:
            raise ValidationError(
                f"{directory} holds several models: {_some([p.name for p in files])}. Name one of them."
            )
    raise UnsupportedModel(f"{directory} holds no .safetensors file.")


def _read_index(path: Path) -> dict[str, str]:
    """Name of each tensor -> name of its file."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise UnsupportedModel(
            f"{path} has more than {MAX_INDEX_BYTES >> 20} MiB: it is no index of safetensors files."
        )
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        index = None
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise UnsupportedModel(
            f"{path} is no index of safetensors files: it has no `weight_map` that says which tensor is in which file."
        )
    elsewhere = [file for file in names.values() if Path(file).name != file]
    if elsewhere:
        raise UnsupportedModel(f"{path} names {shown(elsewhere[0])}; it may only name files beside it.")
    return names


def _check_index(index: Path, by_name: Mapping[str, str], files: Mapping[Path, Header]) -> None:
    """Every tensor is in the file that the index says, and nowhere else."""
    actual = {(entry.name, path.name) for path, header in files.items() for entry in header.tensors}
    differing = actual ^ set(by_name.items())
    if differing:
        name, file = min(differing)
        says = (
            f"does not say that {file} has it"
            if (name, file) in actual
            else f"says that {file} has it, which it has not"
        )
        raise UnsupportedModel(f"{index} and its files disagree on the tensor {shown(name)}: the index {says}.")


def _eligible(stored: _Stored, include: Sequence[str], exclude: Sequence[str]) -> tuple[list[_Weight], list[str]]:
    """What may be pruned, in the order of the data, and what to say of the rest."""
    matrices = [
        _Weight(path, entry)
        for path, header in stored.files.items()
        for entry in header.tensors
        if len(entry.shape) >= 2 and entry.dtype.startswith(("F", "BF"))
    ]
    matched = [weight for weight in matrices if _matches(_layer(weight.entry.name), include, exclude)]
    computed = computed_from(entry.name for header in stored.files.values() for entry in header.tensors)
    parts = {name for of_weight in computed.values() for name in of_weight.values()}
    chosen = [weight for weight in matched if weight.entry.name not in parts]
    eligible = [weight for weight in chosen if weight.entry.dtype in UNSIGNED]
    small = sorted({weight.entry.dtype for weight in chosen} - set(UNSIGNED))
    notes = []
    if len(chosen) < len(matched):
        notes.append(
            f"{len(matched) - len(chosen)} tensors stay as they are: weights are computed from them as the model runs "
            f"(weight norm, spectral norm, masks), so that zeros among them make none there: {_some(list(computed))}. "
            "Take the parametrizations off before saving the model: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')."
        )
    if small:
        notes.append(
            f"{len(chosen) - len(eligible)} tensors of {', '.join(small)} stay as they are: the scales they are stored "
            "with lie elsewhere, so that their numbers do not rank."
        )
    if not eligible:
        layers = list(dict.fromkeys(_layer(weight.entry.name) for weight in matrices))
        raise NothingToPrune(
            " ".join(notes)
            or f"No layer with weights matches include {list(include)} and exclude {list(exclude)}. "
            f"The layers are: {_some(layers) or 'none, for no tensor has two dimensions and a float type'}."
        )
    return eligible, notes


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0] or tensor_name


def _matches(layer: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    included, excluded = (any(fnmatchcase(layer, pattern) for pattern in patterns) for patterns in (include, exclude))
    return included and not excluded


def _some(names: Sequence[str]) -> str:
    return shortened(list(map(shown, names)), 20)


# -- ranking and rewriting ----------------------------------------------------------------------


class _Count:
    """How far it is, in bytes read to rank and written."""

    def __init__(self, to_do: int, progress: Progress | None) -> None:
        self.done, self.to_do, self._progress = 0, to_do, progress

    def add(self, size: int) -> None:
        self.done += size
        if self._progress:
            self._progress(self.done, self.to_do)


class _Pool:
    """Weights that are ranked against each other, and which of them go."""

    def __init__(self, weights: Sequence[_Weight]) -> None:
        self.weights = weights
        self.zeroed = 0
        self._common = common_type({weight.entry.dtype for weight in weights})
        self._elements = sum(weight.entry.elements for weight in weights)
        self._cut = Cut(0, 0)
        self._ties_left = 0

    def find_cut(self, amount: float, count: _Count) -> None:
        """Read the weights until it is known which go."""
        size_bytes, reads = sum(weight.entry.size_bytes for weight in self.weights), 0

        def read() -> Iterator[Keys]:
            nonlocal reads
            count.to_do += size_bytes if reads else 0
            reads += 1
            for weight in self.weights:
                with weight.path.open("rb") as file:
                    file.seek(weight.entry.start)
                    for block in _blocks(file, weight.entry):
                        yield self._keys(block.view(UNSIGNED[weight.entry.dtype]), weight.entry)
                        count.add(block.nbytes)

        self.zeroed = round(amount * self._elements)
        if self.zeroed:
            self._cut = find_cut(read, self.zeroed, self._common, guess=self._sampled(amount))
            self._ties_left = self._cut.ties

    @property
    def threshold(self) -> float:
        return magnitude(self._cut.key, self._common)

    def prune(self, bits: Keys, entry: TensorEntry) -> int:
        """Zero what goes of the next block, in the order of the data, in place; how many zeros it has now."""
        ranked = self._keys(bits, entry)
        kept = ranked >= self._cut.key
        if self._ties_left:
            ties = np.flatnonzero(ranked == self._cut.key)[: self._ties_left]
            kept[ties] = False
            self._ties_left -= len(ties)
        bits *= kept  # all bits of a pruned weight go, the sign too
        return kept.size - int(np.count_nonzero(kept & (ranked > 0)))

    def _keys(self, bits: Keys, entry: TensorEntry) -> Keys:
        ranked = keys(bits, entry.dtype, self._common)
        if hold_nan(ranked, self._common):
            raise UnsupportedModel(
                f"The tensor {shown(entry.name)} holds NaN, which has no magnitude: the model is broken."
            )
        return ranked

    def _sampled(self, share: float) -> int:
        """The key below which `share` of some short runs lie that are spread evenly over the weights."""
        runs = min(SAMPLE_RUNS, -(-self._elements // SAMPLE_STEP))
        places = np.arange(runs) * self._elements // runs
        sample, before = [], 0
        for weight in self.weights:
            after = before + weight.entry.elements
            mine = places[np.searchsorted(places, before) : np.searchsorted(places, after)]
            kind = UNSIGNED[weight.entry.dtype]
            with weight.path.open("rb", buffering=0) as file:
                for place in mine.tolist():
                    run = min(SAMPLE_RUN, after - place) * kind.itemsize
                    read = os.pread(file.fileno(), run, weight.entry.start + (place - before) * kind.itemsize)
                    sample.append(keys(np.frombuffer(read, kind), weight.entry.dtype, self._common))
            before = after
        ranked = np.sort(np.concatenate(sample))
        return int(ranked[int(share * len(ranked))])


def _rewrite(
    path: Path, header: Header, target: Path, pool_of: Mapping[str, _Pool], count: _Count
) -> list[PrunedTensor]:
    """Write one file again, with zeros."""
    pruned = []
    with path.open("rb") as read, target.open("xb") as written:
        written.write(header.head)
        count.add(read.seek(len(header.head)))
        for entry in header.tensors:
            pool, zeros = pool_of.get(entry.name), 0
            for block in _blocks(read, entry):
                if pool:
                    zeros += pool.prune(block.view(UNSIGNED[entry.dtype]), entry)
                written.write(block.data)
                count.add(block.nbytes)
            if pool:
                pruned.append(PrunedTensor(entry.name, entry.elements, zeros, pool.threshold))
        written.flush()
        os.fsync(written.fileno())
    return pruned


def _blocks(file: BufferedReader, entry: TensorEntry) -> Iterator[Keys]:
    """A tensor's bytes from where the file stands, each block in memory of its own."""
    for start in range(entry.start, entry.stop, BLOCK_BYTES):
        block = np.empty(min(BLOCK_BYTES, entry.stop - start), np.uint8)
        if file.readinto(block.data) != block.nbytes:
            raise UnsupportedModel(
                f"{file.name} became shorter while it was read. Start again once nothing writes to it."
            )
        yield block


# -- the place of the result --------------------------------------------------------------------


def _check_target(stored: _Stored, target: Path) -> None:
    if target.exists() or target.is_symlink():
        mine = any(target.exists() and target.samefile(path) for path in (*stored.files, *filter(None, [stored.index])))
        what = "is what would be pruned" if mine else "exists"
        raise FileExistsError(f"{target} {what}; name a place where nothing is yet")
    if not stored.index and target.suffix != ".safetensors":
        raise ValidationError(f"The result is one file: let the name of {target} end in .safetensors.")
    if stored.index and target.suffix == ".safetensors":
        raise ValidationError(
            f"The model is in {len(stored.files)} files, and the result too: let {target} name a directory."
        )
    free = shutil.disk_usage(next(parent for parent in target.absolute().parents if parent.exists())).free
    if stored.size_bytes > free:
        raise StorageFull(f"{target} takes {stored.size_bytes:,} bytes, and {free:,} are free there.")


@contextmanager
def _appearing(target: Path, kind: Literal["file", "directory"]) -> Iterator[Path]:
    """A path to write to: it becomes `target` when all went well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:100]}.", dir=target.parent) as hidden:
        part = Path(hidden) / target.name
        if kind == "directory":
            part.mkdir()
        try:
            yield part
        except OSError as error:
            if error.errno in FULL:
                raise StorageFull(f"There is no room left for {target}; nothing of it was kept.") from error
            raise
        if kind == "directory":
            _sync_directory(part)
        part.rename(target)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
