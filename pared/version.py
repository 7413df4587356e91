"""The version of pared, for all that names it: also for what may not reach the client."""

from __future__ import annotations

__version__ = "0.1.0"
