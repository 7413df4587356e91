"""The API, but the process dies (SIGKILL to itself) the moment a committed job should be published to the broker."""

from __future__ import annotations

import os
import signal
from typing import Any

import uvicorn
from sqlalchemy import func, select

import pared.state.sweep
import service.dispatcher
from pared.state.session import Sessions
from pared.state.settings import settings
from pared.state.tables import Outbox
from service.app import create_app


def main() -> None:
    """As `pared api`, until a job is committed after its start; those from before stay unpublished."""
    app = create_app(settings())

    def unpublished(sessions: Sessions) -> int:
        with sessions() as session:
            return session.scalar(select(func.count()).select_from(Outbox)) or 0

    before = unpublished(app.state.parts.sessions)

    def die_instead_of_publishing(sessions: Sessions, **_: Any) -> int:
        """Takes the place of `pared.state.queue.relay`."""
        if unpublished(sessions) > before:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    service.dispatcher.relay = die_instead_of_publishing
    pared.state.sweep.relay = die_instead_of_publishing
    uvicorn.run(app, host="127.0.0.1", port=settings().port, log_level="warning")
