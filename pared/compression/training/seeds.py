"""Seeds for each use of randomness."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A seed of its own for each use, so that one use more or less shifts no other."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
