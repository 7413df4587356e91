"""Trains the model of a quantize job while it computes with rounded weights and inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.distillation.objective import Objective, hold_others, make_objective
from pared.compression.export.scripting import as_torchscript
from pared.compression.loading import LoadedModel
from pared.compression.measuring.finite import hold_finite_on_example
from pared.compression.names import layer_of
from pared.compression.pruning.weights import Masks, zeros_held
from pared.compression.quantization.rounded_training import with_rounding
from pared.compression.quantization.script import rounded_weights
from pared.compression.report.verdict import kept_as_before
from pared.compression.training.calibration import copied, learn_labels
from pared.compression.training.loop import fit, trainable
from pared.compression.training.seeds import seed_of
from pared.reports import EpochRecord

if TYPE_CHECKING:
    from pared.compression.jobs.quantize import Int8Job
    from pared.compression.jobs.stages import Stages
    from pared.compression.work import Work


@dataclass(frozen=True)
class Trained:
    """The trained model in float32, as it is to be rounded, and how it came to be."""

    loaded: LoadedModel
    history: list[EpochRecord]
    best_epoch: int | None
    warnings: list[str]


def train_rounded(job: Int8Job, work: Work, stages: Stages) -> Trained | None:
    """Train the model, where the spec asks for it; layers that stay float32 are not rounded.

    A resumed job goes on in the epoch of its newest checkpoint.

    Raises:
        NotFinite: the trained model answers NaN or infinity where the upload does not.
    """
    retrain, data, original = job.spec.retrain, job.data, job.original
    if retrain is None or data is None or not retrain.epochs:
        return None
    if not trainable(original.module):
        why = (
            "There was no training: every weight of this file is marked as not to be trained (requires_grad=False). "
            "Save the model with its weights unfrozen to have it trained."
        )
        return Trained(original, [], None, [why])
    stages.enter("retrain")
    script = as_torchscript(copied(original.module), job.example)
    of_layer = job.parameters | {name: layer_of(name) for name in dict(script.named_parameters())} | job.parameters
    weights = {
        name: weight
        for name, weight in rounded_weights(script).items()
        if job.usual.get(of_layer[name], "float32") != "float32"
    }
    module = with_rounding(script, weights, job.spec.method)
    device, augment = work.device, retrain.augment
    if retrain.teach is None:
        lesson = Objective(data, learn_labels(data.task, augment), None)
    else:
        lesson = make_objective(
            retrain.teach,
            original.module,
            module,
            data,
            job.example,
            task=data.task,
            seed=job.spec.seed,
            device=device,
            augment=augment,
        )
    lesson = hold_others(lesson, original.module, data.task, device=device, augment=augment)
    zeros = zeros_held(module, original.sparse)
    resumed = work.observer.resume()
    fitted = fit(
        module,
        lesson.data,
        retrain,
        lesson.loss,
        task=data.task,
        seed=seed_of(job.spec.seed, "retrain", 0),
        phase="retrain",
        masks=Masks(zeros) if zeros else None,
        companion=lesson.companion,
        device=device,
        record=work.record_steps,
        ranks=work.ranks,
        observer=work.observer,
        span=stages.span(0, 1),
        keep=lambda state: work.observer.checkpoint({"fit": state}),
        resume=None if resumed is None else resumed["fit"],
    )
    place(original.module, CPU)
    place(module.eval(), CPU)
    result = copied(original.module)
    trained = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
            if name in trained:  # all that forward reads
                tensor.copy_(trained[name])
    hold_finite_on_example(original.module, result.eval(), job.example)
    warnings = [*kept_as_before("training", fitted.best_epoch), *fitted.warnings]
    return Trained(replace(original, module=result), fitted.history, fitted.best_epoch, warnings)
