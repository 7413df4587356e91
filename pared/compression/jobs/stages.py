"""Holds the steps that all methods share: process settings, stages, loading data, and assessing a model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.precision import float32_products
from pared.compression.devices.values import CPU
from pared.compression.measuring.quality import Assessment, assess
from pared.compression.work import Observer, Work
from pared.specs import Spec
from pared.statuses import Stage
from pared.wording import metric_name

T = TypeVar("T")

EXAMPLE_BATCH = 4  # more than one, so that nothing hides in a dimension of size 1

# Where each stage of a job begins, as a share of the whole; training is most of the work.
_BEGINS: dict[Stage, float] = {
    "validate": 0.0,
    "baseline": 0.02,
    "compress": 0.06,
    "retrain": 0.1,
    "evaluate": 0.9,
    "export": 0.97,
}


@contextmanager
def settled(work: Work) -> Iterator[None]:
    """Make a job's bits depend on its spec, its seed and the machine alone; restores the settings afterwards."""
    threads, python_state, numpy_state = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(max(work.threads // work.ranks.count, 1))
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.random.fork_rng(), float32_products("exact"):
            torch.manual_seed(0)
            if torch.device(work.device).type == "cuda":
                beside(lambda: _load_libraries(work.device))
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = flags
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _load_libraries(device: str) -> None:
    """Load the libraries of a card while files are read: their first use takes about a second."""
    image, weight = torch.ones(2, 8, 8, 8, device=device), torch.ones(8, 8, 3, 3, device=device, requires_grad=True)
    for precision in (torch.float32, torch.bfloat16):
        output = torch.nn.functional.conv2d(image.to(precision), weight.to(precision))
        (output.flatten(1) @ output.flatten(1).T).sum().backward()  # type: ignore[no-untyped-call]


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Begin some work in a thread. Returns what waits for its result, and raises what it raised."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future.result


class Stages:
    """Says which stage runs, and how long each took."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seconds: dict[str, float] = {}
        self._current: Stage | None = None
        self._since = time.monotonic()
        self._fraction = 0.0
        self._trainings = _BEGINS["retrain"], _BEGINS["evaluate"]

    def enter(self, name: Stage) -> None:
        """The next stage begins."""
        self._close()
        self._current = name
        self._fraction = max(self._fraction, _BEGINS[name])
        self._observer.stage(name)
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        self._observer.progress(self._fraction)

    def span(self, part: int, parts: int) -> tuple[float, float]:
        """Where one of several equal trainings begins and ends, as shares of the whole job."""
        begin, end = _part(self._trainings, part, parts)
        self._fraction = max(self._fraction, end)
        return begin, end

    def narrow(self, part: int, parts: int) -> None:
        """The trainings that follow are those of one of several equal candidates."""
        self._trainings = _part((_BEGINS["retrain"], _BEGINS["evaluate"]), part, parts)

    def again(self) -> None:
        """What has been done is done once more, and progress waits for it."""
        self._trainings = self._fraction, self._fraction

    def finish(self) -> dict[str, float]:
        """Seconds of each stage of this attempt."""
        self._close()
        self._current = None
        return self._seconds

    def _close(self) -> None:
        now = time.monotonic()
        if self._current is not None:
            self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._since
        self._since = now


def _part(whole: tuple[float, float], part: int, parts: int) -> tuple[float, float]:
    width = (whole[1] - whole[0]) / parts
    return whole[0] + part * width, whole[0] + (part + 1) * width


def plain(architecture: Any) -> Any:
    """A spec's architecture as plain data, which is what uploads carry too."""
    return architecture.model_dump() if isinstance(architecture, Spec) else architecture


def assessed(
    module: nn.Module,
    data: Data,
    work: Work,
    stages: Stages,
    *,
    upload: Assessment | None = None,
    role: str = "The result",
) -> Assessment:
    """Score a model on the validation and test splits; it ends on the CPU. `upload`, `role`: as `assess` takes them."""
    place(module, work.device)
    assessment = assess(module, data, data.task, upload=upload, role=role, device=work.device, tick=stages.beat)
    place(module, CPU)
    if upload is None:
        name = metric_name(assessment.quality.metric)
        work.observer.log(f"before: test {name} {assessment.quality.test.value:.4f}")
    return assessment
