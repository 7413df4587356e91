"""The form of a new job can say every spec, and what it says is what was meant."""

from __future__ import annotations

import ast
import json
import shlex
from typing import Any

import pytest

from pared.specs import Spec
from service.job_specs import checked, shortest
from service.pages.job_form import MORE, Filled, forms, read, texts_of
from service.pages.snippets import curl, python, snippets_of
from tests.support.job_specs import PRUNE
from tests.support.specs_of_all_kinds import EXAMPLES, OF_ALL_KINDS

URL = "http://127.0.0.1:8000"
MODEL = PRUNE.model


def whole(spec: Any) -> dict[str, Any]:
    assert isinstance(spec, Spec)
    dumped: dict[str, Any] = spec.model_dump(mode="json")
    return dumped


def filled(name: str, **texts: str) -> Filled:
    return read(forms()[name], {field.replace("__", "."): [text] for field, text in texts.items()})


@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_a_job_sent_again_unchanged_has_the_same_spec(name: str):
    posted = checked(OF_ALL_KINDS[name])
    stored = checked(whole(posted))  # with every field written out
    form = forms()[posted.type]
    again = read(form, texts_of(form, stored))
    assert (again.errors, again.general) == ({}, [])
    assert whole(again.spec) == whole(posted)


def test_the_plainest_job_fills_in_what_it_says_alone():
    assert texts_of(forms()["prune"], PRUNE) == {"model": [MODEL], "amount": ["0.5"]}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_need_no_json_for_fields_that_have_controls(name: str):
    spec = checked(EXAMPLES[name])
    assert MORE not in texts_of(forms()[spec.type], spec)


@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_the_shortest_spec_says_the_same(name: str):
    spec = checked(OF_ALL_KINDS[name])
    short = shortest(spec)
    assert whole(checked(short)) == whole(spec)
    assert short.keys() <= OF_ALL_KINDS[name].keys()


@pytest.mark.parametrize("name", OF_ALL_KINDS)
def test_curl_and_python_say_the_spec(name: str):
    spec = checked(OF_ALL_KINDS[name])
    words = shlex.split(curl(spec, URL, with_key=False))
    assert words[:3] == ["curl", "-fsS", f"{URL}/v1/jobs"]
    assert whole(checked(json.loads(words[-1]))) == whole(spec)
    code = python(spec, URL)
    ast.parse(code)
    assert all(snippet.text.isascii() for snippet in snippets_of(spec, URL, with_key=True))


def test_every_field_of_a_spec_is_in_its_form():
    for form in forms().values():
        said = {control.path[0] for control in form.controls} | ({"steps"} if form.type == "pipeline" else set())
        spec = next(type(checked(each)) for each in EXAMPLES.values() if each["type"] == form.type)
        assert said - {"epochs"} == spec.model_fields.keys() - {"type"}


def test_a_goal_alone_chooses_the_steps():
    made = filled("compress", model=MODEL, dataset="builtin:digits", target__file_bytes="0.1", epochs="3")
    assert made.spec is not None
    assert shortest(made.spec)["steps"] == [
        {"prune": {"retrain": {"epochs": 3}}},
        {"distill": {"train": {"epochs": 3}}},
        {"quantize": {}},
    ]
    assert filled("compress", model=MODEL, epochs="3", target__macs="0.5").errors.keys() == {"epochs"}
    usual = filled("compress", model=MODEL)
    assert usual.without_goal
    assert shortest(usual.spec)["target"] == {"file_bytes": 0.25}
    other = filled("compress", model=MODEL, target__params="0.5")
    assert shortest(other.spec)["target"] == {"params": 0.5}  # nothing that nobody asked for stands beside it
    assert not other.without_goal
    assert filled("compress", model=MODEL, more='{"target": {}}').errors.keys() == {"target.file_bytes"}
    assert filled("compress", model=MODEL, target__params="2").errors.keys() == {"target.params"}
    chosen = filled("compress", model=MODEL, target__params="0.5", more='{"steps": [{"quantize": {}}]}')
    assert chosen.errors.keys() == {"more"}


@pytest.mark.parametrize(
    ("name", "texts", "wrong"),
    [
        ("prune", {"amount": "half"}, {"amount"}),
        ("prune", {"target__macs": "0.5", "granularity": "weight"}, {"target.macs"}),
        ("prune", {"target__max_quality_drop": "0.01"}, {"target.max_quality_drop"}),
        ("prune", {"amount": "1"}, {"amount"}),
        ("prune", {"amount": "9" * 5000}, {"amount"}),
        ("prune", {"amount": "1e999"}, {"amount"}),
        ("prune", {"amount": "0.5", "target__params": "0.5"}, {"amount"}),
        ("prune", {"amount": "0.5", "model": "mdl_<script>"}, {"model"}),
        ("prune", {"amount": "0.5", "dataset": "../../etc/passwd"}, {"dataset"}),
        ("prune", {"amount": "0.5", "retrain": "null", "retrain__epochs": "3"}, {"retrain.epochs"}),
        (
            "prune",
            {"amount": "0.5", "retrain__augment": '{"crop": {"padding": -1}}', "dataset": "builtin:digits"},
            {"retrain.augment"},
        ),
        ("prune", {"amount": "0.5", "retrain__augment": "{"}, {"retrain.augment"}),
        ("prune", {"amount": "0.5", "retrain__augment": "[" * 9000}, {"retrain.augment"}),
        ("prune", {"amount": "0.5", "outputs": "zip"}, {"outputs"}),
        ("prune", {"amount": "0.5", "amounts": "conv"}, {"amounts"}),
        ("prune", {"amount": "0.5", "block": "1, x"}, {"block"}),
        ("prune", {"amount": "0.5", "block": "4, 4, 4", "granularity": "block"}, {"block"}),
        ("prune", {"amount": "0.5", "more": '{"amount": 0.6}'}, {"more"}),
        ("prune", {"amount": "0.5", "more": '{"type": "distill"}'}, {"more"}),
        ("prune", {"amount": "0.5", "more": "[]"}, {"more"}),
        ("prune", {"amount": "0.5", "more": '{"n": NaN}'}, {"more"}),
        ("prune", {"amount": "0.5", "more": '{"unheard_of": 1}'}, {"more"}),
        ("prune", {"amount": "0.5", "seed": "x" * 30_000}, {"seed"}),
        ("distill", {"teacher": MODEL, "student": MODEL, "student__from_teacher__width": "0.5"}, {"student"}),
        ("quantize", {"method": "static"}, {"dataset"}),
        ("pipeline", {"steps__0__fields": "{}", "steps__1__fields": '{"amount": 0.5}'}, {"steps.1"}),
        ("pipeline", {"steps__2": "prune", "steps__2__fields": '{"amount": 5}'}, {"steps.2.fields"}),
        ("pipeline", {"steps__2": "pipeline"}, {"steps.2.fields"}),
        ("pipeline", {"steps__2": "prune", "steps__2__fields": "7"}, {"steps.2.fields"}),
        ("pipeline", {}, {"steps.0"}),
    ],
)
def test_what_is_wrong_is_said_where_it_is(name: str, texts: dict[str, str], wrong: set[str]):
    model = {} if "teacher" in texts else {"model": MODEL}
    form = filled(name, **model | texts)
    assert form.spec is None
    assert form.errors.keys() == wrong, form.errors
    assert form.general == []


def test_steps_have_room_for_one_more():
    assert filled("pipeline").rows == 3
    assert filled("pipeline", steps__3="prune").rows == 5
    assert filled("pipeline", steps__7="prune").rows == 8
