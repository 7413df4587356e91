"""The spec of the job that the API makes for each upload: look into it."""

from __future__ import annotations

from typing import Literal

from pared.specs.architectures import Architecture
from pared.specs.base import JobSpec
from pared.specs.uploads import DatasetReference, ModelId


class InspectSpec(JobSpec):
    """Open an upload in the sandbox and say what is in it. Made by the API itself on upload."""

    type: Literal["inspect"]
    subject: ModelId | DatasetReference
    architecture: Architecture | None = None
