"""The command that opens a page of the service in the browser."""

from __future__ import annotations

import re
import webbrowser
from typing import Annotated

import typer

from pared.cli.completion import page_ids
from pared.cli.exits import FAILED, USAGE
from pared.cli.rendering import out, print_json, say
from pared.cli.shared_options import AsJson, Quiet
from pared.client import Client
from pared.specs.uploads import BUILTIN_DATASETS


def open_page(
    page_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The id of a job, a model or a data set, as `ls` prints it.", autocompletion=page_ids
        ),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Open the page of a job, a model or a data set in the browser, and print its address."""
    if not re.fullmatch(r"(?:job|mdl|dst)_[0-9A-Za-z]{26}", page_id) and page_id not in BUILTIN_DATASETS:
        say(f"{page_id} is no id of a job (job_…), a model (mdl_…) or a data set (dst_…)")
        raise typer.Exit(USAGE)
    with Client() as client:
        match page_id[:3]:
            case "job":
                client.jobs.get(page_id)
                folder = "jobs"
            case "mdl":
                client.models.get(page_id)
                folder = "models"
            case _:
                client.datasets.get(page_id)
                folder = "datasets"
        address = f"{client.url}/{folder}/{page_id}"
    opened = webbrowser.open(address)
    if as_json:
        print_json({"url": address, "opened": opened})
    else:
        out.print(address, soft_wrap=True)
    if not opened:
        say("no browser could be started; open the address yourself")
        raise typer.Exit(FAILED)
