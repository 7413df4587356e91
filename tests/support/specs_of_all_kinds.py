"""Specs of every type of job: the examples of the API, and some that say what forms and command lines say rarely."""

from __future__ import annotations

from typing import Any

from pared.job_types import LISTED
from pared.specs.uploads import EXAMPLE_DATASET_ID, EXAMPLE_MODEL_ID

_PRUNE: dict[str, Any] = {"type": "prune", "model": EXAMPLE_MODEL_ID, "dataset": "builtin:digits"}
_DISTILL: dict[str, Any] = {"type": "distill", "teacher": EXAMPLE_MODEL_ID, "dataset": "builtin:digits"}
_QUANTIZE: dict[str, Any] = {"type": "quantize", "model": EXAMPLE_MODEL_ID}
_PIPELINE: dict[str, Any] = {"type": "pipeline", "model": EXAMPLE_MODEL_ID, "dataset": "builtin:digits"}
_HALF = {"from_teacher": {"width": 0.5}}

EXAMPLES: dict[str, dict[str, Any]] = {
    f"{job_type.name}: {name}": dict(example["value"])
    for job_type in LISTED
    for name, example in job_type.examples.items()
}
RARE: dict[str, dict[str, Any]] = {
    "no retraining": _PRUNE | {"amount": 0.5, "retrain": None},
    "labels alone": _PRUNE | {"amount": 0.5, "retrain": {"teach": False, "nesterov": True, "warmup": 0.1}},
    "adam taught": _PRUNE | {"amount": 0.5, "retrain": {"teach": True, "optimizer": "adam"}},
    "own teacher": _PRUNE | {"amount": 0.5, "retrain": {"teach": {"kind": "knowledge", "temperature": 3}}},
    "n of m": _PRUNE | {"granularity": "n:m", "n_m": [1, 4]},
    "usual n of m": _PRUNE | {"granularity": "n:m"},
    "blocks": _PRUNE | {"granularity": "block", "amount": 0.8, "block": [8, 1], "scope": "global"},
    "weights by layer": _PRUNE | {"granularity": "weight", "amount": 0.9, "scope": "layer"},
    "weights together": _PRUNE | {"granularity": "weight", "amount": 0.9},
    "heads": _PRUNE | {"granularity": "head", "amount": 0.25, "criterion": "taylor", "uniform": False},
    "blocks of residuals": _PRUNE | {"granularity": "residual_block", "amount": 0.25},
    "layer by layer": _PRUNE | {"amount": 0.25, "streamed": True},
    "packed": _PRUNE
    | {
        "granularity": "weight",
        "amount": 0.95,
        "schedule": "cubic",
        "ramp": 0.7,
        "regrow": 0.1,
        "outputs": ["packed", "torchscript"],
        "quantize": {"bits": 5},
    },
    "shared values": _PRUNE | {"amount": 0.5, "outputs": ["packed"], "quantize": {"bits": 4, "epochs": 0, "lr": 1e-5}},
    "amounts of layers": _PRUNE | {"amount": 0.5, "amounts": {"conv*": 0.3, "a=b": 0, "-x": 0.125}},
    "patterns": _PRUNE | {"amount": 0.5, "include": ["conv*", "-v", "it's"], "exclude": [" a", "b,c", ""]},
    "stages": _PRUNE | {"amount": 0.99, "granularity": "weight", "stages": [0.9, 0.98]},
    "steps": _PRUNE | {"amount": 0.5, "schedule": "iterative", "steps": 3, "round_to": 8},
    "goal of latency": _PRUNE | {"target": {"latency": 0.5, "latency_batch_size": 32, "max_quality_drop": 0}},
    "goal of weights": _PRUNE | {"granularity": "weight", "target": {"params": 0.1}},
    "numbered output": _PRUNE | {"amount": 0.5, "output": 0, "ignore_index": -1, "task": "segmentation"},
    "named output": _PRUNE | {"amount": 0.5, "output": "0", "seed": 4294967295, "time_limit_s": 60},
    "hostile names": _PRUNE
    | {"amount": 0.5, "output": "<b>\"$(id)'\\\n\u202e\u0007é😀", "exclude": ["`id`", "\u2028"]},
    "classes": _PRUNE | {"amount": 0.5, "retrain": {"class_weights": [1, 5.5], "label_smoothing": 0.1, "lr": 0.02}},
    "changed samples": _PRUNE | {"amount": 0.5, "retrain": {"augment": {"horizontal_flip": {}, "cutmix": {}}}},
    "preprocessed": _PRUNE | {"amount": 0.5, "preprocess": {"scale": 0.0039, "mean": [0.5, 0.4], "std": [1, 2]}},
    "preprocessed by nothing": _PRUNE | {"amount": 0.5, "preprocess": {}},
    "free sizes": _PRUNE
    | {"amount": 0.5, "outputs": ["onnx"], "dynamic": {"x": {"2": "h", "3": "w"}}, "onnx_opset": 17},
    "all free sizes": _PRUNE | {"amount": 0.5, "outputs": ["onnx", "exported_program"], "dynamic": "auto"},
    "formats in another order": _PRUNE | {"amount": 0.5, "outputs": ["onnx", "torchscript"]},
    "arguments": {"type": "prune", "model": EXAMPLE_MODEL_ID, "amount": 0.5}
    | {"example_inputs": [{"shape": [1, 16], "dtype": "int64"}, {"value": None}, {"items": [{"shape": [2, 1, 4]}]}]},
    "named architecture": _PRUNE | {"amount": 0.5, "architecture": "resnet50"},
    "architecture with options": _PRUNE | {"amount": 0.5, "architecture": {"name": "lenet5", "kwargs": {"a": [1, {}]}}},
    "uploaded student": _DISTILL | {"student": EXAMPLE_MODEL_ID, "student_weights": "teacher"},
    "known student": _DISTILL | {"student": {"name": "lenet5"}, "compare_with_labels_only": True},
    "layered student": _DISTILL | {"student": {"layers": [["Flatten", {}], ["Linear", {"in_features": 64}]]}},
    "shallow student": _DISTILL
    | {"student": {"from_teacher": {"depth": 0.5, "drop": "least_important", "target": {"macs": 0.25}}}},
    "knowledge": _DISTILL | {"student": _HALF, "loss": {"kind": "knowledge", "alpha": 0.3, "labels": 0}},
    "outputs": _DISTILL | {"student": _HALF, "loss": {"kind": "output_mse"}, "train": {"optimizer": "sgd"}},
    "one term": _DISTILL | {"student": _HALF, "loss": {"kind": "combined", "terms": [{"kind": "output_mse"}]}},
    "best teacher": _DISTILL | {"student": _HALF, "teachers": [{"model": EXAMPLE_MODEL_ID}], "combine": "best"},
    "made samples": {"type": "distill", "teacher": EXAMPLE_MODEL_ID, "student": _HALF, "made_samples": 64},
    "int8 trained": _QUANTIZE | {"dataset": EXAMPLE_DATASET_ID, "retrain": {}},
    "int8 trained longer": _QUANTIZE | {"dataset": EXAMPLE_DATASET_ID, "retrain": {"epochs": 9}},
    "int8 calibrated": _QUANTIZE
    | {
        "dataset": "builtin:digits",
        "method": "static",
        "calibration": {"samples": 64, "method": "entropy"},
        "exclude": ["fc*"],
        "target": {"max_quality_drop": 0.01},
    },
    "chosen for bytes": _PIPELINE
    | {"target": {"file_bytes": 0.1}, "steps": [{"prune": {}}, {"distill": {}}, {"quantize": {}}]},
    "chosen for bytes alone": _PIPELINE | {"target": {"file_bytes": 0.5}, "steps": [{"quantize": {}}]},
    "chosen with epochs": _PIPELINE
    | {
        "target": {"macs": 0.5, "max_quality_drop": 0.01},
        "steps": [{"prune": {"retrain": {"epochs": 5}}}, {"distill": {"train": {"epochs": 5}}}],
        "outputs": ["torchscript"],
    },
    "eight steps": _PIPELINE | {"steps": [{"prune": {"amount": 0.1}}, *[{"prune": {"amount": 0.2}}] * 7]},
}
OF_ALL_KINDS = EXAMPLES | RARE
