"""Tells the observer of a job how far a training is, and what each epoch came to."""

from __future__ import annotations

import math
import time

from pared.compression.tasks import TaskRules
from pared.compression.work import Observer
from pared.reports import EpochRecord

_SIGN_OF_LIFE_S = 0.5


def report_epoch(observer: Observer, record: EpochRecord, validation_loss: float, task: TaskRules, epochs: int) -> None:
    """What an epoch came to, as metrics and a line of the job's log."""
    name = task.metric
    observer.metric("train_loss", record.train_loss, step=record.epoch, phase=record.phase)
    if math.isfinite(validation_loss):
        observer.metric("validation_loss", validation_loss, step=record.epoch, phase=record.phase)
    if record.validation is not None:
        observer.metric(f"validation_{name}", record.validation, step=record.epoch, phase=record.phase)
        observer.log(
            f"{record.phase}: epoch {record.epoch} of {epochs}, loss {record.train_loss:.4g}, "
            f"validation {name} {record.validation:.4f}"
        )


class ProgressReporter:
    """Progress of one run as progress of the job, and a sign of life now and then within an epoch."""

    def __init__(self, observer: Observer, span: tuple[float, float], epochs: int, samples: int) -> None:
        self._observer, self._span, self._epochs = observer, span, epochs
        self._last = time.monotonic()
        self._share = 0.0
        self.epoch = 0
        self.samples = max(samples, 1)  # of an epoch

    def due(self) -> bool:
        return time.monotonic() - self._last >= _SIGN_OF_LIFE_S

    def beat(self) -> None:
        if self.due():
            self.now(self.epoch, self._share)

    def now(self, epoch: int, share: float) -> None:
        """Args: share: of this epoch, 0 to 1."""
        self._last, self._share = time.monotonic(), share
        begin, end = self._span
        done = (max(epoch - 1, 0) + share) / self._epochs if epoch and self._epochs else 0.0
        self._observer.progress(begin + (end - begin) * done, epoch=epoch, epochs=self._epochs)
