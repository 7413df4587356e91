"""What every reader of a data set hands on: arrays as they are stored, by split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pared.compression.data.samples import Split

Array = np.ndarray[Any, Any]

MAX_ELEMENTS = 1 << 30
"""Most numbers in all arrays together: 4 GiB as float32."""

FORMATS = (
    "pared reads .npz and .safetensors (arrays x and y, or x_train, y_train, x_test, y_test), .csv, and .zip with a "
    "folder of images for each class."
)


@dataclass
class Stored:
    """What a file holds, before any check of the numbers. At least `train` is there."""

    format: str
    inputs: dict[Split, list[Array]]
    targets: dict[Split, Array]
    class_names: list[str] | None = None
    """Where targets are indices of classes that have names."""
    notes: list[str] = field(default_factory=list)
