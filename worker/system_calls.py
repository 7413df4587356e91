"""Owns calling the kernel where Python has no function for it."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int, third: int = 0) -> None:
    """Change something about this process. Raises OSError."""
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0):
        raise last_error("prctl")


def last_error(what: str) -> OSError:
    """The error that the last call into the C library left."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
