"""What every reader of a data set hands on: samples as they are stored, by split."""

from __future__ import annotations

from dataclasses import dataclass, field

from pared.compression.data.columns import Rows
from pared.compression.data.samples import Split

MAX_ELEMENTS = 1 << 30
"""Most numbers of a table, which is read into memory."""

FORMATS = (
    "pared reads .npz and .safetensors (arrays x and y, or x_train, y_train, x_test, y_test), .csv, .jsonl, "
    ".parquet, and .zip with one of the last two and a tokenizer.json for texts, with a folder of images for each "
    "class, with images/ and masks/, or with images alone."
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
    padding: int | None = None
    """The id that rows of tokens are padded by. The inputs are then tokens, and how many of each row are no padding."""
    vocabulary: int | None = None
    """Where a tokenizer came with the texts: one more than its highest id."""
