"""The bases of every spec: frozen, with no unknown field, and refusing what would have no effect."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pared.specs.uploads import check_text

Device = Literal["auto", "cpu", "cuda"]


class Spec(BaseModel):
    """Base of every spec: frozen, and a field it does not know is an error, not a silent no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Refuse a class with text of which nothing says whether it names an upload."""
        check_text(cls)

    def _must_be_left_out(self, advice: dict[str, str]) -> None:
        """Refuse these fields (name -> why, and what to do), which can have no effect beside the others.

        At null or its default a field may stay: a stored spec names every field, and whoever posts it again asked for
        nothing.
        """
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in advice}
        idle = {name: why for name, why in advice.items() if getattr(self, name) not in (None, defaults[name])}
        if idle:
            self._refuse(idle)

    def _refuse(self, advice: dict[str, str]) -> NoReturn:
        """Refuse these fields (name, or path such as `terms/0` -> what is wrong, and what to do), given or left out."""
        paths = {path: [int(part) if part.isdecimal() else part for part in path.split("/")] for path in advice}
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("advice", "{why}", {"why": why}),
                loc=tuple(paths[path]),
                input=getattr(self, str(paths[path][0])),
            )
            for path, why in advice.items()
        ]
        raise ValidationError.from_exception_data(type(self).__name__, errors)


class JobSpec(Spec):
    """Base of the spec of each type of job. It has a field `type`, a literal: the name of its entry in `job_types`."""

    @property
    def needs_device(self) -> Device:
        """What a worker must have to take the job; `auto`: any worker will do."""
        return "auto"

    @property
    def trains(self) -> bool:
        """Whether the job trains a model."""
        return False

    @property
    def device_field(self) -> str:
        """The field that asks for this device."""
        return "device"
