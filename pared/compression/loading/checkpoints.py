"""Finds the state dicts in what a training script saved, at any depth, and chooses the one that is meant."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pared.compression.loading.loaded import State
from pared.errors import ShapeMismatch, UnsupportedModel
from pared.wording import shortened

_MOST_PARTS, _MOST_DEEP = 100_000, 100  # dicts and lists that are looked into, and how many within each other
_ASIDE = ("optim", "scheduler", "scaler", "rng", "criterion", "loss", "metric", "callbacks", "loops", "hyper", "hparam")
"""What the key of a part begins with that is no model, though it may hold tensors."""

SAVE_ALONE = "Save the weights alone with torch.save(model.state_dict(), …)."
TOP = "."
"""What `weights` calls the file itself."""


@dataclass(frozen=True)
class StateDict:
    """One state dict in a file. `keys`: those that lead to it, none where it is the file itself."""

    keys: tuple[Any, ...]
    tensors: State
    others: list[str]
    """Its entries that are no tensors."""

    @property
    def name(self) -> str:
        """What `weights` calls it."""
        return _name(self.keys)

    def matches(self, wanted: str) -> bool:
        """Whether it goes by this name, whole or its last part."""
        return wanted == self.name or bool(self.keys and str(self.keys[-1]) == wanted)

    def is_aside(self) -> bool:
        """Whether it belongs to the training, and not to a model."""
        return any(_is_aside(str(key)) for key in self.keys)

    def looks(self) -> int:
        """How much it looks like the weights of a model: 3 by its names, 2 by its tensors, 1 by being there."""
        sized = any(tensor.is_floating_point() and tensor.dim() for tensor in self.tensors.values())
        named = any("." in name or name in ("weight", "bias") for name in self.tensors)
        return 1 + sized + (sized and named)

    def described(self) -> str:
        """One line of a list."""
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        return f"{self.name!r} ({len(self.tensors):,} tensors, {numbers:,} numbers)"


def is_optimizer(part: Any) -> bool:
    """Whether this is the state of one of torch's optimizers."""
    return isinstance(part, Mapping) and "param_groups" in part and "state" in part


def state_dicts(loaded: Any) -> tuple[list[StateDict], list[str]]:
    """All state dicts in what `torch.load` returned, and the names of the states of optimizers.

    Raises:
        UnsupportedModel: there is none; says what there is.
    """
    found: list[StateDict] = []
    unnamed: list[str] = []
    optimizers: list[str] = []
    for keys, part in parts_of(loaded):
        if is_optimizer(part):
            optimizers.append(_name(keys))
        elif isinstance(part, Mapping):
            tensors = {key: value.detach() for key, value in part.items() if isinstance(value, Tensor)}
            named = {key: value for key, value in tensors.items() if isinstance(key, str)}
            others = [str(key)[:60] for key in part if key not in named]
            if named:
                found.append(StateDict(keys, named, others))
            elif tensors:
                unnamed.append(f"{_place(keys)}: {shortened(list(map(repr, tensors)), 5)}")
        elif any(isinstance(value, Tensor) for value in part):
            unnamed.append(f"{_place(keys)}: a {type(part).__name__} of {len(part):,}")
    if found:
        return found, optimizers
    if isinstance(loaded, Tensor):
        what = "one tensor, not a state dict"
    elif unnamed:
        what = f"tensors without the names that they have in the model ({shortened(unnamed, 5, between='; ')})"
    elif optimizers:
        what = "the state of an optimizer alone"
    elif isinstance(loaded, Mapping):
        what = f"no tensors: its keys are {shortened([str(key)[:60] for key in loaded]) or 'none'}"
    else:
        what = f"a {type(loaded).__name__}"
    raise UnsupportedModel(f"No state dict was found in this file, which holds {what}. {SAVE_ALONE}")


def chosen(
    found: Sequence[StateDict], wanted: str | None, fit: Callable[[StateDict], Any] | None
) -> tuple[StateDict, Any]:
    """The state dict that is meant, and what `fit` makes of it.

    Args:
        wanted: `weights`, as it was posted.
        fit: None without an architecture. Raises ShapeMismatch for one that does not fit it.

    Raises:
        UnsupportedModel: several are there and none is chosen, or none goes by the name.
        ShapeMismatch: none fits the architecture.
    """
    candidates = possible(found, wanted)
    if len(candidates) == 1:
        return candidates[0], None if fit is None else fit(candidates[0])
    fits: list[tuple[StateDict, Any]] = []
    errors: list[str] = []
    if fit is not None:
        for each in candidates:
            try:
                fits.append((each, fit(each)))
            except ShapeMismatch as error:
                errors.append(f"{each.name!r}: {error.detail}")
    if len(fits) == 1:
        return fits[0]
    if errors and not fits:
        raise ShapeMismatch(f"None of the state dicts in this file fits. {shortened(errors, 3, between=' ')}")
    left = [each for each, _ in fits] or candidates
    fitting = "" if fit is None else " that fit the architecture"
    raise undecided([each.described() for each in left], left[-1].name, fitting)


def possible(found: Sequence[StateDict], wanted: str | None) -> list[StateDict]:
    """The state dicts of a file that may be meant: that with the name, or else all different ones that look most so.

    Raises:
        UnsupportedModel: none goes by the name.
    """
    if wanted is not None:
        return [_named(found, wanted)]
    candidates = [each for each in found if not each.is_aside()] or list(found)
    most = max(each.looks() for each in candidates)
    return _distinct([each for each in candidates if each.looks() == most])


def undecided(described: Sequence[str], name: str, fitting: str = "") -> UnsupportedModel:
    """The refusal of several state dicts of which nothing says the one that is meant. `name`: of one of them."""
    return UnsupportedModel(
        f"This file holds {len(described)} state dicts{fitting}: {shortened(list(described))}. Say which: upload it "
        f"again with `weights` set to its name, such as POST /v1/models?weights={name}, or `--state-dict {name}` on "
        "the command line."
    )


def left_out_notes(one: StateDict) -> list[str]:
    """What was not taken from the file."""
    notes = []
    if one.keys:
        notes.append(f"The weights were taken from {one.name!r} in the checkpoint; the rest was not looked at.")
    if one.others:
        notes.append(f"Entries that are no tensors were left out: {shortened(one.others)}.")
    return notes


def parts_of(loaded: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every dict and list in a checkpoint, with the keys that lead to it, the outer ones first; each once.

    Nothing below an optimizer's state is looked into. A pickle may hold itself, or the same part many times.
    """
    seen: set[int] = set()
    waiting: deque[tuple[tuple[Any, ...], Any]] = deque([((), loaded)])
    while waiting:
        keys, part = waiting.popleft()
        if id(part) in seen or not isinstance(part, (Mapping, list, tuple)):
            continue
        seen.add(id(part))
        if len(seen) > _MOST_PARTS:
            raise UnsupportedModel(f"This file holds more than {_MOST_PARTS:,} dicts and lists. {SAVE_ALONE}")
        yield keys, part
        if len(keys) > _MOST_DEEP:
            raise UnsupportedModel(f"This file nests dicts and lists more than {_MOST_DEEP} deep. {SAVE_ALONE}")
        if not is_optimizer(part):
            items = part.items() if isinstance(part, Mapping) else enumerate(part)
            waiting.extend(((*keys, key), value) for key, value in items if isinstance(value, (Mapping, list, tuple)))


def _name(keys: tuple[Any, ...]) -> str:
    return ".".join(map(str, keys)) or TOP


def _place(keys: tuple[Any, ...]) -> str:
    return repr(_name(keys)) if keys else "the file itself"


def _is_aside(key: str) -> bool:
    lower = key.lower()
    return lower.startswith(_ASIDE) or lower.endswith(("optimizer", "scheduler", "_loss", "rng_state"))


def _named(found: Sequence[StateDict], wanted: str) -> StateDict:
    whole = [each for each in found if each.name == wanted]
    matching = whole or [each for each in found if each.matches(wanted)]
    if not matching:  # the name of what holds one state dict, beside its optimizer
        matching = [each for each in found if each.name.startswith(f"{wanted}.")]
    if len(matching) == 1:
        return matching[0]
    what = f"{wanted!r} is no state dict in this file" if not matching else f"{wanted!r} may be several"
    raise UnsupportedModel(
        f"`weights`: {what}. It holds {shortened([each.described() for each in matching or found])}: upload it again "
        "with one of these names, or without `weights`."
    )


def _distinct(candidates: Sequence[StateDict]) -> list[StateDict]:
    """The candidates without those that hold what an earlier one holds."""
    kept: list[StateDict] = []
    for each in candidates:
        if not any(_equal(each.tensors, other.tensors) for other in kept):
            kept.append(each)
    return kept


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
