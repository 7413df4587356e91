"""Each error has its page of causes and cures, and no page is of an error that there is not."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from pared.error_help import error_help
from pared.errors import BY_CODE
from pared.state.settings import Settings

ROOT = Path(__file__).parents[2]


def of_http() -> set[str]:
    """What is answered without a class: by the connection itself, and by the framework for wrong methods."""
    named = re.findall(r"HTTPStatus\.([A-Z_]+)", (ROOT / "service/connections.py").read_text())
    statuses = {HTTPStatus[name] for name in named} | {HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED}
    return {status.phrase.lower().replace(" ", "-") for status in statuses}


def test_each_error_has_a_page_and_each_page_an_error() -> None:
    assert set(error_help()) == set(BY_CODE) | of_http()


@pytest.mark.parametrize("code", error_help())
def test_a_page_says_what_why_and_what_to_do(code: str) -> None:
    one = error_help()[code]
    assert 400 <= one.status <= 599
    assert one.title
    for text in (one.meaning, *one.causes, *one.cures):
        assert text.endswith((".", "`"))
        assert text.count("`") % 2 == 0
    assert one.causes
    assert one.cures


def test_settings_that_are_named_exist() -> None:
    text = (ROOT / "pared/error_help.md").read_text()
    known = {f"PARED_{name.upper()}" for name in Settings.model_fields} | {"PARED_URL", "PARED_API_KEY"}
    assert set(re.findall(r"PARED_[A-Z_]+", text)) <= known
