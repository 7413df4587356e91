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


def _is_path(value: str) -> bool:
    """Whether a value is no id yet, as in a file that a command reads: then the field says what it is of."""
    return not value.startswith(("mdl_", "dst_", *BUILTIN_DATASETS))


def references(spec: type[BaseModel], values: Mapping[str, Any]) -> list[Reference]:
    """Every upload and built-in data set that a spec names, in the order of its fields.

    Args:
        spec: the spec's class, whose fields say which text names uploads.
        values: the spec as JSON.
    """
    return list(dict.fromkeys(_in_model(spec, values, "")))


def upload_fields(spec: type[BaseModel]) -> list[tuple[str, UploadKind | None]]:
    """(role, kind) of each field that names uploads, also in the specs within a spec; None: it may name either kind.

    The role is that of a `Reference`, less numbers and keys.
    """
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


def _models(annotation: Any, *, one_of_many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The specs in a type, and whether each is one entry of a list or dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, one_of_many
    many = one_of_many or get_origin(annotation) in (dict, Mapping, list, tuple, set)
    for part in get_args(annotation):
        yield from _models(part, one_of_many=many)


def _fields(spec: type[BaseModel], within: tuple[type[BaseModel], ...]) -> Iterator[tuple[str, UploadKind | None]]:
    for name, field in spec.model_fields.items():
        kinds = {names.kind for names in _text(_annotation(field), None) if names is not None and names.kind}
        if kinds:
            yield name, kinds.pop() if len(kinds) == 1 else None
        found = [
            (f"{name}.{role}" if one_of_many else role, kind)
            for inner, one_of_many in _models(field.annotation)
            if inner not in within
            for role, kind in _fields(inner, (*within, spec))
        ]
        yield from dict.fromkeys(found) if get_origin(field.annotation) in (Union, UnionType) else found  # one of them


def _in_model(
    spec: type[BaseModel], values: Mapping[str, Any], pointer: str, one_of: str | None = None
) -> Iterator[Reference]:
    """Args: one_of: the role so far, where these values are within one entry of a list or dict."""
    for name, field in spec.model_fields.items():
        if name in values:
            role = name if one_of is None else f"{one_of}.{name}"
            yield from _in_value(
                _annotation(field), None, values[name], f"{pointer}/{name}", role, one=one_of is not None
            )


def _in_value(
    annotation: Any, names: Names | None, value: Any, pointer: str, role: str, *, one: bool = False
) -> Iterator[Reference]:
    """Args: one: whether the value is, or is within, one entry of a list or dict, which the role then tells."""
    if value is None or isinstance(value, int | float):
        return
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        names = next((each for each in metadata if isinstance(each, Names)), names)
        yield from _in_value(inner, names, value, pointer, role, one=one)
    elif annotation is str and names is not None and names.kind is not None and isinstance(value, str):
        yield Reference(pointer, role, names.kind if _is_path(value) else kind_of(value), value)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, Mapping):
            yield from _in_model(annotation, value, pointer, role if one else None)
    elif origin in (dict, Mapping):
        for key, item in value.items() if isinstance(value, Mapping) else ():
            yield from _in_value(_parts(annotation)[0], names, item, f"{pointer}/{key}", f"{role}.{key}", one=True)
    elif origin in (list, tuple, set):
        for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
            for part in _parts(annotation):
                yield from _in_value(part, names, item, f"{pointer}/{index}", f"{role}.{index}", one=True)
    elif origin is not Literal:
        for part in _parts(annotation):
            yield from _in_value(part, names, value, pointer, role, one=one)
