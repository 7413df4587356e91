"""Commands on uploaded models and data sets, and the upload of a file by the commands that need one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from pared.cli.completion import upload_ids
from pared.cli.exits import DETACHED
from pared.cli.rendering import counted_bytes, out, plain_table, print_ids, print_json, print_table, with_bold
from pared.cli.shared_options import AsJson, OnlyIds, Quiet
from pared.client import Client, Upload, Uploads


def upload_commands(kind: Literal["models", "datasets"], noun: str) -> typer.Typer:
    """The commands `ls`, `show` and `rm` for one kind of upload, and `preview` for data sets.

    Args:
        kind: as the API calls them.
        noun: one of them, in words.
    """
    app = typer.Typer(no_args_is_help=True, help=f"List, show and delete uploaded {noun}s.")

    @app.command("ls", help=f"List {noun}s, newest first.")
    def list_uploads(
        limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
        as_json: AsJson = False,
        quiet: OnlyIds = False,
    ) -> None:
        with Client() as client:
            uploads = list(islice(_of(client, kind).list(), limit))
        if as_json:
            print_json([upload.model_dump(mode="json") for upload in uploads])
            return
        if quiet:
            print_ids(upload.id for upload in uploads)
            return
        table = plain_table("id", "status", "format", "bytes", "created", "file", give_way=("created",))
        table.columns[-1].no_wrap = False
        for upload in uploads:
            created = f"{upload.created_at:%Y-%m-%d %H:%M:%S}" if upload.created_at else ""
            size = "" if upload.size_bytes is None else f"{upload.size_bytes:,}"
            name = Text(upload.filename, no_wrap=True, overflow="ellipsis")
            table.add_row(upload.id, upload.status, upload.format or "", size, created, name)
        print_table(table)

    @app.command("show", help=f"Show what is in a {noun}, or why it cannot be used.")
    def show_upload(
        upload_id: Annotated[str, typer.Argument(metavar="ID", autocompletion=upload_ids)], as_json: AsJson = False
    ) -> None:
        with Client() as client:
            upload = _of(client, kind).get(upload_id)
        if as_json:
            print_json(upload.model_dump(mode="json"))
            return
        out.print(str(upload))
        if upload.reason:
            out.print(str(upload.reason.get("detail", "")), soft_wrap=True)
        if upload.inspection:
            _show_inspection(upload.inspection)

    if kind == "datasets":

        @app.command("preview", help="Save what some samples look like to a model: a PNG of images, or JSON rows.")
        def preview_dataset(
            dataset_id: Annotated[str, typer.Argument(metavar="ID", autocompletion=upload_ids)],
            output: Annotated[
                Path, typer.Option("--output", "-o", help="A file, whose ending becomes .png or .json, or a folder.")
            ] = Path(),
            as_json: AsJson = False,
            quiet: Quiet = False,
        ) -> None:
            with Client() as client:
                file = client.datasets.preview(dataset_id, output)
            if as_json:
                print_json({"files": [str(file)]})
            else:
                out.print(str(file), soft_wrap=True)

    @app.command("rm", help=f"Delete {noun}s. Jobs that used them keep their reports and files.")
    def remove_uploads(
        upload_ids: Annotated[list[str], typer.Argument(metavar="ID…", autocompletion=upload_ids)],
        as_json: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        with Client() as client:
            for upload_id in upload_ids:
                _of(client, kind).delete(upload_id)
                if not as_json:
                    out.print(f"deleted {upload_id}")
        if as_json:
            print_json({"deleted": upload_ids})

    return app


def stored(
    uploads: Uploads,
    file_or_id: str,
    console: Console,
    architecture: Any = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
) -> Upload:
    """Upload a file (or look an id up) and wait until the service has looked into it.

    Args:
        weights, prefix: which part of a checkpoint is meant.

    Raises:
        UploadRejected: the service cannot use the file.
    """
    if file_or_id.startswith(("mdl_", "dst_")):
        if weights or prefix:
            raise typer.BadParameter(
                f"--state-dict and --prefix go with a file that is uploaded, and {file_or_id} is: name the file"
            )
        return uploads.get(file_or_id).wait()
    path = Path(file_or_id)
    try:
        with counted_bytes(f"uploading {path.name}", console) as progress:
            upload = uploads.upload(path, architecture, progress, weights=weights, prefix=prefix)
        console.print(with_bold("uploaded ", path.name, f" as {upload.id}"))
        upload.wait()
    except KeyboardInterrupt:
        console.print("\nStopped; no job was made. The same command goes on: what is uploaded is not sent again.")
        raise typer.Exit(DETACHED) from None
    for warning in (upload.inspection or {}).get("warnings", []):
        console.print(f"  Note: {warning}")
    return upload


def _of(client: Client, kind: Literal["models", "datasets"]) -> Uploads:
    return client.models if kind == "models" else client.datasets


def _show_inspection(inspection: Mapping[str, Any]) -> None:
    for line in _figures(inspection):
        out.print(line)
    if layers := inspection.get("layers"):
        table = plain_table("layer", "operator", "parameters", "channels")
        table.columns[2].justify = "right"
        table.add_column("can lose channels")
        for layer in layers:
            channels = "" if layer.get("channels") is None else f"{layer['channels']:,}"
            can = "yes" if layer.get("prunable_channels") else f"no: {layer.get('reason') or 'it has none'}"
            row = (layer["name"], layer["kind"], f"{layer['parameters']:,}", channels, can)
            table.add_row(*map(Text, row))
        print_table(table)
    for warning in inspection.get("warnings", []):
        out.print(f"Note: {warning}")


def _figures(inspection: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a model or of a data set, a line each."""
    if inspection.get("parameters") is not None:
        yield f"parameters: {inspection['parameters']:,} ({inspection.get('trainable_parameters', 0):,} trainable)"
    for tensor in inspection.get("inputs") or []:
        yield f"input: {' '.join(str(tensor[part]) for part in ('name', 'shape', 'dtype') if part in tensor)}"
    if samples := inspection.get("samples"):
        yield "samples: " + ", ".join(f"{count:,} {split}" for split, count in samples.items())
    if inspection.get("labelled") is False:
        yield "target: none (no labels)"
    if target := inspection.get("target"):
        yield "target: " + ", ".join(f"{name} {value}" for name, value in target.items() if value is not None)
