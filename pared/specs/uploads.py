"""Which text in a spec names an upload: the types of such fields, and how the uploads that a spec names are found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field
from pydantic.fields import FieldInfo

UploadKind = Literal["model", "dataset"]

BUILTIN_DATASETS = ("builtin:digits",)


@dataclass(frozen=True)
class Names:
    """Says of text in a spec what it names: an upload of this kind, or none."""

    kind: UploadKind | None


Text = Annotated[str, Names(None)]
"""Text that names no upload. Specs have no field that is a plain `str`: see `check_text`."""
Json = Annotated[Any, Names(None)]
"""A value that the spec leaves open, and that names no upload."""

EXAMPLE_MODEL_ID = "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
EXAMPLE_DATASET_ID = "dst_01K9Q5W1E5N7P9R2T4V6X8Z0A1"
ModelId = Annotated[str, Field(pattern=r"^mdl_[0-9A-Za-z]{26}$", examples=[EXAMPLE_MODEL_ID]), Names("model")]


def _dataset_reference(value: str) -> str:
    if value in BUILTIN_DATASETS or re.fullmatch(r"dst_[0-9A-Za-z]{26}", value):
        return value
    raise ValueError(f"must be the id of an uploaded data set (dst_…) or one of {', '.join(BUILTIN_DATASETS)}")


DatasetReference = Annotated[str, AfterValidator(_dataset_reference), Names("dataset")]


@dataclass(frozen=True)
class Reference:
    """One upload, or built-in data set, that a spec names."""

    pointer: str
    """JSON pointer to it in the spec."""
    role: str
    """How the method finds the file: by the name of the field, with a number where it is one of a list, and with the
    list's name where it is a field of what is in a list (`steps.1.distill.student`)."""
    kind: UploadKind
    id: str

    @property
    def is_upload(self) -> bool:
        """False: it is part of pared."""
        return self.id not in BUILTIN_DATASETS


def kind_of(upload_id: str) -> UploadKind:
    """What an id is of."""
    return "model" if upload_id.startswith("mdl_") else "dataset"


def references(spec: type[BaseModel], values: Mapping[str, Any]) -> list[Reference]:
    """Every upload and built-in data set that a spec names, in the order of its fields.

    Args:
        spec: the spec's class, whose fields say which text names uploads.
        values: the spec as JSON.
    """
    return list(dict.fromkeys(_in_model(spec, values, "")))


def upload_fields(spec: type[BaseModel]) -> list[tuple[str, UploadKind | None]]:
    """(role, kind) of each field that names uploads, also in the specs within a spec; None: it may name either kind."""
    return list(_fields(spec, ()))


def check_text(spec: type[BaseModel]) -> None:
    """Refuse a spec class with text of which nothing says whether it names an upload.

    An upload that a job names without anybody knowing would be deleted while the job needs it, and missing where the
    job runs.

    Raises:
        TypeError: a field is plain `str` or `Any`, or may hold both an upload's id and other text.
    """
    for name, field in spec.model_fields.items():
        named = set(_text(_annotation(field), None))
        if None in named:
            raise TypeError(
                f"{spec.__name__}.{name}: say what this text names. `ModelId` and `DatasetReference` of "
                "`pared.specs` are for uploads, `Text` (or `Json`, for any value) is for what names none."
            )
        if Names(None) in named and len(named) > 1:
            raise TypeError(f"{spec.__name__}.{name} may be the id of an upload or other text: make it two fields.")


def _annotation(field: FieldInfo) -> Any:
    """The field's type as it was written; pydantic keeps what stood outermost apart."""
    names = next((each for each in field.metadata if isinstance(each, Names)), None)
    return field.annotation if names is None else Annotated[field.annotation, names]


def _text(annotation: Any, names: Names | None) -> Iterator[Names | None]:
    """What each text in a type names; None: nothing says it. Keys name nothing, and a spec checks its own fields."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _text(inner, next((each for each in metadata if isinstance(each, Names)), names))
    elif annotation in (Any, object) or (isinstance(annotation, type) and issubclass(annotation, _CAN_HOLD_TEXT)):
        yield names
    elif get_origin(annotation) is not Literal:
        for part in _parts(annotation):
            yield from _text(part, names)


_CAN_HOLD_TEXT = (str, bytes, dict, list, tuple, set)  # the last four where they do not say what is in them


def _parts(annotation: Any) -> Sequence[Any]:
    """The types of what a value of this type may be or hold."""
    parts = get_args(annotation)
    return parts[1:] if get_origin(annotation) in (dict, Mapping) else parts


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _fields(spec: type[BaseModel], within: tuple[type[BaseModel], ...]) -> Iterator[tuple[str, UploadKind | None]]:
    for name, field in spec.model_fields.items():
        kinds = {names.kind for names in _text(_annotation(field), None) if names is not None and names.kind}
        if kinds:
            yield name, kinds.pop() if len(kinds) == 1 else None
        inner = [each for each in _models(field.annotation) if each not in within]
        found = [each for model in inner for each in _fields(model, (*within, spec))]
        yield from dict.fromkeys(found) if get_origin(field.annotation) in (Union, UnionType) else found  # one of them


def _in_model(
    spec: type[BaseModel], values: Mapping[str, Any], pointer: str, one_of: str | None = None
) -> Iterator[Reference]:
    """Args: one_of: the role of the list or dict that these values are in, if they are in one."""
    for name, field in spec.model_fields.items():
        if name in values:
            role = name if one_of is None else f"{one_of}.{name}"
            yield from _in_value(_annotation(field), None, values[name], f"{pointer}/{name}", role)


def _in_value(annotation: Any, names: Names | None, value: Any, pointer: str, role: str) -> Iterator[Reference]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        names = next((each for each in metadata if isinstance(each, Names)), names)
        yield from _in_value(inner, names, value, pointer, role)
    elif annotation is str and names is not None and names.kind is not None and isinstance(value, str):
        yield Reference(pointer, role, kind_of(value), value)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, Mapping):
            yield from _in_model(annotation, value, pointer, role if "." in role else None)
    elif origin in (dict, Mapping):
        for key, item in value.items() if isinstance(value, Mapping) else ():
            yield from _in_value(_parts(annotation)[0], names, item, f"{pointer}/{key}", f"{role}.{key}")
    elif origin in (list, tuple, set):
        for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
            for part in _parts(annotation):
                yield from _in_value(part, names, item, f"{pointer}/{index}", f"{role}.{index}")
    elif origin is not Literal:
        for part in _parts(annotation):
            yield from _in_value(part, names, value, pointer, role)
