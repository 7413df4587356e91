"""Which sizes of the inputs a program leaves free: those asked for, or as many as the model allows, each tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pared.compression.export.checking import of_the_machine, reason
from pared.compression.export.programs import FreeDims
from pared.errors import ExportFailed

Names = tuple[dict[int, str], ...]
"""Of each input: a free dimension -> what its size is called."""
Place = tuple[int, int]
"""An input and one of its dimensions."""

BATCH = "batch"
TRIED = 2
"""At how many other sizes a file is checked."""


@dataclass(frozen=True)
class Asked:
    """The sizes beside the batch that are to be free, and what the inputs are called."""

    names: Names | Literal["auto"] | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sized:
    """A program with its free sizes, and other inputs that the model takes, to check a file with."""

    program: torch.export.ExportedProgram
    names: Names
    others: list[tuple[Tensor, ...]]
    note: str
    """What is free and what stays; empty where nothing was asked."""


def sized(make: Callable[[FreeDims], torch.export.ExportedProgram], module: nn.Module, example: Sequence[Tensor],
          batch: FreeDims, asked: Asked) -> Sized:  # fmt: skip
    """Make a program with the sizes that are asked for.

    Args:
        make: makes a program of the module in which these dimensions are free, as far as it can.
        module: what the program is of, to try other sizes on.
        example: inputs of the module.
        batch: the dimensions that are free without being asked for.

    Raises:
        ExportFailed: a size that is asked for is fixed, or two of them are one size.
        Exception: of torch.export, or the interpreter.
    """
    usual = tuple({dim: BATCH for dim in dims if dim == 0} for dims in batch)
    if asked.names is None:
        return Sized(make(batch), usual, [], "")
    automatic = asked.names == "auto"
    called = _called(asked, example)
    wanted = _wanted(asked, example)
    program = make([dims | names.keys() for dims, names in zip(batch, wanted, strict=True)])
    sizes = _sizes(program)
    fixed = [(index, dim) for index, names in enumerate(wanted) for dim in names if isinstance(sizes[index][dim], int)]
    if fixed and not automatic:
        raise ExportFailed(_fixed_text(fixed[0], wanted, called, example))
    for index, dim in fixed:
        del wanted[index][dim]
    groups = _groups(wanted, sizes, one_name=automatic)
    others, error = _other_inputs(module, example, groups)
    if len(others) < TRIED:
        if not automatic:
            raise ExportFailed(
                f"The model itself takes no other sizes of {', '.join(groups)} than those of the example"
                f"{f' ({error})' if error else ''}. Leave out of `dynamic` what it cannot take."
            )
        groups = {
            name: places
            for name, places in groups.items()
            if len(_other_inputs(module, example, {name: places})[0]) == TRIED
        }
        others = _other_inputs(module, example, groups)[0]
        if len(others) < TRIED:
            groups, others = {}, []
        free = {place for places in groups.values() for place in places}
        wanted = [{dim: names[dim] for dim in names if (index, dim) in free} for index, names in enumerate(wanted)]
        program = make([dims | names.keys() for dims, names in zip(batch, wanted, strict=True)])
    for name, places in groups.items():
        for index, dim in places:
            wanted[index][dim] = name
    names = tuple({**of_batch, **of_rest} for of_batch, of_rest in zip(usual, wanted, strict=True))
    return Sized(program, names, others, _note(wanted, called, example, others))


def tried(
    module: nn.Module, example: Sequence[Tensor], asked: Asked
) -> tuple[Names, list[tuple[Tensor, ...]], str] | None:
    """What `sized` says of names, other inputs and note, found by running the module alone; None: it is not clear so.

    Whether an exporter keeps these sizes free, checking its file at the other inputs tells.
    """
    wanted = _wanted(asked, example)
    groups: dict[str, list[Place]] = {}
    for index, of_one in enumerate(wanted):
        for dim, name in of_one.items():
            groups.setdefault(name, []).append((index, dim))
    if asked.names == "auto":
        groups = {
            name: places
            for name, places in groups.items()
            if len(_other_inputs(module, example, {name: places})[0]) == TRIED
        }
    others = _other_inputs(module, example, groups, shifts=(1,))[0]
    if len(others) < TRIED:
        return None
    names: Names = tuple({0: BATCH} for _ in example)
    for name, places in groups.items():
        for index, dim in places:
            names[index][dim] = name
    beside = [{dim: name for dim, name in of_one.items() if dim} for of_one in names]
    return names, others, _note(beside, _called(asked, example), example, others)


def symbols(program: torch.export.ExportedProgram, names: Names) -> dict[str, str]:
    """What the program's own names for its sizes stand for."""
    found: dict[str, str] = {}
    for of_one, sizes in zip(names, _sizes(program), strict=True):
        for dim, name in of_one.items():
            if not isinstance(sizes[dim], int):
                found.setdefault(str(sizes[dim]), name)
    return found


def _called(asked: Asked, example: Sequence[Tensor]) -> list[str]:
    return list(asked.arguments) or [f"x{index}" for index in range(len(example))]


def _wanted(asked: Asked, example: Sequence[Tensor]) -> list[dict[int, str]]:
    """Of each input the dimensions that are to be free, if they can, with names for them."""
    if asked.names is None or isinstance(asked.names, str):
        named = zip(_called(asked, example), example, strict=True)
        return [{dim: f"{name}_{dim}" for dim in range(1, x.dim())} for name, x in named]
    return [dict(names) for names in asked.names]


def _sizes(program: torch.export.ExportedProgram) -> list[list[Any]]:
    """Of each input its sizes: a number where it is fixed, or an expression."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return [[_settled(size) for size in value.shape] for value in inputs]


def _settled(size: Any) -> Any:
    """A size that turned out to be one number as this number."""
    expression = None if isinstance(size, int) else size.node.expr
    if expression is None or expression.is_number:
        return int(size)
    return expression


def _groups(wanted: Sequence[dict[int, str]], sizes: list[list[Any]], *, one_name: bool) -> dict[str, list[Place]]:
    """The places that share a size, by its name.

    Args:
        one_name: names were made up, so that of several for one size the first is taken.

    Raises:
        ExportFailed: two names were given to one size.
    """
    groups: dict[str, list[Place]] = {}
    names: dict[str, str] = {}
    for index, of_one in enumerate(wanted):
        for dim, name in of_one.items():
            for symbol in sorted(map(str, sizes[index][dim].free_symbols)):
                known = names.setdefault(symbol, name)
                if known != name and not one_name:
                    raise ExportFailed(
                        f"`dynamic` calls one size both {known} and {name}: in this model they must be equal, or hang "
                        "on each other. Give them one name."
                    )
                name = known  # noqa: PLW2901 - the one name that the size has
            groups.setdefault(name, []).append((index, dim))
    return groups


_FACTORS: Sequence[Callable[[int], int]] = (
    lambda n: 2 * n,
    lambda n: 3 * n,
    lambda n: n + n // 2,
    lambda n: n // 2,
    lambda n: n - 1,
    lambda n: n + 1,
)
"""Other sizes to try: multiples first, for a model may halve its input again and again."""


def _other_inputs(
    module: nn.Module, example: Sequence[Tensor], groups: dict[str, list[Place]], shifts: Sequence[int] = (1, 0)
) -> tuple[list[tuple[Tensor, ...]], str]:
    """Inputs of other sizes that the module takes, and what it said where it took none."""
    found: list[tuple[Tensor, ...]] = []
    error = ""
    if not groups:
        return found, error
    for inputs in _candidates(example, groups, shifts):
        try:
            with torch.no_grad():
                module(*inputs)
        except Exception as failure:
            if of_the_machine(failure):
                raise
            error = error or reason(failure)
            continue
        found.append(inputs)
        if len(found) == TRIED:
            break
    return found, error


def _candidates(
    example: Sequence[Tensor], groups: dict[str, list[Place]], shifts: Sequence[int]
) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of other sizes; with a shift of 1 sizes that were equal differ, so that none can stand for another."""
    seen = {tuple(tuple(x.shape) for x in example)}
    for shift in shifts:
        for first in range(len(_FACTORS)):
            shapes = [list(x.shape) for x in example]
            for position, places in enumerate(groups.values()):
                factor = _FACTORS[(first + shift * position) % len(_FACTORS)]
                for index, dim in places:
                    shapes[index][dim] = factor(shapes[index][dim])
            key = tuple(map(tuple, shapes))
            if key in seen or any(size < 1 for shape in shapes for size in shape):
                continue
            seen.add(key)
            yield tuple(_resized(x, shape) for x, shape in zip(example, shapes, strict=True))


def _resized(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The numbers of a tensor, over and over or cut off, in another shape."""
    for dim, size in enumerate(shape):
        tensor = tensor.index_select(dim, torch.arange(size) % tensor.shape[dim])
    return tensor


def _fixed_text(
    place: Place, wanted: Sequence[dict[int, str]], called: Sequence[str], example: Sequence[Tensor]
) -> str:
    index, dim = place
    size = example[index].shape[dim]
    told = f"The size {wanted[index][dim]}, dimension {dim} of {called[index]}, stays {size}: "
    if size == 1:
        return told + "torch.export takes a size of 1 for fixed. Give `example_inputs` with at least 2 there."
    return told + (
        "torch.export finds that the model's layers, or numbers that tracing wrote into its code, allow no other. "
        'Leave it out of `dynamic`, or let "auto" find what can be free; a scripted file has fewer fixed sizes than a '
        "traced one."
    )


def _note(
    wanted: Sequence[dict[int, str]], called: Sequence[str], example: Sequence[Tensor], others: list[tuple[Tensor, ...]]
) -> str:
    parts = []
    for name, of_one, x in zip(called, wanted, example, strict=True):
        free = ", ".join(f"{dim} ({of_one[dim]})" for dim in sorted(of_one))
        stays = ", ".join(f"{dim} (always {x.shape[dim]})" for dim in range(1, x.dim()) if dim not in of_one)
        told = [f"free beside the batch: {free or 'nothing'}", *([f"fixed: {stays}"] if stays else [])]
        parts.append(f"dimensions of {name} {'; '.join(told)}")
    shapes = " and ".join(", ".join("×".join(map(str, x.shape)) for x in inputs) for inputs in others)
    return "; ".join(parts) + (f". Checked at {shapes} too." if shapes else ".")
