"""The one training loop: it is handed its loss, keeps the best epoch and goes on exactly where a checkpoint stopped."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import reloaded
from pared.compression.devices import place
from pared.compression.gradients import Gradients, Loss, add_gradients
from pared.compression.masks import Masks
from pared.compression.measure import (
    Inputs,
    Samples,
    answered,
    forward,
    label_loss,
    predict,
    score,
    unoptimized,
)
from pared.compression.memory import BatchSize
from pared.compression.names import tensors
from pared.compression.precision import float32_products, training_precision
from pared.compression.work import Observer, SilentObserver
from pared.errors import Diverged, ModelFailed
from pared.reports import EpochRecord
from pared.specs import Task, Train

_SIGN_OF_LIFE_S = 0.5
_SOME = 64  # samples of a batch that a criterion looks at
_RENEW_EVERY = 40  # most steps between two masks of a ramp
_RENEWALS = 50  # fewest masks of a ramp that has so many steps
_REMEMBERED = 0.99  # of the mean square of slopes, from step to step


class Held(Protocol):
    """What holds through every step: pruned weights at zero (`masks.Masks`), shared ones equal (`SharedValues`)."""

    def apply(self, module: nn.Module) -> None:
        """Make the weights so."""

    def mask_gradients(self, module: nn.Module) -> None:
        """Change the gradients so that a step leaves the weights so."""

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """It again."""


@dataclass(frozen=True)
class Fit:
    """What a training run came to. The module itself now has the weights of `best_epoch`.

    `best_score`: on validation; −inf where no sample was answered. `masks`: which weights live, as the run was given
    it or as its ramp left it. `warnings`: what the machine's memory made different from what was asked for.
    """

    history: list[EpochRecord]
    best_epoch: int
    best_score: float
    masks: Held | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ramp:
    """Lets weights go while training runs, fast first and then ever slower. Zhu and Gupta 2017, arXiv:1710.01878.

    `masks`: from the module, whose gradients are of the current batch and for removed weights too, how far the ramp
    is, and slopes, to masks; 0 is its beginning and 1 its end. Slopes: parameter name -> the root of the running mean
    square of its gradients, of removed weights too; None unless `by_slopes`. `share`: of all steps of the run, over
    which it goes.
    """

    masks: Callable[[nn.Module, float, Mapping[str, Tensor] | None], Masks]
    share: float
    by_slopes: bool = False


def fit(
    module: nn.Module,
    data: Samples,
    config: Train,
    loss: Loss,
    *,
    task: Task,
    seed: int,
    phase: str,
    masks: Held | None = None,
    ramp: Ramp | None = None,
    companion: nn.Module | None = None,
    device: str = "cpu",
    record: bool = True,
    observer: Observer | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
    resume: dict[str, Any] | None = None,
) -> Fit:
    """Train a module in place; it ends in eval mode, on `device`, with the weights of its best epoch.

    The best epoch has the highest validation score (accuracy or R²), and among equals the lowest validation loss; but
    first of all no epoch is better that answers fewer samples with numbers.
    Epoch 0, the weights as they came, is a candidate too: training never returns something worse on validation than
    what it was given. With a ramp the candidates are the epochs that end beyond it. The test split is not looked at.

    A run that is stopped and resumed ends with the same bits as one that was not: everything random in an epoch
    hangs on (seed, epoch) alone, and the rest is in the checkpoint.

    Args:
        seed: of this run; runs that are to see the samples in the same order share it.
        phase: what to call the run in records and metrics.
        masks: weights that are pruned and stay exactly zero, or share values and stay exactly equal; with a ramp,
            those that are so when it begins.
        companion: a module that is trained along and then dropped, such as learned projections.
        record: whether a card may run its steps from a recording of one.
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
    _lay_out(module, torch.channels_last)
    if companion is not None:
        companion.to(device)
    optimizer = _optimizer(trainable(module) + trainable(companion), config)
    steps = _Steps(config, data.samples("train"), ramp)
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
    )
    pulse = _Pulse(observer, span, config.epochs, data.samples("train"))
    pulse.now(0, 0.0)
    slopes = _Slopes(module, None if resume is None else resume["slopes"]) if ramp and ramp.by_slopes else None
    best: _Best | None = None
    if resume is None:
        history: list[EpochRecord] = []
        live = _Live(module, optimizer, masks, device, slopes)
        if ramp is None:
            best = _Best(0, _validate(module, data, task, device, pulse), _state(module))
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
        live = _Live(module, optimizer, None if kept is None else (masks or Masks).from_state(kept), device, slopes)

    with unoptimized(), float32_products("fast"):
        for epoch in range(first, config.epochs + 1):
            if config.patience and best is not None and epoch - 1 - max(best.epoch, steps.ready) >= config.patience:
                observer.log(f"{phase}: stopped after epoch {epoch - 1}, {config.patience} without a better score")
                break
            began = time.monotonic()
            pulse.epoch = epoch
            seed_of_epoch = seed_of(seed, epoch)
            train_loss = _train_epoch(module, data, steps, gradients, live, seed_of_epoch, companion, pulse, ramp)
            held = _validate(module, data, task, device, pulse)
            seconds = time.monotonic() - began
            score = held.score if held.answered else None
            history.append(
                EpochRecord(phase=phase, epoch=epoch, train_loss=train_loss, validation=score, seconds=seconds)
            )
            if epoch > steps.ready and (best is None or held.rank > best.held.rank):
                best = _Best(epoch, held, _state(module))
            _tell(observer, history[-1], held.loss, task, config.epochs)
            keep(
                {
                    "epoch": epoch,
                    "module": _state(module),
                    "companion": None if companion is None else _state(companion),
                    "optimizer": copy.deepcopy(optimizer.state_dict()),
                    "masks": None if live.masks is None else live.masks.state(),
                    "slopes": None if live.slopes is None else live.slopes.state(),
                    "best": None if best is None else best.kept(),
                    "history": [record.model_dump() for record in history],
                }
            )
            pulse.now(epoch, 1.0)
    assert best is not None  # noqa: S101 - the last epoch ends beyond any ramp
    module.load_state_dict(best.state)
    _lay_out(module, torch.contiguous_format)
    module.zero_grad(set_to_none=True)
    module.eval()
    return Fit(history, best.epoch, best.held.score, live.masks, _parts_warning(module, config, data, gradients.parts))


@dataclass(frozen=True)
class _Held:
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
    held: _Held
    state: dict[str, Tensor]

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"epoch": self.epoch, "state": self.state, **dataclasses.asdict(self.held)}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> _Best:
        """It again."""
        return cls(kept["epoch"], _Held(kept["answered"], kept["score"], kept["loss"]), kept["state"])


def learn_labels(task: Task) -> Loss:
    """The loss on labels alone: cross-entropy, or the squared error."""

    def loss(module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        return label_loss(forward(module, inputs, task), targets, task)

    return loss


def some_batches(data: Samples, seed: int) -> Iterator[tuple[Inputs, Tensor]]:
    """What a criterion that needs data looks at: 1024 training samples, drawn by seed."""
    return itertools.islice(data.batches("train", _SOME, torch.Generator().manual_seed(seed)), 16)


def loss_gradients(
    module: nn.Module, data: Samples, task: Task, *, seed: int, device: str
) -> Iterator[dict[str, Tensor]]:
    """The gradients of the loss on labels, for each of some batches of the training split: all names -> tensor, on CPU.

    In eval mode, so that batch norms and dropout are as they are in use; also for weights that are not to be trained.
    """
    module = copied(module).eval()
    place(module, device)
    parameters = {name: tensor for name, tensor in tensors(module).items() if tensor.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    size = BatchSize(_SOME)
    for inputs, target in some_batches(data.on(device), seed):

        def run(most: int, inputs: Inputs = inputs, target: Tensor = target) -> None:
            module.zero_grad(set_to_none=True)
            add_gradients(module, inputs, target, learn_labels(task), most, nullcontext())

        with unoptimized():
            size.run(run, len(target), "score weights")
        yield {
            name: torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.cpu()
            for name, parameter in parameters.items()
        }


def trainable(module: nn.Module | None) -> list[nn.Parameter]:
    """The parameters that ask for gradients."""
    return [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]


def copied(module: nn.Module) -> nn.Module:
    """An independent copy of a module, TorchScript or not."""
    return reloaded(module) if isinstance(module, torch.jit.ScriptModule) else copy.deepcopy(module)


def seed_of(*parts: object) -> int:
    """A seed of its own for each use, so that one use more or less shifts no other."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """The order in memory of the weights of 2-D convolutions; the results of these follow them.

    Over channels-last tensors they took 0.57 of the time on the CPU measured (and suit a GPU's tensor cores).
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=memory_format)


class _Steps:
    """Counts the optimizer's steps of a run, and says what depends on the count.

    `ramp_ends`: the step that ends the ramp; -1 without one. `ready`: the last epoch that ends with the ramp
    unfinished; 0 without one.
    """

    def __init__(self, config: Train, samples: int, ramp: Ramp | None) -> None:
        self.config = config
        size = config.batch_size
        # A last batch of one sample is left out; see `_train_epoch`.
        self.of_an_epoch = max(1, samples // size + (samples % size > min(1, size - 1)))
        self._all = self.of_an_epoch * config.epochs
        self.ramp_ends = -1 if ramp is None else min(round(ramp.share * self._all), self._all - 1)
        self._every = max(1, min(_RENEW_EVERY, self.ramp_ends // _RENEWALS))
        self.ready = max(0, self.ramp_ends) // self.of_an_epoch

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rate, warm = self.config.lr, self.config.warmup * self._all
        if step < warm:
            rate *= (step + 1) / (warm + 1)
        if self.config.lr_schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / self._all)) / 2
        return rate

    def renews(self, step: int) -> float | None:
        """How far the ramp is, where this step renews the masks."""
        if step > self.ramp_ends or (step % self._every and step != self.ramp_ends):
            return None
        return step / self.ramp_ends if self.ramp_ends else 1.0


class _Slopes:
    """How steep the loss has lately been along each parameter: the mean square of its gradients, the last ones most."""

    def __init__(self, module: nn.Module, state: dict[str, Tensor] | None) -> None:
        """Args: state: of a checkpoint, to go on from."""
        self._parameters = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
        self._squares = {
            name: torch.zeros_like(tensor) if state is None else state[name].to(tensor)
            for name, tensor in self._parameters.items()
        }

    def add(self) -> None:
        """Take up the gradients of a step."""
        for name, parameter in self._parameters.items():
            square = self._squares[name].mul_(_REMEMBERED)
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad, value=1 - _REMEMBERED)

    def roots(self, steps: int) -> dict[str, Tensor]:
        """What a ramp is told after so many steps."""
        weight = 1 - _REMEMBERED**steps  # of all gradients so far; it comes to 1
        return {name: (square / weight).sqrt() for name, square in self._squares.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: square.clone() for name, square in self._squares.items()}


class _Live:
    """A module in training with its optimizer, and which of its weights live."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        masks: Held | None,
        device: str,
        slopes: _Slopes | None,
    ) -> None:
        self.optimizer, self.device, self.slopes = optimizer, device, slopes
        self._module = module
        self.masks: Held | None = None
        if masks is not None:
            self.renew(masks)

    def renew(self, masks: Held) -> None:
        """Take up other masks; what the optimizer remembers of removed weights is forgotten."""
        # Moved once, not in every step.
        self.masks = masks.from_state({name: kept.to(self.device) for name, kept in masks.state().items()})
        self.masks.apply(self._module)
        if not isinstance(self.masks, Masks):
            return
        for name, parameter in self._module.named_parameters():
            kept = self.masks.kept.get(name)
            for remembered in self.optimizer.state.get(parameter, {}).values():
                if kept is not None and isinstance(remembered, Tensor) and remembered.shape == kept.shape:
                    remembered.masked_fill_(~kept, 0.0)


def _optimizer(learned: list[nn.Parameter], config: Train) -> torch.optim.Optimizer:
    # Fused, a step takes half the time on a CPU; but it walks through weights as they lie in memory.
    fused = all(each.device.type == "cpu" and _is_dense(each) for each in learned) or None
    if config.optimizer == "adam":
        return torch.optim.Adam(learned, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        learned,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=fused,
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether its numbers lie side by side, so that its gradients lie alike."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _train_epoch(
    module: nn.Module,
    data: Samples,
    steps: _Steps,
    gradients: Gradients,
    live: _Live,
    seed: int,
    companion: nn.Module | None,
    pulse: _Pulse,
    ramp: Ramp | None,
) -> float:
    """One pass over the training split; the mean loss over its samples."""
    config, device, optimizer = steps.config, live.device, live.optimizer
    torch.manual_seed(seed)  # dropout draws from the global generator
    module.train()
    if companion is not None:
        companion.train()
    total = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    step = (pulse.epoch - 1) * steps.of_an_epoch
    for inputs, target in data.batches("train", config.batch_size, torch.Generator().manual_seed(seed)):
        count = len(target)
        if count == 1 < config.batch_size and seen:
            continue  # a last batch of one sample has no variance for batch-norm to normalise by
        for group in optimizer.param_groups:
            group["lr"] = steps.rate(step)
        value = gradients(inputs, target)
        if live.slopes is not None and step <= steps.ramp_ends:
            live.slopes.add()
        progress = steps.renews(step)
        if ramp is not None and progress is not None:
            slopes = None if live.slopes is None else live.slopes.roots(step + 1)
            live.renew(ramp.masks(module, progress, slopes))
        if live.masks is not None:
            live.masks.mask_gradients(module)
        optimizer.step()
        if live.masks is not None:
            # With masked gradients and zero weights neither momentum nor weight decay has anything to add; this
            # makes it a certainty whatever the optimizer does (Adam's state is all zeros there, and 0 / ε = 0).
            live.masks.apply(module)
        step += 1
        # Summed on the device: reading the value in every step would make a GPU wait for Python each time.
        total += value.double() * count
        seen += count
        if pulse.due():
            _check_finite(float(total), config)
            pulse.now(pulse.epoch, min(seen / pulse.samples, 1.0))
    mean = float(total) / max(seen, 1)
    _check_finite(mean, config)
    return mean


def _parts_warning(module: nn.Module, config: Train, data: Samples, parts: BatchSize) -> list[str]:
    """What it means that batches were run in parts, if they were."""
    whole = min(config.batch_size, data.samples("train"))
    if parts.size >= whole:
        return []
    norms = any(name.endswith("running_mean") for name, _ in module.named_buffers())
    note = (
        f"A training batch of {whole} samples did not fit into memory: the gradients of parts of at most {parts.size} "
        "were added up, which comes to the same step."
    )
    return [f"{note} Only batch norms took their statistics from these smaller parts." if norms else note]


def _validate(module: nn.Module, data: Samples, task: Task, device: str, pulse: _Pulse) -> _Held:
    """Score the validation split. What is beyond all numbers is the worst, not an error."""
    outputs, targets = predict(module, data, "val", task, device=device, tick=pulse.beat)
    told = answered(outputs, task)
    if not bool(told.any()):
        return _Held(0, -math.inf, math.inf)
    loss = float(label_loss(outputs[told], targets[told], task))
    rows = slice(None) if task == "classification" else told  # a class that is not told is a wrong one
    found = score(outputs[rows], targets[rows], task)
    return _Held(int(told.sum()), found, math.inf if math.isnan(loss) else loss)


def _check_finite(loss: float, config: Train) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"The training loss stopped being a finite number at a learning rate of {config.lr:g}. "
            f"Try {config.lr / 10:g}, or check that the data is scaled as the model was trained on."
        )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _tell(observer: Observer, record: EpochRecord, validation_loss: float, task: Task, epochs: int) -> None:
    name = "accuracy" if task == "classification" else "r2"
    observer.metric("train_loss", record.train_loss, step=record.epoch, phase=record.phase)
    if math.isfinite(validation_loss):
        observer.metric("validation_loss", validation_loss, step=record.epoch, phase=record.phase)
    if record.validation is not None:
        observer.metric(f"validation_{name}", record.validation, step=record.epoch, phase=record.phase)
        observer.log(
            f"{record.phase}: epoch {record.epoch} of {epochs}, loss {record.train_loss:.4g}, "
            f"validation {name} {record.validation:.4f}"
        )


class _Pulse:
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
