"""Measures models: size, work, time on the wall, and how well they answer, each with its uncertainty."""

from __future__ import annotations

import functools
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pared.compression.coupling.interpreter import reloaded
from pared.compression.data.samples import Split
from pared.compression.devices import device_of, place
from pared.compression.finite import hold_finite_on_samples
from pared.compression.memory import BatchSize, ran_out_of_memory
from pared.compression.precision import float32_products
from pared.compression.statistics import paired_t
from pared.errors import ModelFailed, ParedError
from pared.reports import Comparison, Interval, Latency, Quality
from pared.specs import Task

Inputs = tuple[Tensor, ...]

EVALUATION_BATCH = 256
_MOST_AT_ONCE = 4096
_INPUT_BYTES = 32 << 20  # of a batch that is scored on a card
_KEPT_BYTES = 1 << 30  # of outputs, on a card
_CONFIDENCE_Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
_RESAMPLES = 1000
_LOOK_EVERY = 30  # runs of a model between two looks at whether there are enough


class Samples(Protocol):
    """Where batches come from: `pared.compression.data.Data`, or what wraps it."""

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """`(inputs, targets)` of a split, shuffled where a generator is given."""

    def on(self, device: str) -> Samples:
        """The same samples, whose batches lie on a device."""


# -- running a model ----------------------------------------------------------------------------


def forward(module: nn.Module, inputs: Inputs, task: Task) -> Tensor:
    """The model's one output: logits (N, classes), or predictions (N,) or (N, K).

    A model that ends in log-softmax fits too: cross-entropy normalises, and its logarithms already are.

    Raises:
        ModelFailed: its own forward raised, or it returns something that pared cannot train or score.
    """
    with own_failures():
        output = module(*inputs)
    return checked_output(output, len(inputs[0]), task)


def checked_output(output: Any, samples: int, task: Task) -> Tensor:
    """The output, if it is of a kind that can be trained on and scored."""
    wanted = "logits (N, classes)" if task == "classification" else "predictions (N,) or (N, K)"
    advice = f"pared needs one float tensor of {wanted}. Wrap the model so that it returns that alone."
    if not isinstance(output, Tensor):
        raise ModelFailed(f"The model returns a {type(output).__name__}; {advice}")
    dims = (2,) if task == "classification" else (1, 2)
    if output.dim() not in dims or output.shape[0] != samples or not output.is_floating_point():
        raise ModelFailed(
            f"For {samples} samples the model returns {output.dtype} of shape {tuple(output.shape)}; {advice}"
        )
    return output if output.dtype == torch.float64 else output.float()  # half precision is too coarse for a loss


@contextmanager
def own_failures() -> Iterator[None]:
    """Turns what a model's own code raises into ModelFailed. Running out of memory is told apart by others."""
    try:
        yield
    except ParedError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ModelFailed(f"The model's own code raised: {_message(error)}") from error


def unoptimized() -> AbstractContextManager[None]:
    """Runs TorchScript as it is written, without profile-guided plans.

    Those change the arithmetic after a model's first passes, so that a resumed run, which profiles anew, would differ
    in the last bits. Only for running: under it a module's `inlined_graph` is not inlined.
    """
    manager: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return manager


def _message(error: Exception) -> str:
    """The line that says what went wrong. TorchScript puts its traceback first, and the message last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if isinstance(error, torch.jit.Error) or "TorchScript" in lines[0] else 0][:500]


def predict(
    module: nn.Module,
    data: Samples,
    split: Split,
    task: Task,
    *,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """All outputs of a split in its stored order, and its targets, on the CPU. Puts the module into eval mode.

    Args:
        tick: called after every batch, as a sign of life.

    Raises:
        OutOfMemory: not even one sample fits.
    """
    module.eval()
    outputs, targets = answers(module, data, split, task, device=device, tick=tick)
    return outputs.cpu(), targets.cpu()


def answers(
    module: nn.Module,
    data: Samples,
    split: Split,
    task: Task,
    *,
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """All outputs of a split in its stored order, and its targets, on the device.

    Outputs of more than a card should hold come to the CPU. The module is run as it is, without gradients.
    """
    data = data.on(device)

    def run(size: int) -> tuple[Tensor, Tensor]:
        outputs, targets, kept = [], [], 0
        for inputs, target in data.batches(split, size):
            output = forward(module, inputs, task).float()
            kept += output.nbytes
            # Together at the end, so that no batch waits for the card.
            outputs.append(output if kept <= _KEPT_BYTES else output.cpu())
            targets.append(target)
            tick()
        if kept > _KEPT_BYTES:
            outputs = [output.cpu() for output in outputs]
        return torch.cat(outputs), torch.cat(targets)

    samples = data.samples(split)
    with torch.no_grad(), unoptimized():
        return BatchSize(_evaluation_batch(data, split, device)).run(run, samples, "run the model")


def _evaluation_batch(data: Samples, split: Split, device: str) -> int:
    """How many samples are scored at once: more on a card, which small batches leave idle."""
    if torch.device(device).type == "cpu":
        return EVALUATION_BATCH
    inputs, _ = next(iter(data.batches(split, EVALUATION_BATCH)))
    sample_bytes = sum(tensor[:1].nbytes for tensor in inputs)
    return max(EVALUATION_BATCH, min(_MOST_AT_ONCE, _INPUT_BYTES // max(sample_bytes, 1)))


def label_loss(output: Tensor, target: Tensor, task: Task) -> Tensor:
    """Cross-entropy, or the mean squared error: the mean over the batch of what the labels say."""
    if task == "classification":
        return functional.cross_entropy(output, target)
    return functional.mse_loss(output, target.to(output.dtype).reshape(output.shape))


def answered(outputs: Tensor, task: Task) -> Tensor:
    """Which samples have an answer that can be scored, (N,) bool.

    NaN is no answer. An infinity is none among predictions; among logits it is, as the −inf of a masked class.
    """
    bad = outputs.isnan() if task == "classification" else ~outputs.isfinite()
    return ~bad.reshape(len(outputs), -1).any(1)


def classes(outputs: Tensor) -> Tensor:
    """The class of each sample, (N,); −1, which is no class, where a logit is NaN."""
    return outputs.argmax(1).masked_fill(~answered(outputs, "classification"), -1)


def score(outputs: Tensor, targets: Tensor, task: Task) -> float:
    """Accuracy, or R²: higher is better. A sample without an answer is wrong; R² takes none."""
    if task == "classification":
        return float((classes(outputs) == targets).double().mean())
    return _r2(*_squares(outputs, targets))


# -- quality ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assessment:
    """One model's answers on the test and validation splits, and how good they are.

    `counted`: which test samples the scores are over, and `counted_validation` those of validation. All of them in
    classification; in regression those to which the upload answers finite numbers.
    """

    outputs: Tensor
    targets: Tensor
    validation: Tensor
    counted: Tensor
    counted_validation: Tensor
    task: Task
    quality: Quality


def assess(
    module: nn.Module,
    data: Samples,
    task: Task,
    *,
    upload: Assessment | None = None,
    role: str = "The result",
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> Assessment:
    """Score a model on the test split, for the report alone, and on validation.

    Args:
        upload: what the model is a result of; None for an upload itself.
        role: what to call the model in errors.

    Raises:
        NotFinite: it answers NaN or infinity where the upload does not.
        ModelFailed: an upload answers no sample with finite numbers.
    """
    validation, validation_targets = held_outputs(
        module, data, "val", task, upload=upload, role=role, device=device, tick=tick
    )
    outputs, targets = held_outputs(module, data, "test", task, upload=upload, role=role, device=device, tick=tick)
    if upload is not None:
        counted, counted_validation = upload.counted, upload.counted_validation
    else:
        counted, counted_validation = (_counted(each, task) for each in (outputs, validation))
    scored, wanted = outputs[counted], targets[counted]
    if task == "classification":
        right = int((classes(scored) == wanted).sum())
        interval = wilson(right, len(wanted))
    else:
        interval = _bootstrap(lambda weights: _weighted_r2(scored, wanted, weights), len(wanted))
    loss = float(label_loss(scored, wanted, task))
    quality = Quality(
        metric="accuracy" if task == "classification" else "r2",
        test=interval,
        validation=score(validation[counted_validation], validation_targets[counted_validation], task),
        loss=loss if math.isfinite(loss) else None,
        samples=len(wanted),
    )
    return Assessment(outputs, targets, validation, counted, counted_validation, task, quality)


def held_outputs(
    module: nn.Module,
    data: Samples,
    split: Literal["val", "test"],
    task: Task,
    *,
    upload: Assessment | None,
    role: str = "The result",
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """`predict`, held against the upload's answers.

    Raises:
        NotFinite: the model answers NaN or infinity where the upload does not.
    """
    outputs, targets = predict(module, data, split, task, device=device, tick=tick)
    if upload is not None:
        expected = upload.outputs if split == "test" else upload.validation
        name = "validation" if split == "val" else split
        hold_finite_on_samples(expected, outputs, name, module, lambda index: _sample(data, split, index), role)
    return outputs, targets


def validation_score(
    module: nn.Module, data: Samples, upload: Assessment, *, device: str, tick: Callable[[], None]
) -> float:
    """The score of a result on the validation split.

    Raises:
        NotFinite: it answers NaN or infinity where the upload does not.
    """
    outputs, targets = held_outputs(module, data, "val", upload.task, upload=upload, device=device, tick=tick)
    return score(outputs[upload.counted_validation], targets[upload.counted_validation], upload.task)


def _counted(outputs: Tensor, task: Task) -> Tensor:
    if task == "classification":
        return torch.ones(len(outputs), dtype=torch.bool)
    counted = answered(outputs, task)
    if not bool(counted.any()):
        raise ModelFailed(
            "The model answers no sample with finite numbers alone, so that there is nothing to score. Look for NaN "
            "among its weights, and whether the data must be scaled (`preprocess`)."
        )
    return counted


def _sample(data: Samples, split: Split, index: int) -> Inputs:
    """The inputs of one sample, as a batch of one."""
    for inputs, _ in data.batches(split, EVALUATION_BATCH):
        if index < len(inputs[0]):
            return tuple(tensor[index : index + 1] for tensor in inputs)
        index -= len(inputs[0])
    raise IndexError(index)


def wilson(right: int, samples: int) -> Interval:
    """A share with its 95 % interval (Wilson 1927), which stays inside 0 to 1 and is sound at small counts."""
    share, z2 = right / samples, _CONFIDENCE_Z**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = _CONFIDENCE_Z / (1 + z2 / samples) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def compare(before: Assessment, after: Assessment) -> Comparison:
    """The result against the baseline on the same test samples."""
    if before.task == "regression":
        return _compare_regression(before, after)
    answer_before, answer_after = classes(before.outputs), classes(after.outputs)
    right_before, right_after = answer_before == before.targets, answer_after == after.targets
    lost = int((right_before & ~right_after).sum())
    won = int((right_after & ~right_before).sum())
    per_class = []
    for label in torch.unique(before.targets).tolist():
        of_class = before.targets == label
        share_before, share_after = (
            float(right_before[of_class].double().mean()),
            float(right_after[of_class].double().mean()),
        )
        per_class.append(
            {
                "class": label,
                "samples": int(of_class.sum()),
                "before": share_before,
                "after": share_after,
                "change": share_after - share_before,
            }
        )
    return Comparison(
        quality_difference=paired_difference(lost, won, len(before.targets)),
        p_value=mcnemar(lost, won),
        test="mcnemar",
        equal_predictions=float(((answer_before == answer_after) & (answer_before >= 0)).double().mean()),
        per_class=per_class,
    )


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value (McNemar 1947) that a difference as large comes by chance.

    Args:
        lost: samples that only the first model gets right.
        won: samples that only the second gets right.
    """
    n, term, tail = lost + won, 1, 1
    for i in range(min(lost, won)):
        term = term * (n - i) // (i + 1)  # n choose i + 1
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def paired_difference(lost: int, won: int, samples: int) -> Interval:
    """Difference of two paired shares, second − first, with the 95 % interval of Agresti and Min (2005).

    Half a sample is added to each of the four cells, so that models that never differ still have an uncertainty.
    """
    n, b, c = samples + 2, lost + 0.5, won + 0.5
    centre = (c - b) / n
    half = _CONFIDENCE_Z * math.sqrt((b + c - (c - b) ** 2 / n) / n**2)
    return Interval(value=(won - lost) / samples, low=max(-1.0, centre - half), high=min(1.0, centre + half))


def _compare_regression(before: Assessment, after: Assessment) -> Comparison:
    counted = before.counted
    first, second, targets = before.outputs[counted], after.outputs[counted], before.targets[counted]
    errors = [_squared_errors(outputs, targets).sum(1).numpy() for outputs in (first, second)]
    return Comparison(
        quality_difference=_bootstrap(
            lambda weights: _weighted_r2(second, targets, weights) - _weighted_r2(first, targets, weights),
            len(targets),
        ),
        p_value=paired_t(errors[1] - errors[0]),
        test="paired_t",
    )


def _bootstrap(statistic: Callable[[Tensor], Tensor], samples: int) -> Interval:
    """Percentile bootstrap: `statistic` maps weights (R, N), how often each sample is drawn, to (R,) values."""
    generator = torch.Generator().manual_seed(0)  # the report of one job is the same each time
    values = []
    for _ in range(_RESAMPLES // 50):
        drawn = torch.randint(samples, (50, samples), generator=generator)
        weights = torch.zeros(50, samples, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(50, samples, dtype=torch.float64)
        )
        values.append(statistic(weights))
    low, high = torch.cat(values).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(statistic(torch.ones(1, samples, dtype=torch.float64)))
    return Interval(value=_finite(value), low=_finite(low), high=_finite(high))


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, K) in double."""
    return (outputs.double() - targets.double().reshape(outputs.shape)).square().reshape(len(outputs), -1)


def _squares(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Residual and total sum of squares, over all samples and outputs."""
    values = targets.double().reshape(len(outputs), -1)
    return float(_squared_errors(outputs, targets).sum()), float((values - values.mean(0)).square().sum())


def _r2(residual: float, total: float) -> float:
    if total == 0:  # a constant target: all or nothing
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / total


def _weighted_r2(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """R² of every resample. weights: (R, N) -> (R,)."""
    values = targets.double().reshape(len(outputs), -1)
    # Around the overall mean, which changes nothing but keeps the subtraction of squares from cancelling.
    values = values - values.mean(0)
    residual = weights @ _squared_errors(outputs, targets).sum(1)
    total = weights @ values.square().sum(1) - (weights @ values).square().sum(1) / weights.sum(1)
    total = total.clamp(min=0)
    return torch.where(total > 0, 1 - residual / total.clamp(min=1e-300), (residual == 0).double())


def _finite(value: float) -> float:
    """JSON has no infinity: what is beyond all measure is written as the largest float32. It is never NaN."""
    if math.isnan(value):
        raise ValueError("NaN is no score")
    return min(max(value, -3.4e38), 3.4e38)


# -- size and work ------------------------------------------------------------------------------


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Weights, and those of them that are not exactly zero. A tensor that is used twice counts once.

    A frozen TorchScript file has its weights as constants of its graph; they count as well.
    """
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
    for tensor in [*module.parameters(), *_constants(module)]:
        seen.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.stride()), tensor)
    return sum(t.numel() for t in seen.values()), sum(int(torch.count_nonzero(t)) for t in seen.values())


def _constants(module: nn.Module) -> list[Tensor]:
    if not isinstance(module, torch.jit.ScriptModule) or next(module.parameters(), None) is not None:
        return []
    graph: Any = module.inlined_graph  # whose type has no declared methods
    nodes = graph.findAllNodes("prim::Constant", recurse=True)
    values = [node.output().toIValue() for node in nodes if node.hasAttribute("value")]
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim()]


def count_macs(module: nn.Module, example: Sequence[Tensor]) -> int | None:
    """Multiply-adds of convolutions and matrix products for one sample; None where they cannot be counted.

    Args:
        example: inputs with a batch dimension, of which the first sample is used.
    """
    inputs = [tensor[:1].to(device_of(module), copy=True) for tensor in example]
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point())
    counter = FlopCounterMode(display=False)
    try:
        with _decomposed(), counter:
            module(*inputs)
    except Exception:  # noqa: BLE001 - a model may refuse a batch of one in any way it likes
        return None
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations


@contextmanager
def _decomposed() -> Iterator[None]:
    """Runs attention and recurrent layers as the products they consist of, for the counter knows no fused kernel.

    Where a gradient may be asked for, torch takes no fast path of a whole encoder layer.
    """
    with (
        warnings.catch_warnings(action="ignore"),  # mkldnn's flags set one of other hardware too
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield


def count_bytes(path: Path) -> tuple[int, int]:
    """Bytes of a file, and bytes of the same file under gzip -6."""
    gzip = zlib.compressobj(6, wbits=31)
    raw = compressed = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            raw += len(chunk)
            compressed += len(gzip.compress(chunk))
    return raw, compressed + len(gzip.flush())


# -- latency ------------------------------------------------------------------------------------


def measure_latency(
    before: nn.Module,
    after: nn.Module,
    example: Sequence[Tensor],
    *,
    device: str = "cpu",
    batch_sizes: Sequence[int] = (1, 32),
    limit_s: float = 2.0,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Latency], list[Latency], list[str]]:
    """Forward passes of both models, one after the other in turn, so that a busy machine slows both alike.

    Args:
        example: inputs with a batch dimension; its samples are repeated to fill a batch.
        limit_s: most wall-clock time for one batch size; at least 10 runs of each model are made. It ends earlier where
            the medians are known within 1 %.

    Returns:
        The latencies of both, an entry a batch size, and warnings of batch sizes that a model refuses.
    """
    found: tuple[list[Latency], list[Latency]] = ([], [])
    refused = []
    ready = _ready([before, after], example, batch_sizes, device)
    for batch_size in batch_sizes:
        try:
            times = _alternate(ready(batch_size), limit_s, tick, enough=_medians_are_known)
        except ModelFailed as failure:
            refused.append(f"Latency at batch {batch_size} was not measured. {failure.detail}")
            continue
        for latencies, runs in zip(found, times, strict=True):
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
    return *found, refused


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
    prepared: dict[int, list[Run]] = {}
    for batch_size in batch_sizes:
        inputs = tuple(tensor.to(device) for tensor in batch_of(example, batch_size))
        own = [reloaded(each) if isinstance(each, torch.jit.ScriptModule) else each for each in models]
        for model in own:
            place(model, device)
        prepared[batch_size] = [functools.partial(_timed, model, inputs, device) for model in own]
    if torch.device(device).type == "cpu":
        return lambda batch_size: [_warmed(run) for run in prepared[batch_size]]
    executor = ThreadPoolExecutor(sum(map(len, prepared.values())))
    warmed = {size: [executor.submit(_warmed, run) for run in runs] for size, runs in prepared.items()}
    executor.shutdown()
    return lambda batch_size: [future.result() for future in warmed[batch_size]]


def _warmed(run: Run) -> Run:
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
