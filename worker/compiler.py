"""Spares a child what it never uses: torch's optimizers import its compiler only to tell it to look away.

That import costs two seconds of processor time, more than all else that a small job does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch

_NAME = "torch._dynamo"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def leave_out() -> None:
    """Put a stand-in where torch looks for its compiler, unless that is there. The real one comes when it is used."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = torch._dynamo = _StandIn(_NAME)  # noqa: SLF001 - the import that is to be spared


class _StandIn(ModuleType):
    """Answers what code asks that is not being compiled; for all else it makes way for the real module."""

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Where nothing is compiled there is no graph to break."""

    @staticmethod
    def disable(fn: _Function, recursive: bool = True, *, wrapping: bool = True) -> _Function:  # noqa: ARG004
        """Where nothing is compiled it is off for every function."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            importlib.import_module(_NAME)
        return getattr(sys.modules[_NAME], name)
