"""What a row of the table of files says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HeldFile:
    """A model file, or a folder, as somebody has it on disk, and what pared makes of it.

    Attributes:
        name: form, framework's habit, precision and wrapping in a few words, such as "Lightning checkpoint, bfloat16".
        write: writes it into an empty folder and returns its path (a file, or a folder that is uploaded as a zip).
        upload: what is posted beside it, such as `architecture`.
        spec: fields of the prune job. `model` is filled in. Few steps, tiny models: the whole table takes two minutes.
        refused: None: the job succeeds and a clean process loads every result. Else words of the reason for which the
            upload or the job is refused; the reason also says what to do next.
        check: raises AssertionError where the results, by artifact name, are not what they should be.
    """

    name: str
    write: Callable[[Path], Path]
    upload: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=lambda: {"amount": 0.5})
    refused: str | None = None
    check: Callable[[Mapping[str, Path]], None] | None = None
