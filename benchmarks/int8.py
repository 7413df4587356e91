"""int8 by pared beside ONNX Runtime's own quantizers, on LeNet-5, a residual net and MiniLM: `make bench-int8`.

LeNet-5 and the residual net are trained here on MNIST, three seeds each. Each model goes into quantize jobs (weights
alone, dynamic, static), and as float32 ONNX into `quantize_dynamic` and `quantize_static` of ONNX Runtime, as its
documentation shows them, the static one on the same 256 training images. All files are judged alike, by a session of
ONNX Runtime here: bytes, test accuracy (of MiniLM the cosine of sentence embeddings to the original's, and whether the
nearest other sentence is the same), and time, in turns with the float32 file. Nothing is chosen by the test images.

Arguments name what to run: `lenet residual minilm`, and `short` for one seed and two epochs.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import minilm
import networks
import numpy as np
import onnxruntime
import torch
import transformers
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from results import Kept, machine, mnist_file, table, write_section
from sentences import LENGTH, Embedder, agreement, batches, embeddings, sentences, text_data
from torch import nn

from pared.compression import quantize
from pared.compression.architectures import build
from pared.compression.data import Data, load_dataset
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile
from pared.specs import Preprocess, Train

WORK = Path("build/bench-int8")
SEEDS = (0, 1, 2)
CALIBRATED_ON = 256
PREPROCESS = networks.PREPROCESS
TITLES = {"lenet": "LeNet-5", "residual": "residual net", "minilm": "MiniLM"}
METHODS = ("weight_only", "dynamic", "static")
RUNS = ("float32", *(f"pared, {method}" for method in METHODS), "ORT, dynamic", "ORT, static")
DENSE = Train(epochs=6, optimizer="adam", lr=0.001, lr_schedule="cosine", batch_size=64)
SENTENCES, TAUGHT_ON = 2000, 400


def main() -> None:
    """Run what is not known yet, and write the section."""
    asked = set(sys.argv[1:])
    names = [name for name in TITLES if name in asked] or list(TITLES)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    kept = Kept(WORK)
    for name in names:
        for seed in SEEDS[: 1 if "short" in asked or name == "minilm" else None]:
            key = f"{name}/{seed}"
            if key not in kept:
                kept[key] = _minilm() if name == "minilm" else _image_net(name, seed)
                print(key, json.dumps(kept[key], indent=1), flush=True)
    _write(kept)


# -- nets of images -----------------------------------------------------------------------------


def _image_net(name: str, seed: int) -> dict[str, Any]:
    folder = WORK / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file, module = _lenet(seed, folder) if name == "lenet" else _residual(seed, folder)
    arrays = np.load(file)
    scaled = {split: _scaled(arrays[f"x_{split}"]) for split in ("train", "test")}
    torch.jit.script(module).save(folder / "model.pt")
    _export(module, (torch.from_numpy(scaled["train"][:4]),), folder / "float32.onnx", ["x0"])
    for method in METHODS:
        options: Any = {"method": method, "outputs": ["onnx"], "preprocess": PREPROCESS}
        quantize(folder / "model.pt", file, directory=folder / method, **options)
    rows = np.linspace(0, len(scaled["train"]) - 1, CALIBRATED_ON).round().astype(int)
    files = _files(folder, [{"x0": scaled["train"][part]} for part in np.split(rows, CALIBRATED_ON // 16)])
    wanted = arrays["y_test"]

    def judged(session: Any) -> dict[str, float]:
        answers = [session.run(None, {"x0": part})[0] for part in np.array_split(scaled["test"], 40)]
        return {"accuracy": float((np.concatenate(answers).argmax(1) == wanted).mean())}

    batches = {size: {"x0": scaled["test"][:size]} for size in (1, 32)}
    return _judged(files, judged, batches)


def _lenet(seed: int, folder: Path) -> tuple[Path, nn.Module]:
    """LeNet-5 as Caffe had it, trained on 55,000 images."""
    file, given = folder / "mnist.npz", np.load(mnist_file())
    order = np.random.default_rng(seed).permutation(len(given["x_train"]))
    arrays = {"x_test": given["x_test"], "y_test": given["y_test"].astype(np.int64)}
    for split, rows in (("train", order[5000:]), ("val", order[:5000])):
        arrays |= {f"x_{split}": given["x_train"][rows], f"y_{split}": given["y_train"][rows].astype(np.int64)}
    np.savez(file, **{name: each.reshape(-1, 1, 28, 28) if name[0] == "x" else each for name, each in arrays.items()})
    torch.manual_seed(seed)
    preprocess = Preprocess.model_validate(PREPROCESS)
    data = load_dataset(DatasetFile(file, file.name), task="classification", preprocess=preprocess, seed=seed)
    return file, _trained(build({"name": "lenet5"}), data, seed, folder)


def _residual(seed: int, folder: Path) -> tuple[Path, nn.Module]:
    file, data = networks.prepared_data(mnist_file(), seed, "test", folder)
    torch.manual_seed(seed)
    module = _Residual()
    return file, _trained(module, data, seed, folder)


class _Residual(networks.Residual):
    """The residual network of other benchmarks with twice the channels, 0.4 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(
            *(networks.Block([(before, after, 3, stride), (after, after, 3, 1)]) for before, after, stride in widths)
        )
        self.fc = nn.Linear(128, 10)


def _trained(module: nn.Module, data: Data, seed: int, folder: Path) -> nn.Module:
    state = folder / "dense.pt"
    if state.exists():
        module.load_state_dict(torch.load(state))
    else:
        dense = DENSE.model_copy(update={"epochs": 2}) if "short" in sys.argv else DENSE
        fit(module, data, dense, learn_labels(Classification()), task=Classification(), seed=seed, phase="dense")
        torch.save(module.state_dict(), state)
    return module.eval()


def _scaled(pixels: np.ndarray) -> np.ndarray:
    mean, std = PREPROCESS["mean"][0], PREPROCESS["std"][0]
    return ((pixels * np.float32(PREPROCESS["scale"]) - mean) / std).astype(np.float32)


# -- MiniLM -------------------------------------------------------------------------------------


def _minilm() -> dict[str, Any]:
    folder = WORK / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    model = minilm.downloaded()
    tested, texts = sentences()[:SENTENCES], sentences()[SENTENCES : SENTENCES + TAUGHT_ON]
    data = text_data(folder / "texts.zip", model / "tokenizer.json", texts)
    for method in METHODS:
        options: Any = {"method": method, "outputs": ["onnx"], "preprocess": {"max_length": LENGTH}}
        quantize(model, data, task="match", directory=folder / method, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    given = list(batches(tokenizer, tested))
    export_embedder(model, given[0], folder / "float32.onnx")
    rows = np.linspace(0, len(texts) - 1, CALIBRATED_ON).round().astype(int)
    calibration = list(batches(tokenizer, [texts[row] for row in rows], size=16, padded=True))
    return judged_embedders(_files(folder, calibration), given)


def export_embedder(model: Path, example: dict[str, np.ndarray], path: Path) -> None:
    """The model as float32 ONNX, from tokens and their mask to states. `model`: a folder, or a TorchScript file."""
    if model.is_dir():
        embedder: nn.Module = Embedder(transformers.AutoModel.from_pretrained(model)).eval()
    else:
        embedder = torch.jit.load(model)
    _export(embedder, tuple(torch.from_numpy(each) for each in example.values()), path, list(example))


def judged_embedders(files: dict[str, Path], given: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Bytes, agreement with the file `float32`, and time of each file."""

    def run(session: Any) -> torch.Tensor:
        names = [each.name for each in session.get_inputs()]
        return embeddings(lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0], given)

    original = run(onnxruntime.InferenceSession(files["float32"]))
    timed = {size: {name: each[:size] for name, each in given[0].items()} for size in (1, 32)}
    return _judged(files, lambda session: agreement(run(session), original), timed)


# -- files and figures --------------------------------------------------------------------------


def _export(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path, names: list[str]) -> None:
    axes = {name: {dim: f"dim_{dim}" for dim in range(2 if len(names) > 1 else 1)} for name in names} | {
        "y": {0: "dim_0"}
    }
    torch.onnx.export(module, example, path, dynamo=False, input_names=names, output_names=["y"], dynamic_axes=axes)


def _files(folder: Path, calibration: list[dict[str, np.ndarray]]) -> dict[str, Path]:
    """All files, those of ONNX Runtime's quantizers made here."""

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch, "ready.onnx")
        quant_pre_process(folder / "float32.onnx", ready, skip_symbolic_shape=True)
        quantize_dynamic(ready, folder / "ort-dynamic.onnx")
        quantize_static(ready, folder / "ort-static.onnx", Reader())
    files = {"float32": folder / "float32.onnx"}
    files |= {f"pared, {method}": folder / method / "model.onnx" for method in METHODS}
    return files | {"ORT, dynamic": folder / "ort-dynamic.onnx", "ORT, static": folder / "ort-static.onnx"}


def _judged(files: dict[str, Path], judged: Any, batches: dict[int, dict[str, np.ndarray]]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    sessions = {name: onnxruntime.InferenceSession(path, options) for name, path in files.items()}
    found: dict[str, Any] = {}
    for name, path in files.items():
        found[name] = {"bytes": path.stat().st_size} | judged(sessions[name])
    for size, given in batches.items():
        times = _times(sessions, given)
        for name in files:
            ratios = [one / own for one, own in zip(times["float32"], times[name], strict=True)]
            found[name][f"speed {size}"] = statistics.median(ratios)
            found[name][f"ms {size}"] = statistics.median(times[name])
    return found


def _times(sessions: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Milliseconds of each session, in turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    until = time.perf_counter() + 20
    while len(times["float32"]) < 20 or (time.perf_counter() < until and len(times["float32"]) < 300):
        for name, session in sessions.items():
            inputs = dict(zip([each.name for each in session.get_inputs()], given.values(), strict=True))
            began = time.perf_counter()
            session.run(None, inputs)
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: each[5:] for name, each in times.items()}


def _write(kept: dict[str, Any]) -> None:
    parts = []
    for name, title in TITLES.items():
        seeds = [kept[key] for key in kept if key.startswith(f"{name}/")]
        if not seeds:
            continue
        rows = []
        for run in RUNS:
            of_run = [seed[run] for seed in seeds]
            share = statistics.mean(
                each["bytes"] / seed["float32"]["bytes"] for each, seed in zip(of_run, seeds, strict=True)
            )
            if name == "minilm":
                quality = [
                    f"{of_run[0]['cosine']:.4f}",
                    f"{of_run[0]['worst']:.4f}",
                    f"{100 * of_run[0]['nearest']:.1f} %",
                ]
            else:
                lost = [
                    100 * (each["accuracy"] - seed["float32"]["accuracy"])
                    for each, seed in zip(of_run, seeds, strict=True)
                ]
                values = [100 * each["accuracy"] for each in of_run]
                quality = [f"{statistics.mean(values):.2f} %", ", ".join(f"{each:+.2f}" for each in lost)]
            speeds = [
                f"{statistics.mean(each[f'ms {size}'] for each in of_run):.2f} ms "
                f"({statistics.mean(each[f'speed {size}'] for each in of_run):.2f}×)"
                for size in (1, 32)
            ]
            rows.append(
                [
                    run,
                    f"{statistics.mean(e['bytes'] for e in of_run) / 1000:,.0f} kB",
                    f"{share:.3f}",
                    *quality,
                    *speeds,
                ]
            )
        measure = ["mean cosine", "worst", "same nearest"] if name == "minilm" else ["test accuracy", "points, by seed"]
        header = ["", "bytes", "of float32", *measure, "batch 1", "batch 32"]
        parts.append(
            f"**{title}**" + (f", {len(seeds)} seeds" if name != "minilm" else "") + "\n\n" + table(header, rows)
        )
    text = (
        "## int8 beside ONNX Runtime's own quantizers\n\n"
        "By `benchmarks/int8.py`. Each file is run by ONNX Runtime on one thread, in turns with the float32 file "
        "of the same model; × is how many times faster than it. ORT is ONNX Runtime's own `quantize_dynamic` and "
        f"`quantize_static` with their defaults, the latter on the same {CALIBRATED_ON} training samples as pared's "
        f"static. MiniLM is judged on {SENTENCES:,} sentences of the Python documentation that no run saw.\n\n"
        + "\n\n".join(parts)
        + f"\n\n{machine()}; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}.\n"
    )
    write_section("int8", text)
    print(text)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
