"""The states that jobs and uploads go through, and the stages of a running job: one list each, for every package."""

from __future__ import annotations

from typing import Literal

JobStatus = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled"]
ENDED: tuple[JobStatus, ...] = ("succeeded", "failed", "canceled")
"""A job that is one of these never changes again."""
HELD: tuple[JobStatus, ...] = ("running", "canceling")
"""A worker holds the job."""

UploadStatus = Literal["inspecting", "ready", "rejected"]

DeliveryStatus = Literal["pending", "delivered", "failed"]
"""Of a notice to a webhook."""

Stage = Literal["validate", "baseline", "compress", "retrain", "evaluate", "export"]
"""What a running job does, in this order; some come again, and some jobs leave some out."""
