"""Owns `pared demo`: a model is trained, then made smaller in two ways, all through the API as any client would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
from rich.console import Console

from pared.cli.rendering import follow, with_bold
from pared.cli.uploads import stored
from pared.client import Client, Job, JobFailed, Report
from pared.spec_fields import DistillFields, PruneFields
from pared.terminal import printable

START_LIMIT_S = 90.0

# Chosen on the validation split, over three seeds; the test split is only reported on.
PRUNE: PruneFields = {"granularity": "channel", "amount": 0.5, "retrain": {"epochs": 8, "lr": 0.02}}
# A quarter of the parameters of `pared.examples.train_digits`, from random weights.
STUDENT = {
    "layers": [
        ["Conv2d", {"in_channels": 1, "out_channels": 16, "kernel_size": 3, "padding": 1}],
        ["ReLU", {}],
        ["Conv2d", {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1}],
        ["ReLU", {}],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Flatten", {}],
        ["Linear", {"in_features": 512, "out_features": 32}],
        ["ReLU", {}],
        ["Linear", {"in_features": 32, "out_features": 10}],
    ]
}
DISTILL: DistillFields = {"compare_with_labels_only": True}


def run(
    url: str | None,
    directory: Path,
    console: Console,
    *,
    keep: bool = False,
    shown: Callable[[dict[str, Any]], None] | None = None,
) -> int:
    """Run the demo; everything it makes is left in `directory`.

    Args:
        url: a running server; None starts one, and stops it at the end.
        directory: made if it is not there.
        console: where it is shown.
        keep: leave the demo's own server running until Ctrl-C.
        shown: is called with the reports by the names of their files, once both are there.

    Returns:
        The exit code: 0, or 1 when a job failed.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    key = "" if url is None else None  # one that was exported is for another server than the demo's own
    with _own_server(directory, console) if url is None else _running_server(url) as at, Client(at, key) as client:
        try:
            reports = _show(client, directory, console)
        except JobFailed as error:
            console.print(f"The demo failed: {error}", style="red")
            return 1
        if shown is not None:
            shown({name: report.model_dump(mode="json") for name, report in reports.items()})
        if url is not None or keep:
            console.print(f"\n  Look at the jobs in a browser: {at}/jobs", soft_wrap=True)
        else:
            console.print("\n  To look at them in a browser, leave the server running: make demo KEEP=1")
        if url is None and keep:
            console.print("  The server runs until you press Ctrl-C.")
            with suppress(KeyboardInterrupt):
                while True:
                    sleep(3600)
    return 0


def _show(client: Client, directory: Path, console: Console) -> dict[str, Report]:
    script = Path(__file__).parents[1] / "examples" / "train_digits.py"
    _headline(console, "1. A model, trained by plain PyTorch", f"python {script} {directory}")
    # Threads that spin while they wait are slow where the server's processes want the cores too.
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    lines = subprocess.DEVNULL if console.quiet else console.file
    subprocess.run([sys.executable, str(script), str(directory)], check=True, env=env, stdout=lines)
    original = directory / "digits_cnn.pt"

    _headline(console, f"2. Uploaded to {client.url}")
    model = stored(client.models, str(original), console)
    data = stored(client.datasets, str(directory / "digits.npz"), console)
    for layer in (model.inspection or {}).get("layers", []):
        prunable = "can lose channels" if layer["prunable_channels"] else f"stays: {layer['reason']}"
        line = f"  {layer['name']}: {layer['kind']}, {layer['parameters']:,} parameters, {prunable}"
        console.print(line)

    _headline(
        console,
        "3. Half of the channels removed, then retrained",
        "pared prune digits_cnn.pt --data digits.npz --channels 50% --epochs 8 --lr 0.02 -o pruned.pt",
    )
    pruned = _finish(client.prune(model, data, **PRUNE), directory, "pruned", console)

    (directory / "student.json").write_text(json.dumps(STUDENT, indent=2))
    _headline(
        console,
        "4. A student with a quarter of the parameters learns from the model's answers",
        "pared distill --teacher digits_cnn.pt --student-architecture student.json --data digits.npz --compare "
        "-o distilled.pt",
    )
    distilled = _finish(client.distill(model, STUDENT, data, **DISTILL), directory, "distilled", console)

    _headline(console, "What came of it")
    for line in _conclusions(pruned, distilled):
        console.print(f"  {line}")
    console.print(f"\n  The files and their reports (JSON, and pages for a browser): {directory}", soft_wrap=True)
    for name in ("digits_cnn.pt", "pruned.pt", "distilled.pt"):
        console.print(f"  {(directory / name).stat().st_size:>9,} bytes  {name}")
    return {"pruned": pruned, "distilled": distilled}


def _headline(console: Console, title: str, command: str = "") -> None:
    console.print(f"\n{title}", style="bold")
    if command:
        console.print(f"$ {command}", style="dim", soft_wrap=True)


def _finish(job: Job, directory: Path, name: str, console: Console) -> Report:
    """Follow the job, fetch what it made, show its report."""
    console.print(f"submitted as {job.id}")
    if follow(job, console).status != "succeeded":
        raise JobFailed(job)
    job.download(directory / f"{name}.pt")
    report = job.report()
    (directory / f"{name}.report.json").write_text(report.model_dump_json(indent=2))
    (directory / f"{name}.report.html").write_text(report.to_html())
    console.print()
    console.print(report)
    return report


def _conclusions(pruned: Report, distilled: Report) -> Iterator[str]:
    """What the reports say, also where it is not what one hoped for."""
    share = pruned.after.file_bytes / pruned.before.file_bytes
    lost = -100 * pruned.comparison.quality_difference.value if pruned.comparison else 0.0
    yield (
        f"Pruning: {share:.0%} of the bytes ({'less' if share < 0.5 else 'not less'} than half), test accuracy "
        f"{-lost:+.2f} points ({'within' if lost <= 2 else 'beyond'} the two points that it may lose)."
    )
    if distilled.after.quality is None or distilled.labels_only is None:
        return
    with_teacher, alone = distilled.after.quality.test.value, distilled.labels_only.test.value
    yield (
        f"Distillation: the student has {distilled.after.parameters / distilled.before.parameters:.0%} of the "
        f"parameters and {with_teacher:.2%} test accuracy; on labels alone the same student has {alone:.2%}."
    )
    if with_teacher > alone:
        yield (
            f"With the teacher it does better by {100 * (with_teacher - alone):.2f} points on "
            f"{distilled.after.quality.samples} images; the report says whether that may be chance."
        )
    elif with_teacher == alone:
        yield "The teacher made no difference here: the same student on labels alone does as well."
    else:
        yield f"The teacher did not help here: labels alone did better by {100 * (alone - with_teacher):.2f} points."


@contextmanager
def _running_server(url: str) -> Iterator[str]:
    yield url


@contextmanager
def _own_server(directory: Path, console: Console) -> Iterator[str]:
    """`pared up` on a free port, stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = directory / "pared-up.log"
    command = [sys.executable, "-P", "-m", "pared", "up", "--port", str(port), "--data", str(directory / "server")]
    console.print(with_bold("", "Starting pared", f" at http://127.0.0.1:{port} (its output: {log})"), soft_wrap=True)
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_own_environment())
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _own_environment() -> dict[str, str]:
    """The environment without settings that were exported for another server; but what this machine can hold stays."""
    allowed = {"PARED_ALLOW_WEAK_SANDBOX", "PARED_THREADS"}
    passed = {name: value for name, value in os.environ.items() if not name.startswith("PARED_") or name in allowed}
    return passed | {"NO_COLOR": "1"}


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    limit = monotonic() + START_LIMIT_S
    while server.poll() is None and monotonic() < limit:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        sleep(0.2)
    raise SystemExit(printable(f"pared up did not come up:\n{log.read_text()[-2000:]}"))
