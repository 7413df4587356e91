"""Owns several processes that serve the API at one port: the sockets and the numbers that they share.

The process that was started listens, and keeps the others alive. They inherit its sockets, take connections from them,
and count into files of one folder, from which each of them answers for all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pared.state.data_folder import close_to_others
from pared.state.settings import Settings, settings
from pared.supervisor import Process, Supervisor

BACKLOG = 1024
"""Connections that the kernel completes and holds until they are accepted."""
COUNTS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of counts for prometheus_client, which reads it when it is imported."""
_COUNTS_BYTES = 1 << 20
"""As large as prometheus_client makes such a file; the counts of all routes take a fraction."""
_SERVED = "served"


def serve_by_several(chosen: Settings) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit code.

    A process that dies is started again, unless none has served yet: then something is wrong with the settings, the
    database or the machine, which that process has told.
    """
    with ExitStack() as until_end:
        try:
            sockets = _listening(chosen.host, chosen.port, until_end)
        except OSError as error:
            return _refuse(f"port {chosen.port} on {chosen.host} cannot be used: {error.strerror}")
        close_to_others(chosen)
        try:
            folder = _folder(chosen, until_end)
        except OSError as error:
            return _refuse(f"{chosen.data_dir} cannot hold what the API processes share: {error.strerror}")
        descriptors = [each.fileno() for each in sockets]
        environment = os.environ | {COUNTS: str(folder)}
        processes = [
            Process(
                f"api-{index}",
                [sys.executable, "-P", "-m", "service.processes", str(index), ",".join(map(str, descriptors))],
                environment,
                files=descriptors,
            )
            for index in range(chosen.api_processes)
        ]

        return Supervisor(processes, goes_on=lambda _process: (folder / _SERVED).exists()).run()


def _listening(host: str, port: int, until_end: ExitStack) -> list[socket.socket]:
    """A socket for each address of the host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [
        until_end.enter_context(socket.create_server(address, family=family, backlog=BACKLOG))
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found)
    ]


def _folder(chosen: Settings, until_end: ExitStack) -> Path:
    """A new folder for what the processes share; those of supervisors that were killed are removed.

    Its owner holds a lock on it. The files of counts are mapped. They have their room from the start, for on a full
    disk a process would die of its next count.
    """
    above = chosen.data_dir.resolve() / "api-processes"
    above.mkdir(exist_ok=True)
    with _locked(above, fcntl.LOCK_EX):
        for left in above.iterdir():
            with suppress(BlockingIOError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(dir=above))
        until_end.callback(shutil.rmtree, folder, ignore_errors=True)
        until_end.enter_context(_locked(folder, fcntl.LOCK_EX))
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_max"):
        for index in range(chosen.api_processes):
            with (folder / f"{kind}_{index}.db").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _COUNTS_BYTES)
    return folder


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _refuse(text: str) -> int:
    sys.stderr.write(f"pared: {text}\n")
    return 1


def main() -> None:
    """One of the processes, started with its index and the descriptors of the sockets."""
    index, descriptors = sys.argv[1:]
    from prometheus_client import values

    # By index rather than by process: whoever comes after one that died goes on with its counts.
    values.ValueClass = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]
    from service.server import serve_at

    sockets = [socket.socket(fileno=int(each)) for each in descriptors.split(",")]
    serve_at(sockets, settings(), (Path(os.environ[COUNTS]) / _SERVED).touch)


if __name__ == "__main__":
    main()
