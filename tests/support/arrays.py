"""Arrays that a packed file must hold: every type, every coding, every edge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pared.weights.coding import BFLOAT16


def awkward() -> dict[str, NDArray[Any]]:
    """Small arrays that between them take every path of the format."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 50)).astype(np.float32)
    sparse = np.where(rng.random((300, 70)) < 0.01, rng.normal(size=(300, 70)), 0).astype(np.float32)
    half = np.where(rng.random(900) < 0.5, rng.normal(size=900), 0).astype(np.float16)
    codebook = np.array([-0.5, 0.25, 0.5, 1.0], np.float32)
    shared = np.where(rng.random((60, 90)) < 0.03, codebook[rng.integers(0, 4, (60, 90))], 0).astype(np.float32)
    strange = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 1], np.uint32).view(np.float32)
    return {
        "dense": weights,
        "by gaps": sparse,
        "by mask": half,
        "codebook by gaps": shared,
        "codebook of all": codebook[rng.integers(0, 4, 500)],
        "like dense": weights.copy(),
        "strange numbers": strange,
        "bfloat16": rng.integers(0, 1 << 16, 33).astype("<u2").view(BFLOAT16),
        "doubles": rng.normal(size=7),
        "flags": rng.random(19) < 0.5,
        "tokens": rng.integers(-5, 1 << 40, (3, 4)),
        "bytes": rng.integers(0, 256, 5).astype(np.uint8),
        "scalar": np.array(12345),
        "nothing": np.zeros((0, 3), np.float32),
        "all zero": np.zeros((5, 6), np.float32),
        "one far away": np.eye(1, 100_000, 99_999, dtype=np.float32),
        "not contiguous": weights.T[::2],
        "größe/…": np.ones(2, np.int8),
    }
