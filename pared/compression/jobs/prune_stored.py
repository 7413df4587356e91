"""The method of a prune job on safetensors without an architecture: from file to file, in little memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from torch import Tensor

from pared.compression.export.formats import Written
from pared.compression.jobs.prune_job import check_patterns
from pared.compression.jobs.stages import Stages, beside, plain
from pared.compression.jobs.without_architecture import NOT_RUN
from pared.compression.loading import is_parameter, is_without_architecture, with_architecture
from pared.compression.loading.file_format import recognise
from pared.compression.measuring.size import count_bytes
from pared.compression.names import layer_of
from pared.compression.report.parts import Measured
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import prune_verdict
from pared.compression.work import ModelFile, Work
from pared.reports import LayerReport, Measurement, Report
from pared.specs import PruneSpec
from pared.specs.running import why_run
from pared.weights.parametrized import computed_from
from pared.weights.prune_file import FilePruning, prune_file
from pared.weights.safetensors import BadSafetensors, read_header

_FILE = "model.safetensors"
_TYPES = {"F64", "F32", "F16", "BF16"}


def is_stored(spec: PruneSpec, file: ModelFile) -> bool:
    """Whether the job is one that looks at each weight by itself, and writes the tensors as they lay in the file."""
    if why_run(spec):
        return False
    simple = spec.granularity == "weight" and spec.criterion == "magnitude" and spec.amount is not None
    whole = not (spec.amounts or spec.stages or spec.quantize) and spec.schedule == "one_shot"
    if not simple or not whole or spec.outputs not in (None, ["state_dict"]) or file.prefix or file.weights:
        return False
    if recognise(file.path) != "safetensors":
        return False
    try:
        entries = read_header(file.path).tensors
    except BadSafetensors:
        return False  # told on opening
    matrices = {entry.dtype for entry in entries if len(entry.shape) > 1 and entry.dtype.startswith(("F", "BF"))}
    if not matrices <= _TYPES or computed_from(entry.name for entry in entries):
        return False
    return is_without_architecture(with_architecture(file, plain(spec.architecture)))  # by the names and shapes alone


def prune_stored(spec: PruneSpec, work: Work, stages: Stages) -> Report:
    """Zero the smallest weights of the file, a block at a time, and report on it.

    Raises:
        NothingToPrune: no tensor can be pruned.
        ValidationError: a pattern matches no layer.
        UnsupportedModel: a weight is NaN.
    """
    assert spec.amount is not None  # noqa: S101 - `is_stored` has looked
    source, target = work.models["model"].path, work.directory / _FILE
    matrices = [entry.name for entry in read_header(source).tensors if len(entry.shape) > 1]
    check_patterns(spec, map(layer_of, matrices))
    target.unlink(missing_ok=True)  # of an earlier attempt
    upload_bytes = beside(lambda: count_bytes(source))
    stages.enter("compress")
    done = prune_file(
        source,
        target,
        amount=spec.amount,
        scope=spec.scope,
        include=spec.include,
        exclude=spec.exclude,
        progress=lambda _done, _to_do: stages.beat(),
    )
    stages.enter("evaluate")
    counted = [_Counted.of(path, stages) for path in (source, target)]
    stages.enter("export")
    written = Written({"state_dict": [target]}, [])
    measured = Measured(counted[0].measurement, counted[1].measurement, "state_dict", [])
    before, after = measured.with_files(upload_bytes(), written.paths, None, None)
    return publish(
        spec,
        work,
        verdict=prune_verdict(spec.granularity, before, after, None),
        sizes_and_scores=(before, after),
        layers=list(_layers(counted[1], done)),
        granularity=spec.granularity,
        baseline=None,
        measured=measured,
        written=written,
        training=None,
        warnings=[*work.models["model"].notes, NOT_RUN, *done.notes],
        seconds=stages.finish(),
    )


@dataclass(frozen=True)
class _Counted:
    """What is in a safetensors file. `matrices`: name of each weight -> its shape, and how many zeros it has."""

    measurement: Measurement
    matrices: Mapping[str, tuple[list[int], int]]

    @classmethod
    def of(cls, path: Path, stages: Stages) -> _Counted:
        parameters = nonzero = 0
        matrices = {}
        for name, tensor in _tensors(path):
            stages.beat()
            if is_parameter(name, tensor):
                living = int(tensor.count_nonzero())
                parameters, nonzero = parameters + tensor.numel(), nonzero + living
                if tensor.dim() > 1:
                    matrices[name] = list(tensor.shape), tensor.numel() - living
        sizes = Measurement(parameters=parameters, nonzero_parameters=nonzero, file_bytes=0, compressed_bytes=0)
        return cls(sizes, matrices)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """One after the other, as they lie in the file."""
    with safetensors.safe_open(path, framework="pt") as file:
        for name in (entry.name for entry in read_header(path).tensors):
            yield name, file.get_tensor(name)


def _layers(after: _Counted, done: FilePruning) -> Iterator[LayerReport]:
    weights_of = Counter(layer_of(name) for name in after.matrices)
    pruned = {tensor.name for tensor in done.tensors}
    for name, (shape, zeros) in after.matrices.items():
        layer = layer_of(name)
        yield LayerReport(
            name=layer if weights_of[layer] == 1 else name,
            shape_before=shape,
            shape_after=shape,
            sparsity=zeros / max(math.prod(shape), 1),
            reason=None if name in pruned else "left out by include/exclude",
        )
