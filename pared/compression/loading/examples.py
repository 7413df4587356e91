"""Inputs to run a model on where no data set gives them: from specs, or guessed from the weights."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.loading.arguments import arguments_for, batch_first, missing_values, needs_values
from pared.compression.loading.loaded import LoadedModel
from pared.errors import ValidationError
from pared.specs import TensorSpec
from pared.wording import shortened


def example_from_specs(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Seeded inputs of the given shapes, each with its batch first: normal numbers, or token ids 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(0, 2, spec.sizes, generator=generator)
        if spec.dtype == "int64"
        else torch.randn(spec.sizes, generator=generator)
        for each in specs
        for spec in map(batch_first, each.tensors)
    )


def on_tensors(loaded: LoadedModel, specs: Sequence[TensorSpec]) -> LoadedModel:
    """The model as it is called on tensors alone, and a warning where that says something of the results.

    Args:
        specs: of the arguments of its forward; none where all are tensors.

    Raises:
        ValidationError: the specs are not of what it takes.
    """
    script = loaded.module
    if loaded.format != "torchscript" or not isinstance(script, torch.jit.ScriptModule):
        if any(spec.shape is None for spec in specs):
            text = (
                "Values, lists, tuples and dicts are for the arguments of TorchScript files: save the model with "
                "torch.jit.save(torch.jit.script(model), …), or give a `shape` for each input."
            )
            raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])
        return loaded
    given = arguments_for(script, specs, loaded.states)
    if given is None:
        return loaded
    unfolded = None if loaded.unfolded is None else given.given_to(loaded.unfolded)
    notes = []
    if given.states:
        notes.append(
            f"The model keeps {shortened(list(given.states))} from one call to the next. Every batch of this job began "
            "with what the file has for it, and so does the result."
        )
    return replace(
        loaded,
        module=given.given_to(script),
        given=given,
        unfolded=unfolded,
        inlined=True,
        warnings=[*loaded.warnings, *notes],
    )


def called_on_tensors(loaded: LoadedModel, specs: Sequence[TensorSpec]) -> LoadedModel:
    """As `on_tensors`, of a model that is run.

    Raises:
        ValidationError: also where its forward must be given values, and there are no specs.
    """
    if not specs and isinstance(loaded.module, torch.jit.ScriptModule) and needs_values(loaded.module):
        raise missing_values(loaded.module)
    return on_tensors(loaded, specs)


def guess_example_inputs(loaded: LoadedModel) -> tuple[Tensor, ...] | None:
    """Inputs that the model accepts: as its file describes them, or guessed from its first weights and tried out.

    None: nothing fitted.
    """
    if loaded.example is not None:
        return loaded.example
    count = _input_count(loaded.module)
    if count is None:
        return None
    entries = list(itertools.islice(_weighted(loaded.module), 3))
    tries: Iterator[tuple[Tensor, ...]]
    if count == 1:
        tries = ((one,) for batch in (2, 1) for entry in entries for one in _candidates(*entry, batch))
    else:
        likeliest = [one for entry in entries for one in itertools.islice(_candidates(*entry, 2), 4)]
        tries = itertools.product(likeliest, repeat=count)
    with torch.no_grad(), optimized_execution(False):
        for inputs in itertools.islice(tries, 400):
            try:
                output = loaded.module(*inputs)
            except Exception:  # noqa: BLE001, S112 - the model says no in its own words
                continue
            if isinstance(output, Tensor) and output.dim() and len(output) == len(inputs[0]):
                return inputs
    return None


def arguments_of(loaded: LoadedModel) -> list[tuple[str, bool]] | None:
    """As `forward_arguments`, by the names that the model's file has for them."""
    if loaded.arguments is not None:
        return [(name, True) for name in loaded.arguments]
    return forward_arguments(loaded.module)


def forward_arguments(module: nn.Module) -> list[tuple[str, bool]] | None:
    """The name of each argument of `forward`, and whether it must be given; None where it takes any number of them."""
    if isinstance(module, torch.jit.ScriptModule):
        schema = module._c._get_method("forward").schema
        return [(one.name, not one.has_default_value()) for one in schema.arguments[1:]]
    parameters = inspect.signature(module.forward).parameters.values()
    if any(one.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for one in parameters):
        return None
    return [(one.name, one.default is inspect.Parameter.empty) for one in parameters]


_IMAGE_SIDES = [32, 28, 64, 224, 16, 8, 12, 24, 20, 40, 48, 56, 96, 112, 128, 160, 192, 256]
_LENGTHS = [128, 64, 32, 100, 256, 16, 512, 1000, 1024, 200, 50, 24, 12, 8, 187, 48, 20, 10, 40, 80]
_TOKENS = [16, 8, 12, 32, 64, 128, 256, 4, 10, 20, 24, 48, 50, 100, 200, 512]


def _input_count(module: nn.Module) -> int | None:
    """How many tensors `forward` takes; None if it wants anything else."""
    if not isinstance(module, torch.jit.ScriptModule):
        return 1
    needed = [one for one in module._c._get_method("forward").schema.arguments[1:] if not one.has_default_value()]
    if not 1 <= len(needed) <= 3 or any(str(one.type) != "Tensor" for one in needed):
        return None
    return len(needed)


def _candidates(kind: str, weight: Tensor, batch: int) -> Iterator[Tensor]:
    """Inputs that a first layer of this kind could take, likeliest first."""
    generator = torch.Generator().manual_seed(0)
    for shape in _input_shapes(kind, list(weight.shape)):
        if kind == "Embedding":
            yield torch.arange(math.prod(shape)).remainder(len(weight)).reshape(shape).repeat(batch, 1)
        else:
            yield torch.randn(batch, *shape, generator=generator)


def _weighted(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for _, layer in module.named_modules():
        kind = layer.original_name if isinstance(layer, torch.jit.ScriptModule) else type(layer).__name__
        for _, weight in layer.named_parameters(recurse=False):
            if weight.dim() >= 2:
                yield str(kind), weight
                break


def _input_shapes(kind: str, weight: list[int]) -> Iterator[tuple[int, ...]]:
    """Shapes of one sample."""
    if kind == "Embedding":
        yield from ((length,) for length in _TOKENS)
        return
    channels = weight[0] if kind.startswith("ConvTranspose") else weight[1]
    if len(weight) == 2:
        yield (channels,)
        for planes in (1, 3):
            side = math.isqrt(channels // planes)
            if planes * side * side == channels:
                yield (planes, side, side)
        yield from ((length, channels) for length in _TOKENS)
    elif len(weight) == 3:
        yield from ((channels, length) for length in _LENGTHS)
    elif len(weight) == 4:
        others = [side for side in range(4, 65) if side not in _IMAGE_SIDES]
        yield from ((channels, side, side) for side in [*_IMAGE_SIDES, *others])
    elif len(weight) == 5:
        yield from ((channels, side, side, side) for side in (16, 8, 32))
