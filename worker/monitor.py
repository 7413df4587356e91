"""Owns monitoring one child: its messages, its limits, a cancel or shutdown meanwhile, and what its end means."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_never

import structlog
from pydantic import ValidationError

from pared.errors import (
    BY_CODE,
    DeviceUnavailable,
    ModelCrashesWorker,
    OutOfMemory,
    ParedError,
    SandboxTooWeak,
    Stalled,
    StorageFull,
    TimeLimit,
    Unavailable,
)
from pared.state.workers import confines
from worker import child_processes, protocol
from worker.attempt_types import (
    Canceled,
    Claim,
    Crashed,
    Ending,
    Failed,
    Hindered,
    Quota,
    Succeeded,
    Worker,
    early_ending,
)
from worker.forkserver import Child
from worker.job_processes import folders
from worker.lease import Lease
from worker.recorder import Recorder
from worker.scratch import written

_TICK_S = 0.1
_READ_BYTES = 1 << 20
_TAIL_BYTES = 32 << 10
"""How much of what the child printed last is kept; a chain of tracebacks through torch is long."""
_EXIT_S = 5.0
_CHECK_FILES_EVERY_S = 2.0
_MAX_TOLD_ERRORS = 20

log = structlog.get_logger()


class ChildMonitor:
    """The parent's loop over everything that can happen to a child. It never blocks for longer than a tick."""

    def __init__(
        self,
        worker: Worker,
        claim: Claim,
        lease: Lease,
        children: Sequence[Child],
        recorder: Recorder,
        folder: Path,
        quota: Quota,
    ) -> None:
        """Args: children: the one that runs the job, and then those that train along with it."""
        self._worker, self._claim, self._lease, self._quota = worker, claim, lease, quota
        self._recorder, self._folder = recorder, folder
        self._processes = [_Process(child) for child in children]
        self._first = self._processes[0]
        self._time_limit_s = claim.type.time_limit_s(claim.spec, worker.settings)
        self._deadline = time.monotonic() + self._time_limit_s - claim.held_s
        self._heard_at = time.monotonic()
        self._check_files_at = time.monotonic() + _CHECK_FILES_EVERY_S

    def run(self) -> Ending:
        """Follow the child to its end, or to where it has to be ended.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.shutdown.fd, selectors.EVENT_READ)
            for process in self._processes:
                for fd in (process.child.messages, process.child.output):
                    selector.register(fd, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(_TICK_S)}
                for process in self._processes:
                    if process.child.output in ready and not process.read_output():
                        selector.unregister(process.child.output)
                try:
                    if ending := self._read_messages(ready):
                        return ending
                except protocol.Malformed as error:
                    return self._crash(self._first, f"spoke out of turn ({error})")
                for process in self._processes[1:]:
                    if process.closed and process.child.messages in ready:
                        selector.unregister(process.child.messages)
                if ending := self._limit_reached():
                    return ending

    def _read_messages(self, ready: set[int]) -> Ending | None:
        speaking = [process for process in self._processes if process.child.messages in ready]
        for process in speaking:
            if ending := self._hear(process):
                return ending
        lost = next((each for each in speaking if each.closed and not self._is_done(each)), None)
        if lost is None:
            return None
        # Why it ended may be what another one has said since.
        for process in self._processes:
            if not process.closed and (ending := self._hear(process)):
                return ending
        lost = self._to_blame(lost)
        return self._crash(lost, lost.child.how_it_ended(_EXIT_S) or "closed its pipe and went on")

    def _hear(self, process: _Process) -> Ending | None:
        for message in process.messages():
            if process is self._first:
                self._heard_at = time.monotonic()
            elif not isinstance(message, protocol.Confined | protocol.Failure):
                raise protocol.Malformed("a process that trains along reports")
            if ending := self._handle(message, process):
                return ending
        return None

    def _is_done(self, process: _Process) -> bool:
        """Whether it has done its part. The first has a report to send, so its end without one is none."""
        return process is not self._first and process.child.status(_EXIT_S) == 0

    def _to_blame(self, process: _Process) -> _Process:
        """Of processes that train together and have ended, the one for which the others ended."""
        until = time.monotonic() + _EXIT_S
        while process.child.status(_EXIT_S) == protocol.RANK_LOST and time.monotonic() < until:
            for other in self._processes:
                if other.child.status(0) not in (None, protocol.RANK_LOST):
                    return other
            time.sleep(_TICK_S / 2)
        return process

    def _handle(self, message: protocol.Message, process: _Process) -> Ending | None:
        recorder = self._recorder
        match message:
            case protocol.Confined():
                pass
            case protocol.Stage():
                log.debug("stage", name=message.name)
                recorder.stage(message.name)
                self._claim.span.stage(message.name)
            case protocol.Progress():
                recorder.progress(message.fraction, message.epoch, message.epochs)
            case protocol.Metric():
                recorder.metric(message.name, message.value, message.step, message.phase)
            case protocol.Log():
                log.debug("job_log", text=message.text)
                recorder.log(message.text)
            case protocol.Checkpoint():
                recorder.checkpoint(message.step)
            case protocol.Failure():
                return self._failure(message, process)
            case protocol.Result():
                return self._result(message)
            case _:
                assert_never(message)
        return None

    def _failure(self, message: protocol.Failure, process: _Process) -> Ending:
        if message.code not in BY_CODE:
            raise protocol.Malformed(f"unknown error {message.code}")
        # The child has printed the traceback. Only what has no name is a bug of ours.
        event, level = (
            ("method_raised", logging.ERROR) if message.code == ParedError.code else ("method_failed", logging.INFO)
        )
        self._log_output(event, level, process, code=message.code, detail=message.detail)
        error = BY_CODE[message.code](message.detail)
        # One process of several, for which the first has waited; or a full disk, which may be this job's own doing: it
        # is tried again, less often than where the machine is surely at fault, and the worker goes on with other jobs.
        if isinstance(error, Stalled | Unavailable):
            return Crashed(error)
        # The job had it promised: another worker's device, or this one's at another time, may do.
        if isinstance(error, DeviceUnavailable) or (isinstance(error, SandboxTooWeak) and self._confined_elsewhere()):
            return Hindered(error)
        return Failed(error)

    def _confined_elsewhere(self) -> bool:
        def asked() -> bool:
            with self._worker.sessions() as session:
                return confines(session, self._claim.device)

        return self._lease.write(asked)

    def _result(self, message: protocol.Result) -> Ending:
        kind = self._claim.type.report_class(self._claim.spec)
        known = {"sandbox": self._worker.confinement.level, "type": self._claim.type.name}
        filled = {name: value for name, value in known.items() if name in kind.model_fields}
        try:
            report = kind.model_validate(message.report | filled)
        except ValidationError as error:
            # In words only where they are few: there may be as many as values.
            which = str(error) if error.error_count() <= _MAX_TOLD_ERRORS else f"{error.error_count()} errors"
            raise protocol.Malformed(f"not a {kind.__name__}: {which[: protocol.MAX_TEXT]}") from error
        self._log_output("method_returned", logging.DEBUG, self._first)
        return Succeeded(report.model_dump(mode="json"))

    def _limit_reached(self) -> Ending | None:
        settings, now = self._worker.settings, time.monotonic()
        if ending := early_ending(self._worker, self._lease):
            if isinstance(ending, Canceled):
                self._terminate()
            return ending
        if now > self._deadline:
            advice = self._claim.type.when_out_of_time
            return Failed(TimeLimit(f"It was ended after its time limit of {self._time_limit_s:g} seconds. {advice}"))
        if now - self._heard_at > settings.stall_s:
            return Crashed(
                Stalled(f"Nothing was heard of the job for {settings.stall_s:g} seconds on attempt {self._attempt()}.")
            )
        if self._memory_bytes() > self._quota.memory_bytes:
            count = len(self._processes)
            who = "The job" if count == 1 else f"The {count} processes of the job together"
            used = f"{who} used more than {self._quota.memory_bytes / 2**30:.3g} GiB of memory."
            return Failed(OutOfMemory(f"{used} {self._claim.type.when_out_of_memory}"))
        if now > self._check_files_at:
            over = over_quota(self._folder, self._quota, len(self._processes))
            # A folder that takes long to look at is looked at less often: messages are to be read too.
            self._check_files_at = time.monotonic() + max(_CHECK_FILES_EVERY_S, 10 * (time.monotonic() - now))
            if over is not None:
                return Failed(over)
        return None

    def _terminate(self) -> None:
        """Send TERM and leave the child time to end; KILL comes from `Child.kill`."""
        sessions = [process.child.pid for process in self._processes]
        for session in sessions:
            child_processes.kill_session(session, signal.SIGTERM)
        until = time.monotonic() + self._worker.settings.cancel_grace_s
        while any(map(child_processes.session_members, sessions)):
            if time.monotonic() >= until or self._lease.lost:
                break
            time.sleep(_TICK_S / 2)

    def _memory_bytes(self) -> int:
        pids = [process.child.pid for process in self._processes]
        if self._worker.confinement.level == "none":  # where a child may have children
            pids = [pid for session in pids for pid in child_processes.session_members(session)]
        return sum(map(child_processes.memory_bytes, pids))

    def _crash(self, process: _Process, how: str) -> Crashed:
        number, count = self._processes.index(process) + 1, len(self._processes)
        self._log_output("child_crashed", logging.WARNING, process, how=how)
        output = process.last_output(300)
        quoted = f" Its last words: {output}" if output else ""
        who = "The process that ran the model"
        if count > 1:
            who = f"Process {number} of the {count} that ran the model together"
        return Crashed(ModelCrashesWorker(f"{who} {how} on attempt {self._attempt()}.{quoted}"))

    def _log_output(self, event: str, level: int, process: _Process, **fields: str) -> None:
        """Log an event of this job with the end of what one of its processes printed."""
        process.read_output()
        log.log(level, event, job=self._claim.job_id, **fields, output=process.last_output(_TAIL_BYTES))

    def _attempt(self) -> str:
        return f"{self._claim.crash_count + 1} of {self._worker.settings.max_attempts}"


class _Process:
    """One process of the job, and what has been heard of it. `closed`: it will say no more."""

    def __init__(self, child: Child) -> None:
        self.child, self.closed = child, False
        self._reader = protocol.Reader()
        self._tail = bytearray()

    def messages(self) -> Iterator[protocol.Message]:
        """What it has said since it was last asked.

        Raises:
            protocol.Malformed: it is no message.
        """
        data = _read(self.child.messages)
        self.closed = data == b""
        yield from self._reader.feed(data or b"")

    def read_output(self) -> bool:
        """Keep the end of what it printed. False: nothing more will come."""
        data = _read(self.child.output)
        if data:
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
        return data is None or bool(data)

    def last_output(self, limit: int) -> str:
        """The end of what it printed."""
        return bytes(self._tail).decode(errors="replace").replace("\0", " ").strip()[-limit:]


def over_quota(folder: Path, quota: Quota, processes: int = 1) -> StorageFull | None:
    """What to say of children of which one has written more than it may; None: none has."""
    return next(filter(None, (_over_quota(each, quota) for each in folders(folder, processes))), None)


def _over_quota(folder: Path, quota: Quota) -> StorageFull | None:
    found = written(folder)
    if found.size_bytes > quota.file_bytes:
        return StorageFull("The job wrote more files than it may keep. Ask for fewer outputs.")
    if found.too_many:
        return StorageFull("The job made more files and folders than any job needs.")
    return None


def _read(fd: int) -> bytes | None:
    """What the pipe holds now; empty: its other end is closed; None: nothing yet."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
