"""Owns the pages of the reference that are made from the code: specs, errors, command line, HTTP, settings.

They are written when the site is built, so that no copy of them can grow old.
"""

from __future__ import annotations

import ast
import inspect
import json
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from typer.main import get_command

from pared.cli.app import app
from pared.error_help import error_help
from pared.job_types import LISTED
from pared.state.session import migrate
from pared.state.settings import Settings
from service.app import create_app


def pages() -> dict[str, str]:
    """The text of each page, in Markdown, by its path on the site."""
    made = {
        "reference/specs.md": _specs(),
        "reference/cli.md": _command_line(),
        "reference/settings.md": _settings(),
        "reference/http.md": _http(),
        "problems/index.md": _errors(),
    }
    return made | {f"problems/{code}.md": _error(code) for code in error_help()}


# -- errors -------------------------------------------------------------------------------------


def _errors() -> str:
    text = (
        "# Errors\n\nEach answer that is an error is a problem document (RFC 9457): its `type` is the path of one of "
        "these pages, which the service has, too. A job that failed has the name as `code` in its `error`.\n"
    )
    for group, those in groupby(error_help().values(), key=lambda one: one.group):
        rows = [(f"[`{one.code}`]({one.code}.md)", one.status, one.title, one.meaning) for one in those]
        text += f"\n## {group}\n\n" + _table(("error", "status", "title", "meaning"), rows)
    return text


def _error(code: str) -> str:
    one = error_help()[code]
    return (
        f"# {one.title}\n\n`{one.code}`, status {one.status}. {one.meaning}\n"
        f"\n## Why it comes\n\n{_bullets(one.causes)}"
        f"\n## What to do\n\n{_bullets(one.cures)}\n[All errors](index.md)\n"
    )


# -- specs --------------------------------------------------------------------------------------


def _specs() -> str:
    schemas = {each.name: each.spec.model_json_schema() for each in LISTED}
    first, *others = schemas.values()
    common = [
        name
        for name, field in first["properties"].items()
        if all(schema["properties"].get(name) == field for schema in others)
    ]
    parts: dict[str, Any] = {}
    text = (
        "# Fields of specs\n\nA job is posted to `/v1/jobs` as one of these, by its `type`. Python's keywords and the "
        "keys of `pared run spec.json` have the same names. A field without a default is required.\n"
    )
    for name, schema in schemas.items():
        parts |= schema["$defs"]
        own = {key: field for key, field in schema["properties"].items() if key not in common}
        text += f"\n## {name}\n\n{_flat(schema['description'])}\n\n{_fields(schema, own)}"
    text += f"\n## Of all of them\n\n{_fields(first, {name: first['properties'][name] for name in common})}"
    text += "\n## Parts\n"
    for name, schema in sorted(parts.items()):
        text += f"\n### {name}\n\n{_flat(schema.get('description', ''))}\n\n"
        text += _fields(schema, schema["properties"]) if "properties" in schema else f"{_kind(schema)}\n"
    return text


def _fields(schema: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, field in fields.items():
        default = "" if name in required or "default" not in field else f"`{json.dumps(field['default'])}`"
        rows.append((f"`{name}`", _kind(field), default.replace("`null`", "none"), _flat(field.get("description", ""))))
    return _table(("field", "what it is", "default", "meaning"), rows)


def _kind(field: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_kind(part) for part in field[union] if part.get("type") != "null"))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    kind = field.get("type", "anything")
    if kind == "array":
        inner = field.get("prefixItems")
        of = ", ".join(map(_kind, inner)) if inner else _kind(field.get("items", {}))
        return f"list of {of}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_kind(field['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    return " ".join([words.get(kind, kind), _bounds(field)]).strip()


def _bounds(field: Mapping[str, Any]) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    return " ".join(
        f"{word} {field[key]:,g}" if isinstance(field[key], float) else f"{word} {field[key]:,}"
        for key, word in words.items()
        if key in field
    )


# -- the command line ---------------------------------------------------------------------------


def _command_line() -> str:
    text = (
        "# Command line\n\nWhat `--help` of each command says. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, "
        "but the goal was missed; 4 done, but a format could not be written; 130 interrupted, and the job goes on.\n"
    )
    return text + "".join(_command(["pared", name], command) for name, command in get_command(app).commands.items())


def _command(path: list[str], command: Any) -> str:
    if hasattr(command, "commands"):
        inner = "".join(_command([*path, name], one) for name, one in command.commands.items())
        return inner if len(path) > 2 else f"\n## {' '.join(path)}\n\n{_flat(command.help)}\n{inner}"
    context = command.make_context(" ".join(path), [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [(f"`{' '.join(record[0].split())}`", _flat(record[1])) for record in records if record is not None]
    level = "##" if len(path) == 2 else "###"
    usage = " ".join(command.collect_usage_pieces(context))
    head = f"\n{level} {' '.join(path)}\n\n{_flat(command.help)}\n\n```text\n{' '.join(path)} {usage}\n```\n\n"
    return head + (_table(("argument or option", "meaning"), rows) if rows else "")


# -- settings -----------------------------------------------------------------------------------


def _settings() -> str:
    meanings = _attribute_docstrings(Settings)
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default if isinstance(field.default, int | float | bool) else str(field.default or "")
        shown = "none" if field.default is None else "empty" if default == "" else f"`{default}`"
        rows.append((f"`PARED_{name.upper()}`", shown, _flat(meanings[name])))
    return (
        "# Settings\n\nAll processes read them from the environment. Those of the client are `PARED_URL` and "
        "`PARED_API_KEY`.\n\n" + _table(("variable", "default", "meaning"), rows)
    )


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """The text below each attribute of a class, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    return {
        one.target.id: inspect.cleandoc(below.value.value)
        for one, below in pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


# -- HTTP ---------------------------------------------------------------------------------------


def _http() -> str:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        migrate(settings)
        description = create_app(settings).openapi()
    text = (
        "# HTTP\n\nThe service's own page `/docs` shows each operation with its fields and an example that works, and "
        "`/openapi.json` describes them for programs.\n\n"
    )
    rows = [
        (f"`{method.upper()} {path}`", _flat(operation.get("summary", "")))
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    ]
    return text + _table(("operation", "what it does"), rows)


# -- Markdown -----------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(tuple(head)), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _bullets(items: Iterable[str]) -> str:
    return "".join(f"- {item}\n" for item in items)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())
