"""The command line: all through the HTTP API, save for work on weight files and what starts or administers a server."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pydantic
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pared.client import (
    APIError,
    Client,
    DigestMismatch,
    Job,
    JobFailed,
    Plan,
    ServerUnreachable,
    UploadRejected,
)
from pared.errors import ParedError
from pared.gpus import Gpu, visible
from pared.job_types import ListedName
from pared.options import Pruning, Retraining, Teaching, architecture_of, given_only, grouped, readable, share, upload
from pared.specs import Device, Knowledge, Scope, Task
from pared.statuses import JobStatus
from pared.supervisor import Supervisor, worker_processes
from pared.terminal import counted_bytes, follow, stored

DONE, FAILED, USAGE, INCOMPLETE, DETACHED = 0, 1, 2, 4, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make trained PyTorch models smaller.",
)
jobs_app = typer.Typer(no_args_is_help=True, help="List, follow and cancel jobs.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys, on the server's own machine.")
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


def main() -> None:
    """Run a command; what goes wrong becomes one message and an exit code."""
    try:
        app()
    except APIError as error:
        _say(f"{error}")
        sys.exit(USAGE if error.status in (404, 422) else FAILED)
    except (ServerUnreachable, UploadRejected, JobFailed, DigestMismatch, ParedError) as error:
        _say(str(error))
        sys.exit(FAILED)
    except (OSError, json.JSONDecodeError, httpx.InvalidURL) as error:
        _say(str(error))
        sys.exit(USAGE)
    except pydantic.ValidationError as error:
        for each in error.errors():
            name = ".".join(map(str, each["loc"]))
            # Settings come from the environment, all else from a server's answers.
            name = f"PARED_{name.upper()}" if error.title == "Settings" else f"{error.title}.{name}"
            _say(f"{name}: {each['msg']}")
        sys.exit(USAGE)


Loss = Literal["knowledge", "output_mse"]
KNOWLEDGE = Knowledge(kind="knowledge")

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        parser=upload,
        metavar="FILE",
        help="Data set: a .npz, .safetensors, .csv or .zip file, its id, or builtin:digits.",
    ),
]
TaskOption = Annotated[Task, typer.Option(help="What the model answers.")]
DeviceOption = Annotated[
    Device, typer.Option(help="What to compute on: cuda waits for a worker with a GPU, auto takes what is free first.")
]
LatencyDevice = Annotated[
    Literal["cpu", "cuda"] | None,
    typer.Option(help="Where latency is measured: where the model will run.", show_default="where the job computes"),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        help="Where to put the result; the ending chooses .pt, .safetensors, .pt2, .onnx or .packed.",
        show_default="it stays on the server",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
FORMATS = {
    ".pt": "torchscript",
    ".safetensors": "state_dict",
    ".pt2": "exported_program",
    ".onnx": "onnx",
    ".packed": "packed",
}
ARCHITECTURE = "architecture.json"


# -- compression ----------------------------------------------------------------------------------


@app.command("plan", help="Say what `pared prune` would do with these options, in seconds; -o only says the formats.")
@app.command()
@grouped
def prune(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            parser=upload,
            metavar="MODEL",
            help="A TorchScript file, a torch.export program, a state dict, or the id of an upload.",
        ),
    ],
    pruning: Pruning,
    training: Retraining,
    data: Data = None,
    architecture: Annotated[
        str | None, typer.Option(help="For a state dict: a name, or a .json file with the layers.")
    ] = None,
    task: TaskOption = "classification",
    device: DeviceOption = "auto",
    latency_device: LatencyDevice = None,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Remove channels or weights from a model, retrain it, and download the result."""
    fields = {**pruning.spec(), **_common(task, seed, output, device, latency_device)}
    retrain = training.spec()
    if data is None and retrain:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in retrain)
        raise typer.BadParameter(f"retraining needs --data: give it too, or leave out {given}")
    if data is not None and pruning.input_shape:
        raise typer.BadParameter("give one of --data and --input-shape: the data shows the inputs")
    if pruning.quantize is not None and "packed" not in (fields["outputs"] or []):
        raise typer.BadParameter("--quantize makes packed files smaller, and no other: give -o with the ending .packed")
    if data is not None:
        fields["retrain"] = retrain
    made = architecture_of(architecture)
    with Client() as client:
        spec = {
            "type": "prune",
            "model": stored(client.models, model, err, made).id,
            "architecture": made,  # an upload that is given by its id may have none
            "dataset": _dataset(client, data),
            **fields,
        }
        if context.info_name == "plan":
            _say_plan(client.jobs.plan(spec), as_json=as_json)
        else:
            _carry_through(client, spec, output, as_json=as_json)


@app.command()
@grouped
def distill(
    teacher: Annotated[
        str,
        typer.Option(
            parser=upload,
            metavar="FILE",
            help="A TorchScript file, a torch.export program, a state dict, or the id of an upload.",
        ),
    ],
    data: Data,
    training: Teaching,
    student: Annotated[
        str | None, typer.Option(parser=upload, metavar="FILE", help="The student as a file or an id.")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="Make the student from the teacher by this share of its channels, such as 50%.",
        ),
    ] = None,
    teacher_architecture: Annotated[
        str | None, typer.Option(help="For a teacher that is a state dict: a name, or a .json file.")
    ] = None,
    student_architecture: Annotated[
        str | None, typer.Option(help="A name, or a .json file: the student itself, or that of its state dict.")
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="Softened outputs, or the outputs' squared distance.",
            show_default="knowledge; output_mse for a regression",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="knowledge: the weight of the output distance.", show_default=str(KNOWLEDGE.alpha)),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="knowledge: softens the outputs.", show_default=str(KNOWLEDGE.temperature))
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(help="knowledge: the share of the loss on the labels.", show_default=str(KNOWLEDGE.labels)),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Also train the same student on labels alone.")] = False,
    task: TaskOption = "classification",
    device: DeviceOption = "auto",
    latency_device: LatencyDevice = None,
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Train a smaller student to answer as the teacher does, and download it."""
    made, teachers = architecture_of(student_architecture), architecture_of(teacher_architecture)
    if [student, width].count(None) == 0 or (student is None and width is None and made is None):
        raise typer.BadParameter("give one of --student, --width and --student-architecture")
    if width is not None and made is not None:
        raise typer.BadParameter("a student of the teacher's --width has the teacher's architecture; name no other one")
    weighing = given_only(alpha=alpha, temperature=temperature, labels=labels)
    if weighing and loss == "output_mse":
        raise typer.BadParameter("--alpha, --temperature and --labels are for --loss knowledge; leave them out")
    with Client() as client:
        spec: dict[str, Any] = {
            "type": "distill",
            "teacher": stored(client.models, teacher, err, teachers).id,
            "teacher_architecture": teachers,
            "dataset": _dataset(client, data),
            "train": training.spec(),
            "compare_with_labels_only": compare,
            **_common(task, seed, output, device, latency_device),
        }
        if loss or weighing:
            spec["loss"] = {"kind": loss or "knowledge", **weighing}
        if student is not None:
            spec |= {"student": stored(client.models, student, err, made).id, "student_architecture": made}
        elif width is not None:
            spec["student"] = {"from_teacher": {"width": width}}
        else:
            spec["student"] = {"name": made} if isinstance(made, str) else made
        _carry_through(client, spec, output, as_json=as_json)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(parser=readable, metavar="FILE", help="A .packed file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to put the model: a file or a folder.", show_default="beside FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the dense model of a packed file: TorchScript, or safetensors and the architecture. Needs no server."""
    with _extras("files"):
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
        _print_json({"files": [str(file) for file in files]})
        return
    _list_files(files)


def _say_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        _print_json(plan.model_dump(mode="json"))
    else:
        out.print(plan)


def _carry_through(client: Client, spec: dict[str, Any], output: list[Path] | None, *, as_json: bool) -> None:
    job = client.jobs.submit(spec)
    err.print(f"submitted [bold]{job.id}[/]")
    _follow(job, client, output, as_json=as_json)
    _hand_over(job, client, output, as_json=as_json)


def _hand_over(job: Job, client: Client, output: list[Path] | None, *, as_json: bool) -> None:
    """Download what was asked for, and print the report of a job that succeeded; with a format missing, exit with 4."""
    missing = {failed.format: failed.detail for failed in job.failed_outputs}
    files = [job.download(path) for path in output or [] if FORMATS.get(path.suffix) not in missing]
    if ARCHITECTURE in {artifact.name for artifact in job.artifacts()}:
        # Pruned weights are of use only with the architecture that they now have.
        weights = [file for file in files if file.suffix == ".safetensors"]
        files += [job.download(file.with_suffix(".architecture.json"), name=ARCHITECTURE) for file in weights]
    report = job.report()
    if as_json:
        _print_json({"job": _dump(job), "report": report.model_dump(mode="json"), "files": [str(f) for f in files]})
    else:
        out.print(report)
        _list_files(files)
        if not files:
            out.print(f"The result is on the server: {client.url}{job.links.get('artifacts', '')}", markup=False)
    for name, detail in missing.items():
        path = next((path for path in output or [] if FORMATS.get(path.suffix) == name), name)
        _say(f"{path} was not written: {detail}")
    if missing:
        raise typer.Exit(INCOMPLETE)


def _list_files(files: list[Path]) -> None:
    for file in files:
        out.print(f"[bold]{escape(str(file))}[/] ({file.stat().st_size:,} bytes)")


def _follow(job: Job, client: Client, output: list[Path] | None, *, as_json: bool) -> None:
    """Draw the job until it ended; exits with 1 if not well, and with 130 when the person detaches."""
    try:
        if as_json:
            job.wait()
        else:
            follow(job, err)
    except KeyboardInterrupt:
        wanted = "".join(f" -o {shlex.quote(str(path))}" for path in output or [])
        err.print(
            f"\nDetached; the job goes on.\n  come back:  pared jobs watch {job.id}{escape(wanted)}", soft_wrap=True
        )
        err.print(f"  cancel it:  pared jobs cancel {job.id}")
        raise typer.Exit(DETACHED) from None
    except JobFailed:
        pass  # told below, in the form that was asked for
    if job.status != "succeeded":
        if as_json:
            _print_json({"job": _dump(job)})
        _say(f"{job}\n{client.url}{job.links.get('self', '')}")
        raise typer.Exit(FAILED)


def _common(
    task: Task, seed: int, output: list[Path] | None, device: Device, latency_device: str | None
) -> dict[str, Any]:
    unknown = [path.name for path in output or [] if path.suffix not in FORMATS]
    if unknown:
        raise typer.BadParameter(f"the ending of {unknown[0]} names no format; use {', '.join(FORMATS)}")
    for path in output or []:
        # Told before the job, not after hours of it. What is not there yet is made.
        folder = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise typer.BadParameter(f"{path} cannot be written: {folder} is no folder that you may write to")
    outputs = list(dict.fromkeys(FORMATS[path.suffix] for path in output or [])) or None
    return {"task": task, "seed": seed, "outputs": outputs, "device": device, "latency_device": latency_device}


def _dataset(client: Client, given: str | None) -> str | None:
    if given is None or given.startswith("builtin:"):
        return given
    return stored(client.datasets, given, err).id


# -- jobs -----------------------------------------------------------------------------------------


@jobs_app.command("ls")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.", show_default="any")] = None,
    type: Annotated[  # noqa: A002 - the option's name
        ListedName | None, typer.Option(help="Only jobs of this type.", show_default="any")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        rows = list(islice(client.jobs.list(status, type), limit))
    if as_json:
        _print_json([_dump(job) for job in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "type", "status", "created"):
        table.add_column(name, no_wrap=True)
    table.add_column()  # gives way where the terminal is narrow
    for job in rows:
        created = f"{job.created_at:%Y-%m-%d %H:%M:%S}" if job.created_at else ""
        verdict = (job.result or {}).get("verdict") or (job.error or {}).get("detail") or ""
        table.add_row(job.id, job.type, job.status, created, Text(str(verdict), no_wrap=True, overflow="ellipsis"))
    out.print(table)


@jobs_app.command("show")
def show_job(job_id: str, as_json: AsJson = False) -> None:
    """Show a job as it is now."""
    with Client() as client:
        job = client.jobs.get(job_id)
    if as_json:
        _print_json(_dump(job))
    else:
        out.print(str(job), markup=False)
        if job.result:
            out.print(str(job.result.get("verdict")), markup=False)


@jobs_app.command("watch")
def watch_job(job_id: str, output: Output = None, as_json: AsJson = False) -> None:
    """Follow a job until it has ended, and download its result."""
    with Client() as client:
        job = client.jobs.get(job_id)
        _follow(job, client, output, as_json=as_json)
        _hand_over(job, client, output, as_json=as_json)


@jobs_app.command("cancel")
def cancel_job(job_id: str, as_json: AsJson = False) -> None:
    """Cancel a job."""
    with Client() as client:
        job = client.jobs.cancel(job_id)
    if as_json:
        _print_json(_dump(job))
    else:
        out.print(str(job), markup=False)


@app.command()
def report(job_id: str, as_json: AsJson = False) -> None:
    """Print the before/after report of a job."""
    with Client() as client:
        found = client.jobs.get(job_id).report()
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        out.print(found)


# -- weight files ---------------------------------------------------------------------------------


@app.command("prune-file")
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
) -> None:
    """Zero the smallest weights of a state dict of any size, here, without a server, torch or loading it."""
    with _extras("files"):
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
        _print_json({**asdict(done), "file": str(output)})
        return
    for note in done.notes:
        out.print(f"Note: {note}", markup=False)
    out.print(f"[bold]{escape(str(output))}[/] ({done.size_bytes:,} bytes, in {done.seconds:.1f} s)")
    out.print(
        f"{done.zeros:,} of {done.weights:,} weights ({done.zeros / max(done.weights, 1):.2%}) are zero now, "
        f"in {len(done.tensors)} tensors; {done.untouched} tensors are as they were."
    )
    out.print("It is as large as before and no faster by itself: zeros only help where they are packed or skipped.")


# -- servers --------------------------------------------------------------------------------------


@app.command()
def up(
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; beyond loopback, API keys are needed.", show_default="PARED_HOST or 127.0.0.1"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="PARED_PORT or 8000")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Directory for everything that is kept.", show_default="PARED_DATA_DIR or pared-data"),
    ] = None,
) -> None:
    """Run pared on this machine: API and worker, with nothing else to install."""
    given: dict[str, Any] = {"host": host, "port": port, "data_dir": data}
    with _extras("service", "worker"):
        from pared.state.settings import Settings
        from pared.up import run
    sys.exit(run(Settings(**{name: value for name, value in given.items() if value is not None})))


@app.command()
def api() -> None:
    """Run the API process alone, configured by PARED_… variables."""
    with _extras("service"):
        import uvicorn

        from pared.state.logs import level_of_servers
        from pared.state.settings import settings
    uvicorn.run(
        "service.app:app_from_env",
        factory=True,
        host=settings().host,
        port=settings().port,
        access_log=False,  # the app writes its own, without secrets
        server_header=False,
        log_level=level_of_servers(settings().log_level),
        timeout_graceful_shutdown=5,
    )


@app.command()
def worker(
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|N,N…",
            help="One worker process for each of these GPUs, counted from 0 among those that are visible.",
            show_default="one process, on the first GPU that works",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only say what the workers of this machine compute on; exit code 0 if one can run jobs."
        ),
    ] = False,
) -> None:
    """Run one worker process alone, or one for each GPU, configured by PARED_… variables."""
    with _extras("worker"):
        from pared.state.logs import level_of_servers
        from pared.state.settings import settings
        from worker.tasks import app as celery
    if check:
        sys.exit(_check_workers_here())
    if gpus is not None and (chosen := _chosen_gpus(gpus)):
        Supervisor(worker_processes(chosen, os.environ, len(os.sched_getaffinity(0)))).run()
        return
    # What `celery -A worker.tasks worker` does, save that a folder named `worker` in this directory stays out of it.
    # One job at a time: the task only supervises, and a GPU is not shared.
    celery.worker_main(["worker", "--concurrency=1", f"--loglevel={level_of_servers(settings().log_level)}"])


def _chosen_gpus(given: str) -> list[Gpu]:
    from pared.local_workers import chosen_gpus
    from pared.state.settings import settings

    if settings().device == "cpu":
        raise typer.BadParameter("PARED_DEVICE is cpu: unset it, or leave --gpus out", param_hint="--gpus")
    try:
        return chosen_gpus(given, visible())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gpus") from None


def _check_workers_here() -> int:
    """Say what the workers of this machine compute on. Returns 0 if one of them can run jobs."""
    from pared.local_workers import local_workers
    from pared.state.session import make_engine, make_sessions
    from pared.state.settings import settings

    rows = local_workers(make_sessions(make_engine(settings().effective_database_url)))
    for row in rows:
        devices = f"runs jobs on {' and '.join(row.devices)}" if row.devices else "takes no jobs"
        out.print(f"{row.name}: {devices} ({row.device}; sandbox {row.sandbox})", markup=False, soft_wrap=True)
        if row.device_problem:
            _say(row.device_problem)
    if not rows:
        _say("no worker of this machine has been seen lately; start one with `pared worker`")
    return DONE if any(row.devices for row in rows) else FAILED


@app.command()
def migrate() -> None:
    """Bring the database's tables to this version; safe to run again, and by several at once."""
    with _extras("service"):
        from pared.state.session import migrate as bring_up_to_date
        from pared.state.settings import settings
    bring_up_to_date(settings())


@app.command()
def demo(
    url: Annotated[str | None, typer.Option(help="Use this running server rather than one of the demo's own.")] = None,
    data: Annotated[Path, typer.Option(help="Directory for all that the demo makes.")] = Path("demo-data"),
) -> None:
    """Train a small CNN before your eyes, prune and distill it through the API, and show before and after."""
    with _extras("service", "worker"):
        from pared.demo import run
    sys.exit(run(url, data, out))


@keys_app.command("add")
def add_key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key and print it; it cannot be shown again."""
    with _extras("service"):
        from pared.state.keys import create_key
    out.print(create_key(_sessions(), name), markup=False, soft_wrap=True)


@keys_app.command("ls")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys."""
    with _extras("service"):
        from pared.state.keys import list_keys as keys
    rows = [{"id": key.id, "name": key.name, "created_at": key.created_at} for key in keys(_sessions())]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        out.print(f"{row['id']}  {row['name']}", markup=False)


@keys_app.command("revoke")
def revoke_key(key_id: str) -> None:
    """Make an API key worthless."""
    with _extras("service"):
        from pared.state.keys import revoke_key as revoke
    if not revoke(_sessions(), key_id):
        raise typer.BadParameter(f"there is no key {key_id} that works; `pared keys ls` lists them")


def _sessions() -> Any:
    with _extras("service"):
        from pared.state.session import make_engine, make_sessions, migrate
        from pared.state.settings import settings
    migrate(settings())
    return make_sessions(make_engine(settings().effective_database_url))


@contextmanager
def _extras(*names: str) -> Iterator[None]:
    """Around imports that the base install lacks: says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pared", "service", "worker", "migrations"):
            raise
        _say(f"this command needs more than the client: pip install 'pared[{','.join(names)}]'  ({error})")
        raise typer.Exit(USAGE) from None


# -- printing -------------------------------------------------------------------------------------


def _dump(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _say(text: str) -> None:
    err.print(f"pared: {text}", markup=False, soft_wrap=True, style="red")
