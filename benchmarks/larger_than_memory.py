"""Pruning a state dict of 4 GiB in 1 GiB of memory, against copying and hashing the same files.

Both read and write on the same disk, alternately, in the same run, which needs 9 GiB of it. A smaller twin shows that
the threshold is that of a sort in memory. Run it with `make bench-stream`.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import machine, table, write_section

from pared.weights.prune_file import prune_file
from pared.weights.safetensors import read_header

GIB = 1 << 30
MEMORY = GIB
AMOUNT = 0.9
WIDTH = 4096
LIMITED = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
os.execv(sys.argv[1], sys.argv[1:])
"""


def main(size: int = 4 * GIB, twin: int = GIB // 4, shards: int = 4, rounds: int = 3) -> None:
    """Measure, print, and write the section `larger-than-memory`."""
    with tempfile.TemporaryDirectory(prefix="pared-stream-") as name:
        folder = Path(name)
        index = write_model(folder / "model", size, shards)
        ours: list[float] = []
        plain: list[float] = []
        peak = 0
        for _ in range(rounds):
            plain.append(copy_and_hash(index.parent, folder / "copy"))
            taken, used = prune(index, folder / "pruned")
            ours.append(taken)
            peak = max(peak, used)
        same = check_threshold(folder, twin)  # last, for a process inherits the peak memory of what starts it
        ratio = statistics.median(plain) / statistics.median(ours)
        rows = [
            ["copy + SHA-256 + fsync", spread(plain), rate(size, plain), ""],
            [f"pared prune-file --amount {AMOUNT}", spread(ours), rate(size, ours), f"{peak / 2**20:.0f}"],
        ]
        shown = table([f"{size / GIB:g} GiB in {shards} files", "seconds", "MiB/s", "peak memory, MiB"], rows)
        print(f"{shown}\nratio {ratio:.2f}")
        text = (
            f"## Larger than memory\n\n{shown}\n\nMedian and range of {rounds} rounds, taken alternately on "
            f"{machine()}; numpy {np.__version__}. Float32 weights of normal distribution, seed 0, one global "
            f"threshold. The process may not have more than {MEMORY / GIB:g} GiB of address space. It runs at "
            f"**{ratio:.2f}** of the speed of copying and hashing the same files. {same}\n\n`make bench-stream`"
        )
        write_section("larger-than-memory", text)


def write_model(folder: Path, size: int, shards: int, seed: int = 0) -> Path:
    """A sharded state dict with an index, as Hugging Face writes it; its layers have different scales."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    rows = 1 << 10  # 16 MiB a layer
    layers = size // (shards * rows * WIDTH * 4)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for layer in range(layers):
            name = f"layers.{shard * layers + layer}.weight"
            header[name] = {
                "dtype": "F32",
                "shape": [rows, WIDTH],
                "data_offsets": [offset, offset := offset + rows * WIDTH * 4],
            }
            weight_map[name] = file
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with (folder / file).open("wb") as written:
            written.write(len(head).to_bytes(8, "little") + head)
            for _ in range(layers):
                weights = generator.standard_normal((rows, WIDTH), np.float32)
                weights *= np.float32(generator.uniform(0.01, 0.05))
                written.write(weights.data)
            written.flush()
            os.fsync(written.fileno())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return index


def prune(index: Path, target: Path) -> tuple[float, int]:
    """Seconds, and bytes of peak resident memory, of `pared prune-file` under the memory limit."""
    command = [str(Path(sys.executable).with_name("pared")), "prune-file", str(index), "-o", str(target)]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, *command, "--amount", str(AMOUNT)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"pared prune-file ended with {process.returncode}")
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    return taken, usage.ru_maxrss << 10


def copy_and_hash(source: Path, target: Path, block: int = 1 << 20) -> float:
    """Seconds of the least that a tool must do that hands on a file with its digest."""
    started = time.monotonic()
    target.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as read, (target / path.name).open("wb") as written:
            while data := read.read(block):
                digest.update(data)
                written.write(data)
            written.flush()
            os.fsync(written.fileno())
    taken = time.monotonic() - started
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    return taken


def check_threshold(folder: Path, size: int) -> str:
    """Prune a twin that fits, and compare with sorting all of its weights in memory."""
    index = write_model(folder / "twin", size, shards=2, seed=1)
    found = prune_file(index, folder / "twin-pruned", amount=AMOUNT)
    before, after = weights_of(folder / "twin"), weights_of(folder / "twin-pruned")
    magnitudes = np.abs(before)
    count = round(AMOUNT * len(before))
    threshold = float(np.sort(magnitudes)[count - 1])  # the largest that goes
    if {tensor.threshold for tensor in found.tensors} != {threshold}:
        raise RuntimeError(f"the threshold is {found.tensors[0].threshold}, a sort says {threshold}")
    kept = magnitudes > threshold
    if not np.array_equal(after[kept], before[kept]) or after[magnitudes < threshold].any():
        raise RuntimeError("the pruned twin differs from the one pruned in memory")
    if np.count_nonzero(after) != len(after) - count:
        raise RuntimeError(f"{len(after) - np.count_nonzero(after)} weights are zero, not {count}")
    return (
        f"On a twin of {size >> 20} MiB it finds the threshold that sorting all {len(before):,} weights in memory "
        f"gives, {threshold:.9g}, and exactly {count:,} weights are zero."
    )


def weights_of(folder: Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """All weights of a sharded model, in the order of its files."""
    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        parts += [
            np.fromfile(path, np.float32, entry.elements, offset=entry.start) for entry in read_header(path).tensors
        ]
    return np.concatenate(parts)


def rate(size: int, taken: list[float]) -> str:
    """MiB a second at the median."""
    return f"{size / statistics.median(taken) / 2**20:.0f}"


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
