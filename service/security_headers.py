"""Owns the headers by which every answer tells browsers what they must not do with it."""

from __future__ import annotations

import base64
import hashlib

DEFAULTS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer that does not say otherwise."""


def policy_of_page(*inline_scripts: str) -> str:
    """The Content-Security-Policy of a page that uses this server's files and these scripts inside it, and no others.

    Styles may stand inside it too: a page that shows a description sets them as it goes.
    """
    digests = "".join(f" 'sha256-{_digest(script)}'" for script in inline_scripts)
    return (
        f"default-src 'none'; script-src 'self'{digests}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
