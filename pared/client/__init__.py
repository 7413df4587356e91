"""The Python client: `Client` for scripts and notebooks, `AsyncClient` for event loops."""

from __future__ import annotations

from pared.client.async_ import AsyncClient, AsyncJob, AsyncUpload
from pared.client.blocking import Client, Job, Upload, Uploads
from pared.client.operations import APIError, DigestMismatch, ServerUnreachable, UntrustedAnswer
from pared.client.records import Artifact, Event, JobFailed, UploadRejected
from pared.client.webhooks import Delivery, Webhook
from pared.reports import FailedOutput, Plan, Report

__all__ = [
    "APIError",
    "Artifact",
    "AsyncClient",
    "AsyncJob",
    "AsyncUpload",
    "Client",
    "Delivery",
    "DigestMismatch",
    "Event",
    "FailedOutput",
    "Job",
    "JobFailed",
    "Plan",
    "Report",
    "ServerUnreachable",
    "UntrustedAnswer",
    "Upload",
    "UploadRejected",
    "Uploads",
    "Webhook",
]
