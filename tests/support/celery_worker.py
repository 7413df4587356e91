"""A real Celery worker whose jobs are the tiny child's: `celery -A tests.support.celery_worker worker`.

With `TESTS_CARD` a card of this name counts as one that has computed, until the folder of data has a file `lost-card`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pared.state.settings import settings
from worker import tasks
from worker.devices import Card, Serving

app = tasks.app
tasks.CHILD = (sys.executable, "-P", str(Path(__file__).with_name("tiny_child.py")))

if card := os.environ.get("TESTS_CARD"):
    lost = settings().data_dir / "lost-card"
    tasks.find_devices = lambda *_: (
        Serving(problem=f"{card} cannot be used: it is lost.")
        if lost.exists()
        else Serving(("cpu", "cuda"), Card(card, "0"))
    )
