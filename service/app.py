"""Owns the API process: it puts parts, routes and error handling together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles

import pared
from pared.state.logs import configure_logging
from pared.state.settings import Settings, settings
from service import problems
from service.dependencies import wire
from service.middleware import Surroundings
from service.openapi import describe
from service.routes import docs, health, jobs, plans, results, uploads


def create_app(settings: Settings) -> FastAPI:
    """The ASGI app for these settings. The tables must be there (`pared.state.session.migrate`)."""
    parts = wire(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.bell.start()
        yield
        parts.bell.stop()
        parts.sessions.engine.dispose()

    app = FastAPI(
        title="pared",
        version=pared.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.parts = parts
    for room in (uploads, jobs, plans, results):
        app.include_router(room.router, dependencies=[Depends(problems.only_known_parameters)])
    for room in (health, docs):  # probes and links may carry parameters of their own
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    problems.install(app)
    describe(app)
    app.add_middleware(Surroundings, settings=settings)
    return app


def app_from_env() -> FastAPI:
    """For `uvicorn --factory service.app:app_from_env`: settings from the environment, the log as JSON lines."""
    configure_logging()
    return create_app(settings())
