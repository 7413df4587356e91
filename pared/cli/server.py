"""Commands that start a server or its processes, or look after them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pared.cli.exits import DONE, FAILED, needs_extras
from pared.cli.rendering import be_quiet, err, out, print_json, say
from pared.cli.shared_options import AsJson, Quiet
from pared.gpus import Gpu, visible
from pared.supervisor import Supervisor, worker_processes


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
    options: dict[str, Any] = {"host": host, "port": port, "data_dir": data}
    with needs_extras("service", "worker"):
        from pared.state.settings import Settings
        from pared.up import run
    sys.exit(run(Settings(**{name: value for name, value in options.items() if value is not None})))


def api() -> None:
    """Run the API process alone, configured by PARED_… variables."""
    with needs_extras("service"):
        from pared.state.settings import settings
        from service.server import serve
    serve(settings())


def worker(
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|N,N…",
            help="One worker process for each of these GPUs, counted from 0 among those that are visible.",
            show_default="one process, on the first GPU that works",
        ),
    ] = None,
    queues: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME…",
            help="What the workers take: auto, cpu, cuda (jobs that ask for no device, or for this one), quick (plans "
            "and inspections).",
            show_default="PARED_QUEUES or all that their devices allow",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only say what the workers of this machine compute on; exit code 0 if one can run jobs."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print JSON, and nothing else.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", callback=be_quiet, help="With --check: print nothing but errors.")
    ] = False,
) -> None:
    """Run one worker process alone, or one for each GPU, configured by PARED_… variables."""
    if check:  # often, to see how a container is: without all that a worker loads
        sys.exit(_check_local_workers(as_json=as_json))
    if as_json or quiet:
        raise typer.BadParameter("goes with --check: a worker writes its log", param_hint="--json or --quiet")
    if queues is not None:
        _choose_queues(queues)
    with needs_extras("worker"):
        from pared.state.logs import level_of_servers
        from pared.state.settings import settings
        from pared.state.tracing import require
        from worker.tasks import app as celery
    require(settings())
    if gpus is not None and (chosen := _chosen_gpus(gpus)):
        Supervisor(worker_processes(chosen, os.environ, len(os.sched_getaffinity(0)))).run()
        return
    # What `celery -A worker.tasks worker` does, save that a folder named `worker` in this directory stays out of it.
    # One job at a time: the task only supervises, and a GPU is not shared.
    celery.worker_main(["worker", "--concurrency=1", f"--loglevel={level_of_servers(settings().log_level)}"])


def _choose_queues(names: str) -> None:
    """Before the settings are read, by this process and those that it starts."""
    with needs_extras("worker"):
        from pared.state.settings import queues_named
    try:
        os.environ["PARED_QUEUES"] = ",".join(queues_named(names))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--queues") from None


def _chosen_gpus(choice: str) -> list[Gpu]:
    from pared.local_workers import chosen_gpus
    from pared.state.settings import settings

    if settings().device == "cpu":
        raise typer.BadParameter("PARED_DEVICE is cpu: unset it, or leave --gpus out", param_hint="--gpus")
    try:
        return chosen_gpus(choice, visible())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gpus") from None


def _check_local_workers(*, as_json: bool) -> int:
    """Say what the workers of this machine compute on. Returns 0 if one of them can run jobs."""
    with needs_extras("worker"):
        from pared.local_workers import local_workers
        from pared.state.session import make_engine, make_sessions
        from pared.state.settings import settings
    rows = local_workers(make_sessions(make_engine(settings().effective_database_url)))
    code = DONE if any(row.devices for row in rows) else FAILED
    if as_json:
        columns = ("name", "devices", "device", "device_problem", "sandbox", "sandbox_problem")
        workers = [{name: getattr(row, name) for name in columns} for row in rows]
        print_json({"ok": code == DONE, "workers": workers})
        return code
    for row in rows:
        devices = f"runs jobs on {' and '.join(row.devices)}" if row.devices else "takes no jobs"
        out.print(f"{row.name}: {devices} ({row.device}; sandbox {row.sandbox})", soft_wrap=True)
        for problem in (row.device_problem, row.sandbox_problem):
            if problem:
                say(problem)
    if not rows:
        say("no worker of this machine has been seen lately; start one with `pared worker`")
    return code


def migrate(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Bring the database's tables to this version; safe to run again, and by several at once."""
    with needs_extras("service"):
        from pared.state.session import migrate as bring_up_to_date
        from pared.state.settings import settings
    revision = bring_up_to_date(settings())
    if as_json:
        print_json({"revision": revision})
    else:
        out.print(f"the tables are those of revision {revision}")


def demo(
    url: Annotated[str | None, typer.Option(help="Use this running server rather than one of the demo's own.")] = None,
    data: Annotated[Path, typer.Option(help="Directory for all that the demo makes.")] = Path("demo-data"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's own server running until Ctrl-C.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small CNN, prune and distill it through the API, and show before and after."""
    with needs_extras("service", "worker"):
        from pared.cli.demo import run
    shown = print_json if as_json else None
    sys.exit(run(url, data, err if as_json else out, keep=keep, shown=shown))
