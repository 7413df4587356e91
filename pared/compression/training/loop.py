"""The one training loop: it is handed its loss, keeps the best epoch and goes on exactly where a checkpoint stopped."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.devices.memory import BatchSize
from pared.compression.devices.placement import place
from pared.compression.devices.precision import float32_products, training_precision
from pared.compression.measuring.references import Referenced, ReferencedOnCard
from pared.compression.measuring.running import Samples, predict, unoptimized
from pared.compression.pruning.weights import Masks
from pared.compression.ranks import ALONE, Ranks
from pared.compression.tasks import TaskRules
from pared.compression.training.across_ranks import RanksInStep
from pared.compression.training.augmentation import Augmentation
from pared.compression.training.constraints import ConstrainedModule, WeightConstraint
from pared.compression.training.gradients import Gradients, Loss
from pared.compression.training.gradual import GradualSchedule, RunningGradients, StepCount
from pared.compression.training.optimizers import lay_out, make_optimizer
from pared.compression.training.progress import ProgressReporter, report_epoch
from pared.compression.training.seeds import seed_of
from pared.compression.work import Observer, SilentObserver
from pared.errors import Diverged, ModelFailed
from pared.reports import EpochRecord
from pared.specs import Train


@dataclass(frozen=True)
class Fit:
    """What a training run came to. The module itself now has the weights of `best_epoch`.

    `best_score`: on validation; −inf where no sample was answered. `masks`: which weights live, as the run was given it
    or as its ramp left it. `warnings`: what the machine's memory made different from what was asked for.
    """

    history: list[EpochRecord]
    best_epoch: int
    best_score: float
    masks: WeightConstraint | None = None
    warnings: list[str] = field(default_factory=list)


def fit(
    module: nn.Module,
    data: Samples,
    config: Train,
    loss: Loss,
    *,
    task: TaskRules,
    seed: int,
    phase: str,
    masks: WeightConstraint | None = None,
    ramp: GradualSchedule | None = None,
    companion: nn.Module | None = None,
    device: str = "cpu",
    record: bool = True,
    ranks: Ranks = ALONE,
    observer: Observer | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
    resume: dict[str, Any] | None = None,
) -> Fit:
    """Train a module in place; it ends in eval mode, on `device`, with the weights of its best epoch.

    The best epoch has the highest validation score, and among equals the lowest validation loss; but
    first of all no epoch is better that answers fewer samples with numbers.
    Epoch 0, the weights as they came, is a candidate too: training never returns something worse on validation than
    what it was given. With a ramp the candidates are the epochs that end beyond it. The test split is not looked at.

    A run that is stopped and resumed ends with the same bits as one that was not: everything random in an epoch
    hangs on (seed, epoch) alone, and the rest is in the checkpoint. Where `config` says so, the samples of each
    training batch change at random first (`training.augmentation`).

    Args:
        seed: of this run; runs that are to see the samples in the same order share it.
        phase: what to call the run in records and metrics.
        masks: weights that are pruned and stay exactly zero, or share values and stay exactly equal; with a ramp,
            those that are so when it begins.
        companion: a module that is trained along and then dropped, such as learned projections.
        record: whether a card may run its steps from a recording of one.
        ranks: the processes that make this call together, all with the same arguments but for `observer` and `keep`.
            Each runs its share of every batch and takes the step of the whole; all end with the same weights.
        span: where in the whole job this run begins and ends, for `observer.progress`.
        keep: is handed a checkpoint after every epoch.
        resume: such a checkpoint.

    A batch that does not fit into memory is run in parts, whose gradients add up to those of the whole.

    Raises:
        Diverged: the loss is no longer a finite number.
        ModelFailed: the model's own code raised, or nothing in it can be trained.
        OutOfMemory: not even one sample fits.
    """
    observer = observer or SilentObserver()
    data = data.on(device)
    if not trainable(module):
        raise ModelFailed(
            "Nothing in this model can be trained: its weights are constants (a frozen TorchScript file) or do not ask "
            "for gradients. Save it with torch.jit.save(torch.jit.script(model), …) before any torch.jit.freeze."
        )
    place(module, device)
    lay_out(module, torch.channels_last)
    if companion is not None:
        companion.to(device)
    optimizer = make_optimizer(trainable(module) + trainable(companion), config)
    steps = StepCount(config, data.samples("train"), ramp)
    gradients = Gradients(
        module,
        loss,
        trainable(module) + trainable(companion),
        torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=training_precision(config, device) == "bfloat16"
        ),
        batch_size=min(config.batch_size, data.samples("train")),
        steps=steps.of_an_epoch * config.epochs,
        device=device,
        record=record,
        ranks=ranks,
    )
    reporter = ProgressReporter(observer, span, config.epochs, data.samples("train"))
    reporter.now(0, 0.0)
    running_gradients = (
        RunningGradients(module, None if resume is None else resume["slopes"]) if ramp and ramp.by_gradients else None
    )
    best: _Best | None = None
    if resume is None:
        history: list[EpochRecord] = []
        constrained = ConstrainedModule(module, optimizer, masks, device, running_gradients)
        first = 1
    else:
        history = [EpochRecord.model_validate(record) for record in resume["history"]]
        best = None if resume["best"] is None else _Best.of(resume["best"])
        first = resume["epoch"] + 1
        module.load_state_dict(resume["module"])
        optimizer.load_state_dict(resume["optimizer"])
        if companion is not None:
            companion.load_state_dict(resume["companion"])
        kept = resume["masks"]
        constrained = ConstrainedModule(
            module, optimizer, None if kept is None else (masks or Masks).from_state(kept), device, running_gradients
        )

    in_step = RanksInStep(
        ranks,
        [module] if companion is None else [module, companion],
        (phase, seed, first, data.samples("train"), config.model_dump_json()),
        min(config.batch_size, data.samples("train")),
    )
    if resume is None and ramp is None:
        best = _Best(0, ranks.agreed(_validate(module, data, task, device, reporter)), _state(module))
    with unoptimized(), float32_products("fast"):
        for epoch in range(first, config.epochs + 1):
            if config.patience and best is not None and epoch - 1 - max(best.epoch, steps.ready) >= config.patience:
                observer.log(f"{phase}: stopped after epoch {epoch - 1}, {config.patience} without a better score")
                break
            began = time.monotonic()
            reporter.epoch = epoch
            seed_of_epoch = seed_of(seed, epoch)
            train_loss = _train_epoch(
                module, data, steps, gradients, constrained, seed_of_epoch, companion, reporter, ramp, ranks
            )
            in_step.end_epoch()
            validated = ranks.agreed(_validate(module, data, task, device, reporter))
            seconds = time.monotonic() - began
            score = validated.score if validated.answered else None
            history.append(
                EpochRecord(phase=phase, epoch=epoch, train_loss=train_loss, validation=score, seconds=seconds)
            )
            if epoch > steps.ready and (best is None or validated.rank > best.validated.rank):
                best = _Best(epoch, validated, _state(module))
            report_epoch(observer, history[-1], validated.loss, task, config.epochs)
            keep(
                {
                    "epoch": epoch,
                    "module": _state(module),
                    "companion": None if companion is None else _state(companion),
                    "optimizer": copy.deepcopy(optimizer.state_dict()),
                    "masks": None if constrained.masks is None else constrained.masks.state(),
                    "slopes": None if constrained.running_gradients is None else constrained.running_gradients.state(),
                    "best": None if best is None else best.kept(),
                    "history": [record.model_dump() for record in history],
                }
            )
            reporter.now(epoch, 1.0)
    assert best is not None  # noqa: S101 - the last epoch ends beyond any ramp
    module.load_state_dict(best.state)
    lay_out(module, torch.contiguous_format)
    module.zero_grad(set_to_none=True)
    module.eval()
    if not ranks.alone:
        torch.manual_seed(seed)  # each has drawn numbers of its own
    return Fit(
        history,
        best.epoch,
        best.validated.score,
        constrained.masks,
        _parts_warning(module, config, data, gradients.parts, ranks),
    )


@dataclass(frozen=True)
class _ValidationResult:
    """How a model does on the validation split: samples that it answers with numbers, and score and loss over these."""

    answered: int
    score: float
    loss: float

    @property
    def rank(self) -> tuple[int, float, float]:
        """Higher is better. It holds no NaN, with which nothing compares."""
        return self.answered, self.score, -self.loss


@dataclass(frozen=True)
class _Best:
    epoch: int
    validated: _ValidationResult
    state: dict[str, Tensor]

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"epoch": self.epoch, "state": self.state, **dataclasses.asdict(self.validated)}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> _Best:
        """It again."""
        return cls(kept["epoch"], _ValidationResult(kept["answered"], kept["score"], kept["loss"]), kept["state"])


def trainable(module: nn.Module | None) -> list[nn.Parameter]:
    """The parameters that ask for gradients."""
    return [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]


def _train_epoch(
    module: nn.Module,
    data: Samples,
    steps: StepCount,
    gradients: Gradients,
    constrained: ConstrainedModule,
    seed: int,
    companion: nn.Module | None,
    reporter: ProgressReporter,
    ramp: GradualSchedule | None,
    ranks: Ranks,
) -> float:
    """One pass over the training split; the mean loss over its samples."""
    config, device, optimizer = steps.config, constrained.device, constrained.optimizer
    # Dropout draws from the global generator, for other samples on each rank.
    torch.manual_seed(seed_of(seed, ranks.rank) if ranks.rank else seed)
    module.train()
    if companion is not None:
        companion.train()
    augmentation, samples = None, data
    if config.augment is not None:
        # The original answers samples as they were changed.
        reference = None
        if isinstance(data, (Referenced, ReferencedOnCard)):
            samples, reference = data.plain(), data.reference
        # Only texts are padded.
        augmentation = Augmentation(config.augment, seed, reference, getattr(samples, "padding", None))
    total = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    step = (reporter.epoch - 1) * steps.of_an_epoch
    for inputs, target in samples.batches("train", config.batch_size, torch.Generator().manual_seed(seed)):
        count = len(target)
        if count == 1 < config.batch_size and seen:
            continue  # a last batch of one sample has no variance for batch-norm to normalise by
        for group in optimizer.param_groups:
            group["lr"] = steps.rate(step)
        if augmentation is not None:
            inputs, target = augmentation(inputs, target, step)  # noqa: PLW2901 - the batch as it is trained on
        value = gradients(inputs, target)
        if constrained.running_gradients is not None and step <= steps.ramp_ends:
            constrained.running_gradients.add()
        progress = steps.renews(step)
        if ramp is not None and progress is not None:
            running_gradients = (
                None if constrained.running_gradients is None else constrained.running_gradients.roots(step + 1)
            )
            constrained.renew(ramp.masks(module, progress, running_gradients))
        if constrained.masks is not None:
            constrained.masks.mask_gradients(module)
        optimizer.step()
        if constrained.masks is not None:
            # With masked gradients and zero weights neither momentum nor weight decay has anything to add; this
            # makes it a certainty whatever the optimizer does (Adam's state is all zeros there, and 0 / ε = 0).
            constrained.masks.apply(module)
        step += 1
        # Summed on the device: reading the value in every step would make a GPU wait for Python each time.
        total += value.double() * count
        seen += count
        if reporter.due():
            _check_finite(float(total), config)
            reporter.now(reporter.epoch, min(seen / reporter.samples, 1.0))
    mean = float(total) / max(seen, 1)
    _check_finite(mean, config)
    return mean


def _parts_warning(module: nn.Module, config: Train, data: Samples, parts: BatchSize, ranks: Ranks) -> list[str]:
    """What it means that batches were run in parts, or shared by ranks, if they were."""
    batch = min(config.batch_size, data.samples("train"))
    share = ranks.largest_share(batch)
    norms = any(name.endswith("running_mean") for name, _ in module.named_buffers())
    notes = []
    if norms and share < batch:
        notes.append(
            f"Batch norms took their statistics from shares of at most {share} samples, since {ranks.parts(batch)} "
            f"processes shared each training batch of {batch}. All else comes to the same step."
        )
    if parts.size < share:
        note = (
            f"A training batch of {share} samples did not fit into memory: the gradients of parts of at most "
            f"{parts.size} were added up, which comes to the same step."
        )
        notes.append(f"{note} Only batch norms took their statistics from these smaller parts." if norms else note)
    return notes


def _validate(
    module: nn.Module, data: Samples, task: TaskRules, device: str, reporter: ProgressReporter
) -> _ValidationResult:
    """Score the validation split. NaN and infinity count as the worst score, not as an error."""
    outputs, targets = predict(module, data, "val", task, device=device, tick=reporter.beat)
    has_answer = task.answered(outputs)
    if not bool(has_answer.any()):
        return _ValidationResult(0, -math.inf, math.inf)
    loss = task.mean_loss(outputs[has_answer], targets[has_answer])
    rows = task.scored(outputs)
    value = task.score(outputs[rows], targets[rows])
    return _ValidationResult(int(has_answer.sum()), value, math.inf if math.isnan(loss) else loss)


def _check_finite(loss: float, config: Train) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"The training loss stopped being a finite number at a learning rate of {config.lr:g}. "
            f"Try {config.lr / 10:g}, or check that the data is scaled as the model was trained on."
        )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
