"""Says what of a model folder a job must know to write such a folder again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelFolder:
    """The folder that a model was built from."""

    path: Path
    """The zip, which lies there for as long as the job runs."""
    config: dict[str, Any]
    """All settings, those that config.json leaves to transformers among them."""
    class_name: str
    """Of the transformers class that builds it."""
    options: dict[str, Any]
    """Further arguments of the class."""
    inputs: tuple[str, ...]
    hidden_only: bool
    """Whether of its outputs the last hidden state alone is the answer."""
    dropped: frozenset[str] = frozenset()
    """Layers that were removed whole, by their names in the upload, such as `encoder.layer.3`."""
