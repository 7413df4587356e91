"""Metrics: the numbers of the whole service, for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import PlainTextResponse

from service.checked_routes import CheckedRoute
from service.dependencies import METRICS_PATH, PartsOf
from service.openapi import answers

router = APIRouter(tags=["health"], route_class=CheckedRoute)

EXAMPLE = """\
# HELP pared_jobs_waiting Jobs that wait, by the device that they ask for.
# TYPE pared_jobs_waiting gauge
pared_jobs_waiting{device="auto",lane="jobs"} 3.0
"""


@router.get(
    METRICS_PATH,
    response_class=PlainTextResponse,
    summary="Read the service's numbers",
    description="For Prometheus: jobs, waiting times, workers, bytes and requests, of all owners together. Needs a key "
    "with the scope `metrics`, where keys are needed. Requests and streams are those of the process that answers; the "
    "rest is the same in each, and up to some seconds old.",
    responses=answers(200, EXAMPLE, media_type="text/plain", description="Prometheus' text format, or OpenMetrics."),
)
def get_metrics(parts: PartsOf, accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
    """All numbers."""
    content, media_type = parts.metrics.text(accept)
    return Response(content, headers={"Content-Type": media_type})
