"""Owns what a child and its parent agree on: its messages, one JSON object a line, and where teachers' answers lie.

Nothing in a message is trusted. The child runs whatever the upload holds, so the parent takes each line as if its
author were hostile: bounded in length and number, checked field by field, cleaned of what a database cannot hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pared import statuses

ANSWERS_GIVEN = "in/teacher-answers"
"""Where a child finds what an earlier job kept of a teacher's answers, in its scratch folder."""
ANSWERS_MADE = "tmp/teacher-answers"
"""Where it leaves what is to be kept."""
RANK_LOST = 75
"""Exit status of a process that trained along with another one, which has ended."""
MAX_LINE_BYTES = 16 * 2**20
"""A report names each removed channel of each tensor; nothing else comes near."""
MAX_SHORT_LINE_BYTES = 64 * 2**10
"""Of all messages but a report."""
MAX_LINES = 2_000_000
MAX_TEXT = 2000
MAX_VALUES = 2_000_000
"""In one message: numbers, mostly."""
MAX_CONTAINERS = 200_000
"""In one message: lists and objects, each of which takes many times the memory that its two bytes do."""
MAX_DEPTH = 32
MAX_STRING = 100_000
"""Characters of one text in a report."""


class Malformed(Exception):
    """The child sent something that no child of ours sends."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_Name = Annotated[str, Field(min_length=1, max_length=100)]


class Confined(_Message):
    """The restrictions hold; from here on the upload may be opened."""

    type: Literal["confined"]


class Stage(_Message):
    """A stage of the job begins."""

    type: Literal["stage"]
    name: statuses.Stage


class Progress(_Message):
    """The progress of the whole job."""

    type: Literal["progress"]
    fraction: float = Field(ge=0, le=1)
    epoch: _Count | None = None
    epochs: _Count | None = None


class Metric(_Message):
    """One point of a curve; `value` is None where the model gave no finite number."""

    type: Literal["metric"]
    name: _Name
    value: float | None
    step: _Count
    phase: _Name


class Log(_Message):
    """A line for whoever follows the job."""

    type: Literal["log"]
    text: str = Field(max_length=MAX_TEXT)


class Checkpoint(_Message):
    """`checkpoints/{step}` is whole."""

    type: Literal["checkpoint"]
    step: _Count


class Failure(_Message):
    """The job cannot succeed, for a reason that has a name."""

    type: Literal["error"]
    code: _Name
    detail: str = Field(max_length=2 * MAX_TEXT)


class Result(_Message):
    """The job is done: its report is here and its files lie in `out`."""

    type: Literal["result"]
    report: dict[str, Any]


Message = Confined | Stage | Progress | Metric | Log | Checkpoint | Failure | Result
_messages: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """One line of ASCII, newline included."""
    return json.dumps(message.model_dump(mode="json"), separators=(",", ":")).encode() + b"\n"


class Reader:
    """Turns the bytes of the pipe into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._lines = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that these bytes complete.

        Raises:
            Malformed: a line is too long, one too many, or no message.
        """
        self._rest += data
        if len(self._rest) > MAX_LINE_BYTES:
            raise Malformed("a line is too long")
        if b"\n" not in data:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._lines += 1
            if self._lines > MAX_LINES:
                raise Malformed("too many lines")
            yield _parse(line)


def _parse(line: bytearray) -> Message:
    try:
        _check_before_parsing(line)
        return _messages.validate_python(_clean(json.loads(line, parse_constant=_refuse)))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not a message: {bytes(line[:200])!r}") from error


def _check_before_parsing(line: bytearray) -> None:
    """Refuse what would take many times its length once it is parsed. What stands in texts counts too.

    Raises:
        ValueError: there is too much of something.
    """
    if len(line) <= MAX_SHORT_LINE_BYTES:
        return
    if not line.startswith(_RESULT):
        raise ValueError("only a report is so long")
    if line.count(b"[") + line.count(b"{") > MAX_CONTAINERS or line.count(b",") > MAX_VALUES:
        raise ValueError("it holds too many values")
    if not line.isascii():
        # One character from beyond would make all others take four bytes each; `encode` escapes them.
        raise ValueError("it is not ASCII")


_RESULT = b'{"type":"result",'


def _clean(value: Any, depth: int = 0) -> Any:
    """The same value without what PostgreSQL refuses: NUL, halves of surrogate pairs, and numbers like 1e999.

    Raises:
        ValueError: it is nested too deep, or a text or a number is too large.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deep")
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            raise ValueError("a text is too long")
        return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_clean(key, depth + 1): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
