"""Owns what all pieces share: their templates, the ids within them, and how many layers they show."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pared.notebook.style import scoped_style
from pared.report_page import environment, numbers

MOST_LAYERS = 60
"""Rows of the table of layers: a notebook keeps what it shows."""
_TEMPLATES = Path(__file__).parent / "templates"


def filled(template: str, **context: Any) -> str:
    """A template with its blanks filled, within an element that has the style."""
    piece = environment(_TEMPLATES).get_template(template).render(style=scoped_style(), **context)
    # Landmarks are for one page; among the many pieces of a notebook they would only be in the way.
    return piece.replace('role="region"', 'role="group"')


def key_of(text: str) -> str:
    """What ids within a piece begin with: one page holds several, and the same one is the same again."""
    return f"p{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}-"


def of_many(what: str, shown: int, of_all: int) -> str:
    """That not all are shown; empty if they are."""
    return f"{shown} of {of_all:,} {what} are shown." if min(shown, MOST_LAYERS) < of_all else ""


def width(part: float, whole: float) -> float:
    """A part in percent of the whole, to draw it."""
    return round(100 * (numbers.share(part, whole) or 0.0), 1)
