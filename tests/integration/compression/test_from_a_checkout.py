"""A job where pared lies on the path and nobody installed it: no package, pared's own included, has metadata."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pared

JOB = """
import sys
sys.path[:0] = [CHECKOUT, PACKAGES]

from importlib.metadata import distributions
assert list(distributions()) == []
from pared.compression.pruning.schedules import step_amounts
from pared.compression.distillation.losses import output_mse
from pared.compression import prune, distill
assert callable(prune) and callable(distill)  # though modules have these names, too

from pathlib import Path
import numpy as np
import torch
from torch import nn
from pared.job_types import BY_SPEC, job_spec
from pared.compression.work import DatasetFile, ModelFile, Work

layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
torch.jit.save(torch.jit.trace(layers, torch.rand(2, 4), check_trace=False), "model.pt")
x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
np.savez("data.npz", x=x, y=x.sum(1, keepdims=True))
spec = job_spec.validate_python({
    "type": "prune", "model": "mdl_" + "0" * 26, "dataset": "dst_" + "0" * 26, "task": "regression", "amount": 0.5,
    "retrain": {"epochs": 1, "lr": 0.01},
})
model = ModelFile(Path("model.pt"), "model.pt", "0" * 64)
work = Work({"model": model}, DatasetFile(Path("data.npz"), "data.npz"), Path("out"))
report = BY_SPEC[type(spec)].load_method()(spec, work)
print(report.model_dump_json())
"""


def test_a_job_succeeds_where_no_package_has_metadata(tmp_path):
    checkout, packages = tmp_path / "checkout", tmp_path / "packages"
    shutil.copytree(Path(pared.__file__).parent, checkout / "pared")
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # Nor is there the package that only some jobs need.
        if entry.suffix not in {".dist-info", ".egg-info", ".pth"} and entry.name != "sklearn":
            (packages / entry.name).symlink_to(entry)
    (tmp_path / "out").mkdir()
    code = JOB.replace("CHECKOUT", repr(str(checkout))).replace("PACKAGES", repr(str(packages)))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["comparison"]["test"] == "paired_t"
    versions = report["reproduce"]["versions"]
    assert versions["pared"] == pared.__version__
    assert {"python", "torch", "numpy", "safetensors"} <= set(versions)
