"""Owns how JSON and Python literals are laid out in lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_WIDTH = 72


def laid_out(value: Any, scalar: Callable[[Any], str], indent: int = 0) -> str:
    """JSON or a Python literal, whose long objects and lists have a line for each entry.

    Args:
        scalar: writes what is neither an object nor a list.
        indent: how far the line begins that the value stands in.
    """
    if isinstance(value, dict):
        parts = [f"{scalar(name)}: {laid_out(each, scalar, indent + 2)}" for name, each in value.items()]
        begin, end = "{", "}"
    elif isinstance(value, list):
        parts, begin, end = [laid_out(each, scalar, indent + 2) for each in value], "[", "]"
    else:
        return scalar(value)
    flat = f"{begin}{', '.join(parts)}{end}"
    if len(flat) + indent <= _WIDTH and "\n" not in flat:
        return flat
    pad = "\n" + " " * (indent + 2)
    return f"{begin}{pad}{f',{pad}'.join(parts)}\n{' ' * indent}{end}"
