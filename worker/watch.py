"""Owns watching one child: what it says, what it uses, what the world wants of it, and what its end means."""

from __future__ import annotations

import os
import selectors
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

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
from pared.job_types import JobType
from pared.state.objects import ObjectStore
from pared.state.session import Sessions
from pared.state.settings import Settings
from worker import protocol, sandbox
from worker.devices import CPU_ALONE, Serving
from worker.drain import Drain
from worker.forkserver import Child, ForkServer
from worker.lease import Lease, LeaseLost
from worker.recorder import Recorder
from worker.sandbox import Confinement
from worker.scratch import written_bytes

_TICK_S = 0.1
_READ_BYTES = 1 << 20
_TAIL_BYTES = 8 << 10
_EXIT_S = 5.0
_WEIGH_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Worker:
    """What a worker process has to run jobs with."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    children: ForkServer
    name: str
    drain: Drain
    serving: Serving = CPU_ALONE

    @property
    def confinement(self) -> Confinement:
        """What children are held to."""
        return self.children.confinement

    @property
    def threads(self) -> int:
        """Threads of one job."""
        return self.children.threads


@dataclass(frozen=True)
class Claim:
    """A job that is this worker's for now."""

    job_id: str
    owner: str
    fence: int
    attempt: int
    crash_count: int
    type: JobType
    spec: dict[str, Any]
    device: str
    """What it asks to compute on: `cpu`, `cuda` or `auto`."""
    checkpoints: list[tuple[str, str]]
    """(key, sha256), newest first."""
    checkpoint_step: int
    held_s: float
    """How long earlier attempts took together; they count towards the time limit."""
    claimed_at: float


# How an attempt can end. (A lost lease is no ending: it is an exception, for nothing may be written then.)


@dataclass(frozen=True)
class Succeeded:
    """The child sent a report; its files lie in `out`."""

    report: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Another attempt would end the same way."""

    error: ParedError


@dataclass(frozen=True)
class Crashed:
    """The child ended without an answer. Another attempt may fare better; the error is for when none is left."""

    error: ParedError


@dataclass(frozen=True)
class Canceled:
    """Someone asked for it."""


@dataclass(frozen=True)
class HandedBack:
    """The worker was stopped: the attempt is not charged."""


@dataclass(frozen=True)
class Hindered:
    """Something failed that is not the job's: another worker, or a later hour, may do better.

    Charged like an attempt that was lost with its worker, or it would go round for ever; the error is for when none
    is left.
    """

    error: ParedError


Ending = Succeeded | Failed | Crashed | Canceled | HandedBack | Hindered


def called_off(worker: Worker, lease: Lease) -> Canceled | HandedBack | None:
    """How an attempt ends that is no longer wanted here; None: it is.

    Raises:
        LeaseLost: the job is no longer this worker's.
    """
    if lease.lost:
        raise LeaseLost
    if lease.cancel_requested:
        return Canceled()
    if worker.drain.requested:
        return HandedBack()
    return None


class Watch:
    """The parent's loop over everything that can happen to a child. It waits for nothing but the clock."""

    def __init__(
        self, worker: Worker, claim: Claim, lease: Lease, child: Child, recorder: Recorder, folder: Path
    ) -> None:
        self._worker, self._claim, self._lease = worker, claim, lease
        self._child, self._recorder, self._folder = child, recorder, folder
        self._reader = protocol.Reader()
        self._tail = bytearray()
        self._time_limit_s = claim.type.time_limit_s(claim.spec, worker.settings)
        self._deadline = time.monotonic() + self._time_limit_s - claim.held_s
        self._heard_at = time.monotonic()
        self._weigh_at = time.monotonic() + _WEIGH_S

    def until_it_ends(self) -> Ending:
        """Follow the child to its end, or to where it has to be ended.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        with selectors.DefaultSelector() as selector:
            for fd in (self._child.messages, self._child.output, self._worker.drain.fd):
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
                if ending := self._must_end():
                    return ending

    def _read_messages(self) -> Ending | None:
        data = _read(self._child.messages)
        if data is None:
            return None
        if not data:
            return self._crash(self._how_it_died())
        for message in self._reader.feed(data):
            self._heard_at = time.monotonic()
            if ending := self._heed(message):
                return ending
        return None

    def _heed(self, message: protocol.Message) -> Ending | None:
        recorder = self._recorder
        match message:
            case protocol.Confined():
                pass
            case protocol.Stage():
                recorder.stage(message.name)
            case protocol.Progress():
                recorder.progress(message.fraction, message.epoch, message.epochs)
            case protocol.Metric():
                recorder.metric(message.name, message.value, message.step, message.phase)
            case protocol.Log():
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
        if message.code == ParedError.code:
            self._read_output()
            log.error("method_raised", job=self._claim.job_id, detail=message.detail, output=self._words(_TAIL_BYTES))
        error = BY_CODE[message.code](message.detail)
        # The job had it promised: another worker's device, or this one's at another time, may do.
        return Hindered(error) if isinstance(error, DeviceUnavailable) else Failed(error)

    def _result(self, message: protocol.Result) -> Ending:
        kind = self._claim.type.report_class(self._claim.spec)
        known = {"sandbox": self._worker.confinement.level, "type": self._claim.type.name}
        held = {name: value for name, value in known.items() if name in kind.model_fields}
        try:
            report = kind.model_validate(message.report | held)
        except ValidationError as error:
            raise protocol.Malformed(f"not a {kind.__name__}: {error}") from error
        return Succeeded(report.model_dump(mode="json"))

    def _must_end(self) -> Ending | None:
        settings, now = self._worker.settings, time.monotonic()
        if ending := called_off(self._worker, self._lease):
            if isinstance(ending, Canceled):
                self._ask_to_end()
            return ending
        if now > self._deadline:
            advice = self._claim.type.when_out_of_time
            return Failed(TimeLimit(f"It was ended after its time limit of {self._time_limit_s:g} seconds. {advice}"))
        if now - self._heard_at > settings.stall_s:
            return Crashed(
                Stalled(f"Nothing was heard of the job for {settings.stall_s:g} seconds on attempt {self._attempt()}.")
            )
        if self._resident_bytes() > settings.memory_bytes:
            return Failed(
                OutOfMemory(
                    f"The job used more than {settings.memory_bytes / 2**30:.3g} GiB of memory. Use a smaller "
                    "batch size, data set or model."
                )
            )
        if now > self._weigh_at:
            self._weigh_at = now + _WEIGH_S
            if written_bytes(self._folder) > 4 * settings.memory_bytes:
                return Failed(StorageFull("The job wrote more files than it may keep. Ask for fewer outputs."))
        return None

    def _ask_to_end(self) -> None:
        """TERM, and time to follow it; KILL comes from `Child.kill`."""
        sandbox.kill_session(self._child.pid, signal.SIGTERM)
        until = time.monotonic() + self._worker.settings.cancel_grace_s
        while sandbox.session_members(self._child.pid) and time.monotonic() < until and not self._lease.lost:
            time.sleep(_TICK_S / 2)

    def _resident_bytes(self) -> int:
        if self._worker.confinement.level == "none":  # where the child may have children
            return sum(size for _, size in sandbox.session_members(self._child.pid))
        return sandbox.resident_bytes(self._child.pid)

    def _read_output(self) -> bool:
        """Keep the end of what the child printed. False: nothing more will come."""
        data = _read(self._child.output)
        if data:
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
        return data is None or bool(data)

    def _how_it_died(self) -> str:
        how = self._child.how_it_ended(_EXIT_S)
        self._read_output()
        return how or "closed its pipe and went on"

    def _crash(self, how: str) -> Crashed:
        words = self._words(300)
        said = f" Its last words: {words}" if words else ""
        return Crashed(ModelCrashesWorker(f"The process that ran the model {how} on attempt {self._attempt()}.{said}"))

    def _words(self, limit: int) -> str:
        return bytes(self._tail).decode(errors="replace").replace("\0", " ").strip()[-limit:]

    def _attempt(self) -> str:
        return f"{self._claim.crash_count + 1} of {self._worker.settings.max_attempts}"


def _read(fd: int) -> bytes | None:
    """What the pipe holds now; empty: its other end is closed; None: nothing yet."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
