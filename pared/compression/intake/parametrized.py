"""Plain weights of layers that torch computes the weights of: in modules, and in state dicts by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PARAMETRIZED = re.compile(r"(?:(?P<layer>.*)\.)?parametrizations\.(?P<leaf>\w+)\.original\d*")
_SUFFIXED = re.compile(r"(?P<path>.*?(?P<leaf>\w+?))_(v|g|orig|raw|bar)")


def plain_name(name: str) -> str | None:
    """What the weight is called of which torch keeps this tensor: `conv.weight` for `conv.weight_v`; None: no such."""
    if (found := _PARAMETRIZED.fullmatch(name)) is not None:
        return ".".join(filter(None, (found["layer"], found["leaf"])))
    found = _SUFFIXED.fullmatch(name)
    return None if found is None else found["path"]


def folded_note(sources: Mapping[str, Sequence[str]], before: int, after: int) -> str:
    """The warning that plain weights stand for computed ones.

    Args:
        sources: name of each plain weight -> the tensors that it was computed from.
        before, after: parameters of the model as it came, and with plain weights.
    """
    told = [f"{name} (from {', '.join(tensors)})" for name, tensors in list(sources.items())[:10]]
    more = f" and {len(sources) - 10} more" if len(sources) > 10 else ""
    return (
        f"The model computes weights from others, as weight norm, spectral norm and masks do. They were folded into "
        f"plain weights: {'; '.join(told)}{more}. Scores, zeros and training are those of the plain weights, and what "
        f"the computation held to (a norm, a bound) no longer binds them in training. Here the model counts "
        f"{after:,} parameters, where the upload has {before:,}."
    )
