"""Owns what `pared doctor` finds out with the base install: Python, packages, cards, and the server that is asked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import httpx

from pared import gpus
from pared.client.reachability import look_at_server
from pared.version import __version__

CLOCK_S = 30.0
"""So far two clocks may be apart."""
_EXTRAS = ("service", "worker", "onnx", "text", "hf")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "note", "wrong"]
    """`note`: something is not there that not everybody needs."""
    detail: str
    cure: str | None = None
    """What to do, where it is not `ok`."""


def installed() -> Iterator[Check]:
    """Python and the packages of each extra."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    yield Check("pared", "ok", __version__)
    for extra in _EXTRAS:
        missing = _missing(extra)
        if not missing:
            yield Check(f"extra {extra}", "ok", "all packages are there")
        else:
            detail = f"not installed: {', '.join(missing)}"
            yield Check(f"extra {extra}", "note", detail, f"pip install 'pared[{extra}]', if you want it")


def cards() -> Iterator[Check]:
    """torch, and the NVIDIA GPUs that this process may see."""
    torch, visible = _version("torch"), gpus.visible()
    names = ", ".join(card.name for card in visible) or "none"
    if torch is None:
        yield Check("torch", "note", "not installed", "pip install 'pared[worker]', to compute on this machine")
    else:
        yield Check("torch", "ok", torch)
    if visible and torch is not None and ("+cpu" in torch or gpus.driver_version() is None):
        why = "torch's build is for the processor alone" if "+cpu" in torch else "the driver's version cannot be read"
        cure = "pip install torch, of the index for CUDA" if "+cpu" in torch else "install NVIDIA's driver again"
        yield Check("gpu", "wrong", f"{names}; {why}", cure)
    else:
        yield Check("gpu", "ok", f"{names} (driver {gpus.driver_version()})" if visible else names)


def server() -> Iterator[Check]:
    """The server that `PARED_URL` names, its version and clock, and what `PARED_API_KEY` may do there."""
    try:
        seen = look_at_server()
    except httpx.InvalidURL as error:
        yield Check("server", "wrong", str(error), "export PARED_URL=http://127.0.0.1:8000")
        return
    if seen.unreachable is not None:
        named = bool(os.environ.get("PARED_URL"))
        cure = "start it, or set PARED_URL to the address that it has" if named else "pared up, or set PARED_URL"
        yield Check("server", "wrong" if named else "note", seen.unreachable, cure)
        return
    if seen.not_ready is None:
        yield Check("server", "ok", f"{seen.url} answers")
    else:
        yield Check("server", "wrong", f"{seen.url}: {seen.not_ready}", "mend what it names, on the server's machine")
    if seen.version == __version__:
        yield Check("server version", "ok", seen.version)
    else:
        detail = f"{seen.version or 'not told'}, and here is {__version__}"
        cure = f"pip install pared=={seen.version}" if seen.version else "ask whoever runs the server"
        yield Check("server version", "wrong", detail, cure)
    if seen.refused is not None:
        yield Check("key", "wrong", seen.refused, "export PARED_API_KEY=pared_…")
    else:
        what = "PARED_API_KEY" if os.environ.get("PARED_API_KEY") else "no key is needed;"
        yield Check("key", "ok", f"{what} may {', '.join(seen.scopes or [])}")
    if seen.clock_ahead_s is not None:
        apart = abs(seen.clock_ahead_s)
        if apart <= CLOCK_S:
            yield Check("clock", "ok", f"within {CLOCK_S:g} s of the server's")
        else:
            side = "behind" if seen.clock_ahead_s > 0 else "before"
            detail = f"this machine's is {apart:.0f} s {side} the server's"
            yield Check("clock", "wrong", detail, "timedatectl set-ntp true, where the clock is wrong")


def _missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed; those of extras that it names are their own."""
    try:
        wanted = metadata.requires("pared") or []
    except metadata.PackageNotFoundError:  # from a checkout that was never installed
        return []
    of_extra = re.compile(rf"""extra\s*==\s*["']{extra}["']""")
    names = (re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in wanted if of_extra.search(each))
    return [name for name in names if name != "pared" and _version(name) is None]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
