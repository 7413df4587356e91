"""A real Celery worker whose jobs are the tiny child's: `celery -A tests.worker.celery_worker worker`."""

from __future__ import annotations

import sys
from pathlib import Path

from worker import tasks

app = tasks.app
tasks.CHILD = (sys.executable, "-P", str(Path(__file__).with_name("tiny_child.py")))
