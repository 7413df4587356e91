"""Specs as the API's description shows them, by type of job."""

from __future__ import annotations

from typing import Any

from pared.specs.uploads import EXAMPLE_DATASET_ID, EXAMPLE_MODEL_ID

PRUNE: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "granularity": "channel",
    "target": {"params": 0.25, "max_accuracy_drop": 0.02},
    "retrain": {"epochs": 3},
    "outputs": ["torchscript"],
}
PRUNE_BY_AMOUNT: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "amount": 0.5,
}
PRUNE_ON_A_GPU: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "device": "cuda",
    "target": {"latency": 0.5},
    "latency_device": "cpu",
}
PRUNE_ON_CHANGED_SAMPLES: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "amount": 0.5,
    "retrain": {"epochs": 3, "augment": {"crop": {"padding": 1}, "mixup": {"alpha": 0.2}}},
}
SEGMENT: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": EXAMPLE_DATASET_ID,
    "task": "segmentation",
    "target": {"macs": 0.5, "max_quality_drop": 0.02},
    "retrain": {"epochs": 10, "class_weights": "balanced"},
}
MATCH: dict[str, Any] = {
    "type": "prune",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "task": "match",
    "amount": 0.5,
    "retrain": {"epochs": 10, "optimizer": "adam"},
}
DISTILL: dict[str, Any] = {
    "type": "distill",
    "teacher": EXAMPLE_MODEL_ID,
    "student": {"from_teacher": {"width": 0.5}},
    "dataset": "builtin:digits",
    "train": {"epochs": 20},
}
QUANTIZE: dict[str, Any] = {
    "type": "quantize",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "method": "static",
    "target": {"max_accuracy_drop": 0.005},
}
QUANTIZE_WEIGHTS: dict[str, Any] = {
    "type": "quantize",
    "model": EXAMPLE_MODEL_ID,
    "outputs": ["torchscript", "packed"],
}

DISTILL_INNER_LAYERS: dict[str, Any] = {
    "type": "distill",
    "teacher": EXAMPLE_MODEL_ID,
    "student": {"from_teacher": {"width": 0.5}},
    "dataset": "builtin:digits",
    "loss": {
        "kind": "combined",
        "terms": [
            {"kind": "kl", "temperature": 4},
            {"kind": "labels", "weight": 0.1},
            {"kind": "hint", "weight": 0.5, "features": "auto"},
        ],
    },
    "train": {"epochs": 5},
}
PIPELINE: dict[str, Any] = {
    "type": "pipeline",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "target": {"file_bytes": 0.2, "max_quality_drop": 0.02},
    "steps": [{"prune": {}}, {"distill": {"train": {"epochs": 10}}}],
}
ASSISTANT: dict[str, Any] = {
    "type": "pipeline",
    "model": EXAMPLE_MODEL_ID,
    "dataset": "builtin:digits",
    "steps": [
        {"distill": {"student": {"from_teacher": {"width": 0.6}}}},
        {"distill": {"teacher": "previous", "student": {"from_teacher": {"width": 0.5}}}},
    ],
}

DISTILL_TO_A_SIZE: dict[str, Any] = {
    "type": "distill",
    "teacher": EXAMPLE_MODEL_ID,
    "student": {"from_teacher": {"target": {"params": 0.25}}},
    "dataset": "builtin:digits",
}
DISTILL_FROM_SEVERAL: dict[str, Any] = {
    "type": "distill",
    "teacher": EXAMPLE_MODEL_ID,
    "teachers": [{"model": EXAMPLE_MODEL_ID, "weight": 0.5}],
    "student": {"from_teacher": {"width": 0.5}},
    "dataset": "builtin:digits",
}
DISTILL_WITHOUT_DATA: dict[str, Any] = {
    "type": "distill",
    "teacher": EXAMPLE_MODEL_ID,
    "student": {"from_teacher": {"width": 0.5}},
    "task": "classification",
    "example_inputs": [{"shape": [1, 1, 8, 8]}],
    "train": {"epochs": 20},
}

PRUNING: dict[str, dict[str, Any]] = {
    "goal": {"summary": "A quarter of the parameters, and no more than two points lost", "value": PRUNE},
    "prune": {"summary": "Remove half of the channels, then retrain", "value": PRUNE_BY_AMOUNT},
    "augmentation": {
        "summary": "Retrain on samples that change at random in each epoch",
        "value": PRUNE_ON_CHANGED_SAMPLES,
    },
    "segment": {
        "summary": "Half the multiply-adds of a segmentation net, and no more than two points of IoU lost",
        "value": SEGMENT,
    },
    "match": {"summary": "Retrain without labels, by the model's own answers", "value": MATCH},
    "gpu": {
        "summary": "Train on a GPU, for a model that is to run on a processor in half the time",
        "value": PRUNE_ON_A_GPU,
    },
}
DISTILLATION: dict[str, dict[str, Any]] = {
    "distill": {"summary": "Teach a student of half the width", "value": DISTILL},
    "inner layers": {
        "summary": "Teach it by softened classes, labels and inner layers that are paired by depth and shape",
        "value": DISTILL_INNER_LAYERS,
    },
    "size": {
        "summary": "Teach the largest student that has a quarter of the teacher's parameters",
        "value": DISTILL_TO_A_SIZE,
    },
    "teachers": {"summary": "Learn from the mean of two teachers", "value": DISTILL_FROM_SEVERAL},
    "no-data": {
        "summary": "Learn from made-up inputs, where there is no data; nothing is measured",
        "value": DISTILL_WITHOUT_DATA,
    },
}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "quantize": {"summary": "int8 for ONNX Runtime, and no more than half a point lost", "value": QUANTIZE},
    "weights": {"summary": "A quarter of the bytes, without data", "value": QUANTIZE_WEIGHTS},
}
PIPELINES: dict[str, dict[str, Any]] = {
    "pipeline": {"summary": "A fifth of the bytes: pruned as far as that takes, then taught", "value": PIPELINE},
    "assistant": {"summary": "A small student taught by a middle one", "value": ASSISTANT},
}
