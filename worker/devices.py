"""Owns finding what a worker computes on: only a GPU that has computed in a sandboxed child counts."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from pared import gpus
from pared.gpus import Gpu
from worker.forkserver import Child, ForkServer
from worker.sandbox import Confinement
from worker.scratch import scratch

TRIAL = (sys.executable, "-P", "-m", "worker.forkserver", "worker.gpu_trial")
"""The program that tries a GPU."""
TRIAL_S = 180.0
"""How long it may take: a driver that has slept, and libraries from a slow disk, take a minute."""
_EXIT_S = 5.0
_MOST_BYTES = 1 << 16
_MEMORY_BYTES = 8 * 2**30

Device = Literal["cpu", "cuda"]

log = structlog.get_logger()


@dataclass(frozen=True)
class Card:
    """A GPU that has been shown to compute in a sandboxed child."""

    name: str
    token: str | None = None
    """What `CUDA_VISIBLE_DEVICES` is to call it; None: it is the only one that this process sees."""
    number: int | None = None
    """N of /dev/nvidiaN, where children can do with that file alone."""


@dataclass(frozen=True)
class Serving:
    """What a worker's jobs compute on."""

    devices: tuple[Device, ...] = ("cpu",)
    """Empty: it takes no jobs."""
    card: Card | None = None
    problem: str | None = None
    """Why there is no GPU, or why not another one; None: nothing is amiss."""

    def device_for(self, requested: str) -> Device:
        """What a job computes on that asks for this device, or for `auto`."""
        return "cuda" if requested == "cuda" or (requested == "auto" and "cuda" in self.devices) else "cpu"

    def in_words(self, threads: int) -> str:
        """For people: processors and card."""
        cpus = f"{threads} CPU{'s' if threads > 1 else ''}"
        return cpus if self.card is None else f"{cpus}, {self.card.name}"


CPU_ALONE = Serving()


def find_devices(
    setting: Literal["auto", "cpu", "cuda"],
    visible: Sequence[Gpu],
    folder: Path,
    confinement: Confinement,
    *,
    trial: Sequence[str] = TRIAL,
    limit_s: float = TRIAL_S,
) -> Serving:
    """Try the GPUs until one computes.

    Args:
        setting: `cpu` tries none; without one that computes, `auto` serves jobs on the processor, and `cuda` none.
        visible: the GPUs that this process may see.
        folder: where scratch folders are made.
        confinement: what the worker's children are held to, and so the trial too.
        trial: the program that tries one.
        limit_s: for each trial.
    """
    if setting == "cpu":
        return CPU_ALONE
    problems: list[str] = []
    for gpu in visible:
        result = _try(gpu, None if len(visible) == 1 else gpu.token, folder, confinement, trial, limit_s)
        if isinstance(result, Card):
            return Serving(("cpu", "cuda"), result, " ".join(problems) or None)
        problems.append(f"{gpu.name} cannot be used: {result}.")
        log.warning("gpu_unusable", gpu=gpu.name, token=gpu.token, reason=result)
    if setting == "auto":
        return Serving(problem=" ".join(problems) or None)
    return Serving((), None, " ".join([*problems, _ADVICE if problems else _NONE]))


_ADVICE = "It takes no jobs, since PARED_DEVICE is cuda; with auto it would serve them on the processor."
_NONE = (
    "No NVIDIA GPU is visible to this process, and PARED_DEVICE is cuda, so it takes no jobs. Give the container its "
    "GPU (docker run --gpus all), look at CUDA_VISIBLE_DEVICES, or set PARED_DEVICE to auto to serve jobs on the "
    "processor."
)


def _try(
    gpu: Gpu, token: str | None, folder: Path, confinement: Confinement, trial: Sequence[str], limit_s: float
) -> Card | str:
    """The card, or why it cannot be used."""
    server = ForkServer(trial, confinement, threads=1, gpu=token)
    try:
        answer = _run_trial(server, folder, None, limit_s)
        if "problem" in answer:
            return str(answer["problem"]).rstrip(".")
        cards = gpus.installed()
        number = next(
            (card.number for card in cards if card.uuid is not None and card.uuid == answer.get("uuid")), None
        )
        # Of several cards a child is to open no other one's file; where the driver needs those too, it may.
        alone = number is not None and len(cards) > 1 and "problem" not in _run_trial(server, folder, number, limit_s)
    except OSError as error:
        return f"the trial could not be made ({error})"
    finally:
        server.close()
    log.info("gpu_tried", token=gpu.token, own_file_alone=alone, **answer)
    return Card(str(answer["name"]), token, number if alone else None)


def _run_trial(server: ForkServer, folder: Path, number: int | None, limit_s: float) -> dict[str, object]:
    """What a trial found: `name`, `uuid` and more of the card, or a `problem`.

    It is made again where others ended the child, such as the kernel for want of memory: that says nothing of the card.
    """
    found = _run_once(server, folder, number, limit_s)
    return _run_once(server, folder, number, limit_s) if found.get("ended_by_others") else found


def _run_once(server: ForkServer, folder: Path, number: int | None, limit_s: float) -> dict[str, object]:
    until = time.monotonic() + limit_s
    with scratch(folder, server.confinement.uid) as scratch_folder:
        request = {"memory_bytes": _MEMORY_BYTES, "gpu": True, "card": number}
        child = server.child(scratch_folder, request, lambda: time.monotonic() > until)
        if child is None:
            return {"problem": f"the trial did not begin within {limit_s:g} seconds"}
        try:
            return _read_answer(child, until) or {"problem": f"the trial gave no answer within {limit_s:g} seconds"}
        finally:
            child.kill()


def _read_answer(child: Child, until: float) -> dict[str, object] | None:
    """The child's one line, or how it ended without one; None: neither in time."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MOST_BYTES:
        if not select.select([child.messages], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        part = os.read(child.messages, _MOST_BYTES)
        if not part:
            problem = f"the trial {child.how_it_ended(_EXIT_S) or 'closed its pipe'}.{_last_output(child)}"
            return {"problem": problem, "ended_by_others": child.ended_by_others(_EXIT_S)}
        line += part
    with suppress(ValueError):
        answer = json.loads(line)
        if isinstance(answer, dict) and {"name", "problem"} & answer.keys():
            return answer
    return {"problem": "the trial answered what no trial of ours does"}


def _last_output(child: Child) -> str:
    try:
        output = os.read(child.output, _MOST_BYTES).decode(errors="replace").strip()
    except BlockingIOError:
        return ""
    return f" Its last words: {output[-300:]}" if output else ""
