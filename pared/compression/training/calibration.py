"""What some training samples say of the weights: batches of them, and the gradients of the loss on their labels."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pared.compression.coupling.reloading import reloaded
from pared.compression.data.samples import Inputs
from pared.compression.devices.memory import BatchSize
from pared.compression.devices.placement import place
from pared.compression.measuring.running import Samples, forward, unoptimized
from pared.compression.names import tensors
from pared.compression.tasks import TaskRules
from pared.compression.training.augmentation import label_loss, parted
from pared.compression.training.gradients import Loss, WeightedLoss, add_gradients, cudnn_disabled, cudnn_refuses
from pared.compression.training.seeds import seed_of
from pared.specs import Augment

_SOME = 64  # samples of a batch that a criterion looks at


def learn_labels(task: TaskRules, augment: Augment | None = None) -> Loss:
    """The loss on labels alone, or on what a task has in their place. `augment`: how training changes its batches."""

    def loss(module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, mix = parted(inputs, augment)
        return label_loss(task, forward(module, samples, task), targets, mix)

    return WeightedLoss(loss, task.weight)


def some_batches(data: Samples, seed: int) -> Iterator[tuple[Inputs, Tensor]]:
    """What a criterion that needs data looks at: 1024 training samples, drawn by seed."""
    return itertools.islice(data.batches("train", _SOME, torch.Generator().manual_seed(seed)), 16)


def loss_gradients(
    module: nn.Module, data: Samples, task: TaskRules, *, seed: int, device: str
) -> Iterator[dict[str, Tensor]]:
    """The gradients of the loss on labels, for each of some batches of the training split: all names -> tensor, on CPU.

    In eval mode, so that batch norms and dropout are as they are in use; also for weights that are not to be trained.
    Where a task learns the original's answers, those are probed (`TaskRules.probed`).
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "probe"))
    module = copied(module).eval()
    place(module, device)
    without_cudnn = cudnn_refuses(module)
    parameters = {name: tensor for name, tensor in tensors(module).items() if tensor.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    size = BatchSize(_SOME)
    for inputs, answers in some_batches(data.on(device), seed):
        target = task.probed(answers, generator)

        def run(most: int, inputs: Inputs = inputs, target: Tensor = target) -> None:
            module.zero_grad(set_to_none=True)
            add_gradients(module, inputs, target, learn_labels(task), most, nullcontext())

        with unoptimized(), cudnn_disabled(without_cudnn):
            size.run(run, len(target), "score weights")
        yield {
            name: torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.cpu()
            for name, parameter in parameters.items()
        }


def copied(module: nn.Module, *, own_parameters: bool = True) -> nn.Module:
    """An independent copy of a module, TorchScript or not. `own_parameters`: as `reloaded` takes it."""
    if isinstance(module, torch.jit.ScriptModule):
        return reloaded(module, own_parameters=own_parameters)
    shared = {} if own_parameters else {id(each): _alias(each) for each in module.parameters()}
    return copy.deepcopy(module, shared)


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    """Another parameter of the same memory."""
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
