"""Finds the NVIDIA GPUs that a process may see, by the driver's files; it does not test whether they work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia")
DEVICE_FILES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One card."""

    token: str
    """What `CUDA_VISIBLE_DEVICES` calls it: a UUID where the driver tells one, which no order of cards changes."""
    name: str
    uuid: str | None = None
    number: int | None = None
    """N of its file /dev/nvidiaN."""


def visible(
    environment: Mapping[str, str] = os.environ, driver: Path = DRIVER, device_files: Path = DEVICE_FILES
) -> list[Gpu]:
    """The cards that this process may see, in the order that CUDA gives them.

    Args:
        environment: what `CUDA_VISIBLE_DEVICES` leaves of them is taken from.
        driver, device_files: where the kernel lists them.
    """
    cards = installed(driver, device_files)
    if VISIBLE not in environment:
        return cards
    chosen: list[Gpu] = []
    for token in map(str.strip, environment[VISIBLE].split(",")):
        gpu = _named(token, cards)
        if gpu is None or gpu in chosen:
            break  # CUDA too passes over all that comes after a name that it does not know
        chosen.append(gpu)
    return chosen


def installed(driver: Path = DRIVER, device_files: Path = DEVICE_FILES) -> list[Gpu]:
    """The cards of this machine (or of this container), by their place on the bus."""
    names = (path.name.removeprefix("nvidia") for path in device_files.glob("nvidia*"))
    numbers = sorted(int(name) for name in names if name.isdecimal())
    listed = [_information(path) for path in sorted(driver.glob("gpus/*/information"))]
    if listed:
        cards = [_gpu(index, information) for index, information in enumerate(listed)]
        # A container may see the list of the whole machine, and the files of its own cards alone.
        return [card for card in cards if not numbers or card.number is None or card.number in numbers]
    return [Gpu(str(index), f"GPU {index}", number=number) for index, number in enumerate(numbers)]


def device_files(card: int | None = None, folder: Path = DEVICE_FILES) -> list[Path]:
    """The device files of this machine's GPUs, or of this one alone with those that all of them share."""
    files = sorted(folder.glob("nvidia*"))
    others = {path for path in files if path.name.removeprefix("nvidia").isdecimal() and path.name != f"nvidia{card}"}
    return files if card is None else [path for path in files if path not in others]


def driver_version(driver: Path = DRIVER) -> str | None:
    """The version of the NVIDIA driver, such as 580.95.05; None where it cannot be read."""
    try:
        words = (driver / "version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdecimal() and "." in word), None)


def _information(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _gpu(index: int, information: Mapping[str, str]) -> Gpu:
    uuid = information.get("GPU UUID", "")
    uuid = "" if "?" in uuid else uuid  # nobody has used the card yet
    number = information.get("Device Minor", "")
    return Gpu(
        uuid or str(index),
        information.get("Model") or f"GPU {index}",
        uuid or None,
        int(number) if number.isdecimal() else None,
    )


def _named(token: str, cards: list[Gpu]) -> Gpu | None:
    """The card that a part of `CUDA_VISIBLE_DEVICES` names; None: none.

    A number counts in CUDA's own order, which need not be that of the bus: it stays as it was written, and which card
    it means is told by whoever tries it.
    """
    if token.isdecimal():
        known = cards[int(token)].name if int(token) < len(cards) else None
        return None if known is None else Gpu(token, known)
    if token.startswith("MIG-"):
        return Gpu(token, "a MIG device")
    matches = [card for card in cards if card.uuid is not None and token and card.uuid.startswith(token)]
    return Gpu(token, matches[0].name, matches[0].uuid, matches[0].number) if len(matches) == 1 else None
