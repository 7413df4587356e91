"""Says what a prune job starts from, and what of its model can be removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling import input_norms
from pared.compression.data import Data
from pared.compression.devices.placement import device_of, place
from pared.compression.devices.values import CPU
from pared.compression.export.formats import Formats
from pared.compression.jobs.stages import Stages
from pared.compression.loading import LoadedModel
from pared.compression.measuring.quality import Assessment
from pared.compression.names import unmatched_patterns
from pared.compression.pruning.channels import RemovableChannels
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.pruning.weights import PrunableWeights, zeros_held
from pared.compression.tasks import TaskRules
from pared.compression.training.calibration import copied, loss_gradients, some_batches
from pared.compression.training.seeds import seed_of
from pared.compression.work import Work
from pared.errors import ValidationError
from pared.specs import PruneSpec, Retrain
from pared.wording import shortened


@dataclass(frozen=True)
class PruneJob:
    """What a prune job starts from. `retrain` is None where there is nothing to retrain with, or on."""

    spec: PruneSpec
    work: Work
    stages: Stages
    original: LoadedModel
    example: tuple[Tensor, ...]
    data: Data | None
    retrain: Retrain | None
    formats: Formats
    baseline: Assessment | None = None
    """The upload, scored, where there is data."""
    reference: LoadedModel | None = None
    """The upload of a pipeline, where `original` is what an earlier step made of it."""
    reference_task: TaskRules | None = None
    """How it answers."""
    projected: LoadedModel | None = None
    """The upload with projections behind its outputs, where the spec asks for them."""
    uniform: bool = False
    """Whether what is left must be such that the config of the uploaded folder can say it."""

    @property
    def upload(self) -> LoadedModel:
        """What the result is compared with, and learns from."""
        return self.reference or self.original

    @property
    def upload_path(self) -> Path:
        """Its file."""
        return (self.work.reference or self.work.models["model"]).path

    @property
    def start(self) -> LoadedModel:
        """What channels are removed from."""
        return self.projected or self.original

    def of(self, spec: PruneSpec) -> PruneJob:
        """The same for a spec that a target has led to."""
        return replace(self, spec=spec)


def check_patterns(spec: PruneSpec, layers: Iterable[str]) -> None:
    """Refuse a pattern that matches none of the layers with weights: what it was meant for would be missed.

    Raises:
        ValidationError: there is one.
    """
    names = list(dict.fromkeys(layers))
    for field, patterns in {"include": spec.include, "exclude": spec.exclude, "amounts": list(spec.amounts)}.items():
        idle = unmatched_patterns(names, patterns)
        if idle and names:
            text = f"{', '.join(map(repr, idle))} matches no layer. The layers are: {shortened(names, 20)}."
            raise ValidationError(text, errors=[{"pointer": f"/{field}", "detail": text}])


def choice(job: PruneJob, module: nn.Module, step: int, slopes: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The arguments that every selection of what to prune takes.

    Args:
        slopes: of the training that runs, where they are known, instead of gradients of some samples.
    """
    spec, data, device = job.spec, job.data, job.work.device
    statistics = None
    if data is not None:
        seed = seed_of(spec.seed, "evidence", step)

        def input_norms_of_some() -> Mapping[str, Tensor]:
            return input_norms(_on_cpu(module), inputs_of_some())

        def inputs_of_some() -> list[Sequence[Tensor]]:
            return [inputs for inputs, _ in some_batches(data, seed)]

        def gradients() -> Iterable[Mapping[str, Tensor]]:
            if slopes is not None:
                return [slopes]
            return loss_gradients(module, data, data.task, seed=seed, device=device)

        statistics = CalibrationStatistics(gradients, input_norms_of_some, inputs_of_some)
    return {
        "criterion": spec.criterion,
        "include": spec.include,
        "exclude": spec.exclude,
        "statistics": statistics,
        "generator": torch.Generator().manual_seed(seed_of(spec.seed, "prune", step)),
    }


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module, or a copy on the CPU of one that is being trained elsewhere."""
    if device_of(module) == CPU:
        return module
    module = copied(module)
    place(module, CPU)
    return module


def removable_channels(
    job: PruneJob, loaded: LoadedModel, step: int, upload_units: Mapping[str, int] | None = None, removed_units: int = 0
) -> RemovableChannels:
    """The channels or heads that can go, of a model that lost `removed_units` of the `upload_units` already."""
    return RemovableChannels(
        loaded,
        job.example,
        scope=job.spec.scope,
        heads_alone=job.spec.granularity == "head",
        uniform=job.uniform,
        upload_units=upload_units,
        removed_units=removed_units,
        **choice(job, loaded.module, step),
    )


def prunable_weights(
    job: PruneJob, module: nn.Module, step: int, slopes: Mapping[str, Tensor] | None = None
) -> PrunableWeights:
    """The single weights, or the blocks, that can go. `slopes`: as `choice` takes them."""
    spec = job.spec
    block = spec.block if spec.granularity == "block" else (1, 1)
    how = choice(job, module, step, slopes) | of_folded(job.original)
    return PrunableWeights(module, scope=spec.scope, block=block, **how)


def of_folded(original: LoadedModel) -> dict[str, Any]:
    """The arguments that say which weights the upload computes: those that were folded, and those left out."""
    return {"left_out": original.left_out, "allowed": zeros_held(original.module, original.sparse)}
