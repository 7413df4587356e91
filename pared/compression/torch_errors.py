"""What an error of torch says in short."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def telling_line(error: BaseException, *, words: Sequence[str] = (), most: int = 500) -> str:
    """The line of an error that says what went wrong: the first, or the last under a traceback of TorchScript's own.

    Args:
        words: a line that holds one of these is taken before any other.
        most: characters.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    named = next((line for line in lines if any(word in line for word in words)), None)
    last = isinstance(error, torch.jit.Error) or "TorchScript" in lines[0]
    return (named or lines[-1 if last else 0])[:most]
