"""The facts about pruning criteria, which specs, the command line, the API and the documentation read."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pared.criteria import CRITERIA, SCORED_AS, Criterion
from pared.specs import Granularity

CHECKOUT = next(folder for folder in Path(__file__).parents if (folder / "CONTRIBUTING.md").exists())


def test_every_granularity_is_scored_by_some_criterion() -> None:
    assert set(SCORED_AS) == set(get_args(Granularity))
    assert {granularity for criterion in CRITERIA.values() for granularity in criterion.granularities} == set(SCORED_AS)


def test_the_documentation_lists_the_criteria_as_they_are() -> None:
    table = "\n".join(
        [
            "| `criterion` | | importance of a channel | needs | `granularity` | paper |",
            "|---|---|---|---|---|---|",
            *map(row, CRITERIA.values()),
        ]
    )
    page = (CHECKOUT / "docs" / "pruning.md").read_text()
    assert f"\n\n{table}\n\n" in page, f"docs/pruning.md should have this table:\n\n{table}\n"


def row(criterion: Criterion) -> str:
    scored, other = criterion.granularities, [name for name in SCORED_AS if name not in criterion.granularities]
    granularities = ", ".join(scored) if len(other) > len(scored) else f"all but {', '.join(other)}" if other else "all"
    cells = [
        f"`{criterion.name}`",
        criterion.title,
        criterion.formula,
        " and ".join(sorted(criterion.needs)) + (" of training samples" if criterion.needs_data else ""),
        granularities,
        criterion.paper,
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")
