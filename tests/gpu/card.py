"""The card that the tests run on, as nvidia-smi sees it, and the lines that say what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest

DEVICE = os.environ.get("PARED_TEST_DEVICE", "cuda")
"""Where jobs are asked to run. `cpu` tries the tests themselves on a machine without a card."""

needs_card = pytest.mark.skipif(DEVICE != "cuda", reason="looks at the card itself")

_BEGAN = time.monotonic()


@dataclass(frozen=True)
class Card:
    """One GPU. Memory in MiB."""

    name: str
    driver: str
    memory: int
    used: int


def card() -> Card:
    """The first card, as it is now.

    Raises:
        OSError: there is no nvidia-smi.
    """
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,memory.used",
        "--format=csv,noheader,nounits",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    name, driver, memory, used = (field.strip() for field in said.splitlines()[0].split(","))
    return Card(name, driver, int(memory), int(used))


def say(**fields: Any) -> None:
    """Print one JSON line, at once."""
    line = json.dumps({"t": round(time.monotonic() - _BEGAN, 1), **fields}, default=str)
    sys.stdout.write(f"\n{line}\n")  # what pytest prints before it has no end of line
    sys.stdout.flush()
