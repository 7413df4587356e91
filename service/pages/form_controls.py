"""Owns the controls of a form that follow a spec: made from its schema, and how their texts become values and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from pared.specs import BUILTIN_DATASETS, Spec
from service import untrusted_json
from service.pages.words import with_code

Kind = Literal["number", "share", "choice", "flag", "several", "lines", "numbers", "pairs", "json", "upload", "given"]
"""`share`: a number with a slider; `several`: boxes to tick; `lines`: a text a line; `pairs`: `name=number` a line;
`given`: whether there is an object whose fields other controls say."""

_LABELS = {
    "lr": "Learning rate",
    "lr_schedule": "Learning rate over time",
    "warmup": "Warm-up",
    "n_m": "n of m",
    "macs": "Multiply-adds",
    "params": "Parameters",
    "file_bytes": "File bytes",
    "max_quality_drop": "Most quality that may be lost",
    "max_accuracy_drop": "Most accuracy that may be lost",
    "dataset": "Data set",
    "onnx_opset": "ONNX opset",
    "time_limit_s": "Time limit in seconds",
    "amounts": "Amounts by layer",
    "outputs": "Formats",
    "dynamic": "Free sizes",
    "output": "Output with the labels",
    "teach": "Learn from the upload's answers",
    "compare_with_labels_only": "Compare with labels only",
    "std": "Standard deviation",
    "target": "Goal",
}
_SHARES = {"amount", "params", "macs", "file_bytes", "latency", "width", "depth", "max_quality_drop"}
_WORD = re.compile(r"[A-Za-z_][\w.\- /]*")
_SLIDER_ENDS = {"max_quality_drop": 0.2}
_MOST_TEXT = 20_000


@dataclass(frozen=True)
class Control:
    """One control of a form."""

    path: tuple[str, ...]
    """Where its value stands in the spec."""
    kind: Kind
    label: str
    help: str
    options: tuple[tuple[str, str], ...] = ()
    """Of choices: value and words."""
    minimum: float | None = None
    maximum: float | None = None
    whole: bool = False
    placeholder: str = ""
    suffix: str = ""
    """What tells it from another control of the same field."""
    required: bool = False

    @property
    def name(self) -> str:
        """Its name in the form."""
        return ".".join(self.path) + self.suffix

    @property
    def id(self) -> str:
        """Its id in the page."""
        return "f-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower())

    @property
    def slider_end(self) -> float:
        """Where the slider of a share ends; there nothing is asked for."""
        return _SLIDER_ENDS.get(self.path[-1], 1.0)

    @property
    def first_sentence(self) -> Markup:
        """Of what is said of it."""
        return with_code(_split(self.help)[0])

    @property
    def other_sentences(self) -> Markup:
        """The rest of it."""
        return with_code(_split(self.help)[1])

    def value_of(self, texts: Sequence[str]) -> Any:
        """What was typed or chosen, as JSON; None: nothing. Raises ValueError: the message says what is wrong."""
        texts = [text.strip() for text in texts]
        if self.kind == "several":
            return [text for text in texts if text] or None
        text = texts[-1] if texts else ""
        if len(text) > _MOST_TEXT:
            raise ValueError(f"has more than {_MOST_TEXT:,} characters")
        return _READ[self.kind](text) if text else None

    def texts_of(self, value: Any) -> list[str] | None:
        """What stands in the control for a value; None: it cannot show such a value."""
        try:
            texts = [str(each) for each in value] if self.kind == "several" else [_WRITE[self.kind](value)]
            shown = self.kind not in ("choice", "upload", "several") or all(
                self.kind == "upload" or text in dict(self.options) for text in texts
            )
            ordered = self.kind != "several" or texts == [each for each, _ in self.options if each in texts]
            return texts if shown and ordered and same(self.value_of(texts), value) else None
        except (ValueError, TypeError, AttributeError):
            return None


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is neither true nor "1"."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def controls_of(spec: type[Spec], within: tuple[str, ...] = (), *, nested: Sequence[str] = ()) -> list[Control]:
    """A control for each field of a spec.

    Args:
        within: where the spec stands in that of the job.
        nested: the fields whose own fields get controls; other objects are written as JSON.
    """
    schema = spec.model_json_schema()
    return list(_controls(schema, schema.get("$defs", {}), within, set(nested)))


def _controls(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...], nested: set[str]
) -> Iterator[Control]:
    for name, field in schema["properties"].items():
        path = (*within, name)
        if "const" in field:  # such as `type`
            continue
        alternatives = [_resolved(each, definitions) for each in field.get("anyOf", [field])]
        kinds = [each for each in alternatives if each.get("type") != "null"]
        optional = len(kinds) < len(alternatives)
        described = str(field.get("description") or (kinds[0].get("description") or "" if len(kinds) == 1 else ""))
        if ".".join(path) in nested:
            if optional and name == "retrain":  # of which none, and one with nothing said, are two things
                yield _given(path, described, by_itself="default" not in field)
            yield from _controls(kinds[0], definitions, path, nested)
        else:
            required = name in schema.get("required", [])
            yield _control(path, kinds, field, described, required=required)


def _resolved(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _given(path: tuple[str, ...], described: str, *, by_itself: bool) -> Control:
    """Args: by_itself: whether the object is there where nothing is said of it."""
    options = (("", "as usual"), ("null", "none")) if by_itself else (("", "no"), ("{}", "yes"))
    return Control(path, "given", label_of(path[-1]), described, options)


def _control(
    path: tuple[str, ...],
    kinds: Sequence[Mapping[str, Any]],
    field: Mapping[str, Any],
    described: str,
    *,
    required: bool,
) -> Control:
    name, label, one = path[-1], label_of(path[-1]), kinds[0]
    default = field.get("default")
    only = one if len(kinds) == 1 else {}
    if only.get("pattern", "").startswith("^mdl_") or name == "dataset":
        return Control(path, "upload", label, described, required=required)
    if "enum" in only:
        usual = "as usual" if default is None else f"as usual: {default}"
        options = (("", usual), *((str(each), str(each)) for each in only["enum"]))
        return Control(path, "choice", label, described, options)
    if only.get("type") == "boolean":
        usual = "as usual" if default is None else f"as usual: {'yes' if default else 'no'}"
        return Control(path, "flag", label, described, (("", usual), ("true", "yes"), ("false", "no")))
    placeholder = _written(default) if default is not None else ""
    if only.get("type") in ("integer", "number"):
        kind: Kind = "share" if name in _SHARES else "number"
        least = only.get("minimum", only.get("exclusiveMinimum"))
        most = only.get("maximum", only.get("exclusiveMaximum"))
        whole = only["type"] == "integer"
        if whole and "exclusiveMaximum" in only:
            most = only["exclusiveMaximum"] - 1
        hint = placeholder or ("any" if kind == "share" else "")
        return Control(path, kind, label, described, (), least, most, whole, hint)
    example = f"such as {_written(field['examples'][0])}" if field.get("examples") else ""
    if only.get("type") == "array" and "enum" in only.get("items", {}):
        return Control(path, "several", label, described, tuple((each, each) for each in only["items"]["enum"]))
    simple = _simple_kind(only)
    if simple is not None:
        shown = (field.get("examples") or [None])[0] if default is None else default
        texts = None if shown is None else Control(path, simple, "", "").texts_of(shown)
        return Control(path, simple, label, described, placeholder=texts[0] if texts else "")
    return Control(path, "json", label, described, placeholder=example or placeholder, required=required)


def _simple_kind(field: Mapping[str, Any]) -> Kind | None:
    """What a list or an object of plain values is written as."""
    items = field.get("prefixItems") or [field.get("items", {})]
    if field.get("type") == "array" and all(each.get("type") in ("integer", "number") for each in items):
        return "numbers"
    if field.get("type") == "array" and all(each.get("type") == "string" for each in items):
        return "lines"
    inner = field.get("additionalProperties")
    return "pairs" if isinstance(inner, Mapping) and inner.get("type") == "number" else None


def label_of(name: str) -> str:
    """The words for a field."""
    words = _LABELS.get(name) or name.replace("_", " ")
    return words[0].upper() + words[1:]


def _split(text: str) -> tuple[str, str]:
    """The beginning of a long text, up to the end of a sentence, and the rest."""
    if len(text) <= 170:
        return text, ""
    end = text.find(". ", 60)
    return (text, "") if end < 0 else (text[: end + 1], text[end + 2 :])


# -- texts to values --------------------------------------------------------------------------------


def _number(text: str) -> Any:
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?", text, re.ASCII) or len(text) > 300:
        raise ValueError("must be a number, such as 0.5")
    return int(text) if re.fullmatch(r"[-+]?\d+", text, re.ASCII) else float(text)


def _json(text: str) -> Any:
    try:
        return untrusted_json.parse(text)
    except ValueError as error:
        if _WORD.fullmatch(text):
            return text
        raise ValueError(f"is not JSON: {error}") from None


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be yes or no")
    return text == "true"


def _given_value(text: str) -> Any:
    if text not in ("null", "{}"):
        raise ValueError("must be one of what can be chosen")
    return text


def _pairs(text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, number = line.rpartition("=")
        if not equals:
            raise ValueError("must be lines such as conv*=0.3")
        if name in pairs:
            raise ValueError(f"has two lines for {name[:64]}")
        pairs[name] = _number(number.strip())
    return pairs


def _upload(text: str) -> str:
    if text not in BUILTIN_DATASETS and not re.fullmatch(r"(mdl|dst)_[0-9A-Za-z]{26}", text):
        raise ValueError("must be one of your uploads")
    return text


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) and _json(value) == value else _written(value)


_READ: Mapping[str, Callable[[str], Any]] = {
    "number": _number,
    "share": _number,
    "choice": str,
    "flag": _flag,
    "lines": lambda text: [line.strip() for line in text.splitlines() if line.strip()],
    "numbers": lambda text: [_number(part.strip()) for part in text.split(",")],
    "pairs": _pairs,
    "json": _json,
    "upload": _upload,
    "given": _given_value,
}
_WRITE: Mapping[str, Callable[[Any], str]] = {
    "number": _written,
    "share": _written,
    "choice": str,
    "flag": _written,
    "lines": "\n".join,
    "numbers": lambda value: ", ".join(map(_written, value)),
    "pairs": lambda value: "\n".join(f"{name}={_written(number)}" for name, number in value.items()),
    "json": _as_json,
    "upload": str,
    "given": str,
}
