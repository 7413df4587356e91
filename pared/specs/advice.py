"""What is wrong with a field of a spec, in a sentence that says what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import pydantic

from pared.wording import listed

MAX_ERRORS = 20
"""Bad fields that are told of one document."""
MAX_SUGGESTIONS = 5
"""Unknown fields of one document to which a known name is looked for; it takes a millisecond each."""
_NAME_CHARACTERS = 64
"""Of a name that somebody may have misspelt."""
_OTHER_NAMES = {
    "ratio": "amount",
    "pruning_ratio": "amount",
    "sparsity": "amount",
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "size": "file_bytes",
    "flops": "macs",
    "parameters": "params",
    "accuracy_drop": "max_quality_drop",
}
"""What other tools call a field, and how it is called here."""


def advised(
    errors: Sequence[Mapping[str, Any]], body: Any, model: type[pydantic.BaseModel] | None
) -> list[dict[str, str]]:
    """`{pointer, detail}` of the first bad fields.

    Args:
        errors: `pydantic.ValidationError.errors()`.
        body: the document that was validated; it tells field names from the tags that pydantic mixes in.
        model: its spec, to name bounds and near misses.
    """
    told: list[dict[str, str]] = []
    suggestions = 0
    for error in errors[:MAX_ERRORS]:
        pointer = _pointer(error["loc"], body, may_lack_it=error["type"] in ("missing", "advice"))
        if error["type"].startswith("union_tag_"):
            pointer += "/" + str(error["ctx"]["discriminator"]).strip("'")
        suggestions += error["type"] == "extra_forbidden"
        detail = advice_on(error, model if suggestions <= MAX_SUGGESTIONS else None)
        told.append({"pointer": pointer, "detail": detail})
    return told


def _pointer(location: Sequence[str | int], body: Any, *, may_lack_it: bool) -> str:
    """The JSON pointer of a pydantic location, without the union tags in it; the body may lack the field itself."""
    parts: list[str] = []
    here = body
    for index, step in enumerate(location):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and step in range(len(here)):
            here = here[int(step)]
        elif not (may_lack_it and index == len(location) - 1):
            continue
        parts.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)


def advice_on(error: Mapping[str, Any], model: type[pydantic.BaseModel] | None) -> str:
    """What to do about one of pydantic's errors."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _unknown_field(str(error["loc"][-1]), _model_at(error["loc"][:-1], model))
    if kind in {"greater_than", "less_than", "greater_than_equal", "less_than_equal", "finite_number"}:
        bounds = _bounds(_model_at(error["loc"][:-1], model), str(error["loc"][-1]))
        if bounds:
            share = _as_points if str(error["loc"][-1]).endswith("_drop") else _as_share
            return f"must be {bounds}{share(error.get('input'), bounds)}"
    if kind in {"float_parsing", "int_parsing"}:
        return f"must be a number{_as_share(error.get('input'))}"
    if kind == "literal_error" and (near := _near_choice(error, model)):
        return f"must be {context['expected']}; did you mean {near!r}?"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "must be an object"
    if kind == "union_tag_invalid":
        return f"must be one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "is required"
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^mdl_"):
        return "must be the id of an uploaded model (mdl_ and 26 letters and digits)"
    if kind == "string_pattern_mismatch" and error["loc"][-1] == "after":
        return "must be the next_cursor of the page before"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    text = re.sub(r"^(Value error, |Input )?should ", "must ", re.sub(r"^Input should ", "must ", error["msg"]))
    return text[0].lower() + text[1:]


def _unknown_field(name: str, model: type[pydantic.BaseModel] | None) -> str:
    if model is None:
        return "is not a known field"
    name = name[:_NAME_CHARACTERS]
    meant = _OTHER_NAMES.get(name, name)
    if meant in model.model_fields:
        return f"is not a known field; did you mean {meant}?"
    if holders := [field for field in model.model_fields if meant in _fields_in(model, field)]:
        known = "is not a known field here, but" if meant == name else f"is called {meant}, and is a field"
        return f'{known} of {listed(holders, "or")}: {{"{holders[-1]}": {{"{meant}": …}}}}'
    if close := difflib.get_close_matches(name, model.model_fields, n=1):
        return f"is not a known field; did you mean {close[0]}?"
    return f"is not a known field; there are {', '.join(_own_first(model))}"


def _fields_in(model: type[pydantic.BaseModel], field: str) -> Iterator[str]:
    """The names of the fields of the object that a field holds."""
    for part in _models_in(model.model_fields[field].annotation):
        yield from part.model_fields


def _own_first(model: type[pydantic.BaseModel]) -> list[str]:
    """Its fields, first those that no base of it has."""
    shared = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", ())}
    return sorted(model.model_fields, key=shared.__contains__)


def _as_share(given: Any, bounds: str = "below 1") -> str:
    """How a percentage is written, where one was given for a share: `; 40 % is 0.4`."""
    number = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*(%?)\s*", str(given))
    if number is None or not bounds.endswith(("below 1", "at most 1")):
        return ""
    percent = float(number[1])
    if (not number[2] and (isinstance(given, str) or percent < 2)) or not 0 < percent <= 100:
        return ""
    return f"; {percent:g} % is {percent / 100:g}"


def _as_points(given: Any, bounds: str) -> str:
    """How points in a hundred are written, where their number was given for a share: `; 1 point is 0.01`."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 1 <= given <= 100:
        return _as_share(given, bounds)
    return f"; {given:g} {'point is' if given == 1 else 'points are'} {given / 100:g}"


def _near_choice(error: Mapping[str, Any], model: type[pydantic.BaseModel] | None) -> str | None:
    """The choice that differs from what was given in capitals, or by little."""
    given = error.get("input")
    holder = _model_at(error["loc"][:-1], model)
    field = holder.model_fields.get(str(error["loc"][-1])) if holder else None
    if not isinstance(given, str) or field is None:
        return None
    choices = [choice for choice in _choices_in(field.annotation) if isinstance(choice, str)]
    name = given[:_NAME_CHARACTERS].lower()
    starting = [choice for choice in choices if len(name) >= 3 and choice.startswith(name)]
    near = starting or difflib.get_close_matches(name, choices, n=1)
    return near[0] if near else None


def _choices_in(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for part in get_args(annotation):
        yield from _choices_in(part)


def _model_at(location: Sequence[str | int], model: type[pydantic.BaseModel] | None) -> type[pydantic.BaseModel] | None:
    """The spec class that a location lies in, starting from the job's."""
    inner: dict[str, type[pydantic.BaseModel]] = {}
    for step in location:
        if step in inner:
            model = inner[str(step)]  # the tag of a union's member is its name
        elif model and step in model.model_fields:
            inner = {part.__name__: part for part in _models_in(model.model_fields[str(step)].annotation)}
            model = next(iter(inner.values())) if len(inner) == 1 else None
    return model


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _bounds(model: type[pydantic.BaseModel] | None, name: str) -> str | None:
    field = model.model_fields.get(name) if model else None
    if field is None:
        return None
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    parts = [
        f"{word} {_number(getattr(rule, attribute))}"
        for rule in field.metadata
        for attribute, word in words.items()
        if getattr(rule, attribute, None) is not None
    ]
    return " and ".join(parts) or None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
