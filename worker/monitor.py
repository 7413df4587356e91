"""Owns monitoring one child: its messages, its limits, a cancel or shutdown meanwhile, and what its end means."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
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
    Stalled,
    StorageFull,
    TimeLimit,
)
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
        self, worker: Worker, claim: Claim, lease: Lease, child: Child, recorder: Recorder, folder: Path, quota: Quota
    ) -> None:
        self._worker, self._claim, self._lease, self._quota = worker, claim, lease, quota
        self._child, self._recorder, self._folder = child, recorder, folder
        self._reader = protocol.Reader()
        self._tail = bytearray()
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
            for fd in (self._child.messages, self._child.output, self._worker.shutdown.fd):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(_TICK_S)}
                if self._child.output in ready and not self._read_output():
                    selector.unregister(self._child.output)
                try:
                    if self._child.messages in ready and (ending := self._read_messages()):
                        return ending
                except protocol.Malformed as error:
                    return self._crash(f"spoke out of turn ({error})")
                if ending := self._limit_reached():
                    return ending

    def _read_messages(self) -> Ending | None:
        data = _read(self._child.messages)
        if data is None:
            return None
        if not data:
            return self._crash(self._how_it_ended())
        for message in self._reader.feed(data):
            self._heard_at = time.monotonic()
            if ending := self._handle(message):
                return ending
        return None

    def _handle(self, message: protocol.Message) -> Ending | None:
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
                return self._failure(message)
            case protocol.Result():
                return self._result(message)
            case _:
                assert_never(message)
        return None

    def _failure(self, message: protocol.Failure) -> Ending:
        if message.code not in BY_CODE:
            raise protocol.Malformed(f"unknown error {message.code}")
        # The child has printed the traceback. Only what has no name is a bug of ours.
        event, level = (
            ("method_raised", logging.ERROR) if message.code == ParedError.code else ("method_failed", logging.INFO)
        )
        self._log_output(event, level, code=message.code, detail=message.detail)
        error = BY_CODE[message.code](message.detail)
        # The job had it promised: another worker's device, or this one's at another time, may do.
        return Hindered(error) if isinstance(error, DeviceUnavailable) else Failed(error)

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
        self._log_output("method_returned", logging.DEBUG)
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
            used = f"The job used more than {self._quota.memory_bytes / 2**30:.3g} GiB of memory."
            return Failed(OutOfMemory(f"{used} {self._claim.type.when_out_of_memory}"))
        if now > self._check_files_at:
            over = over_quota(self._folder, self._quota)
            # A folder that takes long to look at is looked at less often: messages are to be read too.
            self._check_files_at = time.monotonic() + max(_CHECK_FILES_EVERY_S, 10 * (time.monotonic() - now))
            if over is not None:
                return Failed(over)
        return None

    def _terminate(self) -> None:
        """Send TERM and leave the child time to end; KILL comes from `Child.kill`."""
        child_processes.kill_session(self._child.pid, signal.SIGTERM)
        until = time.monotonic() + self._worker.settings.cancel_grace_s
        while child_processes.session_members(self._child.pid) and time.monotonic() < until and not self._lease.lost:
            time.sleep(_TICK_S / 2)

    def _memory_bytes(self) -> int:
        pids = [self._child.pid]
        if self._worker.confinement.level == "none":  # where the child may have children
            pids = child_processes.session_members(self._child.pid)
        return sum(map(child_processes.memory_bytes, pids))

    def _read_output(self) -> bool:
        """Keep the end of what the child printed. False: nothing more will come."""
        data = _read(self._child.output)
        if data:
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
        return data is None or bool(data)

    def _how_it_ended(self) -> str:
        return self._child.how_it_ended(_EXIT_S) or "closed its pipe and went on"

    def _crash(self, how: str) -> Crashed:
        self._log_output("child_crashed", logging.WARNING, how=how)
        output = self._last_output(300)
        quoted = f" Its last words: {output}" if output else ""
        return Crashed(
            ModelCrashesWorker(f"The process that ran the model {how} on attempt {self._attempt()}.{quoted}")
        )

    def _log_output(self, event: str, level: int, **fields: str) -> None:
        """Log an event of this job with the end of what its child printed."""
        self._read_output()
        log.log(level, event, job=self._claim.job_id, **fields, output=self._last_output(_TAIL_BYTES))

    def _last_output(self, limit: int) -> str:
        return bytes(self._tail).decode(errors="replace").replace("\0", " ").strip()[-limit:]

    def _attempt(self) -> str:
        return f"{self._claim.crash_count + 1} of {self._worker.settings.max_attempts}"


def over_quota(folder: Path, quota: Quota) -> StorageFull | None:
    """What to say of a child that has written more than it may; None: it has not."""
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
