"""The jobs that share the card, all posted up front, so that several workers are busy while results are looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tests.gpu import networks
from tests.gpu.card import DEVICE
from tests.gpu.up import Up
from tests.support.models import zoo

Spec = dict[str, Any]
RETRAIN = {"epochs": 2, "lr": 0.01}
LIMIT_S = 200.0


def prune(up: Up, family: str, form: zoo.Form = "scripted", **fields: Any) -> Spec:
    """Half of the channels of a family's upload, retrained, unless the fields say otherwise."""
    extra = {"architecture": zoo.architecture(family)} if form == "state_dict" else {}
    model = up.upload_model(zoo.upload(family, form), f"{family}_{form}.pt", **extra)
    return prune_upload(up, model, family, **{"task": zoo.FAMILIES[family].task, **fields})


def prune_upload(up: Up, model: str, family: str, **fields: Any) -> Spec:
    """The same of any upload, with a family's data."""
    dataset = up.upload_dataset(zoo.dataset(family), f"{family}.npz")
    asked = {"type": "prune", "device": DEVICE, "model": model, "dataset": dataset, "retrain": RETRAIN, **fields}
    if not {"amount", "target"} & fields.keys() and fields.get("granularity") != "n:m":
        asked["amount"] = 0.5
    return asked


def distill(up: Up, family: str, **fields: Any) -> Spec:
    """A student of half the width, unless the fields say otherwise."""
    return {
        "type": "distill",
        "device": DEVICE,
        "teacher": up.upload_model(zoo.upload(family, "scripted"), f"{family}_scripted.pt"),
        "dataset": up.upload_dataset(zoo.dataset(family), f"{family}.npz"),
        "task": zoo.FAMILIES[family].task,
        "student": {"from_teacher": {"width": 0.5}},
        "train": {"epochs": 3, "lr": 0.003},
        **fields,
    }


def of_file(make: Callable[[], bytes], family: str, **fields: Any) -> Callable[[Up], Spec]:
    """A job on a file of these tests' own, with a family's data."""
    return lambda up: prune_upload(up, up.upload_model(make()), family, **fields)


def of(family: str, form: zoo.Form = "scripted", **fields: Any) -> Callable[[Up], Spec]:
    """A prune job on a family's upload."""
    return lambda up: prune(up, family, form, **fields)


def without(spec: Spec, *fields: str) -> Spec:
    """The spec, with nothing said of these."""
    return {name: value for name, value in spec.items() if name not in fields}


def recurrent(kind: type[nn.RNNBase]) -> Callable[[], bytes]:
    return lambda: networks.traced(networks.Recurrent(kind), networks.example_of(zoo.dataset("text_pool")))


def places() -> bytes:
    return zoo.exported(networks.Places().eval(), networks.example_of(zoo.dataset("text_pool")))


def with_features(up: Up) -> Spec:
    """A named layer of the student learns from one of the teacher, of another width."""
    student = up.upload_model(zoo.upload("shared", "scripted"), "shared_scripted.pt")
    loss = {"kind": "knowledge", "alpha": 0.3, "features": [["net.4", "inputs"]], "labels": 0.1}
    return distill(up, "mlp", student=student, loss=loss)


CUBIC = {"granularity": "weight", "amount": 0.8, "schedule": "cubic", "retrain": {"epochs": 4, "lr": 0.01}}
SEEDED = of("resnet", seed=7, retrain={"epochs": 3, "lr": 0.02, "batch_size": 32})

BASICS: dict[str, Callable[[Up], Spec]] = {
    "prune channels": of("resnet", retrain={"epochs": 4, "lr": 0.02}),
    "the device is left to pared": lambda up: without(prune(up, "resnet"), "device"),
    "prune weights": of("resnet", granularity="weight"),
    "prune weights along a ramp": of("plain_cnn", **CUBIC),
    "a ramp by slopes, regrowing": of("plain_cnn", **CUBIC, criterion="taylor", regrow=0.2),
    "distill knowledge": lambda up: distill(up, "resnet", loss={"kind": "knowledge", "alpha": 0.2}),
    "distill features": with_features,
    "distill a regression": lambda up: distill(up, "unet", compare_with_labels_only=True),
    "float32": of("resnet", retrain={"epochs": 2, "lr": 0.02, "precision": "float32"}),
    "the same seed": SEEDED,
    "the same seed, again": SEEDED,
    "every format": of("plain_cnn", outputs=["torchscript", "state_dict", "exported_program", "onnx", "packed"]),
    "shared values": of("mlp", granularity="weight", outputs=["packed"], quantize={"bits": 4, "epochs": 1}),
    "activation": of("depthwise", criterion="activation"),
    "taylor": of("grouped", criterion="taylor"),
    "hessian": of("squeeze_excite", criterion="hessian"),
    "n:m": of("mlp", granularity="n:m"),
    "block": of("mlp", granularity="block"),
    "head": of("text_transformer", granularity="head"),
    "residual_block": of("resnet", granularity="residual_block"),
    "in steps": of("plain_cnn", schedule="iterative", steps=2),
    "a goal of MACs": of("resnet", target={"macs": 0.5}),
    "without data": lambda up: {
        **without(prune(up, "resnet"), "dataset", "retrain"),
        "example_inputs": [{"shape": [2, 3, 8, 8]}],
    },
}
DEVICES: dict[str, Callable[[Up], Spec]] = {
    "device cpu": of("resnet", device="cpu"),
    "traced GRU": of_file(recurrent(nn.GRU), "text_pool"),
    "traced LSTM": of_file(recurrent(nn.LSTM), "text_pool"),
    "code that names a card": of_file(lambda: networks.scripted(networks.OnFirstCard()), "mlp"),
    "code that names a card, on the CPU": of_file(
        lambda: networks.scripted(networks.OnFirstCard()), "mlp", device="cpu"
    ),
    "program that names a device": of_file(places, "text_pool"),
}


def _of_a_family(family: str, form: zoo.Form) -> Callable[[Up], Spec]:
    return of(family, form, granularity="weight" if form == "traced" else "channel")


PROGRAMS = ("resnet", "text_transformer", "signal_cnn")
CELLS: list[tuple[str, zoo.Form]] = [(family, form) for form in ("scripted", "traced") for family in zoo.FAMILIES]
CELLS += [(family, "program") for family in PROGRAMS]
FAMILIES = {f"{family} {form}": _of_a_family(family, form) for family, form in CELLS}


class Posted:
    """Jobs by name, posted one after the other by a thread, while the first ones already run."""

    def __init__(self, up: Up, specs: Mapping[str, Callable[[Up], Spec]]) -> None:
        self.up = up
        self.specs: dict[str, Spec] = {}
        self._ids: dict[str, str] = {}
        self._refused: dict[str, Exception] = {}
        self._told = {name: threading.Event() for name in specs}
        self._thread = threading.Thread(target=self._post, args=(specs,), name="posting", daemon=True)
        self._thread.start()

    def id(self, name: str) -> str:
        """Of a job. Raises what its post raised."""
        assert self._told[name].wait(60), f"{name!r} was not posted"
        if name in self._refused:
            raise self._refused[name]
        return self._ids[name]

    def report(self, name: str) -> dict[str, Any]:
        """Of a job that must succeed."""
        return self.up.succeeded(self.id(name), LIMIT_S)

    def all_ended(self) -> None:
        """Wait until none is left."""
        self._thread.join(120)
        for job in self._ids.values():
            self.up.ended(job, LIMIT_S)

    def _post(self, specs: Mapping[str, Callable[[Up], Spec]]) -> None:
        for name, make in specs.items():
            try:
                self.specs[name] = make(self.up)
                self._ids[name] = self.up.submit(self.specs[name])
            except Exception as error:  # noqa: BLE001 - raised where the job is asked for
                self._refused[name] = error
            self._told[name].set()
