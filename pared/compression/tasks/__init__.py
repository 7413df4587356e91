"""What a model is for, a module each: its labels, its loss, its score and how two models compare."""

from __future__ import annotations

from pared.compression.tasks.base import Labels, StoredLabels, TaskRules
from pared.compression.tasks.choice import TASKS, Options, likely_task, make_task
from pared.compression.tasks.references import Embedding, Match, Piece, pieces_of

__all__ = [
    "TASKS",
    "Embedding",
    "Labels",
    "Match",
    "Options",
    "Piece",
    "StoredLabels",
    "TaskRules",
    "likely_task",
    "make_task",
    "pieces_of",
]
