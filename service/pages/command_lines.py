"""Owns which command of `pared` posts a spec: `prune`, `distill`, `quantize` or `compress`, or `run` for all others.

A line is made by taking out of the spec what an option says; where anything is left, no line of that command says it.
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pared.job_types import STEPS
from pared.specs import Knowledge, Retrain, Target
from pared.specs.choosing import chosen_steps
from pared.specs.pruning import SOFTENED_CLASSES
from service.job_specs import checked
from service.pages.literals import laid_out

_ENDINGS = {
    "torchscript": ".pt",
    "state_dict": ".safetensors",
    "exported_program": ".pt2",
    "onnx": ".onnx",
    "packed": ".packed",
    "checkpoint": ".ckpt",
    "huggingface": ".zip",
}
_USUAL_TEACHER = Knowledge.model_validate(SOFTENED_CLASSES).model_dump(exclude_defaults=True)
"""As `shortest` writes it."""
_AMOUNTS = {"channel": "channels", "head": "heads", "residual_block": "residual-blocks", "weight": "weights"}
_TRAINING = ("epochs", "batch_size", "lr", "lr_schedule", "momentum", "weight_decay", "precision", "patience")
_TRAINING_TOO = ("label_smoothing", "optimizer")


class _Beyond(Exception):
    """The command has no option that says this."""


def command_line(written: Mapping[str, Any]) -> str:
    """Lines for a shell that post a spec, as `shortest` wrote it."""
    makers = {"prune": _prune, "distill": _distill, "quantize": _quantize, "pipeline": _compress}
    try:
        arguments = list(makers[written["type"]](_Rest(written)))
    except _Beyond:
        return _from_a_file(written)
    if not all(each.isascii() and each.isprintable() for each in arguments):
        return _from_a_file(written)  # where such characters are escaped, and seen
    lines = ["pared"]
    for word in map(shlex.quote, arguments):
        if word.startswith("-"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n  ".join(lines)


def _from_a_file(written: Mapping[str, Any]) -> str:
    return f"cat > spec.json <<'JSON'\n{laid_out(written, json.dumps)}\nJSON\npared run spec.json"


class _Rest:
    """What is still to be said of a spec."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        self.fields = copy.deepcopy(dict(written))

    def take(self, path: str, otherwise: Any = None) -> Any:
        """The value at a path, which is then said."""
        *outer, last = path.split(".")
        holders = [self.fields]
        for name in outer:
            inner = holders[-1].get(name)
            if not isinstance(inner, dict):
                return otherwise
            holders.append(inner)
        value = holders[-1].pop(last, otherwise)
        for holder, name in reversed(list(zip(holders, outer, strict=False))):
            if not holder[name]:
                del holder[name]
        return value

    def done(self) -> None:
        """Raise _Beyond if anything is left."""
        if self.fields:
            raise _Beyond


def _option(name: str, value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _options(rest: _Rest, paths: Mapping[str, str] | tuple[str, ...], within: str = "") -> Iterator[str]:
    """An option for each path that has a value; names are those of fields unless they are given."""
    for path in paths:
        value = rest.take(within + path)
        if value is not None:
            name = paths[path] if isinstance(paths, Mapping) else path.replace("_", "-")
            yield from _option(name, value)


def _each(name: str, values: Any) -> Iterator[str]:
    for value in values or ():
        yield from _option(name, value)


def _shares(rest: _Rest, paths: Mapping[str, str], within: str = "") -> Iterator[str]:
    """As `_options`, for options that take a share between nothing and all."""
    for path, name in paths.items():
        value = rest.take(within + path)
        if value is not None:
            yield from _option(name, _share(value))


def _share(value: Any) -> str:
    if not 0 < value < 1:
        raise _Beyond
    return json.dumps(value)


def _drops(rest: _Rest) -> Iterator[str]:
    """What may be lost of the quality; of all of it and more only percents are taken."""
    for path in ("max_quality_drop", "max_accuracy_drop"):
        value = rest.take(f"target.{path}")
        if value is not None:
            yield from _option(path.replace("_", "-"), value if value < 1 else f"{100 * value:g}%")


def _goals(rest: _Rest, names: tuple[str, ...], within: str = "target.") -> list[str]:
    found = {name: rest.take(within + name) for name in names}
    given = [f"{name}={_share(value)}" for name, value in found.items() if value is not None]
    return [word for each in given for word in ("--target", each)]


def _common(rest: _Rest) -> Iterator[str]:
    """Options that all commands have, and the files of the result."""
    output = rest.take("output")
    if isinstance(output, int):
        raise _Beyond
    yield from _option("model-output", output) if output is not None else ()
    yield from _options(rest, ("task", "ignore_index"))
    dynamic = rest.take("dynamic")
    if dynamic == "auto":
        yield from _option("dynamic", dynamic)
    for name, sizes in dynamic.items() if isinstance(dynamic, dict) else ():
        for dimension, called in sizes.items():
            yield from _option("dynamic", f"{name}:{dimension}={called}")
    yield from _options(rest, ("onnx_opset", "seed"))
    for output_format in rest.take("outputs") or ():
        yield from ("-o", f"small{_ENDINGS[output_format]}")


def _data(rest: _Rest) -> Iterator[str]:
    dataset = rest.take("dataset")
    if dataset is not None:
        yield from ("--data", dataset)


def _architecture(rest: _Rest, path: str = "architecture") -> Iterator[str]:
    """A named architecture; whatever else is one needs a file."""
    value = rest.take(path)
    if value is None:
        return
    if not isinstance(value, str) or not value or value.endswith(".json"):
        raise _Beyond
    yield from _option(path.replace("_", "-"), value)


def _shapes(rest: _Rest) -> Iterator[str]:
    for entry in rest.take("example_inputs") or ():
        plain = entry.keys() == {"shape"}
        text = ",".join(map(str, entry["shape"])) if plain else json.dumps(entry)
        yield from _option("input-shape", text)


def _training(rest: _Rest, within: str) -> Iterator[str]:
    yield from _options(rest, (*_TRAINING, *_TRAINING_TOO), within)
    warmup = rest.take(f"{within}warmup")
    if warmup is not None:
        yield from _option("warmup", _share(warmup))
    if rest.take(f"{within}nesterov"):
        yield "--nesterov"
    weights = rest.take(f"{within}class_weights")
    if weights is not None:
        yield from _option("class-weights", weights if isinstance(weights, str) else ",".join(map(json.dumps, weights)))
    for change, numbers in (rest.take(f"{within}augment") or {}).items():
        if numbers:
            raise _Beyond
        yield from ("--augment", change)


def _retraining(rest: _Rest) -> Iterator[str]:
    nothing = object()
    if rest.fields.get("retrain") == {}:  # asked for by any option of training
        rest.take("retrain")
        yield from _option("epochs", Retrain.model_fields["epochs"].default)
    elif isinstance(rest.fields.get("retrain"), dict):
        teach = rest.take("retrain.teach", nothing)
        if teach is None:
            yield "--no-teach"
        elif teach is not nothing:
            if teach != _USUAL_TEACHER:
                raise _Beyond
            yield "--teach"
        yield from _training(rest, "retrain.")


def _prune(rest: _Rest) -> Iterator[str]:
    yield from (rest.take("type"), rest.take("model"))
    yield from _data(rest)
    yield from _amount(rest)
    yield from _options(rest, ("criterion", "scope", "schedule", "steps", "round_to", "output_width"))
    for name in ("uniform", "streamed"):
        given = rest.take(name)
        if given is not None:
            yield f"--{name}" if given else f"--no-{name}"
    yield from _shares(rest, {"ramp": "ramp", "regrow": "regrow"})
    stages = rest.take("stages")
    if stages:
        yield from ("--stages", ",".join(map(json.dumps, stages)))
    for pattern, amount in (rest.take("amounts") or {}).items():
        yield from _option("layer-amount", f"{pattern}={json.dumps(amount) if amount else 0}")
    yield from _each("include", rest.take("include"))
    yield from _each("exclude", rest.take("exclude"))
    if rest.fields.get("quantize", {}).keys() == {"bits"}:
        yield from _option("quantize", rest.take("quantize.bits"))
    yield from _retraining(rest)
    yield from _shapes(rest)
    yield from _architecture(rest)
    yield from _options(rest, ("device", "latency_device"))
    yield from _common(rest)
    rest.done()


def _amount(rest: _Rest) -> Iterator[str]:
    granularity = rest.take("granularity", "channel")
    goals = _goals(rest, ("params", "macs", "file_bytes", "latency"))
    drops = list(_drops(rest))
    amount = rest.take("amount")
    if goals or drops:
        if granularity != "channel":
            raise _Beyond
        yield from goals + drops
    elif granularity == "n:m":
        n, m = rest.take("n_m", (2, 4))
        yield from ("--n-m", f"{n}:{m}")
    elif granularity == "block":
        yield from ("--blocks", _share(amount))
        size = rest.take("block")
        yield from ("--block-size", "x".join(map(str, size))) if size else ()
    else:
        yield from (f"--{_AMOUNTS[granularity]}", _share(amount))


def _distill(rest: _Rest) -> Iterator[str]:
    yield from (rest.take("type"), "--teacher", rest.take("teacher"))
    yield from _student(rest)
    yield from _data(rest)
    yield from _loss(rest)
    yield from _training(rest, "train.")
    if rest.take("compare_with_labels_only"):
        yield "--compare"
    if rest.take("student_weights"):
        yield "--take-weights"
    for teacher in rest.take("teachers") or ():
        if teacher.keys() != {"model"}:
            raise _Beyond
        yield from ("--also-teacher", teacher["model"])
    yield from _options(rest, ("combine", "made_samples"))
    yield from _shapes(rest)
    yield from _architecture(rest, "teacher_architecture")
    yield from _options(rest, ("device", "latency_device"))
    yield from _common(rest)
    rest.done()


def _student(rest: _Rest) -> Iterator[str]:
    student = rest.fields["student"]
    if isinstance(student, str):
        yield from ("--student", rest.take("student"))
        yield from _architecture(rest, "student_architecture")
    elif student.keys() == {"name"} and not student["name"].endswith(".json"):
        yield from _option("student-architecture", rest.take("student")["name"])
    else:
        within = "student.from_teacher."
        yield from _shares(rest, {"width": "width", "depth": "depth"}, within)
        yield from _options(rest, ("drop",), within)
        yield from _goals(rest, ("params", "macs", "latency"), f"{within}target.")


def _loss(rest: _Rest) -> Iterator[str]:
    loss = rest.take("loss")
    if loss is None:
        return
    terms = loss["terms"] if loss["kind"] == "combined" else [loss]
    if loss["kind"] == "knowledge":
        if loss.keys() - {"kind", "alpha", "temperature", "labels"}:
            raise _Beyond
        yield from ("--loss", "knowledge")
        yield from _options(_Rest(loss), ("alpha", "temperature", "labels"))
        return
    for term in terms:
        alone = len(terms) == 1 and term == {"kind": "output_mse"}  # which as the only option is no term
        if term.keys() - {"kind", "weight"} or (alone and loss["kind"] == "combined"):
            raise _Beyond
        weight = f"={json.dumps(term['weight'])}" if "weight" in term else ""
        yield from ("--loss", f"{term['kind']}{weight}")


def _quantize(rest: _Rest) -> Iterator[str]:
    yield from (rest.take("type"), rest.take("model"))
    yield from _data(rest)
    yield from _options(rest, ("method",))
    yield from _drops(rest)
    yield from _options(
        rest, {"calibration.samples": "calibration-samples", "calibration.method": "calibration-method"}
    )
    yield from _each("include", rest.take("include"))
    yield from _each("exclude", rest.take("exclude"))
    yield from _retraining(rest)
    yield from _shapes(rest)
    yield from _architecture(rest)
    yield from _common(rest)
    rest.done()


def _compress(rest: _Rest) -> Iterator[str]:
    """The command that chooses the steps, where it would choose just these."""
    whole = dict(rest.fields)
    epochs = next(_epochs(rest.take("steps")), None)
    if "target" not in whole or not _chooses(whole, epochs):
        raise _Beyond
    rest.take("type")
    yield from ("compress", rest.take("model"))
    yield from _data(rest)
    yield from _goals(rest, ("file_bytes", "params", "macs", "latency"))
    yield from _drops(rest)
    if epochs is not None:
        yield from _option("epochs", epochs)
    yield from _architecture(rest)
    yield from _options(rest, ("device", "latency_device"))
    yield from _common(rest)
    rest.done()


def _epochs(steps: list[dict[str, Any]]) -> Iterator[int]:
    """Of each training of the steps, where they are said."""
    for step in steps:
        [fields] = step.values()
        for training in (fields.get("retrain"), fields.get("train")):
            if training and training.get("epochs"):
                yield training["epochs"]


def _chooses(whole: dict[str, Any], epochs: int | None) -> bool:
    """Whether the steps of a pipeline are those that would be chosen for its target."""
    choice = chosen_steps(
        Target.model_validate(whole["target"]),
        types=STEPS,
        with_data="dataset" in whole,
        outputs=whole.get("outputs") or (),
        epochs=epochs,
    )
    return checked(whole | {"steps": choice.steps}).model_dump() == checked(whole).model_dump()
