"""The one rule on NaN and infinity: no result gives them where the upload gives finite numbers.

What the upload itself answers so, such as the −inf of a masked class, is its own affair and stays allowed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.groups import scripted
from pared.compression.coupling.interpreter import Call, Interpreter
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import spoken
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.verify import flat_tensors
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.errors import ModelFailed, NotFinite, telling_line

Inputs = Sequence[Tensor]


def hold_finite_on_example(upload: nn.Module, result: nn.Module, example: Inputs) -> None:
    """Run both models on the example, and on its first sample alone where the upload takes that.

    Args:
        upload, result: in eval mode, on the CPU.
        example: empty where no inputs are known: then weights alone are looked at.

    Raises:
        NotFinite: the result answers NaN or infinity where the upload does not, or holds such weights.
        ModelFailed: one of them does not run on the example.
    """
    hold_finite_weights(upload, result)
    inputs = tuple(example)
    if not inputs:
        return
    try:
        lost = _lost(_answers(upload, inputs), _answers(result, inputs))
    except Exception as error:
        raise ModelFailed(f"The model failed on an example of its inputs: {telling_line(error)}") from error
    if not lost:
        inputs = tuple(tensor[:1] for tensor in example)
        with suppress(Exception):  # a model may refuse a batch of one in any way it likes
            lost = _lost(_answers(upload, inputs), _answers(result, inputs))
    if lost:
        raise NotFinite(
            "The result answers NaN or infinity on an example of its inputs, where the upload gives finite numbers. "
            f"{_origin(result, inputs)}{_ADVICE}"
        )


def hold_finite_weights(upload: nn.Module, result: nn.Module) -> None:
    """Look at the parameters alone.

    Raises:
        NotFinite: the result has one with NaN or infinity, and the upload's of this name has none.
    """
    for name, weight in _broken_weights(upload, result):
        count = int((~weight.isfinite()).sum())
        raise NotFinite(f"The result's tensor {name} holds {count:,} numbers that are NaN or infinite. {_ADVICE}")


def hold_finite_on_samples(
    expected: Tensor, actual: Tensor, split: str, result: nn.Module, inputs_of: Callable[[int], Inputs], role: str
) -> None:
    """Compare the answers of both models to all samples of a split.

    Args:
        expected, actual: what is kept of the outputs of upload and result, (samples, …), of the same samples.
        result: what gave the second.
        inputs_of: the inputs of one sample.
        role: what to call the result.

    Raises:
        NotFinite: the result answers NaN or infinity where the upload does not.
    """
    lost = lost_samples(expected, actual)
    if not bool(lost.any()):
        return
    first = int(lost.nonzero()[0])
    raise NotFinite(
        f"{role} answers NaN or infinity for {int(lost.sum()):,} of {len(lost):,} samples of the {split} split "
        f"(sample {first} is the first), where the upload gives finite numbers. "
        f"{_origin(result, inputs_of(first))}{_ADVICE}"
    )


def lost_samples(expected: Tensor, actual: Tensor) -> Tensor:
    """Which samples have a number that was finite and no longer is: (samples,) bool; of one number, (1,)."""
    lost = expected.isfinite() & ~actual.isfinite()
    return lost.reshape(len(lost), -1).any(1) if lost.dim() else lost.reshape(1)


_ADVICE = (
    "Remove less, leave that layer out with `exclude`, or train with a smaller learning rate; a result like this is "
    "never handed out."
)


def _broken_weights(upload: nn.Module, result: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters that hold NaN or infinity, unless the upload's of the same name do."""
    before = dict(upload.named_parameters())
    return [
        (name, weight)
        for name, weight in result.named_parameters()
        if not _all_finite(weight) and (name not in before or _all_finite(before[name]))
    ]


def _all_finite(weight: Tensor) -> bool:
    """Whether all numbers are finite: by the least and the largest, which are NaN where one is, and need no copy."""
    return not weight.numel() or all(bool(each.isfinite()) for each in weight.detach().aminmax())


def _lost(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> bool:
    pairs = zip(expected, actual, strict=False)  # of other shapes the check of the written files tells
    return any(before.shape == after.shape and bool(lost_samples(before, after).any()) for before, after in pairs)


def _answers(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), optimized_execution(False):
        return flat_tensors(module(*inputs))


def _origin(module: nn.Module, inputs: Inputs) -> str:
    """A sentence on the first step that makes NaN (or infinity, where the answer holds no NaN) of numbers; or none."""
    layer, sentence = "", ""
    with suppress(Exception), torch.no_grad():  # what cannot be followed is not told
        on_cpu = reloaded(module) if isinstance(module, torch.jit.ScriptModule) else copy.deepcopy(module)
        place(on_cpu, CPU)
        inputs = tuple(tensor.cpu() for tensor in inputs)
        nan = any(bool(output.isnan().any()) for output in _answers(on_cpu.eval(), inputs))
        bad = torch.isnan if nan else torch.isinf

        def visit(call: Call) -> None:
            nonlocal layer, sentence
            named = [tracked.name for tracked in call.tensors if tracked.name]
            layer = named[0].rpartition(".")[0] or named[0] if named else layer
            if sentence or not _any(call.results, bad) or _any(call.tensors, bad):
                return
            what = "NaN" if nan else "infinity"
            place = "in" if named else "behind"
            sentence = (
                f"The first {what} is made by {spoken(call.kind)}{f' {place} the layer {layer}' if layer else ''}. "
            )

        run = Interpreter(scripted(on_cpu, inputs)).run
        run(inputs, lambda name, tensor: Tracked(tensor, [], name=name), visit)
    return sentence


def _any(tensors: Sequence[Tracked], bad: Callable[[Tensor], Tensor]) -> bool:
    return any(bool(bad(each.tensor).any()) for each in tensors if each.tensor.is_floating_point())
