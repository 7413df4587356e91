"""Owns what may reach a terminal: text of others without the characters that would command it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# Controls of ASCII and of Latin-1, what reorders or breaks lines without being seen, and halves of surrogate pairs.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with a visible sign in place of every control character but line feed and tab."""
    return _COMMANDS.sub(_sign, text)


def printable_json(document: str) -> str:
    """A JSON document, of the same value, without control characters: those that JSON allows become escapes."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


class SafeConsole(Console):
    """A console that prints its own styles, and of all text only what is `printable`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `Console.render`, which all that is printed goes through."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def plain_console(**options: Any) -> SafeConsole:
    """A console to which a string is text: square brackets are no markup, for names of layers and files have some."""
    return SafeConsole(markup=False, highlight=False, emoji=False, **options)


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control picture: ␛ for ESC
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
