"""Owns the process inside the sandbox, which alone opens uploads and runs one compression method on them."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pared.compression.devices.memory import ran_out_of_memory
from pared.compression.loading.file_format import begins_as_onnx
from pared.compression.ranks import RankLost, Ranks
from pared.compression.work import AnswerFiles, DatasetFile, ModelFile, SilentObserver, Work
from pared.errors import (
    DeviceUnavailable,
    OutOfMemory,
    ParedError,
    SandboxTooWeak,
    StorageFull,
    Unavailable,
    UnsupportedModel,
    telling_line,
)
from pared.full_disk import no_room
from pared.job_types import JOB_TYPES, Method, job_spec
from pared.specs import InspectSpec, JobSpec
from pared.state.failpoints import arm, failpoint
from pared.state.inspection_size import fitted
from pared.statuses import Stage
from worker import forkserver, protocol

_PROGRESS_EVERY_S = 0.1
_CHECKPOINT_INTERVAL = 20  # times what writing one took


def main(methods: Mapping[type[JobSpec], Method] | None = None) -> None:
    """Serve the worker; in each child, run the method of the requested spec and send its report.

    Args:
        methods: other ones than those of all types of jobs.
    """
    methods = methods or all_methods()
    request = forkserver.enter()
    arm(request["failpoints"] if request["ranks"]["rank"] == 0 else "")
    _keep_freed_memory(request["memory_bytes"])
    send = _Pipe(request["messages"])
    send(protocol.Confined(type="confined"))
    try:
        report = _run(request, methods, send)
    except RankLost:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(protocol.RANK_LOST)  # the parent knows the other's end, which is the reason
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
        traceback.print_exc()
        send(_failure(error))
    else:
        failpoint("child.reported")
        if request["ranks"]["rank"] == 0:
            send(_result(report))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through interpreter and library teardown, which a model's own objects take part in.
    os._exit(0)


def _result(report: dict[str, Any]) -> protocol.Message:
    """The report, or the failure where it is longer than the parent reads."""
    result = protocol.Result(type="result", report=report)
    size = len(protocol.encode(result))
    if size <= protocol.MAX_LINE_BYTES:
        return result
    return _failure(
        UnsupportedModel(
            f"The report on this job would take {size:,} bytes, for the model has so many layers or channels; a report "
            f"has at most {protocol.MAX_LINE_BYTES:,}. Leave layers out with `include` or `exclude`."
        )
    )


def all_methods() -> Mapping[type[JobSpec], Method]:
    """Those of all types of jobs, with all that they import: before children are forked, and not in each of them."""
    # Torch's optimizers import its compiler, only to tell it to look away: over a second of processor time.
    import_module("torch._dynamo")
    return {each.spec: each.load_method() for each in JOB_TYPES}


def _run(request: dict[str, Any], methods: Mapping[type[JobSpec], Method], send: _Pipe) -> dict[str, Any]:
    ranks = Ranks.of(**request["ranks"], shared=request["shared"], threads=request["threads"])
    torch.set_num_threads(max(request["threads"] // ranks.count, 1))
    prepare_device(request["device"])
    spec = job_spec.validate_python(request["spec"])
    models = {role: ModelFile(**(file | {"path": Path(file["path"])})) for role, file in request["models"].items()}
    if not request["programs_allowed"]:
        for model in models.values():
            _refuse_program(model.path, model.filename)
    dataset = request["dataset"]
    if dataset is not None:
        path = Path(dataset["path"]) if dataset["path"] else None
        dataset = DatasetFile(**(dataset | {"path": path, "memory_bytes": request["memory_bytes"] // ranks.count}))
    resume = request["resume"]
    tells = ranks.rank == 0
    work = Work(
        models=models,
        dataset=dataset,
        directory=Path("out"),
        observer=PipeReporter(send, Path("checkpoints"), resume) if tells else AlongReporter(resume),
        device=request["device"],
        latency_device=getattr(spec, "latency_device", None),
        notes=tuple(request["notes"]),
        record_steps=request["record_steps"],
        threads=request["threads"],
        ranks=ranks,
        sandbox=request["level"],
        answers=AnswerFiles(
            Path(protocol.ANSWERS_GIVEN) if request["answers_given"] else None, Path(protocol.ANSWERS_MADE)
        ),
    )
    report = methods[type(spec)](spec, work)
    encoded: dict[str, Any] = json.loads(report.model_dump_json())
    type(report).model_validate(encoded)  # a NaN became null: better said here than found by the parent
    return fitted(encoded) if isinstance(spec, InspectSpec) else encoded


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def _keep_freed_memory(memory_bytes: int) -> None:
    """Have malloc keep what each step frees and the next one asks for again, instead of handing it to the kernel.

    Pages that come back from there are filled with zeros first: without this, making floats of a batch of bytes took
    ten times as long. About a sixteenth of the job's memory is kept so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, min(memory_bytes // 16, 512 << 20))


def prepare_device(device: str) -> None:
    """Initialise the device.

    Raises:
        DeviceUnavailable: the GPU, which computed when the worker tried it, does not now.
    """
    if device == "cpu":
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailable(f"The worker's GPU cannot be used any more: {telling_line(error)}.") from error


_PROGRAMS = {b"constants.pkl": "TorchScript", b"archive_format": "torch.export", b".onnx": "ONNX"}
"""Records that make an archive a program, and of what kind."""


def _refuse_program(path: Path, filename: str) -> None:
    """Below the level `standard`, no file that runs code when it is opened is opened.

    TorchScript's loader demands a record `constants.pkl`; a torch.export program, which may call any operator of
    torch, is told by its `archive_format`; an ONNX file, which the native parser of onnxruntime reads, by how it
    begins, or in a zip by its name. These names stand in the archive as they are; looking for the bytes
    themselves cannot be led astray by an archive that two readers read differently.
    """
    if not path.stat().st_size:
        return  # cannot be mapped, and holds no program
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        kind = next((kind for record, kind in _PROGRAMS.items() if content.find(record) >= 0), None)
        if kind is None and begins_as_onnx(content[:16]):
            kind = "ONNX"
        if kind is not None:
            raise SandboxTooWeak(
                f"{filename} is a {kind} program, and this server's kernel cannot confine it (it lacks "
                "Landlock or seccomp). Upload the weights as safetensors and name the architecture, or ask whoever "
                "runs this server to set PARED_ALLOW_WEAK_SANDBOX=1 if every user of it is trusted."
            )


_NO_ROOM = {
    errno.EFBIG: "The job wrote a file that is larger than all that it may keep. Ask for fewer outputs.",
    errno.ENOSPC: "The worker's disk is full. Submit the job again later, or ask whoever runs this server.",
    errno.EDQUOT: "The worker's disk is full. Submit the job again later, or ask whoever runs this server.",
}


def _failure(error: Exception) -> protocol.Failure:
    if isinstance(error, ParedError):
        code, detail = error.code, error.detail
    elif ran_out_of_memory(error):
        code = OutOfMemory.code
        detail = (
            f"The job needed more memory than it may use: {telling_line(error)}. Use a smaller batch size or model."
        )
    elif full := no_room(error, Path()):
        # A full disk is rather the machine's trouble than the job's, which is tried again.
        code = StorageFull.code if full == errno.EFBIG else Unavailable.code
        detail = _NO_ROOM[full]
    else:
        code = ParedError.code
        detail = f"{type(error).__name__}: {telling_line(error)}"
    return protocol.Failure(type="error", code=code, detail=detail[: 2 * protocol.MAX_TEXT])


class PipeReporter:
    """The progress reporter of a job: an `Observer` that sends messages to the parent, which stores its checkpoints."""

    def __init__(self, send: _Pipe, folder: Path, resume: dict[str, Any] | None) -> None:
        """Args: resume: `{path, step}` of the checkpoint to go on from."""
        self._send, self._folder, self._resume = send, folder, resume
        self._step = resume["step"] if resume else 0
        self._last_progress = 0.0
        self._next_checkpoint_at = 0.0

    def stage(self, name: Stage) -> None:
        self._send(protocol.Stage(type="stage", name=name))

    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None:
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_EVERY_S or fraction >= 1:
            self._last_progress = now
            bounded = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else 0.0
            self._send(protocol.Progress(type="progress", fraction=bounded, epoch=epoch, epochs=epochs))

    def metric(self, name: str, value: float, *, step: int, phase: str) -> None:
        finite = float(value) if math.isfinite(value) else None
        self._send(protocol.Metric(type="metric", name=name, value=finite, step=step, phase=phase))

    def log(self, text: str) -> None:
        self._send(protocol.Log(type="log", text=text[: protocol.MAX_TEXT]))

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state, unless the work since the last one is soon done again.

        A short epoch on a GPU takes little longer than keeping what it came to.
        """
        began = time.monotonic()
        self._step += 1  # also counts those that are passed over
        if began < self._next_checkpoint_at:
            return
        path = self._folder / str(self._step)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            torch.save(state, file)
        failpoint("child.checkpoint.written")
        temporary.replace(path)  # made durable by the parent's store
        failpoint("child.checkpoint.renamed")
        self._send(protocol.Checkpoint(type="checkpoint", step=self._step))
        ended = time.monotonic()
        self._next_checkpoint_at = ended + _CHECKPOINT_INTERVAL * (ended - began)

    def resume(self) -> dict[str, Any] | None:
        return _checkpoint(self._resume)


class AlongReporter(SilentObserver):
    """The observer of a process that trains along: it goes on from where the first does, and tells nothing."""

    def __init__(self, resume: dict[str, Any] | None) -> None:
        self._resume = resume

    def resume(self) -> dict[str, Any] | None:
        return _checkpoint(self._resume)


def _checkpoint(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Args: given: `{path, step}` of the checkpoint to go on from."""
    if given is None:
        return None
    state: dict[str, Any] = torch.load(given["path"], map_location="cpu", weights_only=True)
    return state


class _Pipe:
    """The way to the parent; a line is written whole."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb")

    def __call__(self, message: protocol.Message) -> None:
        self._file.write(protocol.encode(message))
        self._file.flush()
