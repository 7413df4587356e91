"""The reader on the page about packed files works by itself, in a process that has neither pared nor torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np

from pared.weights.coding import BFLOAT16
from tests.support.arrays import awkward
from tests.unit.weights.test_packed import ARCHITECTURE, ROOT, same, write_whole


def test_the_reader_on_the_page_reads_every_array_and_shares_no_code(tmp_path):
    whole = tmp_path / "model.packed"
    write_whole(whole)
    (reader,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/packed-format.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len([line for line in reader.splitlines() if line.strip()]) <= 30
    script = reader + (
        "import sys\n"
        "tensors, architecture = read(sys.argv[1])\n"
        "np.savez(sys.argv[2], *tensors.values())\n"
        "print(json.dumps([list(tensors), architecture]))\n"
        "assert not [name for name in sys.modules if name.startswith(('pared', 'torch'))]\n"
    )
    command = [sys.executable, "-I", "-c", script, whole, tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names, architecture = json.loads(done.stdout)
    assert architecture == ARCHITECTURE
    expected = awkward()
    assert names == list(expected)
    for array, found in zip(expected.values(), np.load(tmp_path / "out.npz").values(), strict=True):
        assert same(found.view(array.dtype) if array.dtype == BFLOAT16 else found, array)
