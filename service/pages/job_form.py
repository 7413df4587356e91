"""Owns the form of a new job: its controls by type of job, the spec that its texts make, and the texts of a spec."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError as Invalid

from pared.errors import ParedError, ValidationError
from pared.job_types import STEPS
from pared.specs import JobSpec, PipelineSpec, Target
from pared.specs.choosing import Choice, chosen_steps
from pared.specs.pipelines import MAX_STEPS
from service import untrusted_json
from service.job_specs import checked, shortest
from service.pages.form_controls import Control, same
from service.pages.form_layouts import MORE, USUAL_GOAL, Group, JobForm, forms

__all__ = ["MORE", "Filled", "JobForm", "at_point", "forms", "place", "read", "texts_of"]

Texts = Mapping[str, Sequence[str]]
_REQUIRED = "is required"


@dataclass
class Filled:
    """A form with what was typed, and the spec that it makes."""

    form: JobForm
    texts: Texts
    spec: JobSpec | None = None
    errors: dict[str, str] = field(default_factory=dict)
    """Name of a control -> what is wrong there."""
    missing: list[str] = field(default_factory=list)
    """Of these the controls that only wait to be filled in."""
    general: list[str] = field(default_factory=list)
    """What is wrong with no one control."""
    choice: Choice | None = None
    """The steps that were chosen, where the form asks for a goal alone."""
    without_goal: bool = False
    """Whether they are chosen for the usual goal, as none was given."""

    rows_of_steps: list[int] = field(default_factory=list)
    """Where each step stands in the form."""

    def text(self, name: str) -> str:
        """What stands in a control."""
        return (self.texts.get(name) or [""])[-1]

    def has_part_in(self, group: Group) -> bool:
        """Whether anything was typed into a group of fields, or is wrong there."""
        return any(any(self.texts.get(each.name, ())) or each.name in self.errors for each in group.controls)

    def refuse(self, name: str | None, why: str) -> None:
        """Say that something is wrong with a control, or with none."""
        if name is None:
            self.general.append(why)
        else:
            self.errors[name] = f"{self.errors[name]}; {why}" if name in self.errors else why

    @property
    def rows(self) -> int:
        """How many steps there is room for."""
        taken = [row for row in range(MAX_STEPS) if self.text(f"steps.{row}") or self.text(f"steps.{row}.fields")]
        return min(max(3, *(row + 2 for row in taken), 0), MAX_STEPS)


# -- texts to a spec ----------------------------------------------------------------------------------


def read(form: JobForm, texts: Texts) -> Filled:
    """The spec that the texts of a form make, or what is wrong with them."""
    filled = Filled(form, texts)
    document: dict[str, Any] = {"type": form.type}
    for control in form.controls:
        try:
            value = control.value_of(texts.get(control.name, ()))
            if value is not None:
                _put(document, control, value)
        except ValueError as error:
            filled.refuse(control.name, str(error))
    if form.with_steps:
        _read_steps(filled, document)
    _read_more(filled, document)
    if form.name == "compress":
        _choose_steps(filled, document)
    if filled.errors:
        return filled
    try:
        filled.spec = checked(document)
    except ValidationError as error:
        place(filled, error)
    return filled


def place(filled: Filled, error: ParedError) -> None:
    """Say what is wrong with a spec at the controls that it is about."""
    for each in error.errors:
        name = _control_at(filled, each["pointer"])
        if each["detail"] == _REQUIRED and name is not None:
            filled.missing.append(name)
        beside = "" if _is_at(filled.form, name, each["pointer"]) else f"{each['pointer']} "
        filled.refuse(name, beside + each["detail"])
    if not error.errors:
        filled.general.append(error.detail)


def _put(document: dict[str, Any], control: Control, value: Any) -> None:
    """Raises ValueError: another control says something else of the same field."""
    here = document
    *outer, last = control.path
    for name in outer:
        inner = here.setdefault(name, {})
        here = _object(inner, f"says something of {name}, of which another field says all: leave one of them empty")
    if control.kind == "given":
        here[last] = {} if value == "{}" else None
    elif last in here:
        raise ValueError("is said by another field already: leave one of the two empty")
    else:
        here[last] = value


def _read_steps(filled: Filled, document: dict[str, Any]) -> None:
    steps = []
    for row, (kind, fields) in enumerate(filled.form.steps):
        chosen = filled.text(kind.name).strip()
        try:
            said = fields.value_of(filled.texts.get(fields.name, ()))
            said = _object(said or {}, 'must be an object, such as {"amount": 0.5}')
        except ValueError as error:
            filled.refuse(fields.name, str(error))
            continue
        if not chosen and said:
            filled.refuse(kind.name, "must be chosen: fields are given")
        elif chosen:
            steps.append({chosen: said})
            filled.rows_of_steps.append(row)
    document["steps"] = steps


def _read_more(filled: Filled, document: dict[str, Any]) -> None:
    text = filled.text(MORE).strip()
    if not text:
        return
    try:
        more = _object(untrusted_json.parse(text), 'must be an object, such as {"seed": 1}')
        _merge(document, more, "")
    except ValueError as error:
        filled.refuse(MORE, str(error))
    if filled.form.name == "compress" and "steps" in document:
        filled.refuse(MORE, "steps are chosen for the goal here: write them yourself as a pipeline")


def _object(value: Any, otherwise: str) -> dict[str, Any]:
    """The value, if it is an object. Raises ValueError."""
    if isinstance(value, dict):
        return value
    raise ValueError(otherwise)


def _merge(document: dict[str, Any], more: Mapping[str, Any], pointer: str) -> None:
    for name, value in more.items():
        there = document.get(name)
        if name not in document or (there == [] and name == "steps"):
            document[name] = value
        elif isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value, f"{pointer}/{name}")
        elif not same(there, value):
            raise ValueError(f"{pointer}/{name[:64]} is said by another field, too: leave one of the two out")


def _choose_steps(filled: Filled, document: dict[str, Any]) -> None:
    """Put the steps into the document that its goal asks for."""
    epochs = document.pop("epochs", None)
    with_data = document.get("dataset") is not None
    if epochs is not None and (not isinstance(epochs, int) or not 1 <= epochs <= 1000):
        filled.refuse("epochs", "must be a whole number from 1 to 1,000")
    elif epochs is not None and not with_data:
        filled.refuse("epochs", "needs data: choose a data set, or leave this empty")
    if "target" not in document and not any(name.startswith("target.") for name in filled.errors):
        filled.without_goal = True
        document["target"] = dict(USUAL_GOAL)
    document["steps"] = [{"prune": {}}]
    try:
        target = Target.model_validate(document.get("target"))
        outputs = document.get("outputs") or ()
        filled.choice = chosen_steps(target, types=STEPS, with_data=with_data, outputs=outputs, epochs=epochs)
        document["steps"] = filled.choice.steps
    except (Invalid, TypeError):
        return  # the check of the whole says what is wrong with the target


# -- where an error belongs ----------------------------------------------------------------------------


def _control_at(filled: Filled, pointer: str) -> str | None:
    """The control that an error about the spec belongs to: its own, that of what it lies in, or one within it."""
    path = tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
    if path[:1] == ("steps",) and filled.form.with_steps:
        rows = filled.rows_of_steps
        if len(path) == 1 or not path[1].isdecimal() or int(path[1]) >= len(rows):
            return "steps.0"
        row = rows[int(path[1])]
        return f"steps.{row}.fields" if len(path) > 2 else f"steps.{row}"
    if path[:1] == ("steps",):
        return "epochs"
    within = [each for each in filled.form.controls if each.path == path[: len(each.path)]]
    inside = [each for each in filled.form.controls if path and each.path[: len(path)] == path]
    best = sorted(within, key=lambda each: len(each.path), reverse=True) or inside
    typed = [each for each in best if filled.text(each.name) and len(each.path) == len(best[0].path)]
    if best:
        return (typed or best)[0].name
    return MORE if filled.text(MORE) else None


def _is_at(form: JobForm, name: str | None, pointer: str) -> bool:
    """Whether the control is just that of the field, so that the error need not name it."""
    return any(each.name == name and "/" + "/".join(each.path) == pointer for each in form.controls)


# -- a spec to texts -----------------------------------------------------------------------------------


def texts_of(form: JobForm, spec: JobSpec) -> dict[str, list[str]]:
    """What stands in the form of a job with this spec; what no control can show stands in the last field as JSON."""
    rest = copy.deepcopy(shortest(spec))
    del rest["type"]
    texts: dict[str, list[str]] = {}
    for control in form.controls:
        found = _taken(rest, control)
        if found is not None:
            texts[control.name] = found
    if form.with_steps:
        for row, step in enumerate(rest.pop("steps")):
            [(kind, fields)] = step.items()
            texts[f"steps.{row}"] = [kind]
            texts[f"steps.{row}.fields"] = [json.dumps(fields, ensure_ascii=False)] if fields else []
    if rest:
        texts[MORE] = [json.dumps(rest, indent=1, ensure_ascii=False)]
    return texts


def at_point(
    texts: Mapping[str, list[str]], spec: JobSpec | None, amount: float, round_to: int | None
) -> dict[str, list[str]]:
    """The texts of a form that asks for one point of a search instead of the goal of the search.

    Args:
        spec: of the job that searched, where there was one; of a pipeline the step that searched gets the amount.
    """
    rest = {name: each for name, each in texts.items() if not name.startswith("target.")}
    point = {"amount": amount} | ({"round_to": round_to} if round_to else {})
    if not isinstance(spec, PipelineSpec):
        return rest | {name: [f"{value!r}"] for name, value in point.items()}
    if spec.with_search is None:
        return dict(texts)
    name = f"steps.{spec.with_search}.fields"
    fields = json.loads((texts.get(name) or ["{}"])[-1])
    fields.pop("target", None)
    return rest | {name: [json.dumps(fields | point, ensure_ascii=False)]}


def _taken(rest: dict[str, Any], control: Control) -> list[str] | None:
    """The texts of a control, whose value is taken out of the document; None: it has no value that it can show."""
    *outer, last = control.path
    holders = [rest]
    for name in outer:
        inner = holders[-1].get(name)
        if not isinstance(inner, dict):
            return None
        holders.append(inner)
    if last not in holders[-1]:
        return None
    value = holders[-1][last]
    if control.kind == "given":
        texts = {"null": ["null"], "{}": ["{}"]}.get(json.dumps(value))
        texts = texts if texts and texts[0] in dict(control.options) else None
    else:
        texts = None if value is None else control.texts_of(value)
    if texts is not None:
        del holders[-1][last]
        for holder, name in reversed(list(zip(holders, outer, strict=False))):
            if not holder[name]:
                del holder[name]
    return texts
