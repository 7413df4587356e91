"""Damaged copies of good files."""

from __future__ import annotations

import random


def mutant(original: bytes, rng: random.Random) -> bytes:
    """A copy that was cut off, has other bytes in some places, or another piece somewhere."""
    content = bytearray(original)
    match rng.randrange(4):
        case 0:
            del content[rng.randrange(len(content)) :]
        case 1:
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 2:
            start = rng.randrange(len(content))
            content[start : start + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        case _:
            start, length = rng.randrange(len(content)), rng.randint(1, 64)
            at = rng.randrange(len(content))
            content[at:at] = content[start : start + length]
    return bytes(content)
