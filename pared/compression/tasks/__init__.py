"""What a model is for, a module each: its loss, its score and how two models compare."""

from __future__ import annotations

from collections.abc import Mapping

from pared.compression.tasks.base import TaskRules
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.regression import Regression
from pared.specs import Task

__all__ = ["TASKS", "TaskRules"]

TASKS: Mapping[Task, TaskRules] = {"classification": Classification(), "regression": Regression()}
"""The rules of each task that a spec can name."""
