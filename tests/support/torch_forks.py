"""Calls functions in forked processes: torch numbers the classes that a process compiles, and files hold these numbers.

A process that does not answer is ended, and another one asked: a fork of pytest's own process, which has threads, may
find a lock that one of them held. What hangs by itself hangs twice.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import torch

LIMIT_S = 240

_fresh = multiprocessing.get_context("forkserver")
_fresh.set_forkserver_preload(["pared.compression.library"])


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, or raises, in a fork of this process, which counts on from what was compiled here."""
    return _called(multiprocessing.get_context("fork"), function, args)


def in_a_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The same in a process that has compiled nothing yet. The function and its arguments are pickled."""
    return _called(_fresh, function, args)


def _called(context: BaseContext, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    answer = _asked(context, function, args) or _asked(context, function, args)
    assert answer, f"{function.__name__} does not end in a process of its own"
    outcome, value = answer
    if outcome == "raised":
        raise value
    return value


def _asked(context: BaseContext, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any] | None:
    """`returned` or `raised`, and what; None: nothing came in time."""
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(writing, function, args), daemon=True)  # type: ignore[attr-defined]
    process.start()
    writing.close()
    try:
        return reading.recv() if reading.poll(LIMIT_S) else None
    finally:
        process.kill()
        process.join()


def _answer(writing: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the threads of the process that was forked are not there
    try:
        writing.send(("returned", function(*args)))
    except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
        writing.send(("raised", error))
