"""Owns the API process: it puts the parts, the routes and the error handling together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute

import pared
from pared.state import tracing
from pared.state.data_folder import close_to_others
from pared.state.failpoints import arm
from pared.state.settings import Settings
from service import problems
from service.audit import AuditMiddleware
from service.checked_routes import CheckedRoute
from service.dependencies import build_parts, caller_of
from service.middleware import RequestMiddleware
from service.openapi import describe
from service.pages import account, datasets, models, new_job, signing_in, site, start
from service.pages import admin as admin_page
from service.pages import jobs as job_pages
from service.pages import problems as problem_pages
from service.routes import (
    admin,
    docs,
    health,
    jobs,
    limits,
    metrics,
    objects,
    pins,
    plans,
    results,
    tus,
    uploads,
    webhooks,
)


def create_app(settings: Settings) -> FastAPI:
    """The ASGI app for these settings. The tables must be there (`pared.state.session.migrate`)."""
    close_to_others(settings)
    arm(settings.failpoints)
    parts = build_parts(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.version.open()
        parts.dispatcher.start()
        parts.webhooks.start()
        parts.changes.start()
        yield
        await parts.changes.stop()
        parts.webhooks.stop()
        parts.dispatcher.stop()
        parts.admission.stop()
        parts.version.close()
        parts.sessions.engine.dispose()
        tracing.stop()

    app = FastAPI(
        title="pared",
        version=pared.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Its spans would hold paths and queries, and so names of files; `service.middleware` makes ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )
    app.state.parts = parts
    # Each router before the one that is asked takes time: first comes what is asked for again and again.
    app.router.routes[:0] = _checked(jobs.polls)
    for module in (jobs, uploads, tus, objects, pins, plans, results, webhooks, limits, admin, metrics):
        _checked(module.router)
        app.include_router(module.router)
    for module in (health, docs):  # probes and links may carry parameters of their own
        app.include_router(module.router)
    for module in (site, signing_in, problem_pages):  # for people who have not said yet who they are
        app.include_router(module.router)
    for module in (start, models, datasets, new_job, job_pages, account, admin_page):
        app.include_router(module.router, dependencies=[Depends(caller_of)])
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    problems.install(app)
    describe(app)
    app.add_middleware(AuditMiddleware, acts=parts.acts)
    app.add_middleware(RequestMiddleware, settings=settings, metrics=parts.metrics)
    return app


def _checked(router: APIRouter) -> list[BaseRoute]:
    """Its routes. Raises TypeError where one would answer anybody."""
    if not all(isinstance(route, CheckedRoute) for route in router.routes):
        raise TypeError(f"of {router.routes}, one would answer anybody")
    return router.routes
