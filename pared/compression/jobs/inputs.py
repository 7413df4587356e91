"""The inputs that a job runs its model on: as the data set has them, as the spec says, or guessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.jobs.stages import EXAMPLE_BATCH
from pared.compression.loading import LoadedModel, example_from_specs, guess_example_inputs, on_tensors
from pared.compression.loading.arguments import missing_values, needs_values
from pared.compression.measuring.latency import batch_of
from pared.compression.measuring.running import own_failures
from pared.errors import ModelFailed, ValidationError
from pared.specs import TensorSpec


def called_on_tensors(example_inputs: Sequence[TensorSpec] | None, loaded: LoadedModel, *, is_run: bool) -> LoadedModel:
    """The model as it is called on tensors alone, its other arguments with the values that the spec gives.

    Args:
        is_run: whether the job cannot do without running it.
    """
    if example_inputs or not isinstance(loaded.module, torch.jit.ScriptModule) or not needs_values(loaded.module):
        return on_tensors(loaded, list(example_inputs or []))
    if not is_run:
        return loaded
    raise missing_values(loaded.module)


def example_of(
    example_inputs: Sequence[TensorSpec] | None, loaded: LoadedModel, data: Data | None, *, is_run: bool
) -> tuple[Tensor, ...]:
    """A few inputs of the model; none where they are not known.

    Args:
        is_run: whether the job cannot do without them.

    Raises:
        ValidationError: they are not known and needed, or the model does not take those of the spec.
    """
    if data is not None:
        return data.example(EXAMPLE_BATCH)
    if not loaded.runs:
        return ()
    if example_inputs:
        example = example_from_specs(list(example_inputs) if loaded.given is None else loaded.given.specs)
        example = example if len(example[0]) > 1 else batch_of(example, EXAMPLE_BATCH)
        _check_runs(loaded.module, example)
        return example
    guessed = guess_example_inputs(loaded)
    if guessed is None and not is_run:
        return ()
    if guessed is None:
        text = (
            "The shape of the model's inputs could not be guessed. Name a data set, or give `example_inputs` such as "
            '[{"shape": [2, 3, 32, 32]}].'
        )
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])
    return guessed


def _check_runs(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Raises ValidationError unless the model takes the inputs that the spec describes."""
    try:
        with torch.no_grad(), own_failures():
            module(*example)
    except ModelFailed as error:
        shapes = " and ".join(str(list(tensor.shape)) for tensor in example)
        text = f"The model does not run on inputs of the shape {shapes}. {error.detail}"
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}]) from error
