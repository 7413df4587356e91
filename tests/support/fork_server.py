"""Forks a process for each command, for `tests.support.forks`: to import what a command needs takes seconds.

Reads JSON lines `{"module", "arguments", "cwd", "env", "files": [stdin, stdout, stderr]}` and answers each with a line
`started PID`. When a process ends, it writes `ended PID STATUS`, negative where a signal ended it. Its arguments are
modules to load beside those that all commands need.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from pared.cli import rendering
from pared.terminal import plain_console

# None of these reads a setting of pared. `worker.tasks` does, so that it is not here, but what it imports.
PRELOADED = (
    *(
        "alembic.command",
        "celery.apps.worker",
        "celery.bin.celery",
        "celery.concurrency.prefork",
        "celery.fixups.django",
    ),
    *("celery.worker.consumer", "kombu.transport.filesystem", "kombu.transport.redis"),
    *("psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite", "typer.rich_utils"),
    *("uvicorn", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl"),
    *("pared.cli", "pared.state.sweep", "service.app", "service.server"),
    *("worker.attempt", "worker.condition", "worker.devices", "worker.sandbox_probe"),
)


def main() -> None:
    """Until end of file."""
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    gc.freeze()  # or each collection in a command would walk through all that was loaded, and copy its pages
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            _tell_who_ended()
        if 0 in ready:
            part = os.read(0, 1 << 20)
            if not part:
                return
            *lines, orders = (orders + part).split(b"\n")
            for line in lines:
                _start(json.loads(line))


def _start(request: dict[str, Any]) -> None:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = _command(request)
        finally:
            os._exit(status)
    print(f"started {pid}", flush=True)


def _tell_who_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        print(f"ended {pid} {os.waitstatus_to_exitcode(status)}", flush=True)


def _command(request: dict[str, Any]) -> int:
    """Run one command in this process, and return its exit status."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests with a shell's `&` has it ignored
    os.setsid()
    flags = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_APPEND] * 2)
    for descriptor, (path, how) in enumerate(zip(request["files"], flags, strict=True)):
        os.dup2(os.open(path, how, 0o600), descriptor)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if "PYTHONPATH" in os.environ:  # as a new interpreter reads it: before all else
        sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    for console in (rendering.out, rendering.err, rendering._errors):  # which read it when they were made
        vars(console).update(vars(plain_console(stderr=console.stderr)))
    sys.argv = ["pared", *request["arguments"]]
    # What a worker that starts anew becomes.
    sys.orig_argv = [sys.executable, "-c", f"from {request['module']} import main; main()", *request["arguments"]]
    try:
        importlib.import_module(request["module"]).main()
        status: Any = 0
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


if __name__ == "__main__":
    main()
