"""A child with its own methods: small things that uploads might do, inside the real sandbox and protocol."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pared.specs import InspectSpec, PlanSpec, PruneSpec
from worker import child


def method(spec: Any, work: Any) -> Any:
    """Do what `spec.include` names: a behaviour and its arguments."""
    name, *arguments = spec.include
    if name == "prune":  # as a job does
        from pared.compression.jobs.prune import prune

        return prune(spec.model_copy(update={"include": ["*"]}), replace(work, timed=False))
    return BEHAVIOURS[name](work, *arguments)


def plan(spec: Any, work: Any) -> Any:
    """The same for the job that is planned."""
    return method(spec.job, work)


def inspect(spec: Any, work: Any) -> Any:
    """The same for an upload, which says itself what to do."""
    from pared.reports import ModelInspection

    name, *arguments = next(iter(work.models.values())).path.read_text().split()
    BEHAVIOURS[name](work, *arguments)
    told = ["x" * 50_000] * 400 if name == "talk" else []
    return ModelInspection(
        format="torchscript", flavour="scripted", parameters=1, trainable_parameters=1, warnings=told
    )


def report(work: Any) -> Any:
    from pared.reports import Measurement, Report, Reproduce

    size = Measurement(parameters=1, nonzero_parameters=1, macs=1, file_bytes=1, compressed_bytes=1)
    made = Reproduce(spec={}, seed=0, versions={}, device=work.device, threads=1, inputs={})
    return Report(
        type="prune", verdict="fine", before=size, after=size, reproduce=made, warnings=[*work.notes, work.timed_on]
    )


def succeed(work: Any) -> Any:
    (work.directory / "model.pt").write_bytes(work.models["model"].path.read_bytes()[::-1])
    work.observer.stage("compress")
    for epoch in range(3):
        work.observer.progress((epoch + 1) / 3, epoch=epoch, epochs=3)
        work.observer.metric("train_loss", 1 / (epoch + 1), step=epoch, phase="retrain")
        work.observer.metric("train_loss", float("nan"), step=epoch, phase="retrain")
    work.observer.log(
        "a line with a NUL \0 and a half pair \ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
    return report(work)


def slow(work: Any, steps: str, pause: str) -> Any:
    """Counts up with a checkpoint a step; a later attempt goes on counting."""
    import torch

    state = work.observer.resume() or {"step": 0, "w": torch.zeros(3)}
    first = state["step"]
    work.observer.log(f"starting at {first}")
    for step in range(first, int(steps)):
        state = {"step": step + 1, "w": state["w"] + 1}
        time.sleep(float(pause))
        work.observer.checkpoint(state)
        work.observer.progress((step + 1) / int(steps), epoch=step, epochs=int(steps))
    (work.directory / "model.pt").write_bytes(str(state["w"].tolist()).encode())
    return report(work)


def make_plan(work: Any, seconds: str) -> Any:
    from pared.reports import Plan, Size

    time.sleep(float(seconds))
    size = Size(parameters=1, nonzero_parameters=1, file_bytes=1)
    return Plan(verdict="fine", amount=0.5, exact=True, before=size, after=size, files={}, layers=[])


def lose_card(work: Any, asked: str) -> Any:
    """Only where there was one: as a GPU that falls off the bus."""
    from pared.errors import DeviceUnavailable

    if work.device == "cuda":
        raise DeviceUnavailable("the GPU is lost")
    return make_plan(work, "0") if asked == "plan" else report(work)


def segfault(work: Any) -> Any:
    print("about to fall over", flush=True)
    ctypes.string_at(0)


def leave(work: Any) -> Any:
    os._exit(3)


def hang(work: Any) -> Any:
    while True:
        time.sleep(1)


def hog(work: Any) -> Any:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20) * 8))


def one_huge_tensor(work: Any) -> Any:
    import torch

    torch.zeros(1 << 44, dtype=torch.uint8)


def flood(work: Any) -> Any:
    line = b"x" * 1023 + b"\n"
    for _ in range(100_000):
        os.write(1, line)
    for number in range(10_000):
        work.observer.log(f"line {number}")
    return report(work)


def flood_of_steps(work: Any) -> Any:
    for number in range(6_000):
        work.observer.stage("retrain" if number % 2 else "compress")
        work.observer.progress(1, epoch=number, epochs=6_000)
    return report(work)


def fill_disk(work: Any) -> Any:
    block = os.urandom(1 << 20)
    with (work.directory / "big").open("wb") as file:
        while True:
            file.write(block)


def sparse(work: Any, name: str, size: str) -> Any:
    """As `torch.from_file(…, shared=True)` makes a file: it takes no room until somebody copies it."""
    import torch

    torch.from_file(name, shared=True, size=int(size), dtype=torch.uint8)
    if name.startswith("checkpoints/"):
        from worker import protocol

        work.observer._send(protocol.Checkpoint(type="checkpoint", step=int(Path(name).name)))
        time.sleep(1)
    return report(work)


def sparse_many(work: Any, count: str, size: str) -> Any:
    for number in range(int(count)):
        sparse(work, f"out/{number}.bin", size)
    return report(work)


def nest(work: Any, levels: str) -> Any:
    here = os.getcwd()
    os.chdir("tmp")
    for _ in range(int(levels)):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(here)
    time.sleep(float(8))
    return report(work)


def lie(work: Any, what: str) -> Any:
    """Leave a small result and say something else of it."""
    import hashlib
    import json

    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    path = work.directory / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    made = report(work)
    made.after.file_bytes = path.stat().st_size
    made.after.parameters = made.after.nonzero_parameters = 3
    made.reproduce.outputs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    if what == "digest":
        made.reproduce.outputs[path.name] = "0" * 64
    elif what == "name":
        made.reproduce.outputs["other.pt"] = "0" * 64
    elif what == "size":
        made.after.file_bytes -= 1
    elif what == "parameters":
        made.after.parameters = 4
    return made


def report_much(work: Any) -> Any:
    """As of a model with a hundred thousand layers."""
    return report(work).model_copy(update={"warnings": ["x" * 50_000] * 400})


def talk(work: Any) -> Any:
    """Of an inspection: it says too much."""


def raise_named(work: Any) -> Any:
    from pared.errors import NothingToPrune

    raise NothingToPrune("fc is the classifier; exclude less")


def raise_other(work: Any) -> Any:
    raise KeyError("what")


def meet_a_full_disk(work: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leave_symlink(work: Any) -> Any:
    (work.directory / "dir.pt").mkdir()
    return report(work)


def bad_name(work: Any) -> Any:
    (work.directory / "..evil").write_text("x")
    return report(work)


def remove_the_results(work: Any) -> Any:
    made = report(work)
    work.directory.rmdir()
    return made


def rewrite_checkpoint(work: Any) -> Any:
    work.observer.checkpoint({"a": 1})
    Path("checkpoints/2").mkdir()
    from worker import protocol

    work.observer._send(protocol.Checkpoint(type="checkpoint", step=2))
    time.sleep(1)
    return report(work)


def from_file(work: Any) -> Any:
    """Open the upload as TorchScript, whose `__setstate__` does what it likes."""
    import torch

    torch.jit.load(str(work.models["model"].path))
    return report(work)


def unpickle(work: Any) -> Any:
    """What no method of ours does: open an upload in the way that runs it."""
    import pickle

    print(pickle.loads(work.models["model"].path.read_bytes()))
    return report(work)


def lock_folders(work: Any) -> Any:
    Path("tmp/a/b").mkdir(parents=True)
    Path("tmp/a/c").mkdir(mode=0)
    return report(work)


def together(work: Any, rank: str, what: str, *arguments: str) -> Any:
    """Ranks that meet over and over; in the third round one of them does something else."""
    import torch

    for number in range(1000 if what == "cancel" else 5):
        if number == 1:  # once all have started, however long that took
            work.observer.log(f"rank {work.ranks.rank} of {work.ranks.count}")
        if number == 2 and work.ranks.rank == int(rank) and what in BEHAVIOURS:
            BEHAVIOURS[what](work, *arguments)
        total = torch.ones(3) * (work.ranks.rank + 1)
        work.ranks.sum_(total)
        time.sleep(0.02)
    (work.directory / "model.pt").write_bytes(str(total.tolist()).encode() + work.models["model"].path.read_bytes())
    return report(work)


BEHAVIOURS = {
    function.__name__: function
    for function in (
        succeed, slow, segfault, leave, hang, hog, one_huge_tensor, flood, fill_disk, raise_named, raise_other,
        leave_symlink, meet_a_full_disk, bad_name, rewrite_checkpoint, from_file, unpickle, lock_folders,
        flood_of_steps, remove_the_results, make_plan, lose_card, sparse, sparse_many, nest, lie, talk, report_much,
        together,
    )
}  # fmt: skip


if __name__ == "__main__":
    sys.setswitchinterval(0.005)
    child.prepare_device = lambda device: None  # a card that a test pretends
    child.main({PruneSpec: method, PlanSpec: plan, InspectSpec: inspect})
