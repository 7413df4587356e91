"""Owns what the documentation site has beside the pages of this folder: generated ones, and those of the repository.

MkDocs calls these functions (`hooks` of mkdocs.yml). Links to files that are no pages of the site become plain text.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parent
PROJECT = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/results.md": "benchmarks/RESULTS.md",
    "project/security.md": "SECURITY.md",
}
"""Pages of the site that lie elsewhere in the repository, with their places there."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are generated, and those from elsewhere in the repository."""
    # Hooks have no package, so that a neighbour is found by its path.
    spec = importlib.util.spec_from_file_location("generate", HERE / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for uri, text in generate.pages().items():
        files.append(File.generated(config, uri, content=text))
    for uri, path in PROJECT.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where pages are on the site, and lists be read as GitHub reads them."""
    uri = page.file.src_uri
    place = PROJECT.get(uri, f"docs/{uri}")

    def site_link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        inside = next((each for each, where in PROJECT.items() if where == path), path.removeprefix("docs/"))
        if files.get_file_from_path(inside) is None and (ROOT / path).exists():
            return text
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{anchor})"

    return _lists(_LINK.sub(site_link, markdown))


def _lists(markdown: str) -> str:
    """Numbered lists with paragraphs of four spaces, which Python-Markdown wants; GitHub is content with three."""
    lines, in_list = [], False
    for line in markdown.split("\n"):
        if re.match(r"\d+\. ", line):
            in_list = True
        elif line and not line.startswith("   "):
            in_list = False
        lines.append(f" {line}" if in_list and line.startswith("   ") else line)
    return "\n".join(lines)
