"""Owns the failpoints: for tests, a process can be killed by name between two steps that each are durable.

    PARED_FAILPOINTS=results.stored,outbox.sent=/tmp/once

A name alone kills every process that comes by. With a file, only the first one does so that can make that file.
"""

from __future__ import annotations

import os
import signal

NAMES = {
    "object.written": "An object's bytes are on disk, under no key yet.",
    "object.published": "An object has its key, and no row names it yet.",
    "job.created": "A job and its message are committed, and the message is not sent.",
    "outbox.sent": "A message is sent, and the outbox still has it.",
    "job.claimed": "A claim is committed, and nothing was done for it.",
    "checkpoint.stored": "A checkpoint is stored, and the job's row does not name it.",
    "checkpoint.recorded": "The row names a new checkpoint, and one that it no longer names still lies in the store.",
    "child.ended": "A child has ended well, and nothing of what it left is stored.",
    "results.stored": "All results are stored, and the job has not ended.",
    "job.ended": "The end of a job is committed; its checkpoints and its scratch folder are still there.",
    "sweep.listed": "A sweep has found objects that no row names, and deleted none.",
    "webhook.claimed": "A delivery to a webhook is claimed, and nothing was sent.",
    "webhook.sent": "A receiver has a delivery, and its row does not say so.",
    "child.checkpoint.written": "A child has written a checkpoint, not yet under its name.",
    "child.checkpoint.renamed": "A child's checkpoint has its name, and the worker was not told.",
    "child.reported": "A child has left its results, and not sent its report.",
}
"""Each is between two steps that are durable by themselves. Those of a child kill the child."""


_armed: dict[str, str] = {}


def arm(setting: str) -> None:
    """Choose where this process dies.

    Args:
        setting: PARED_FAILPOINTS.

    Raises:
        ValueError: it names a failpoint that there is not.
    """
    chosen = {name: file for name, _, file in (part.partition("=") for part in setting.split(",") if part)}
    if unknown := chosen.keys() - NAMES.keys():
        raise ValueError(f"PARED_FAILPOINTS names {', '.join(sorted(unknown))}; there are {', '.join(sorted(NAMES))}")
    _armed.clear()
    _armed.update(chosen)


def failpoint(name: str) -> None:
    """Kill this process (SIGKILL, which is what a crash of the machine is like) if the tests asked for it here."""
    if name not in _armed:
        return
    if once := _armed[name]:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
