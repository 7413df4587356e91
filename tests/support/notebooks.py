"""Notebooks run as in Jupyter: by a kernel in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def of_cells(*sources: str) -> nbformat.NotebookNode:
    """A notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def executed(
    notebook: nbformat.NotebookNode, folder: Path, env: Mapping[str, str], limit_s: int = 300
) -> nbformat.NotebookNode:
    """The notebook with its outputs; a cell that raises fails the test.

    Args:
        folder: where its cells work.
        env: environment variables, beside those of this process.
        limit_s: for one cell.
    """
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / ".runtime")
    of_kernel = {**os.environ, **env, "IPYTHONDIR": str(folder / ".ipython")}
    client = NotebookClient(notebook, timeout=limit_s, resources={"metadata": {"path": str(folder)}})
    client.execute(env=of_kernel)
    return notebook


def html_of(notebook: nbformat.NotebookNode) -> list[str]:
    """All HTML that it shows, in order, as it stands at the end."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
