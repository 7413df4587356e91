"""Owns looking at the processes of a child's session and ending them, by what /proc says."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def kill_session(session: int, number: signal.Signals) -> None:
    """Signal every process of a session that this process started and has not yet waited for."""
    for _ in range(20):
        # Processes that a member forked meanwhile are met on the next round.
        living = session_members(session)
        for pid in living or [session]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number != signal.SIGKILL or not living:
            return


def session_members(session: int) -> list[int]:
    """The process ids of the living processes of a session."""
    members = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # After the name, which may itself hold blanks and brackets: state, parent, group, session, …
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in {b"Z", b"X"}:
                members.append(int(entry.name))
    return members


_COUNTED = {b"RssAnon", b"RssShmem"}


def memory_bytes(pid: int) -> int:
    """Memory that one process holds; 0 when it has ended.

    Pages of mapped files are left out: how many of them are resident is the kernel's choice, and it drops them when
    memory is wanted elsewhere. (Linux 4.5, proc(5): `RssAnon`, `RssShmem`.)
    """
    with suppress(OSError):
        lines = (line.partition(b":") for line in Path(f"/proc/{pid}/status").read_bytes().splitlines())
        return sum(int(value.split()[0]) << 10 for name, _, value in lines if name in _COUNTED)
    return 0
