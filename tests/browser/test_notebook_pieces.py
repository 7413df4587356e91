"""What notebooks show, in a browser: readable by anybody on a light and a dark notebook, harmless to the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.browsing import NARROW, Visit
from tests.unit.test_notebook import pieces

OUTSIDE = '<table id="outside"><tr><th>a</th><td>b</td></tr></table>'
LOOK = "JSON.stringify(['th', 'td'].map(tag => ({...getComputedStyle(document.querySelector('#outside ' + tag))})))"


@pytest.mark.parametrize("light", ["true", "false"])
def test_pieces_are_accessible_and_keep_to_themselves(
    visiting: Callable[..., Visit], tmp_path: Path, light: str
) -> None:
    shown = [piece for name, piece in pieces().items() if name not in ("infeasible", "weights", "distill", "uploads")]
    body = "".join(piece.replace("<details>", "<details open>") for piece in shown)
    colours = 'bgcolor="#fff"' if light == "true" else 'bgcolor="#111" text="#eee"'
    head = '<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><title>a notebook</title>'
    start = f'{head}<body data-jp-theme-light="{light}" {colours}><main><h1>A notebook</h1>'
    for name, content in (("plain", OUTSIDE), ("pieces", OUTSIDE + body)):
        (tmp_path / f"{name}.html").write_text(f"{start}{content}</main></body></html>")
    visit = visiting(tmp_path.as_uri())
    looks = []
    for name in ("plain", "pieces"):
        visit.page.goto((tmp_path / f"{name}.html").as_uri())
        looks.append(visit.page.evaluate(LOOK))
    assert looks[0] == looks[1]
    page = visit.page.evaluate("getComputedStyle(document.querySelector('.pared')).backgroundColor")
    assert page == ("rgb(255, 255, 255)" if light == "true" else "rgb(20, 23, 27)")
    visit.page.add_style_tag(content="#outside { display: none }")
    visit.page.set_viewport_size(NARROW)
    visit.check_rules()  # once: the theme of the system and the width change no colours here
    assert visit.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    visit.check_requests()
