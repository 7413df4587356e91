"""The figures of a plan as a page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pared.report_page import numbers
from pared.report_page.sections import Table
from pared.report_words import what_goes
from pared.reports import Plan, PlannedLayer

MOST_LAYERS = 40
_MOST_NOTES = 20


@dataclass(frozen=True)
class Tile:
    """One figure before and after."""

    what: str
    after: str
    before: str
    share: str


@dataclass(frozen=True)
class ShownPlan:
    """What a page says of a plan."""

    verdict: str
    missed: str | None
    exact: bool
    tiles: list[Tile]
    files: Table
    steps: Table
    layers: Table
    notes: list[str]


def shown_plan(plan: Plan) -> ShownPlan:
    """What a page says of the plan."""
    tiles = [
        _tile("Parameters", plan.before.parameters, plan.after.parameters),
        _tile("Multiply-adds", plan.before.macs, plan.after.macs),
        _tile("File", plan.before.file_bytes, plan.after.file_bytes, in_bytes=True),
    ]
    if plan.after.nonzero_parameters != plan.after.parameters:
        tiles.insert(1, _tile("Not zero", plan.before.nonzero_parameters, plan.after.nonzero_parameters))
    files = [
        [name, numbers.size(file.size_bytes) if file.exact else f"about {numbers.size(file.size_bytes)}"]
        for name, file in plan.files.items()
    ]
    files += [[f"{failed.format}: cannot be written", failed.detail] for failed in plan.failed_outputs]
    steps = [
        [step.type, numbers.count(step.parameters), numbers.count(step.macs), numbers.size(step.file_bytes)]
        for step in plan.steps
    ]
    missed = plan.goal is not None and plan.goal.status == "infeasible"
    return ShownPlan(
        plan.verdict,
        plan.goal.sentence if missed and plan.goal is not None else None,
        plan.exact,
        tiles,
        Table(["File", "Size"], files),
        Table(["Step", "Parameters", "Multiply-adds", "File"], steps),
        _layers(plan.layers),
        [*plan.warnings, *plan.notes][:_MOST_NOTES],
    )


def _tile(what: str, before: Any, after: Any, *, in_bytes: bool = False) -> Tile:
    written = numbers.size if in_bytes else numbers.count
    return Tile(what, written(after), written(before), numbers.percent(numbers.share(after, before)))


def _layers(layers: list[PlannedLayer]) -> Table:
    with_reasons = any(layer.reason for layer in layers)
    rows = [
        [
            layer.name,
            _shape(layer.shape_before),
            _shape(layer.shape_after),
            what_goes(layer),
            *([layer.reason or ""] if with_reasons else []),
        ]
        for layer in layers[:MOST_LAYERS]
    ]
    more = len(layers) - len(rows)
    note = f"and {more:,} more layers" if more > 0 else ""
    return Table(["Layer", "Shape before", "after", "Goes", *(["Why no more"] if with_reasons else [])], rows, note)


def _shape(shape: list[int]) -> str:
    return " × ".join(map(str, shape))
