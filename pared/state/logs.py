"""Owns how processes log: one JSON object a line on standard output, without the values of local variables."""

from __future__ import annotations

import logging

import structlog


def configure_logging() -> None:
    """For a process to call once at its start; structlog's own default is a coloured console."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
