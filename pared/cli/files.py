"""Commands on weight files here: pruning them block by block, and unpacking packed ones. They need no server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pared.cli.exits import needs_extras
from pared.cli.parsers import readable, share
from pared.cli.rendering import counted_bytes, err, list_files, out, print_json, with_bold
from pared.cli.shared_options import AsJson, Quiet
from pared.specs import Scope


def unpack(
    file: Annotated[Path, typer.Argument(parser=readable, metavar="FILE", help="A .packed file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to put the model: a file or a folder.", show_default="beside FILE"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the dense model of a packed file: TorchScript, or safetensors and the architecture. Needs no server."""
    with needs_extras("files"):
        from pared.weights.packed import read
        from pared.weights.unpack import ending
        from pared.weights.unpack import unpack as write_dense
    packed = read(file)
    dense = file.with_suffix(ending(packed))
    target = output or dense
    if target.is_dir():
        target /= dense.name
    if target.suffix != dense.suffix:
        raise typer.BadParameter(f"{file} unpacks to a {dense.suffix} file; name one, or a folder, with -o")
    if output is None and target.exists():
        raise typer.BadParameter(f"{target} is there already; say with -o where the model is to go")
    target.parent.mkdir(parents=True, exist_ok=True)
    files = write_dense(packed, target)
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    list_files(files)


def prune_file(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A .safetensors file, a .safetensors.index.json, or a directory with one of them."
        ),
    ],
    amount: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of the weights to set to zero, such as 90%.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where to put the result: a .safetensors file, or a directory for several files."
        ),
    ],
    scope: Annotated[
        Scope, typer.Option(help="Rank all weights together, or those of each tensor by themselves.")
    ] = "global",
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches this pattern.", show_default="*")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No layer whose name matches this pattern.", show_default="none")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Zero the smallest weights of a state dict of any size, here, without a server, torch or loading it."""
    with needs_extras("files"):
        from pared.weights import prune_file as files
    with counted_bytes(f"pruning {model.name}", err) as progress:
        done = files.prune_file(
            model,
            output,
            amount=amount,
            scope=scope,
            include=include or ["*"],
            exclude=exclude or [],
            progress=progress,
        )
    if as_json:
        print_json({**asdict(done), "file": str(output)})
        return
    for note in done.notes:
        out.print(f"Note: {note}")
    out.print(with_bold("", str(output), f" ({done.size_bytes:,} bytes, in {done.seconds:.1f} s)"))
    out.print(
        f"{done.zeros:,} of {done.weights:,} weights ({done.zeros / max(done.weights, 1):.2%}) are zero now, "
        f"in {len(done.tensors)} tensors; {done.untouched} tensors are as they were."
    )
    out.print("It is as large as before and no faster by itself: zeros only help where they are packed or skipped.")
