"""The loss of a distillation as the command line names it: terms with weights, or a file with the whole of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import typer

from pared.cli.parsers import readable
from pared.specs import LossTerm

_WHOLE = ("knowledge", "output_mse")
_TERMS = {get_args(term.model_fields["kind"].annotation)[0]: term for term in get_args(get_args(LossTerm)[0])}
LOSS_HELP = (
    "`knowledge` or `output_mse`; or terms that are summed, each with a weight if it is not 1, such as --loss kl "
    f"--loss labels=0.1 --loss hint=0.5: {', '.join(_TERMS)}. Or a .json file with all of the loss."
)


def loss_part(text: str) -> dict[str, Any]:
    """`kl`, `hint=0.5` or a .json file."""
    if text.endswith(".json"):
        whole = json.loads(readable(text).read_text())
        if not isinstance(whole, dict):
            raise typer.BadParameter(f'{text} is no loss; write an object such as {{"kind": "combined", "terms": […]}}')
        return whole
    name, equals, weight = text.partition("=")
    if name not in {*_WHOLE, *_TERMS}:
        known = ", ".join(dict.fromkeys([*_WHOLE, *_TERMS]))
        raise typer.BadParameter(f"{name} is no loss; there are {known}")
    if not equals:
        return {"kind": name}
    try:
        return {"kind": name, "weight": float(weight)}
    except ValueError:
        raise typer.BadParameter(f"{weight} is no weight; write {name}=0.5") from None


def loss_of(parts: Sequence[dict[str, Any]], weighing: dict[str, float]) -> dict[str, Any] | None:
    """The loss of a spec; None where nothing is said of it.

    Args:
        parts: as `loss_part` gives them.
        weighing: of alpha, temperature and labels what was given.

    Raises:
        typer.BadParameter: they do not go together.
    """
    if not parts:
        return {"kind": "knowledge", **weighing} if weighing else None
    names = [part["kind"] for part in parts if part.keys() <= {"kind", "weight"}]
    if len(names) < len(parts):
        if len(parts) > 1 or weighing:
            raise typer.BadParameter("a file has all of the loss: give it alone")
        return parts[0]
    if names == ["knowledge"] and "weight" not in parts[0]:
        return {**parts[0], **weighing}
    if names == ["output_mse"] and "weight" not in parts[0]:
        if weighing:
            raise typer.BadParameter("--alpha, --temperature and --labels are for --loss knowledge; leave them out")
        return dict(parts[0])
    if "knowledge" in names:
        raise typer.BadParameter("knowledge is a loss by itself: give it alone, or the terms kl, output_mse and labels")
    if weighing.keys() - {"temperature"}:
        raise typer.BadParameter("--alpha and --labels are for --loss knowledge; for terms write --loss labels=0.1")
    softened = [part["kind"] for part in parts if "temperature" in _TERMS[part["kind"]].model_fields]
    if weighing and not softened:
        raise typer.BadParameter("--temperature softens kl, decoupled and dist; leave it out")
    return {
        "kind": "combined",
        "terms": [{**part, **weighing} if part["kind"] in softened else dict(part) for part in parts],
    }
