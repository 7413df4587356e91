"""Owns the look of pieces of HTML among others: the report's own style, for what is within `.pared` alone."""

from __future__ import annotations

import re
from functools import cache

from markupsafe import Markup

from pared.report_page import STYLE

_BY_SYSTEM = re.compile(r"@media \(prefers-color-scheme:dark\)\{:root\{(.*?)\}\}")
_DARK_HOSTS = (
    'body[data-jp-theme-light="false"]',  # JupyterLab, Notebook 7
    "body.vscode-dark",
    "body.vscode-high-contrast:not(.vscode-high-contrast-light)",
    "html[theme=dark]",  # Colab
    "html[data-theme=dark]",  # books made of notebooks
)
"""A notebook may be dark where the system is not, and light where it is dark: its own word counts."""
_MORE = (
    "p{margin:.3em 0}"
    "details{margin:.4em 0}"
    "tr:nth-child(n){background:none}"  # notebooks stripe tables
    "th,td{max-width:none;white-space:normal}"
    ".verdict{font-weight:600;font-size:1.05em}"
    ".tiles{margin:.6em 0}.tiles li{margin:0}"
    "progress{width:min(24em,60%);accent-color:var(--now);vertical-align:middle}"
    "ol.stages{display:flex;flex-wrap:wrap;gap:.1em 1.2em;list-style:none;margin:.3em 0;padding:0}"
    "ol.stages li{margin:0}"
    "ol.stages [aria-current]{font-weight:700}"
    "pre{color:var(--text);margin:.4em 0;max-height:11em;overflow:auto}"
)


@cache
def scoped_style() -> Markup:
    """The text of a `<style>` that changes nothing outside of elements of the class `pared`."""
    rules = STYLE.partition("@page")[0]  # what follows is for paper
    dark = _BY_SYSTEM.search(rules)
    rules = _BY_SYSTEM.sub("", rules).replace(":root{color-scheme:light dark;", "&{color-scheme:light;")
    rules = rules.replace("body{margin:0 auto;max-width:64rem;padding:1rem;", "&{max-width:60rem;padding:.6rem .8rem;")
    rules = rules.replace("font:1rem/1.5", "font:14px/1.5").replace("rem", "em")
    hosts = "".join(f"{host} &,".strip() for host in _DARK_HOSTS).rstrip(",")
    at_night = "" if dark is None else f"{hosts}{{color-scheme:dark;{dark[1]}}}"
    # Twice the class, so that the notebook's own rules for tables and lists give way.
    return Markup(f".pared.pared{{{rules}{_MORE}{at_night}}}".replace("\n", ""))  # noqa: S704 - our own file
