"""Whether ten fixed jobs give the same files and the same figures as at another commit.

For changes that must not change results. The jobs cover all granularities, a goal, distillation, quantization, a job
without data, six criteria, uploads of TorchScript, state dicts and `.pt2`, and every output format. They run with the
working tree's `pared` and with that of the other commit, in two processes of one thread each, on the same uploads and
seeds. Compared are the bytes of every file and all of the report save times, versions, and sentences that tell times.
What only the working tree has is listed. Exits with 1 and a list where anything else differs.
`python benchmarks/same_bytes.py COMMIT`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CHECKOUT = Path(__file__).resolve().parent.parent
RETRAIN = {"epochs": 2, "lr": 0.02}
VARYING = {"seconds", "latency", "versions", "verdict", "sentence"}
"""Fields of a report that hold times, or texts that tell them, or versions."""
OF_TIMES = ("Latency ", "The machine was busy ")
"""How warnings begin that hang on times."""


# -- uploads --------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions around an addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(out)))


class Residual(nn.Module):
    """A stem and three residual blocks on grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16), Block(16), Block(16))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) to logits (batch, 4)."""
        return self.fc(self.blocks(self.stem(x)).mean(dim=[2, 3]))


class Transformer(nn.Module):
    """Tokens through an encoder layer of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
        self.fc = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, 12) to logits (batch, 4)."""
        return self.fc(self.encoder(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    """Tokens through a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 16)
        self.gru = nn.GRU(16, 32, num_layers=2, batch_first=True)
        self.fc = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, 12) to logits (batch, 4)."""
        return self.fc(self.gru(self.embedding(tokens))[0][:, -1])


MLP_LAYERS = [
    ["Linear", {"in_features": 16, "out_features": 64}, "fc1"],
    ["ReLU", {}],
    ["Linear", {"in_features": 64, "out_features": 64}, "fc2"],
    ["ReLU", {}],
    ["Linear", {"in_features": 64, "out_features": 4}, "fc3"],
]
CNN_LAYERS = [
    ["Conv2d", {"in_channels": 1, "out_channels": 16, "kernel_size": 3, "padding": 1}, "conv1"],
    ["BatchNorm2d", {"num_features": 16}, "bn1"],
    ["ReLU", {}],
    ["MaxPool2d", {"kernel_size": 2}],
    ["Conv2d", {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1}, "conv2"],
    ["BatchNorm2d", {"num_features": 32}, "bn2"],
    ["ReLU", {}],
    ["AdaptiveAvgPool2d", {"output_size": 1}],
    ["Flatten", {}],
    ["Linear", {"in_features": 32, "out_features": 4}, "fc"],
]


def of_layers(layers: list[list[Any]]) -> nn.Module:
    """The model of a layer list, its weights under the names in the list."""
    model = nn.Sequential()
    for index, (kind, kwargs, *name) in enumerate(layers):
        model.add_module(name[0] if name else str(index), getattr(nn, kind)(**kwargs))
    return model


def write_uploads(folder: Path) -> None:
    """Models after a little training, and their data, as files in a folder."""
    torch.set_num_threads(1)
    data = {"images": images(), "tables": tables(), "texts": texts()}
    for name, (x, y) in data.items():
        np.savez(folder / f"{name}.npz", x=x, y=y)
    np.savez(folder / "curves.npz", x=data["tables"][0], y=data["tables"][0][:, :2] ** 2)

    residual = trained(Residual(), *data["images"])
    torch.jit.script(residual).save(folder / "residual.pt")
    image = torch.from_numpy(data["images"][0][:2])
    free_batch = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(residual, (image,), dynamic_shapes=free_batch), folder / "residual.pt2")
    torch.save(trained(of_layers(CNN_LAYERS), *data["images"]).state_dict(), folder / "cnn.pt")
    mlp = trained(of_layers(MLP_LAYERS), *data["tables"])
    torch.save(mlp.state_dict(), folder / "mlp.pt")
    torch.jit.script(mlp).save(folder / "mlp_scripted.pt")
    curve_layers = [*MLP_LAYERS[:-1], ["Linear", {"in_features": 64, "out_features": 2}, "fc3"]]
    torch.jit.script(of_layers(curve_layers).eval()).save(folder / "curves.pt")
    tokens = torch.from_numpy(data["texts"][0][:2])
    for name, model in {"transformer": Transformer(), "recurrent": Recurrent()}.items():
        trace = torch.jit.trace(trained(model, *data["texts"]), (tokens,), check_trace=False)
        trace.save(folder / f"{name}.pt")


def trained(model: nn.Module, x: np.ndarray, y: np.ndarray) -> nn.Module:
    """The model after four epochs, in eval mode."""
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def images() -> tuple[np.ndarray, np.ndarray]:
    """Four classes of 8×8, each a pattern under noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    x = rng.normal(size=(4, 1, 8, 8))[y] + rng.normal(size=(600, 1, 8, 8))
    return x.astype(np.float32), y


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen columns around four centres."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 600)
    return (rng.normal(size=(4, 16))[y] + 0.8 * rng.normal(size=(600, 16))).astype(np.float32), y


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Twelve tokens of sixty, half of them from the class's own fifteen."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 600)
    own = y[:, None] * 15 + rng.integers(0, 15, (600, 12))
    return np.where(rng.random((600, 12)) < 0.5, own, rng.integers(0, 60, (600, 12))), y


# -- jobs -----------------------------------------------------------------------------------------

PRUNE: dict[str, dict[str, Any]] = {
    "channels, every format": {
        "model": "residual.pt",
        "data": "images.npz",
        "amount": 0.5,
        "criterion": "taylor",
        "outputs": ["torchscript", "state_dict", "exported_program", "onnx", "packed"],
        "retrain": RETRAIN,
    },
    "weights while training, quantized, packed": {
        "model": "mlp_scripted.pt",
        "data": "tables.npz",
        "granularity": "weight",
        "amount": 0.9,
        "criterion": "lamp",
        "schedule": "cubic",
        "regrow": 0.2,
        "quantize": {"bits": 4, "epochs": 1},
        "outputs": ["packed", "torchscript"],
        "retrain": RETRAIN,
    },
    "n:m of a state dict": {
        "model": "mlp.pt",
        "architecture": {"layers": MLP_LAYERS},
        "data": "tables.npz",
        "granularity": "n:m",
        "criterion": "activation",
        "outputs": ["state_dict", "packed"],
        "retrain": RETRAIN,
    },
    "blocks in steps": {
        "model": "mlp_scripted.pt",
        "data": "tables.npz",
        "granularity": "block",
        "amount": 0.6,
        "criterion": "l2",
        "schedule": "iterative",
        "steps": 2,
        "preprocess": {"scale": 0.5},
        "retrain": RETRAIN,
    },
    "heads of a trace": {
        "model": "transformer.pt",
        "data": "texts.npz",
        "granularity": "head",
        "amount": 0.5,
        "criterion": "hessian",
        "outputs": ["torchscript", "packed"],
        "retrain": RETRAIN,
    },
    "residual blocks of a .pt2": {
        "model": "residual.pt2",
        "data": "images.npz",
        "granularity": "residual_block",
        "amount": 0.34,
        "criterion": "activation",
        "outputs": ["exported_program", "torchscript"],
        "retrain": RETRAIN,
    },
    "a goal, of a GRU": {
        "model": "recurrent.pt",
        "data": "texts.npz",
        "target": {"params": 0.6, "max_accuracy_drop": 0.3},
        "retrain": {"epochs": 1, "lr": 0.02},
    },
    "without data": {
        "model": "cnn.pt",
        "architecture": {"layers": CNN_LAYERS},
        "amount": 0.4,
        "criterion": "bn_scale",
        "example_inputs": [{"shape": [2, 1, 8, 8]}],
        "outputs": ["state_dict", "torchscript", "onnx"],
    },
}
DISTILL: dict[str, dict[str, Any]] = {
    "a narrower student": {
        "teacher": "residual.pt",
        "student": {"from_teacher": {"width": 0.5}},
        "data": "images.npz",
        "loss": {"kind": "knowledge", "alpha": 0.2, "temperature": 4},
        "train": {"epochs": 2, "lr": 0.02},
        "compare_with_labels_only": True,
    },
    "a student from a layer list, of a regression": {
        "teacher": "curves.pt",
        "student": {
            "layers": [
                ["Linear", {"in_features": 16, "out_features": 16}],
                ["Tanh", {}],
                ["Linear", {"in_features": 16, "out_features": 2}],
            ]
        },
        "data": "curves.npz",
        "task": "regression",
        "outputs": ["state_dict"],
        "train": {"epochs": 2, "optimizer": "adam", "lr": 0.003},
    },
}


def run_jobs(uploads: Path, checkout: Path) -> dict[str, dict[str, Any]]:
    """The findings of every job, each run by a process of its own, with the `pared` of a checkout."""
    import pared
    from pared.compression import distill, prune

    found = Path(pared.__file__).resolve().parent.parent
    if found != checkout:
        raise SystemExit(f"{checkout} was to be run, and Python imports pared from {found}.")
    torch.set_num_threads(1)
    jobs = [(prune, uploads, name, job) for name, job in PRUNE.items()]
    jobs += [(distill, uploads, name, job) for name, job in DISTILL.items()]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return {job[2]: findings for job, findings in zip(jobs, pool.starmap(run_job, jobs, chunksize=1), strict=True)}


def run_job(method: Any, uploads: Path, name: str, job: dict[str, Any]) -> dict[str, Any]:
    """File -> its SHA-256, and `report/path/of/field` -> its value; or the error."""
    named = {"model", "teacher", "data"} & job.keys()
    fields = {key: uploads / value if key in named else value for key, value in job.items()}
    positional = [fields.pop(key) for key in ("model", "teacher", "student", "data") if key in fields]
    with tempfile.TemporaryDirectory(prefix="pared-same-bytes-") as directory:
        try:
            result = method(*positional, directory=directory, device="cpu", **fields)
        except Exception as error:  # noqa: BLE001 - both must fail alike
            return {"error": f"{type(error).__name__}: {error}"}
        files = sorted(path for path in Path(directory).iterdir() if path.name != "report.json")
        findings: dict[str, Any] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return findings | dict(flattened("report", result.report.model_dump(mode="json")))


def flattened(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON value with the path to it, without what differs from run to run."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in VARYING:
                yield from flattened(f"{path}/{key}", item)
    elif isinstance(value, list):
        compared = [item for item in value if not (isinstance(item, str) and item.startswith(OF_TIMES))]
        for index, item in enumerate(compared):
            yield from flattened(f"{path}/{index}", item)
    else:
        yield path, value


# -- both sides -----------------------------------------------------------------------------------


def main() -> None:
    """Run all jobs with both versions, and list what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="the commit that the working tree is compared with")
    base = parser.parse_args().base
    with tempfile.TemporaryDirectory(prefix="pared-same-bytes-") as name:
        folder = Path(name)
        uploads = folder / "uploads"
        uploads.mkdir()
        torch.manual_seed(0)
        write_uploads(uploads)
        with worktree(base, folder / "base") as other:
            sides = {"working tree": CHECKOUT, base: other}
            running = [started(checkout, uploads, folder / f"{i}.json") for i, checkout in enumerate(sides.values())]
            codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit("The jobs did not run to their end.")
        ours, theirs = (json.loads((folder / f"{i}.json").read_text()) for i in range(2))
    report_differences(ours, theirs, base)


@contextmanager
def worktree(commit: str, path: Path) -> Iterator[Path]:
    """A checkout of a commit, for as long as it is needed."""
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
    try:
        yield path.resolve()
    finally:
        subprocess.run([*git, "remove", "--force", str(path)], check=True)


def started(checkout: Path, uploads: Path, findings: Path) -> subprocess.Popen[bytes]:
    """A process that runs all jobs with the `pared` of a checkout, in which nothing is left to chance."""
    alike = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **alike, "PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore"}
    command = f"import sys; sys.path.append({str(CHECKOUT / 'benchmarks')!r}); import same_bytes; same_bytes.one_side()"
    arguments = [str(uploads), str(checkout), str(findings)]
    return subprocess.Popen([sys.executable, "-c", command, *arguments], env=environment, cwd=uploads)


def one_side() -> None:
    """What `started` runs: arguments are the uploads, the checkout and where to write what came of the jobs."""
    uploads, checkout, findings = map(Path, sys.argv[1:])
    findings.write_text(json.dumps(run_jobs(uploads, checkout)))


def report_differences(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], base: str) -> None:
    """Print a line for each job, and exit with 1 if any differs or failed."""
    alike = True
    for name, here in ours.items():
        there = theirs[name]
        if "error" in here and here == there:
            raise SystemExit(f"{name}: fails in both, {here['error']}")
        keys = [key for key in there if here.get(key, "none") != there[key]]
        files = sum("/" not in key for key in here)
        print(f"{'differs' if keys else 'same   '}  {name}: {files} files, {len(here) - files} figures of the report")
        for key in keys:
            print(f"         {key}: {here.get(key, 'none')} here, {there[key]} at {base}")
        new = [f"{key} {here[key]}" for key in here if key not in there]
        if new:
            print(f"         new: {', '.join(new)}")
        alike = alike and not keys
    raise SystemExit(0 if alike else 1)


if __name__ == "__main__":
    main()
