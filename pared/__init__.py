"""pared makes trained PyTorch models smaller: a REST service, a client and a compression library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pared.version import __version__

if TYPE_CHECKING:
    from pared.client import APIError, AsyncClient, Client, Job, JobFailed, Plan, Report

__all__ = ["APIError", "AsyncClient", "Client", "Job", "JobFailed", "Plan", "Report", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the client when it is asked for: the worker's sandboxed child imports `pared` too, and needs no HTTP."""
    if name in __all__:
        from pared import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
