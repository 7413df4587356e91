"""What every reader of a data set hands on: samples as they are stored, by split."""

from __future__ import annotations

from dataclasses import dataclass, field

from pared.compression.data.columns import Rows
from pared.compression.data.samples import Split

MAX_ELEMENTS = 1 << 30
"""Most numbers of a table, which is read into memory."""

FORMATS = (
    "pared reads .npz and .safetensors (arrays x and y, or x_train, y_train, x_test, y_test), .csv, and .zip with a "
    "folder of images for each class, with images/ and masks/, or with images alone."
)


@dataclass
class Stored:
    """What a file holds, before any check of the numbers. At least `train` is there."""

    format: str
    inputs: dict[Split, list[Rows]]
    targets: dict[Split, Rows]
    """Of the same splits; empty where the data set has no labels."""
    class_names: list[str] | None = None
    """Where targets are indices of classes that have names."""
    notes: list[str] = field(default_factory=list)
    names: list[str] | None = None
    """Of the inputs, where the file gives them other names than x."""
