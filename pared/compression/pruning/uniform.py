"""Finds the groups of channels that one number of a folder's config counts, and which must so lose the same share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pared.compression.coupling import ChannelGroup
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.folders.widths import Axis, Widths, outlined, widths_of

NOT_SAID = (
    "config.json has no number for the width of this layer alone; with `uniform` false it can go, and the result is "
    "TorchScript"
)
"""Why channels stay that could go otherwise."""


@dataclass(frozen=True)
class SameWidth:
    """Groups that lose the same share of their channels, in so many equal steps.

    `groups`: their positions. `steps`: of the upload; each step takes `units / steps` units of a group.
    """

    groups: list[int]
    steps: int


def same_widths(
    groups: Sequence[ChannelGroup],
    units: Sequence[int],
    names_of: Mapping[str, Sequence[str]],
    folder: ModelFolder,
) -> list[SameWidth]:
    """The widths that can be made smaller such that the folder's config says it. Other groups are in none of them.

    Args:
        units: of each group, in the upload.
        names_of: name of a parameter -> all names of it.
    """
    widths = widths_of(folder)

    def first(axis: Axis) -> Axis:
        return names_of.get(axis[0], [axis[0]])[0], axis[1]

    dropped = tuple(f"{layer}." for layer in folder.dropped)
    of_fields = {
        field: {first(axis) for axis in axes if not axis[0].startswith(dropped or ("\0",))}
        for field, axes in widths.fields.items()
    }
    of_groups = [{first(axis) for axis in group.members if axis[0] in widths.shapes} for group in groups]
    whole = [_whole(group) for group in groups]
    found: list[SameWidth] = []
    for members, fields in _together(of_groups, of_fields):
        covered = set().union(*(of_groups[index] for index in members))
        named = set().union(*(of_fields[field] for field in fields))
        if covered != named or not all(whole[index] for index in members):
            continue
        heads = widths.heads if any(groups[index].kind == "head" for index in members) else ()
        steps = _steps(widths, folder, fields, heads, [units[index] for index in members])
        if steps > 1:
            found.append(SameWidth(members, steps))
    return found


def _whole(group: ChannelGroup) -> bool:
    """Whether every index of each of its dimensions belongs to one of its units."""
    return all(bool((unit_of >= 0).all()) for unit_of in group.members.values())


def _together(of_groups: Sequence[set[Axis]], of_fields: Mapping[str, set[Axis]]) -> list[tuple[list[int], list[str]]]:
    """Groups and settings that share dimensions, in sets of their own, as far as settings have a part in them."""
    sets: list[tuple[set[Axis], list[int], list[str]]] = []
    entries = [(set(axes), [index], list[str]()) for index, axes in enumerate(of_groups)]
    entries += [(set(axes), list[int](), [field]) for field, axes in of_fields.items()]
    for axes, members, fields in entries:
        touching = [one for one in sets if one[0] & axes]
        sets = [one for one in sets if not one[0] & axes]
        sets.append(
            (
                axes.union(*(one[0] for one in touching)),
                sorted([*members, *(index for one in touching for index in one[1])]),
                [*fields, *(field for one in touching for field in one[2])],
            )
        )
    return [(members, fields) for _, members, fields in sets if members and fields]


def _steps(
    widths: Widths, folder: ModelFolder, fields: Sequence[str], heads: Sequence[str], units: Sequence[int]
) -> int:
    """In how many equal steps these settings can be made smaller; 1: not at all."""
    values = [int(widths.settings[field]) for field in fields]
    steps = math.gcd(*units, *values, *(int(widths.settings[each]) for each in heads))
    counts = [int(value) for name, value in widths.settings.items() if name.endswith(("heads", "n_head")) and value]
    for coarser in dict.fromkeys([steps, *(math.gcd(steps, count) for count in counts)]):
        if coarser > 1 and all(_holds(widths, folder, [*fields, *heads], coarser, left) for left in {coarser - 1, 1}):
            return coarser
    return 1


def _holds(widths: Widths, folder: ModelFolder, fields: Sequence[str], steps: int, left: int) -> bool:
    """Whether there is a model with this share of the settings."""
    smaller = {field: int(widths.settings[field]) * left // steps for field in fields}
    shapes = outlined(folder, {**widths.settings, **smaller})
    return shapes is not None and shapes.keys() == widths.shapes.keys()
