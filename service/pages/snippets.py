"""Owns the request for a job as somebody would write it: with curl, in Python and on the command line."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from pared.specs import JobSpec
from service.job_specs import shortest
from service.pages.command_lines import command_line
from service.pages.literals import laid_out


@dataclass(frozen=True)
class Snippet:
    """One way to send the request."""

    name: str
    text: str


def snippets_of(spec: JobSpec, url: str, *, with_key: bool) -> list[Snippet]:
    """The same request in each way.

    Args:
        url: of this server.
        with_key: whether requests need an API key, which the reader puts into PARED_API_KEY.
    """
    return [
        Snippet("curl", curl(spec, url, with_key=with_key)),
        Snippet("Python", python(spec, url)),
        Snippet("Command line", f"export PARED_URL={shlex.quote(url)}\n{command_line(_ordered(spec))}"),
    ]


def curl(spec: JobSpec, url: str, *, with_key: bool) -> str:
    """The request with curl."""
    lines = [f"curl -fsS {shlex.quote(f'{url}/v1/jobs')}"]
    if with_key:
        lines.append('-H "Authorization: Bearer $PARED_API_KEY"')
    lines.append("-H 'Content-Type: application/json'")
    lines.append(f"-d {shlex.quote(laid_out(_ordered(spec), json.dumps))}")
    return " \\\n  ".join(lines)


def python(spec: JobSpec, url: str) -> str:
    """The request with the Python client."""
    fields = _ordered(spec)
    job_type = fields.pop("type")
    positional = [fields.pop(name) for name in ("teacher", "student", "model", "dataset") if name in fields]
    arguments = [laid_out(value, _literal, indent=4) for value in positional]
    arguments += [f"{name}={laid_out(value, _literal, indent=4)}" for name, value in fields.items()]
    shown = "".join(f"    {argument},\n" for argument in arguments)
    client = f"pared.Client({_literal(url)})"
    return f"import pared\n\nclient = {client}\njob = client.{job_type}(\n{shown})\nprint(job.id)"


def _literal(value: Any) -> str:
    text = ascii(value)
    plain = isinstance(value, str) and text.startswith("'") and '"' not in text
    return f'"{text[1:-1]}"' if plain else text


def _ordered(spec: JobSpec) -> dict[str, Any]:
    """The spec without what is filled in, what it is about first."""
    written = shortest(spec)
    first = [name for name in ("type", "model", "teacher", "student", "dataset") if name in written]
    return {name: written[name] for name in [*first, *written]}
