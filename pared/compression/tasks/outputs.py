"""Names the tensors in what a model returns, whatever it is nested in, and picks one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pared.errors import ModelFailed, ValidationError
from pared.wording import shortened

_USUAL = ("logits", "out")
"""The names of the main one of several outputs that could be meant, as the common libraries have them."""


def named_outputs(answer: Any) -> list[tuple[str, Tensor]]:
    """All tensors of an answer with their paths, such as `logits`, `1` or `boxes.0`; that of a lone one is empty."""
    return list(_walk(answer, ""))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    for key, item in items:
        yield from _walk(item, f"{path}.{key}" if path else str(key))


def chosen(answer: Any, output: str | None, wanted: str) -> Tensor:
    """The tensor at a path, or with a number, or the only one.

    Raises:
        ModelFailed: there is none, or nothing says which.
    """
    if isinstance(answer, Tensor):
        return answer
    outputs = named_outputs(answer)
    if not outputs:
        raise ModelFailed(
            f"The model returns a {type(answer).__name__} without tensors; pared needs one float tensor of {wanted}. "
            "Wrap the model so that it returns that alone."
        )
    path = path_of(outputs, output)
    if path is not None:
        return dict(outputs)[path]
    if output is None:
        raise ModelFailed(
            f"The model returns a {type(answer).__name__} of {len(outputs)} outputs: {listed_outputs(outputs)}; pared "
            f'needs one float tensor of {wanted}. Name it, such as {{"output": "{outputs[0][0]}"}}, or use task=match, '
            "which compares them all with the answers of the model as it was uploaded."
        )
    text = (
        f"The model has no output {output!r}. It returns {listed_outputs(outputs)}. A traced model may have lost the "
        "names of a dict: then name the output by its number, from 0."
    )
    raise ValidationError(text, errors=[{"pointer": "/output", "detail": text}])


def path_of(outputs: list[tuple[str, Tensor]], output: str | None) -> str | None:
    """The path of an output that is named by path or number, or is the only one; None: nothing says which."""
    paths = [path for path, _ in outputs]
    if output is None:
        return paths[0] if len(paths) == 1 else None
    if output in paths:
        return output
    return paths[int(output)] if output.isdecimal() and int(output) < len(paths) else None


def same_by_number(paths: list[str], others: list[str]) -> bool:
    """Whether outputs of two models can only be the same by their order: one has names, the other numbers."""
    numbered = [all(path.replace(".", "").isdecimal() for path in each) for each in (paths, others)]
    return numbered[0] != numbered[1]


def main_output(fitting: list[str]) -> str | None:
    """Which of several outputs that fit is meant, if that can be told."""
    if len(fitting) == 1:
        return fitting[0]
    usual = [path for name in _USUAL for path in fitting if path.rpartition(".")[2] == name]
    return usual[0] if usual else None


def described(tensor: Tensor) -> str:
    """`torch.float32 of shape (2, 3)`."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def listed_outputs(outputs: list[tuple[str, Tensor]]) -> str:
    """Paths and shapes, for a message."""
    return shortened([f"{path or 'one tensor'} {tuple(tensor.shape)}" for path, tensor in outputs], 8)
