"""How a spec says which architecture a state dict has, or a student is to have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pared.specs.base import Spec
from pared.specs.uploads import Json, Text


def tag_of(value: Any) -> str | None:
    """The tag of the alternative that a value is meant for, by its keys, so that only that one complains."""
    tags = {
        "from_teacher": "FromTeacher",
        "layers": "LayeredArchitecture",
        "name": "NamedArchitecture",
        "kwargs": "NamedArchitecture",
    }
    if isinstance(value, dict):
        return next((tag for key, tag in tags.items() if key in value), None)
    return type(value).__name__


class NamedArchitecture(Spec):
    """An architecture pared knows by name (`pared.compression.architectures.ARCHITECTURES`)."""

    name: Text = Field(min_length=1, max_length=64)
    kwargs: dict[str, Json] = Field(default_factory=dict)


class LayeredArchitecture(Spec):
    """Layers in order: `["Conv2d", {kwargs}]`, or with the name its weights have, `["Conv2d", {kwargs}, "conv1"]`.

    A short form for networks that are a chain of layers, residual blocks included. What it cannot say (recurrent
    layers, sums of embeddings, several inputs or outputs) is uploaded as a torch.export program (`.pt2`) instead.
    """

    layers: list[Json] = Field(
        min_length=1,
        max_length=1000,
        description="One input goes through all of them in order, and comes out as one output. For anything else "
        "upload a `.pt2`: torch.export.save(torch.export.export(model, args), path).",
    )


Named = Annotated[NamedArchitecture, Tag("NamedArchitecture")]
Layered = Annotated[LayeredArchitecture, Tag("LayeredArchitecture")]
Architecture = Annotated[
    Annotated[Text, Tag("str")] | Named | Layered,
    Discriminator(
        tag_of,
        custom_error_type="alternatives",
        custom_error_message='must be a name, {"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]
