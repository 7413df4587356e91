"""MiniLM with three of its six layers, and int8, beside ONNX Runtime's own int8 of all six: `make bench-minilm-layers`.

One pipeline takes all-MiniLM-L6-v2 as the folder that a package ships: a student of half the layers, cut from it,
learns its answers from sentences without labels (task `match`), and becomes int8. The file that the first step leaves
is made int8 by weights alone, too. All files are run by ONNX Runtime on one thread, and judged on 2,000 real sentences
that no training saw: agreement of the embeddings with those of the original, bytes, and time in turns with its float32
file.

`short`: fewer sentences and epochs, to see that it runs.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import minilm
import onnxruntime
import torch
import transformers
from int8 import export_embedder, judged_embedders
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from results import Kept, machine, table, write_section
from sentences import LENGTH, batches, sentences, text_data

from pared.compression import pipeline, quantize

SHORT = "short" in sys.argv[1:]
WORK = Path("build/bench-minilm-layers-short" if SHORT else "build/bench-minilm-layers")
TESTED, TAUGHT_ON = (200, 400) if SHORT else (2000, 5000)
TRAIN = {"epochs": 1 if SHORT else 5, "lr": 5e-4, "batch_size": 32}
RUNS = {
    "float32": "float32.onnx",
    "six layers, dynamic int8 of ONNX Runtime": "ort-dynamic.onnx",
    "six layers, dynamic int8 of pared": "six-dynamic/model.onnx",
    "three layers, float32": "three.onnx",
    "three layers, weight-only int8": "three-weights/model.onnx",
    "three layers, dynamic int8": "pipeline/model.onnx",
}


def main() -> None:
    """Make what files are missing, judge all of them and write the section."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    WORK.mkdir(parents=True, exist_ok=True)
    model = minilm.downloaded()
    tested, texts = sentences()[:TESTED], sentences()[TESTED : TESTED + TAUGHT_ON]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    given = list(batches(tokenizer, tested))
    data = text_data(WORK / "texts.zip", model / "tokenizer.json", texts)
    common: dict[str, Any] = {"task": "match", "preprocess": {"max_length": LENGTH}, "outputs": ["onnx"]}
    kept = Kept(WORK)
    if "seconds" not in kept:
        began = time.perf_counter()
        student = {"from_teacher": {"depth": 0.5}}
        steps = [{"distill": {"student": student, "train": TRAIN}}, {"quantize": {"method": "dynamic"}}]
        made = pipeline(model, data, steps=steps, directory=WORK / "pipeline", **common)
        kept["verdict"] = made.report.verdict
        kept["seconds"] = time.perf_counter() - began
    three = WORK / "pipeline" / "1-distill.model.pt"
    quantize(three, data, method="weight_only", directory=WORK / "three-weights", **common)
    quantize(model, data, method="dynamic", directory=WORK / "six-dynamic", **common)
    export_embedder(model, given[0], WORK / "float32.onnx")
    export_embedder(three, given[0], WORK / "three.onnx")
    quant_pre_process(WORK / "float32.onnx", WORK / "ready.onnx", skip_symbolic_shape=True)
    quantize_dynamic(WORK / "ready.onnx", WORK / "ort-dynamic.onnx")
    found = judged_embedders({name: WORK / file for name, file in RUNS.items()}, given)
    _write(found, kept)


def _write(found: dict[str, Any], kept: dict[str, Any]) -> None:
    whole = found["float32"]["bytes"]
    rows = [
        [
            "six layers, float32" if name == "float32" else name,
            f"{run['bytes'] / 1e6:.1f} MB",
            f"{run['bytes'] / whole:.3f}",
            f"{run['cosine']:.4f}",
            f"{run['worst']:.4f}",
            f"{100 * run['nearest']:.1f} %",
            f"{100 * run['of ten']:.1f} %",
            *(f"{run[f'ms {size}']:.2f} ms ({run[f'speed {size}']:.2f}×)" for size in (1, 32)),
        ]
        for name, run in found.items()
    ]
    header = [
        "",
        "bytes",
        "of float32",
        "mean cosine",
        "worst",
        "same nearest",
        "of ten nearest",
        "batch 1",
        "batch 32",
    ]
    text = (
        "## MiniLM: three layers of six, and int8\n\n"
        f"{table(header, rows)}\n\n"
        "all-MiniLM-L6-v2, a folder as a package ships it, by `benchmarks/minilm_layers.py`: one pipeline of "
        f"`distill` (half of the layers, evenly, {TRAIN['epochs']} epochs on {TAUGHT_ON:,} sentences without labels) "
        f"and `quantize`, {kept['seconds']:.0f} s. Embeddings are the mean of the token states, of {TESTED:,} other "
        "sentences of the Python documentation; agreement is with the float32 file of all layers. Each file is run by "
        "ONNX Runtime on one thread, in turns with that file; × is how many times faster than it.\n\n"
        f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}, onnxruntime "
        f"{onnxruntime.__version__}.\n\n`make bench-minilm-layers`"
    )
    print(text)
    if not SHORT:
        write_section("minilm-layers", text)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
