"""Believes a written file only when it answers as the model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.devices.memory import ran_out_of_memory
from pared.errors import ExportFailed, ModelFailed, telling_line

TOLERANCE = 1e-4
"""Largest difference between a written file's output and the model's, relative to the largest output (and to 1)."""
COARSER = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The same for models with weights in these types, which each runtime rounds at other places."""


class OutputDiffers(ExportFailed):
    """A file was written and runs, and answers otherwise than the model: by its weights, or by its structure."""


def check(
    name: str,
    module: nn.Module,
    example: tuple[Tensor, ...],
    written: Callable[..., Any],
    *,
    single: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """The written file answers as the model does: on the example and, where that takes one, on a single sample.

    That the model gives no NaN of its own has been seen to by `finite`: where it does, the upload does. Where no inputs
    are known, that it loads is all that can be told.

    Raises:
        ExportFailed: the file does not run, or answers in other shapes.
        OutputDiffers: it answers otherwise.
        ModelFailed: the model itself does not take the example.
    """
    if not example:
        return
    tolerance = max([tolerance, *(COARSER.get(tensor.dtype, 0) for tensor in module.parameters())])
    for inputs in (example, tuple(x[:1] for x in example)) if single else (example,):
        with torch.no_grad():
            try:
                expected = flat_tensors(module(*inputs))
            except Exception as error:
                if inputs is not example:
                    continue
                raise ModelFailed(f"The model failed on an example of its inputs: {reason(error)}.") from error
            try:
                actual = flat_tensors(written(*inputs))
            except Exception as error:
                raise ExportFailed(f"{name} was written but does not run: {reason(error)}") from error
        if [a.shape for a in actual] != [e.shape for e in expected]:
            shapes = ([list(tensor.shape) for tensor in tensors] for tensors in (actual, expected))
            raise ExportFailed("{} gives the shapes {}, the model {}.".format(name, *shapes))
        for one, other in zip(actual, expected, strict=True):
            difference = relative_difference(one, other)
            if not difference <= tolerance:  # NaN is no agreement either
                raise OutputDiffers(f"{name} was written but its output differs from the model's by {difference:.2g}.")


def repeats(module: nn.Module, example: Sequence[Tensor]) -> bool:
    """Whether a model, in eval mode and on the CPU, answers alike when it is asked twice.

    Raises:
        ModelFailed: it does not answer.
    """
    try:
        check("the model", module, tuple(example), module, single=False)
    except ExportFailed:
        return False
    return True


def of_the_machine(error: BaseException) -> bool:
    """Whether an error says that memory or disk gave out, and nothing of the model."""
    return isinstance(error, OSError) or ran_out_of_memory(error)


def reason(error: BaseException) -> str:
    """What another library's error says, in a line without a full stop."""
    return telling_line(error, words=("nsupported", "operator"), limit=400).rstrip(".")
