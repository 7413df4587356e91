"""Owns how the API is served: uvicorn with bounded connections, and open files enough for them."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI

from pared.state import tracing
from pared.state.logs import configure_logging, level_of_servers
from pared.state.settings import Settings
from service.app import create_app
from service.connections import Connection, Limits
from service.processes import BACKLOG, serve_by_several

ACCEPTED_AT_ONCE = 16
"""So many connections are accepted before the first of them is looked at."""
OTHER_FILES = 512
"""Open files kept for the database, uploads, downloads and connections on their way in and out."""
_SAY_AGAIN_S = 10.0

log = structlog.get_logger()


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Exits with uvicorn's own code where the server cannot start."""
    if settings.api_processes > 1:
        sys.exit(serve_by_several(settings))
    serve_at(None, settings)


def serve_at(
    sockets: list[socket.socket] | None, settings: Settings, when_serving: Callable[[], object] = bool
) -> None:
    """As `serve`, in this process.

    Args:
        sockets: which others listen on, too; None: one of its own.
        settings: the process's.
        when_serving: called once it takes requests.
    """
    configure_logging(settings.log_level)
    tracing.start(settings, "pared-api")
    server = Server(config_for(create_app(settings), settings))
    server.when_serving = when_serving
    server.run(sockets)
    if not server.started:
        sys.exit(uvicorn.config.STARTUP_FAILURE)


def config_for(app: FastAPI, settings: Settings, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for these settings; `options` are further ones of uvicorn."""
    limits = Limits(
        connections=_connections(settings.max_connections),
        header_s=settings.header_time_s,
        header_bytes=settings.max_header_bytes,
        body_s=settings.body_time_s,
        answer_s=settings.answer_time_s,
    )
    chosen: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "loop": "asyncio",
        "http": cast("type[asyncio.Protocol]", partial(Connection, limits=limits)),
        "ws": "none",
        # Few beside all places: a new connection must not lose its own to the next before it is looked at.
        # Fewer beside other processes, so that they get their share of a burst.
        "backlog": min(ACCEPTED_AT_ONCE, max(1, limits.connections // 8)) if settings.api_processes == 1 else 1,
        "log_level": level_of_servers(settings.log_level),
        "access_log": False,  # the app writes its own, without secrets
        "proxy_headers": False,  # the app decides itself whom it believes
        "server_header": False,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Config(app, **chosen | options)


class Server(uvicorn.Server):
    """uvicorn's server, which stays quiet and alive when the process has no file left for a connection."""

    when_serving: Callable[[], object] = bool
    _told_at = -_SAY_AGAIN_S

    async def startup(self, sockets: Any = None) -> None:
        """Start listening."""
        asyncio.get_running_loop().set_exception_handler(self._loop_error)
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for listener in server.sockets:
                # asyncio takes one number for both: how many it accepts in one go, and how many the kernel may hold.
                with listener.dup() as same:
                    same.listen(BACKLOG)
        if self.started:
            self.when_serving()

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncio tells this once for each connection that it tried to accept, thousands of times a second.
        if not str(context.get("message")).startswith("socket.accept() out of system resource"):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_at >= _SAY_AGAIN_S:
            self._told_at = time.monotonic()
            log.error("connections_not_accepted", reason=str(context.get("exception")))


def _connections(wanted: int) -> int:
    """How many connections there may be: as wanted, or as many as files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(soft - OTHER_FILES, soft // 4)
    log.warning("fewer_connections", connections=allowed, wanted=wanted, open_files=soft)
    return allowed
