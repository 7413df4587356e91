"""Captures the outputs of a model's inner layers, for a student that learns from those of its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.distillation.captured import Capturing, NoSuchLayer, capturing_eager, capturing_script
from pared.compression.measuring.running import own_failures
from pared.compression.tasks import TaskRules
from pared.compression.tasks.outputs import named_outputs
from pared.errors import ValidationError
from pared.wording import shortened

_CHANNELS_SECOND = ("conv", "_conv", "batchnorm", "batch_norm", "groupnorm", "group_norm", "instance")


@dataclass(frozen=True)
class Layer:
    """A layer whose output can be read.

    `shape`: of a sample's output, without the batch. `channel_dim`: of `shape`, the dimension of channels. `depth`:
    how many layers with weights have run when it has. `given`: what it gave for the example, with the batch first.
    `answers`: whether that has the shape of an output of the model.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    channel_dim: int
    depth: int
    given: Tensor
    answers: bool

    @property
    def channels(self) -> int:
        """How many numbers a position has."""
        return self.shape[self.channel_dim]

    @property
    def places(self) -> tuple[int, ...]:
        """The sizes of what is no channel: (H, W) of an image, (T,) of a sequence, none of a vector."""
        return tuple(size for dim, size in enumerate(self.shape) if dim != self.channel_dim)


class Probe:
    """Runs a module and also returns what named layers gave, with the batch first.

    Args:
        module: any module; it is not changed, and its training mode at the time of the call counts.
        layers: names as in `module.named_modules()`, or as in the inspection. Of a layer that runs several times the
            last output counts, and of one that gives several tensors, as a recurrent layer does, the first.
        role: what to call the module in errors.
        pointers: of each layer, where the spec names it.

    Raises:
        ValidationError: there is no such layer; the text lists those that there are.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str], role: str, pointers: Sequence[str] | None = None
    ) -> None:
        self._layers, self._role = list(layers), role
        self._pointers = list(pointers) if pointers is not None else ["/loss/features"] * len(self._layers)
        try:
            self._run, _ = _capturing(module, self._layers)
        except NoSuchLayer as missing:
            shown = shortened(missing.known, 40)
            raise self._refusal(
                self._layers.index(missing.layer),
                f"The {role} has no layer {missing.layer!r} whose output can be read. Its layers are: "
                f"{shown or 'none'}.",
            ) from missing
        self._batch_dims = [0] * len(self._layers)

    def look(self, inputs: Inputs) -> list[Tensor]:
        """What the layers give for these samples, of which there are two or more, and which dimension is the batch."""
        with torch.no_grad(), own_failures():
            captured = self._run(*inputs)[1]
            fewer = self._run(*(tensor[:-1] for tensor in inputs))[1]
        for index, layer in enumerate(self._layers):
            dim = _batch_dim(captured.get(layer), fewer.get(layer), len(inputs[0]))
            self._batch_dims[index] = dim or 0
        return self._batched(captured, len(inputs[0]))

    def __call__(self, inputs: Inputs, task: TaskRules) -> tuple[Tensor, list[Tensor]]:
        """The module's output, and the layers' outputs."""
        with own_failures():
            output, captured = self._run(*inputs)
        return task.taken(output, len(inputs[0])), self._batched(captured, len(inputs[0]))

    def _batched(self, captured: Mapping[str, list[Any]], samples: int) -> list[Tensor]:
        return [self._of_samples(index, captured.get(layer), samples) for index, layer in enumerate(self._layers)]

    def _of_samples(self, index: int, runs: list[Any] | None, samples: int) -> Tensor:
        layer, dim = self._layers[index], self._batch_dims[index]
        if not runs:
            text = (
                f"The {self._role}'s layer {layer} does not run for these inputs. torch evaluates a whole transformer "
                "layer at once: name that, or another layer."
            )
            raise self._refusal(index, text)
        value = runs[-1]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2 and value.shape[dim] == samples:
            return value.movedim(dim, 0)
        description = (
            f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        )
        raise self._refusal(
            index,
            f"The {self._role}'s layer {layer} gives {description}; a feature is a float tensor (samples, …). "
            "Name another layer.",
        )

    def _refusal(self, index: int, text: str) -> ValidationError:
        return ValidationError(text, errors=[{"pointer": self._pointers[index], "detail": text}])


def layers_of(module: nn.Module, inputs: Inputs) -> dict[str, Layer]:
    """The layers that give a float tensor with a slice for each sample, by name, in the order in which they end.

    Of a layer without weights, and of a block, channels are where the last layer with weights before its end had them.

    Args:
        module: in eval mode.
        inputs: two samples or more.
    """
    run, kinds = _capturing(module, None)
    with torch.no_grad(), own_failures():
        answer, captured = run(*inputs)
        fewer = run(*(tensor[:-1] for tensor in inputs))[1]
    answers = {each.shape[1:] for _, each in named_outputs(answer) if each.dim()}
    weighted = {name.rpartition(".")[0] for name, _ in module.named_parameters(remove_duplicate=False)}
    found: dict[str, Layer] = {}
    depth, second = 0, False
    for name, runs in captured.items():
        depth += name in weighted
        dim = _batch_dim(runs, fewer.get(name), len(inputs[0]))
        if dim is None:
            continue
        given = runs[-1].movedim(dim, 0)
        if name in weighted and given.dim() > 2:
            second = kinds[name].lower().startswith(_CHANNELS_SECOND)
        shape = tuple(given.shape[1:])
        channel_dim = 0 if second else len(shape) - 1
        found[name] = Layer(name, kinds[name], shape, channel_dim, depth, given, given.shape[1:] in answers)
    return found


def _capturing(module: nn.Module, layers: Sequence[str] | None) -> tuple[Capturing, dict[str, str]]:
    if isinstance(module, torch.jit.ScriptModule):
        return capturing_script(module, layers)
    return capturing_eager(module, layers)


def _batch_dim(runs: list[Any] | None, others: list[Any] | None, samples: int) -> int | None:
    """The dimension in which what a layer gave differs between `samples` samples and one less; None: no feature."""
    if not runs or not others:
        return None
    value, fewer = runs[-1], others[-1]
    if not isinstance(value, Tensor) or not isinstance(fewer, Tensor) or value.dim() < 2 or value.dim() != fewer.dim():
        return None
    grown = [dim for dim in range(value.dim()) if value.shape[dim] != fewer.shape[dim]]
    return grown[0] if len(grown) == 1 and value.is_floating_point() and value.shape[grown[0]] == samples else None
