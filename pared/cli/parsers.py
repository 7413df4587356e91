"""How what is typed after an option becomes a value, or an error that says what to write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

GOALS = ("params", "macs", "file_bytes", "latency")
STUDENT_GOALS = ("params", "macs", "latency")


def readable(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise typer.BadParameter(f"there is no file {text} that can be read")
    return path


def upload(text: str) -> str:
    """A file or an id; a missing file is told before another one is uploaded."""
    return text if text.startswith(("mdl_", "dst_", "builtin:")) else str(readable(text))


def model_upload(text: str) -> str:
    """As `upload`, or a Hugging Face model folder."""
    folder = Path(text)
    if text.startswith("mdl_") or not folder.is_dir():
        return upload(text)
    if not (folder / "config.json").is_file():
        raise typer.BadParameter(
            f"{text} is a folder without a config.json; name a file, or a folder that save_pretrained wrote"
        )
    return text


def share(text: str) -> float:
    """50% or 0.5."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a share; write 50% or 0.5") from None
    if not 0 < number < 1:
        raise typer.BadParameter(f"{text} is {100 * number:g} %, not between 0 and 100 %; write 50% or 0.5")
    return number


def architecture_of(text: str | None) -> Any:
    """A name, or the JSON in a file."""
    return json.loads(readable(text).read_text()) if text and text.endswith(".json") else text


def without_none(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def shares(text: str) -> list[float]:
    """Several of them, as in 90%,98%."""
    return [share(each) for each in text.split(",")]


def pair(between: str, example: str) -> Callable[[str], tuple[int, int]]:
    """A parser of two whole numbers with `between` between them."""

    def parse(text: str) -> tuple[int, int]:
        first, _, second = text.partition(between)
        try:
            return int(first), int(second)
        except ValueError:
            raise typer.BadParameter(f"{text} is not a pair of numbers; write {example}") from None

    return parse


def goal(text: str) -> tuple[str, float]:
    """A size and the share of it that may be left, as in params=25%."""
    name, _, left = text.partition("=")
    if name not in GOALS:
        raise typer.BadParameter(f"{text} is no goal; write one of {', '.join(f'{each}=25%' for each in GOALS)}")
    return name, share(left)


def drop(text: str) -> float:
    """1% or 0.01, and 0 for none. A whole number is taken for points that lack their sign, and refused."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{text} is not a loss of quality; write 1% or 0.01") from None
    if number < 0:
        raise typer.BadParameter(f"{text} is below 0; write how much may be lost, such as 1% or 0.01")
    if number >= 1 and not text.endswith("%"):
        raise typer.BadParameter(
            f"{text} is {100 * number:g} %, more than a model has to lose; write {text}% for {text} in a hundred"
        )
    return number


def student_goal(text: str) -> tuple[str, float]:
    """A size of a student and the share of the teacher's that it may have, as in params=25%."""
    name, _, left = text.partition("=")
    if name not in STUDENT_GOALS:
        raise typer.BadParameter(
            f"{text} is no size; write one of {', '.join(f'{each}=25%' for each in STUDENT_GOALS)}"
        )
    return name, share(left)


def layer_amount(text: str) -> tuple[str, float]:
    """A pattern of layer names and their amount, as in 'conv*=30%'."""
    pattern, _, amount = text.rpartition("=")
    if not pattern:
        raise typer.BadParameter(f"{text} names no layers; write 'conv*=30%'")
    return pattern, 0.0 if amount in ("0", "0%") else share(amount)


def _strengths(number: float) -> dict[str, Any]:
    return {"brightness": number, "contrast": number, "saturation": number}


# What the number of each change is.
_NUMBER_OF: dict[str, Callable[[float], dict[str, Any]]] = {
    "horizontal_flip": lambda p: {"p": p},
    "vertical_flip": lambda p: {"p": p},
    "crop": lambda padding: {"padding": padding},
    "resized_crop": lambda least: {"scale": [least, 1.0]},
    "color_jitter": _strengths,
    "erasing": lambda p: {"p": p},
    "mixup": lambda alpha: {"alpha": alpha},
    "cutmix": lambda alpha: {"alpha": alpha},
    "token_dropout": lambda p: {"p": p},
}


def change(text: str) -> tuple[str, dict[str, Any]]:
    """A random change of training samples, with its most important number or without, as in mixup=0.2."""
    name, given, number = text.partition("=")
    if name not in _NUMBER_OF:
        raise typer.BadParameter(f"{text} is no change of samples; write one of {', '.join(_NUMBER_OF)}")
    try:
        return name, _NUMBER_OF[name](float(number)) if given else {}
    except ValueError:
        raise typer.BadParameter(f"{number} is no number; write {name} or {name}=0.5") from None


def input_shape(text: str) -> dict[str, Any]:
    """The shape of an input, perhaps with its type, as in 1,16:int64; a value, as in =16000; or JSON as in the API."""
    if text.startswith("="):
        return {"value": _value(text[1:])}
    if text.startswith("{"):
        try:
            entry: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(
                f'{text} is not JSON ({error}); write {{"items": [{{"shape": [2, 1, 64]}}]}}'
            ) from None
        return entry
    shape, _, dtype = text.partition(":")
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        why = f"{text} is not a shape; write 1,3,32,32 (batch first), 1,16:int64, or =16000 for a value"
        raise typer.BadParameter(why) from None
    return {"shape": sizes, **({"dtype": dtype} if dtype else {})}


def _value(text: str) -> Any:
    """A number, a flag, a list of these or null, as JSON has them; else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def free_size(text: str) -> Any:
    """`auto`, or an input's dimension and what its size is called: x:2=height."""
    place, _, called = text.partition("=")
    name, _, dim = place.rpartition(":")
    if text != "auto" and not (name and dim.isdecimal() and called):
        raise typer.BadParameter(f"{text} is no free size; write x:2=height (input, dimension, name), or auto")
    return text if text == "auto" else (name, dim, called)


def class_weights(text: str) -> Any:
    """`balanced`, or a weight for each class: 1,5,2."""
    if text == "balanced":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither balanced nor a list of weights such as 1,5,2") from error
