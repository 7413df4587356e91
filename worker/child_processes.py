"""Owns looking at the processes of a child's session and ending them, by what /proc says."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path


def kill_session(session: int, number: signal.Signals) -> None:
    """Signal every process of a session that this process started and has not yet waited for."""
    for _ in range(20):
        # Processes that a member forked meanwhile are met on the next round.
        living = [pid for pid, _ in session_members(session)]
        for pid in living or [session]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number != signal.SIGKILL or not living:
            return


def session_members(session: int) -> list[tuple[int, int]]:
    """(process id, resident bytes) of each living process of a session."""
    members = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # After the name, which may itself hold blanks and brackets: state, parent, group, session, …
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in {b"Z", b"X"}:
                members.append((int(entry.name), int(fields[21]) * resource.getpagesize()))
    return members


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
