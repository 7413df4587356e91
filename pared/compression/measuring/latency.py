"""Measures the latency of two models side by side, on the device where they are to run."""

from __future__ import annotations

import functools
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.devices.precision import float32_products
from pared.compression.measuring.running import own_failures
from pared.errors import ModelFailed
from pared.reports import Latency

TIMING_NOISE = 0.05
"""By how much a latency may differ where it is measured again; a search that goes by it stays so far below its goal."""

_LOOK_EVERY = 30  # runs of a model between two looks at whether there are enough


def measure_latency(
    before: nn.Module,
    after: nn.Module,
    example: Sequence[Tensor],
    *,
    device: str = "cpu",
    batch_sizes: Sequence[int] = (1, 32),
    limit_s: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Latency], list[Latency], list[str]]:
    """Forward passes of both models, one after the other in turn, so that a busy machine slows both alike.

    Args:
        example: inputs with a batch dimension; its samples are repeated to fill a batch.
        limit_s: most wall-clock time for one batch size; None: as many seconds as `PARED_LATENCY_S` says, else 2. At
            least 10 runs of each model are made. It ends earlier where the medians are known within 1 %.

    Returns:
        The latencies of both, an entry a batch size, and warnings of batch sizes that a model refuses.
    """
    results: tuple[list[Latency], list[Latency]] = ([], [])
    refused = []
    limit_s = float(os.environ.get("PARED_LATENCY_S", "2")) if limit_s is None else limit_s
    ready = _ready([before, after], example, batch_sizes, device)
    for batch_size in batch_sizes:
        try:
            times = _alternate(ready(batch_size), limit_s, tick, enough=_medians_are_known)
        except ModelFailed as failure:
            refused.append(f"Latency at batch {batch_size} was not measured. {failure.detail}")
            continue
        for latencies, runs in zip(results, times, strict=True):
            low, median, high, slow = np.percentile(runs, [25, 50, 75, 95])
            latencies.append(
                Latency(
                    batch_size=batch_size,
                    p50_ms=float(median),
                    p95_ms=float(slow),
                    noise=float((high - low) / median),
                    runs=len(runs),
                    device="cpu" if device == "cpu" else "cuda",
                )
            )
    return *results, refused


def share_of_time(
    before: nn.Module,
    after: nn.Module,
    example: Sequence[Tensor],
    *,
    batch_size: int,
    device: str = "cpu",
    limit_s: float = 0.5,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """The time of the second model's forward pass over that of the first, run in turns: of the fastest tenth of each.

    Those are what others at work on the machine slow least; a search that goes by them is led astray least.

    Raises:
        ModelFailed: a model refuses such a batch.
    """
    runs = _ready([before, after], example, [batch_size], device)(batch_size)
    first, second = (np.percentile(times, 10) for times in _alternate(runs, limit_s, tick))
    return float(second / first)


def batch_of(example: Sequence[Tensor], size: int) -> Inputs:
    """The example's samples, repeated or cut to a batch of this size."""
    return tuple(tensor[torch.arange(size) % len(tensor)] for tensor in example)


Run = Callable[[], float]
"""Runs one model once. Returns milliseconds."""


def _ready(
    models: Sequence[nn.Module], example: Sequence[Tensor], batch_sizes: Sequence[int], device: str
) -> Callable[[int], list[Run]]:
    """For each batch size the runs of each model, which have run as often as TorchScript takes to compile.

    TorchScript is timed as its file loads, for two modules that share their code would share one compiled plan too. On
    a card it compiles for seconds, so there all models do at once.

    Raises:
        ModelFailed: (what is returned does) a model refuses such a batch.
    """
    copiers = [_copier(model, device) for model in models]

    def prepared(batch_size: int) -> list[Callable[[], Run]]:
        inputs = tuple(tensor.to(device) for tensor in batch_of(example, batch_size))
        return [functools.partial(_warmed, copied, inputs, device) for copied in copiers]

    if torch.device(device).type == "cpu":
        return lambda batch_size: [prepare() for prepare in prepared(batch_size)]
    executor = ThreadPoolExecutor(len(models) * len(batch_sizes))
    warmed = {size: [executor.submit(prepare) for prepare in prepared(size)] for size in batch_sizes}
    executor.shutdown()
    return lambda batch_size: [future.result() for future in warmed[batch_size]]


def _copier(model: nn.Module, device: str) -> Callable[[], nn.Module]:
    """Makes copies of TorchScript on a device, as its file loads there. Other modules are placed there themselves."""
    if not isinstance(model, torch.jit.ScriptModule):
        place(model, device)
        return lambda: model
    saved = model.save_to_buffer()

    def copied() -> nn.Module:
        loaded: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(saved), map_location=device)  # type: ignore[no-untyped-call]
        place(loaded, device)
        return loaded.train(model.training)

    return copied


def _warmed(copied: Callable[[], nn.Module], inputs: Inputs, device: str) -> Run:
    run = functools.partial(_timed, copied(), inputs, device)
    with torch.inference_mode(), float32_products("usual"):
        for _ in range(5):
            run()
    return run


def _alternate(
    runs: Sequence[Run],
    limit_s: float,
    tick: Callable[[], None],
    enough: Callable[[Sequence[float]], bool] = lambda _: False,
) -> tuple[list[float], list[float]]:
    """Milliseconds of each run of two models, until the time is up or there are enough of both."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + limit_s
    with torch.inference_mode(), float32_products("usual"):
        while len(times[0]) < 10 or (time.perf_counter() < end and len(times[0]) < 300):
            # A B, then B A: neither always runs on what the other left in the cache.
            for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
                times[which].append(runs[which]())
            tick()
            if len(times[0]) % _LOOK_EVERY == 0 and all(map(enough, times)):
                break
    return times


def _medians_are_known(runs: Sequence[float]) -> bool:
    """Whether the standard error of the median is within 1 % of it, as far as the quartiles tell."""
    low, median, high = np.percentile(runs, [25, 50, 75])
    deviation = (high - low) / 1.349  # of a normal distribution with these quartiles
    return bool(1.253 * deviation / math.sqrt(len(runs)) <= 0.01 * median)


def _timed(model: nn.Module, inputs: Inputs, device: str) -> float:
    began = time.perf_counter_ns()
    with own_failures():
        model(*inputs)
    if device != "cpu":
        torch.cuda.synchronize()  # kernels run behind Python's back: the time is theirs, not their launch's
    return (time.perf_counter_ns() - began) / 1e6
