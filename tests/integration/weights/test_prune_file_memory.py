"""Pruning a file of weights takes no more memory for a larger file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment
from tests.unit.weights.test_prune_file import weights


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Half a gigabyte, with an own process for the peak of its memory."""
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    entries = {
        f"{i}.weight": {"dtype": "F32", "shape": [16, 1 << 20], "data_offsets": [i << 26, (i + 1) << 26]}
        for i in range(8)
    }
    header = json.dumps(entries).encode()
    block = weights(1, 1 << 20).numpy()
    with source.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for number in range(128):
            file.write((block * (1 + number / 64)).tobytes())
    code = (
        "import re, sys; from pared.weights.prune_file import prune_file\n"
        "done = prune_file(sys.argv[1], sys.argv[2], amount=0.9)\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(done.zeros, peak, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    zeros, peak_kib, torch_loaded = ran.stdout.split()
    assert int(zeros) == round(0.9 * (1 << 27))
    assert int(peak_kib) < 150 << 10
    assert torch_loaded == "False"
    source.unlink()
    target.unlink()
