"""A real Celery worker whose jobs are the light child's: `celery -A tests.support.celery_worker worker`.

With `TESTS_CHILD=tiny_child` they are the tiny one's, which is slower to start: it has all that a real child loads.
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
child = Path(__file__).with_name(os.environ.get("TESTS_CHILD", "light_child")).with_suffix(".py")
tasks.CHILD = (sys.executable, "-P", str(child))

if card := os.environ.get("TESTS_CARD"):
    lost = settings().data_dir / "lost-card"
    tasks.find_devices = lambda *_: (
        Serving(problem=f"{card} cannot be used: it is lost.")
        if lost.exists()
        else Serving(("cpu", "cuda"), Card(card, "0"))
    )
