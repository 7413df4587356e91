"""Removes whole layers of a model folder's stacks, such that its config can say it by their number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.verify import Mismatch, compare, failing, flat_tensors
from pared.compression.loading import LoadedModel
from pared.compression.loading.folders import building
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.folders.widths import Widths, renumbered, widths_of, without_layers
from pared.compression.names import layer_of, tensors
from pared.compression.pruning.residual_blocks.blocks import ResidualBlock
from pared.errors import ParedError, telling_line


@dataclass(frozen=True)
class WholeLayer(ResidualBlock):
    """A layer of a stack, as the f of x + f(x)."""

    prefix: str
    """Its name in the model, which those of all its tensors begin with."""

    @property
    def name(self) -> str:
        """What stands for it in messages."""
        return self.prefix


@dataclass(frozen=True)
class Layers:
    """The layers of a folder's model, as blocks of which each adds layer(x) − x to x."""

    loaded: LoadedModel
    folder: ModelFolder
    widths: Widths
    blocks: list[ResidualBlock]
    reasons: dict[str, str]

    @property
    def runner(self) -> Layers:
        """What tells the contributions of blocks."""
        return self

    def contributions(
        self,
        batches: Sequence[Sequence[Tensor]],
        blocks: Sequence[ResidualBlock],
        removed: Sequence[ResidualBlock],
        tensors: Mapping[str, Tensor],
    ) -> Tensor:
        """‖layer(x) − x‖ / ‖x‖ of each layer, the mean over all batches, float64 of shape (layers,)."""
        model = self.model(tensors, [block.name for block in removed])
        totals = torch.zeros(len(blocks), dtype=torch.float64)

        def add(position: int, layer: nn.Module, given: Any, named: Any, answer: Any) -> None:
            before, after = _hidden(given, named), _first(answer)
            totals[position] += (after - before).double().norm() / before.double().norm().clamp_min(1e-30)

        for position, block in enumerate(blocks):
            layer = model.get_submodule(block.name)
            layer.register_forward_hook(partial(add, position), with_kwargs=True)
        answering = building.Answering(model, self.folder.inputs, hidden_only=self.folder.hidden_only)
        with torch.no_grad(), building.quietly():
            for inputs in batches:
                answering(*inputs)
        return totals / max(len(batches), 1)

    def model(self, weights: Mapping[str, Tensor], removed: Sequence[str]) -> Any:
        """The model with these weights, in which the removed layers pass on what they are given."""
        settings = next(iter(self.widths.narrowed({name: tuple(t.shape) for name, t in weights.items()})))
        whole = tensors(self.loaded.module)
        state = {name: weights.get(name, tensor) for name, tensor in whole.items()}
        model, _ = building.built(
            {**self.widths.settings, **settings}, self.folder.class_name, self.folder.options, _untied(state)
        )
        for name in removed:
            layer = model.get_submodule(name)
            layer.forward = partial(_passed_on, layer.forward)
        return model

    def outputs_without(self, example: Sequence[Tensor], blocks: Sequence[ResidualBlock]) -> list[Tensor]:
        """The upload's outputs where these layers pass on what they are given."""
        model = self.model(tensors(self.loaded.module), [block.name for block in blocks])
        answering = building.Answering(model, self.folder.inputs, hidden_only=self.folder.hidden_only)
        with torch.no_grad(), building.quietly():
            return flat_tensors(answering(*example))

    def without(self, blocks: Sequence[ResidualBlock], current: nn.Module, example: Sequence[Tensor]) -> LoadedModel:
        """The upload without these layers, with the weights of `current`; the others keep their names."""
        dropped = frozenset(block.name for block in blocks)
        weights = {name: tensor for name, tensor in tensors(current).items() if not name.startswith(_inside(dropped))}
        names = renumbered(self.widths, dropped, weights)
        settings = dict(self.widths.settings)
        for field, layers in self.widths.depths.items():
            settings = without_layers(settings, field, [index for index, name in enumerate(layers) if name in dropped])
        model, _ = building.built(
            settings,
            self.folder.class_name,
            self.folder.options,
            _untied({names[name]: tensor for name, tensor in weights.items()}),
        )
        for layers in self.widths.depths.values():
            stack = model.get_submodule(layers[0].rpartition(".")[0])
            kept = [name.rpartition(".")[2] for name in layers if name not in dropped]
            stack._modules = dict(zip(kept, stack._modules.values(), strict=True))
        script = building.traced(model, self.folder, example)
        for name, parameter in script.named_parameters():
            parameter.requires_grad_(name not in self.loaded.frozen_names)
        return replace(self.loaded, module=script, folder=replace(self.folder, dropped=dropped))


def find_layers(loaded: LoadedModel, folder: ModelFolder) -> Layers:
    """The layers that can go: those of a stack whose number the config says, and which are like the others of it."""
    widths = widths_of(folder)
    parameters = tensors(loaded.module)
    blocks: list[ResidualBlock] = []
    reasons: dict[str, str] = {}
    for layers in widths.depths.values():
        kinds = [
            tuple(
                sorted(
                    (name.removeprefix(layer), shape) for name, shape in widths.shapes.items() if _is_in(name, layer)
                )
            )
            for layer in layers
        ]
        usual = max(kinds, key=kinds.count)
        for layer, kind in zip(layers, kinds, strict=True):
            names = [name for name in parameters if _is_in(name, layer)]
            if kind == usual:
                blocks.append(WholeLayer(-1, 1, False, names, _of_weights(names, parameters), layer))
            else:
                why = "it has other weights than the layers that would take its place"
                reasons |= dict.fromkeys(_of_weights(names, parameters), why)
    return Layers(loaded, folder, widths, blocks, reasons)


def checked(layers: Layers, chosen: Sequence[ResidualBlock], example: Sequence[Tensor]) -> dict[int, str]:
    """Positions of chosen layers that cannot go -> why: what is left must answer as if they passed on what they get."""

    def attempt(indices: list[int]) -> None:
        blocks = [chosen[index] for index in indices]
        try:
            expected = layers.outputs_without(example, blocks)
            smaller = layers.without(blocks, layers.loaded.module, example)
        except ParedError as error:
            raise Mismatch(f"the model without it cannot be built: {error.detail}") from error
        except Exception as error:
            raise Mismatch(f"the model without it cannot be built: {telling_line(error)}") from error
        compare(expected, example, smaller.module, "what they add")

    return failing(len(chosen), attempt)


def _of_weights(names: Sequence[str], parameters: Mapping[str, Tensor]) -> list[str]:
    """The layers of those that are weights."""
    return list(dict.fromkeys(layer_of(name) for name in names if parameters[name].dim() >= 2))


def _inside(layers: frozenset[str]) -> tuple[str, ...]:
    return tuple(f"{layer}." for layer in sorted(layers)) or ("\0",)


def _is_in(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.")


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, for a new model to take."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _hidden(given: Any, named: Any) -> Tensor:
    value = given[0] if given else named["hidden_states"]
    assert isinstance(value, Tensor)  # noqa: S101 - the first argument of a layer is what it changes
    return value


def _first(answer: Any) -> Tensor:
    value = answer[0] if isinstance(answer, (tuple, list)) else answer
    assert isinstance(value, Tensor)  # noqa: S101 - as above
    return value


def _passed_on(forward: Any, *given: Any, **named: Any) -> Any:
    """What a layer is given, in the form in which it answers."""
    answer = forward(*given, **named)
    hidden = _hidden(given, named)
    return (hidden, *answer[1:]) if isinstance(answer, tuple) else hidden
