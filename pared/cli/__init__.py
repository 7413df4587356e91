"""The command line: all through the HTTP API, save for work on weight files and what starts or administers a server."""

from __future__ import annotations

from pared.cli.app import main

__all__ = ["main"]
