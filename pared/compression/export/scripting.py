"""Makes TorchScript of a module, scripted or else traced, and says what stands in the way where neither works."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from pared.errors import ExportFailed, telling_line


def as_torchscript(
    module: nn.Module, example: Sequence[Tensor], note: Callable[[str], None] = lambda text: None
) -> torch.jit.ScriptModule:
    """The module as TorchScript: itself, else scripted, else traced.

    Args:
        example: inputs to trace it with.
        note: is told of what tracing may have fixed.

    Raises:
        ExportFailed: it can be neither scripted nor traced; says why of both, and what to do.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:  # scripting keeps control flow and any batch size, where it works
            scripted: torch.jit.ScriptModule = torch.jit.script(module)
            if example:  # some modules script and then do not run, such as those with parametrized weights
                with torch.no_grad():
                    scripted(*example)
        except Exception as error:  # noqa: BLE001 - whatever it is, tracing may work
            why = error
        else:
            return scripted
    try:
        return _traced(module, example, note)
    except Exception as error:
        text = f"The model can be neither scripted nor traced. Scripting: {_reason(why)}. "
        text += f"Tracing: {_reason(error)}." if example else "Tracing needs an example of its inputs."
        raise ExportFailed(f"{text} {_advice(module, example, why)}") from error


def _traced(module: nn.Module, example: Sequence[Tensor], note: Callable[[str], None]) -> torch.jit.ScriptModule:
    """The module, traced; its outputs may be in dicts and lists too, whose keys and lengths are then fixed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            traced: torch.jit.ScriptModule = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "strict=False" not in str(error):
                raise
            traced = torch.jit.trace(module, tuple(example), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    decided = [one for one in caught if one.category.__name__ == "TracerWarning" and "boolean" in str(one.message)]
    if decided:
        note(
            "The model could not be scripted, so it was traced, and what its code decides by the values of tensors was "
            f"decided by the example, once and for all: {_reason(decided[0].message)}"
        )
    return traced


def _advice(module: nn.Module, example: Sequence[Tensor], why: Exception) -> str:
    """What to do, by what is found in the module."""
    advice = []
    for name, part in module.named_modules():
        before = list(part._forward_pre_hooks.values())
        if any(isinstance(hook, BasePruningMethod) for hook in before):
            advice.append(
                f"Its masks are hooks (in {name or 'the model itself'}): make them permanent with "
                "torch.nn.utils.prune.remove(layer, 'weight')."
            )
            break
        if before or part._forward_hooks:
            advice.append(f"Take out its hooks (in {name or 'the model itself'}) with the handle's .remove().")
            break
    if not example:
        advice.append('Give `example_inputs` such as [{"shape": [2, 3, 32, 32]}], or data.')
    elif not advice:
        advice.append(
            "See that the example (`example_inputs`, or the data) has the shapes and types that its forward takes; let "
            "forward take and give tensors, or lists, tuples and dicts of them; or give the path of a file made with "
            "torch.export.save(torch.export.export(model, args), path)."
        )
    return " ".join(advice)


def _reason(error: object) -> str:
    text = telling_line(error) if isinstance(error, BaseException) else str(error)
    return " ".join(text.split())[:300].rstrip(".: ")
