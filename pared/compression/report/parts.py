"""Makes the parts of a report that every kind of job shares."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from pared.compression.coupling import Removed
from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.precision import training_precision
from pared.compression.devices.values import CPU
from pared.compression.loading import PASSED_OVER, LoadedModel
from pared.compression.measuring.latency import measure_latency
from pared.compression.measuring.quality import Assessment
from pared.compression.measuring.size import count_bytes, count_macs, count_parameters
from pared.compression.names import tensors, tied_names, weight_layers
from pared.compression.work import Work
from pared.gpus import driver_version
from pared.reports import Latency, LayerReport, Measurement, Reproduce
from pared.specs import CompressionSpec, Training
from pared.version import __version__
from pared.wording import metric_name


@dataclass(frozen=True)
class Measured:
    """Both models measured in memory; bytes and quality come in when the files are written."""

    before: Measurement
    after: Measurement
    format: str
    warnings: list[str]

    def with_files(
        self,
        upload_bytes: tuple[int, int],
        written: Sequence[Path],
        baseline: Assessment | None,
        final: Assessment | None,
    ) -> tuple[Measurement, Measurement]:
        """The measurements with the bytes of the upload, from `count_bytes`, and of its successor."""
        parts = []
        result_bytes = count_bytes(successor(self.format, written))
        for measurement, (raw, compressed), assessment in (
            (self.before, upload_bytes, baseline),
            (self.after, result_bytes, final),
        ):
            quality = None if assessment is None else assessment.quality
            parts.append(
                measurement.model_copy(update={"file_bytes": raw, "compressed_bytes": compressed, "quality": quality})
            )
        return parts[0], parts[1]


def measure_both(
    before: LoadedModel,
    after: LoadedModel,
    example: Sequence[Tensor],
    work: Work,
    tick: Callable[[], None],
    batch_sizes: Sequence[int] = (1, 32),
) -> Measured:
    """Size, work and latency of both models."""
    if not before.runs:
        return Measured(_counted(before), _counted(after), before.format, [])
    notes, parts = [], []
    first, second = models = [each.module.eval() for each in (before, after)]
    for module in models:
        place(module, work.timed_on)
    latencies: Sequence[list[Latency]] = [], []
    if example and work.timed:
        *latencies, refused = work.ranks.led(
            lambda: measure_latency(first, second, example, device=work.timed_on, batch_sizes=batch_sizes, tick=tick)
        )
        notes += refused + _elsewhere(work) + busy_warning()
    for module, latency in zip(models, latencies, strict=True):
        parameters, nonzero = count_parameters(module)
        macs = count_macs(module, example)
        parts.append(
            Measurement(
                parameters=parameters,
                nonzero_parameters=nonzero,
                macs=macs,
                file_bytes=0,
                compressed_bytes=0,
                latency=latency,
            )
        )
        place(module, CPU)
    if not example:
        notes.append(
            "The model was not run, for the shape of its inputs is not known: neither multiply-adds nor latency were "
            "measured. Give `example_inputs` to have them."
        )
    elif any(part.macs is None for part in parts):
        notes.append("Multiply-adds could not be counted: the model does not run on a single sample.")
    return Measured(parts[0], parts[1], before.format, notes)


def _counted(loaded: LoadedModel) -> Measurement:
    """What there is to say of weights that cannot run."""
    parameters, nonzero = count_parameters(loaded.module)
    return Measurement(parameters=parameters, nonzero_parameters=nonzero, file_bytes=0, compressed_bytes=0)


def successor(upload_format: str, written: Sequence[Path]) -> Path:
    """The result in the upload's own format, if any, so that files compare like with like; else the first."""
    return next((path for path in written if path.name in _SUCCESSORS[upload_format]), written[0])


_SUCCESSORS = {
    "torchscript": ("model.pt",),
    "state_dict": ("model.safetensors", "model.ckpt"),
    "exported_program": ("model.pt2",),
    "onnx": ("model.onnx",),
    "huggingface": ("model.zip",),
}


def _elsewhere(work: Work) -> list[str]:
    """Latencies of one device are not those of another."""
    if work.timed_on == work.device:
        return []
    names = {"cpu": "the processor", "cuda": "the GPU"}
    return [
        f"Latency was measured on {names[work.timed_on]}, as asked for; all else was computed on {names[work.device]}."
    ]


def busy_warning() -> list[str]:
    """Others at work on the machine make latencies, and more so their ratio on several threads, unsound."""
    try:
        load = os.getloadavg()[0]
    except OSError:  # not to be read inside the sandbox
        return []
    cores = os.cpu_count() or 1
    if load <= cores + 0.5:
        return []
    return [f"The machine was busy while latency was measured (load {load:.1f} on {cores} cores): do not rely on it."]


def unanswered_warning(baseline: Assessment | None) -> list[str]:
    """A warning where the upload itself gives no number to score."""
    if baseline is None:
        return []
    count = int((~baseline.task.answered(baseline.outputs)).sum())
    if not count:
        return []
    note = (
        f"The upload itself answers {count:,} of {len(baseline.outputs):,} test samples with NaN or infinity; they are "
        f"{baseline.task.unanswered}."
    )
    return [note]


_LITTLE_BETTER = 0.05


def guessing_warning(baseline: Assessment | None) -> list[str]:
    """A warning where the upload hardly does better than without looking at its inputs.

    Such a job can meet its goal, as nothing is left to lose. The data are mostly to blame: inputs that are prepared
    otherwise than in training, or labels in another order.
    """
    if baseline is None or (guessed := _guessed(baseline)) is None:
        return []
    score, without_looking, how = baseline.quality.test.value, *guessed
    if score > without_looking + _LITTLE_BETTER * (1 - without_looking):
        return []
    note = (
        f"Before anything was removed the upload did hardly better than {how}: a test "
        f"{metric_name(baseline.quality.metric)} of {score:.4f}, and {without_looking:.4f} without looking at the "
        "inputs. Figures of quality then say little. Are the inputs prepared as when it was trained (scale, mean and "
        "std, order of channels; `preprocess` scales and normalises), and are the labels numbered as then?"
    )
    return [note]


def _guessed(baseline: Assessment) -> tuple[float, str] | None:
    """The score of one answer to all samples, and which; None of measures that no such answer is known for."""
    if baseline.task.has_references:
        return None
    if baseline.quality.metric == "r2":
        return 0.0, "the mean of the targets"
    targets = baseline.targets[baseline.counted]
    if baseline.quality.metric != "accuracy" or targets.dim() != 1 or targets.is_floating_point() or not len(targets):
        return None
    return float(targets.bincount().max()) / len(targets), "the commonest class"


def split_warning(data: Data | None) -> list[str]:
    """A test split drawn from the upload may hold what the model was trained on."""
    if data is None or data.splits == "given" or data.task.has_references or not data.labelled:
        return []
    note = (
        "The test samples were drawn by seed from the uploaded data. If the model was trained on them, its "
        f"{metric_name(data.task.metric)} before is too high, and the drop looks larger than it is. To settle it, "
        "upload samples that the model has never seen as x_test and y_test beside x and y (.npz or .safetensors)."
    )
    return [note]


def layer_reports(
    before: nn.Module,
    after: nn.Module,
    removed: Removed,
    reasons: Mapping[str, str],
    output_dims: Mapping[str, int],
) -> list[LayerReport]:
    """Each weight tensor of two or more dimensions, before and after.

    Args:
        output_dims: weight name -> the dimension that counts its output channels, where channels were looked for.
    """
    old, new = tensors(before), tensors(after)
    layer_names, names_of, rows = weight_layers(before), tied_names(before), rows_of(before)
    reports = []
    for name, layer in layer_names.items():
        if name not in new and name not in removed:
            continue
        left = new.get(name, old[name][:0])  # of a residual block that went, nothing
        known = next((alias for alias in names_of[name] if alias in removed and alias in output_dims), None)
        units = None if known is None else removed[known].get(str(output_dims[known]))
        if name not in new:
            units = removed[name]["0"]
        reason = reasons.get(layer)
        if output_dims and not any(alias in output_dims for alias in names_of[name]):
            along = [dims for alias in names_of[name] for dims in [removed.get(alias, {})] if dims]
            if along:  # no layer makes its channels, but it went with those of others, as a class token does
                units, reason = next(iter(along[0].values())) if len(along[0]) == 1 else units, None
            else:
                reason = reason or PASSED_OVER
        reports.append(
            LayerReport(
                name=rows[name],
                shape_before=list(old[name].shape),
                shape_after=list(left.shape),
                sparsity=(left.numel() - int(torch.count_nonzero(left))) / max(left.numel(), 1),
                removed_units=units,
                reason=None if units else reason,
            )
        )
    return reports


def rows_of(module: nn.Module) -> dict[str, str]:
    """Name of each weight tensor -> what its line of a report is called: its layer, where that has no other."""
    layers = weight_layers(module)
    count = Counter(layers.values())
    return {name: layer if count[layer] == 1 else name for name, layer in layers.items()}


def reproduce(spec: CompressionSpec, work: Work, written: Sequence[Path], training: Training | None) -> Reproduce:
    """All that is needed to run a job again, and the digests to know that it came out the same."""
    inputs = {
        file.filename if len(work.models) == 1 else f"{role}: {file.filename}": file.sha256
        for role, file in work.models.items()
    }
    if work.dataset is not None and work.dataset.sha256:
        inputs[work.dataset.filename] = work.dataset.sha256
    if work.reference is not None:
        inputs[f"compared with: {work.reference.filename}"] = work.reference.sha256
    return Reproduce(
        spec=spec.model_dump(mode="json"),
        seed=spec.seed,
        versions=_versions(),
        device=torch.cuda.get_device_name() if work.device != "cpu" else f"cpu ({platform.machine()})",
        driver=driver_version() if work.device != "cpu" else None,
        threads=work.threads,
        ranks=work.ranks.count,
        precision=None if training is None else training_precision(training, work.device),
        inputs=inputs,
        outputs={path.name: _digest(path) for path in written},
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    """Versions of the software, as the code itself says: pared may run from a checkout that nobody installed."""
    versions = {
        "pared": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }
    with suppress(PackageNotFoundError):  # it gives builtin:digits alone
        versions["scikit-learn"] = version("scikit-learn")
    return versions


def sizes(written: Sequence[Path]) -> dict[str, int]:
    """Name -> bytes of each file."""
    return {path.name: path.stat().st_size for path in written}
