"""Training on a card beside a plain PyTorch loop on the same pruned network: `make bench-gpu`.

Prints one JSON line a finding and writes the section `gpu`. `PARED_TEST_DEVICE=cpu` tries the benchmark itself, at a
tiny size and without a card, and writes nothing.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared

DEVICE = os.environ.get("PARED_TEST_DEVICE", "cuda")
ON_CARD = DEVICE == "cuda"
WORK = Path("build/bench-gpu")
TEMPERATURE = 4.0
LR, MOMENTUM = 0.02, 0.9
GOALS = {"teacher off": 0.85, "teacher on": 0.7}
MOST_OUTSIDE_S, LEAST_BUSY = 6.0, 80.0
PLAIN_EPOCHS = 4 if ON_CARD else 2
LAG_S = 0.7  # within which the service says what happened in a job
AMISS = ('"level": "warning"', '"level": "error"', "ERROR", "CRITICAL", "Error:")
BEGAN = time.monotonic()


class Block(nn.Module):
    """Two 3×3 convolutions and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, after, height / stride, width / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with the stem that is usual for 32×32 images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks, before = [], width
        for after, first_stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            blocks += [Block(before, after, first_stride), Block(after, after, 1)]
            before = after
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 32, 32) to logits (batch, 10)."""
        return self.fc(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean(dim=[2, 3]))


class SmallCnn(nn.Module):
    """Two convolutions: a step is over before Python has asked for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.fc = nn.Linear(64 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 28, 28) to logits (batch, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


@dataclass(frozen=True)
class Subject:
    """A network, its images as bytes, and how a job trains on them."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    train: int
    held_out: int  # samples to validate on, and as many to test on
    batch: int
    epochs: int


if ON_CARD:
    RESNET = Subject("ResNet-18, 32×32", lambda: ResNet18(64), (3, 32, 32), 40_000, 4_000, 256, 8)
    SMALL = Subject("small CNN, 28×28", SmallCnn, (1, 28, 28), 20_000, 2_000, 64, 4)
else:
    RESNET = Subject("ResNet-18, 32×32", lambda: ResNet18(8), (3, 32, 32), 256, 64, 64, 2)
    SMALL = Subject("small CNN, 28×28", SmallCnn, (1, 28, 28), 256, 64, 64, 2)


@dataclass(frozen=True)
class Case:
    """One way to train. `teacher`: learn half of the loss from the answers of the dense network."""

    name: str
    subject: Subject
    precision: str
    teacher: bool = False
    goal: float | None = None


CASES = [
    Case("teacher off", RESNET, "bfloat16", goal=GOALS["teacher off"]),
    Case("teacher on", RESNET, "bfloat16", teacher=True, goal=GOALS["teacher on"]),
    Case("float32", RESNET, "float32"),
    Case("small network", SMALL, "bfloat16"),
]


def main() -> None:
    if ON_CARD and not torch.cuda.is_available():
        sys.exit("There is no card here that torch can use. PARED_TEST_DEVICE=cpu tries the benchmark itself.")
    if not ON_CARD:
        torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    say(finding="machine", card=torch.cuda.get_device_name() if ON_CARD else None, torch=torch.__version__)
    rows: list[dict[str, Any]] = []
    try:
        with running_pared(WORK / "data") as url, pared.Client(url) as client:
            measure(client, rows)
    finally:
        met = len(rows) == len(CASES) and all(row["ok"] is not False for row in rows)
        if len(rows) < len(CASES):
            tell_of_service()
        keep_logs()
    if ON_CARD and rows:
        write_section("gpu", section(rows))
    say(finding="all of bench-gpu", ok=met)
    sys.exit(0 if met else 1)


def measure(client: pared.Client, rows: list[dict[str, Any]]) -> None:
    """Add the line of each case; one that fails says why, and the others go on."""
    prepared: dict[str, Prepared] = {}
    for case in CASES:
        subject = case.subject
        try:
            if subject.name not in prepared:
                prepared[subject.name] = Prepared(subject, client)
            rows.append(measured(case, prepared[subject.name], client))
        except Exception as error:  # noqa: BLE001 - the others are still worth knowing
            say(finding=case.name, ok=False, error=f"{type(error).__name__}: {error}"[:500])


class Prepared:
    """A subject's data on the device and in the service, and its network, a little trained."""

    def __init__(self, subject: Subject, client: pared.Client) -> None:
        self.subject = subject
        arrays = images(subject)
        path = WORK / f"{subject.batch}-images.npz"
        np.savez(path, **arrays)
        self.tensors = {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}
        torch.manual_seed(0)
        self.dense = subject.make().to(DEVICE)
        plain_epochs(self, self.dense, "bfloat16", epochs=2)
        self.dense.eval()
        file = WORK / f"{subject.batch}-dense.pt"
        on_cpu = copy.deepcopy(self.dense).cpu().to(memory_format=torch.contiguous_format)
        torch.jit.save(torch.jit.script(on_cpu), file)  # traced in eval mode, its batch norms would not learn
        began = time.monotonic()
        self.data = client.datasets.upload(path)
        self.model = client.models.upload(file)
        say(finding=f"upload: {subject.name}", mib=path.stat().st_size >> 20, s=round(time.monotonic() - began, 1))

    def answers(self) -> Tensor:
        """The dense network's logits of the training images."""
        with torch.no_grad():
            return torch.cat([self.dense(as_input(part)) for part in self.tensors["x_train"].split(1024)])


def images(subject: Subject) -> dict[str, np.ndarray]:
    """Ten patterns under noise, as bytes, in three splits."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, *subject.shape), dtype=np.uint8) // 2
    arrays = {}
    for split, count in (("train", subject.train), ("val", subject.held_out), ("test", subject.held_out)):
        y = rng.integers(0, 10, count)
        arrays[f"x_{split}"] = patterns[y] + rng.integers(0, 128, (count, *subject.shape), dtype=np.uint8)
        arrays[f"y_{split}"] = y
    return arrays


# -- the job ------------------------------------------------------------------------------------


def measured(case: Case, prepared: Prepared, client: pared.Client) -> dict[str, Any]:
    """A job and the plain loop on its network, both at images a second; the line of the table."""
    subject, samples = case.subject, case.subject.train
    retrain = {"epochs": subject.epochs, "lr": LR, "momentum": MOMENTUM, "batch_size": subject.batch}
    retrain |= {"teach": case.teacher, "precision": case.precision if ON_CARD else "float32"}
    fields = {"amount": 0.5, "preprocess": {"scale": 1 / 255}, "retrain": retrain, "device": DEVICE}
    with busy() as seen:
        began = time.monotonic()
        job = client.prune(prepared.model, prepared.data, outputs=["torchscript"], **fields)
        first, last = followed(client, job.id)
        wall_s = time.monotonic() - began
    report = client.jobs.get(job.id).report().model_dump()
    file = client.jobs.get(job.id).download(WORK / f"{case.name}.pt")
    epochs = report["history"]
    seconds = median([epoch["seconds"] for epoch in epochs])

    network = resized(subject.make(), torch.jit.load(file).state_dict())
    same_network(network, torch.jit.load(file), subject)
    answers = prepared.answers() if case.teacher else None
    runs = {
        tuned: plain_epochs(
            prepared, network.to(DEVICE), retrain["precision"], epochs=PLAIN_EPOCHS, answers=answers, tuned=tuned
        )
        for tuned in (False, True)
    }
    plain = min(median(each) for each in runs.values())

    inside = [percent for at, percent in seen if first is not None and first <= at <= last - LAG_S]
    row = {
        "finding": case.name,
        "ok": None,
        "images_s": round(samples / seconds),
        "plain_images_s": round(samples / plain),
        "ratio": round(plain / seconds, 3),
        "epochs_s": [round(epoch["seconds"], 2) for epoch in epochs],
        "busy": round(statistics.mean(inside)) if inside else None,
        "busy_samples": len(inside),
        "wall_s": round(wall_s, 1),
        "outside_s": round(wall_s - sum(epoch["seconds"] for epoch in epochs), 1),
        "stages_s": {stage: round(seconds, 1) for stage, seconds in report["seconds"].items()},
        "accuracy": round(report["after"]["quality"]["test"]["value"], 3),
        "device": report["reproduce"]["device"],
    }
    if case.goal is not None and ON_CARD:
        row["ok"] = (
            row["ratio"] >= case.goal and (row["busy"] or 0) >= LEAST_BUSY and row["outside_s"] <= MOST_OUTSIDE_S
        )
    say(**row)
    return row


def followed(client: pared.Client, job_id: str) -> tuple[float | None, float]:
    """When its second epoch was seen to run, and when its training was seen to be over."""
    first = last = None
    while True:
        job = client.jobs.get(job_id)
        now = time.monotonic()
        if job.stage == "retrain" and ((job.progress or {}).get("epoch") or 0) >= 2:
            first = first or now
        elif first is not None and last is None:
            last = now
        if job.status in ("succeeded", "failed", "canceled"):
            if job.status != "succeeded":
                raise RuntimeError(f"the job {job.status}: {job.error}")
            return first, last or now
        time.sleep(0.1)


@contextmanager
def busy() -> Iterator[list[tuple[float, float]]]:
    """(time, percent) of how much of the time lately the card ran anything, many times a second."""
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        look = looker()
        while look is not None and not over.wait(0.05):
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                percent = look()
                seen.append((time.monotonic(), percent))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def looker() -> Callable[[], float] | None:
    """How to ask for it: the driver's library, or else nvidia-smi, which takes longer."""
    if not ON_CARD:
        return None
    try:
        import pynvml
    except ImportError:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        return lambda: float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)


# -- the plain loop -----------------------------------------------------------------------------


def plain_epochs(
    prepared: Prepared,
    network: nn.Module,
    precision: str,
    *,
    epochs: int,
    answers: Tensor | None = None,
    tuned: bool = False,
) -> list[float]:
    """What someone careful writes by hand: seconds of each epoch, validation included.

    All images lie on the card as bytes, their order is drawn there, and no step waits for it.

    Args:
        network: on the device; trained in place.
        answers: of the teacher, (N, 10), computed before.
        tuned: whether cuDNN may try which of its algorithms are fastest.
    """
    torch.backends.cudnn.benchmark = tuned
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    autocast = torch.autocast(DEVICE, torch.bfloat16) if precision == "bfloat16" and ON_CARD else nullcontext()
    x, y = prepared.tensors["x_train"], prepared.tensors["y_train"]
    seconds = []
    for _ in range(epochs):
        waited()
        began = time.perf_counter()
        network.train()
        total = torch.zeros((), device=DEVICE)
        for chosen in torch.randperm(len(x), device=DEVICE).split(prepared.subject.batch):
            with autocast:
                output = network(as_input(x[chosen])).float()
                loss = F.cross_entropy(output, y[chosen])
                if answers is not None:
                    loss = 0.5 * loss + 0.5 * softened(output, answers[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
        float(total)
        validated(network, prepared)
        seconds.append(time.perf_counter() - began)
    return seconds


def as_input(images: Tensor) -> Tensor:
    """Bytes (batch, channels, height, width) to floats from 0 to 1."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def softened(output: Tensor, answers: Tensor) -> Tensor:
    """T² · KL(teacher ‖ student) of the softened classes."""
    student, teacher = (F.log_softmax(logits / TEMPERATURE, 1) for logits in (output, answers))
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def validated(network: nn.Module, prepared: Prepared) -> float:
    """Accuracy on the validation images."""
    network.eval()
    with torch.no_grad():
        outputs = torch.cat([network(as_input(part)) for part in prepared.tensors["x_val"].split(1024)])
    return float((outputs.argmax(1) == prepared.tensors["y_val"]).float().mean())


def waited() -> None:
    """Until the card has done all that it was asked for."""
    if ON_CARD:
        torch.cuda.synchronize()


def resized(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The same architecture with the sizes, and the weights, of a pruned state."""
    for name, layer in network.named_modules():
        weight = state.get(f"{name}.weight")
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = weight.shape[:2]
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(weight)
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        else:
            continue
        for key, _ in list(layer.named_parameters(recurse=False)):
            setattr(layer, key, nn.Parameter(state[f"{name}.{key}"].detach().clone()))
        for key, _ in list(layer.named_buffers(recurse=False)):
            layer.register_buffer(key, state[f"{name}.{key}"].clone())
    return network


def same_network(network: nn.Module, file: nn.Module, subject: Subject) -> None:
    """Raises if the plain loop's network is not the job's result."""
    x = torch.rand(4, *subject.shape)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), file.eval()(x), rtol=1e-3, atol=1e-3)


# -- telling ------------------------------------------------------------------------------------


def median(seconds: list[float]) -> float:
    """Without the first, in which the libraries warm up."""
    return statistics.median(seconds[1:] or seconds)


def say(**fields: Any) -> None:
    print(json.dumps({"t": round(time.monotonic() - BEGAN, 1), **fields}), flush=True)


def tell_of_service() -> None:
    """What the service's logs say is amiss."""
    for log in sorted((WORK / "data/logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        if told := "\n".join(line for line in lines if any(words in line for words in AMISS))[-900:]:
            say(log=log.stem, tail=told)


def keep_logs() -> None:
    """As one file in the folder that OUT names, if it does."""
    if folder := os.environ.get("OUT"):
        logs = sorted((WORK / "data/logs").glob("*.log"))
        parts = [f"\n--- {log.stem} ---\n".encode() + log.read_bytes()[-4_000_000:] for log in logs]
        Path(folder, "bench-gpu-service.log").write_bytes(b"".join(parts))


def section(rows: list[dict[str, Any]]) -> str:
    """The table and what it means."""
    header = ["", "job, images/s", "plain, images/s", "ratio", "busy, %", "job, s", "outside training, s"]
    shown = [
        [
            f"{case.subject.name}, batch {case.subject.batch}, {case.name}, {case.precision}",
            *(
                "" if row[key] is None else f"{row[key]:,}"
                for key in ("images_s", "plain_images_s", "ratio", "busy", "wall_s")
            ),
            f"{row['outside_s']:g}",
        ]
        for row in rows
        for case in CASES
        if case.name == row["finding"]
    ]
    return (
        f"## On a card\n\n{table(header, shown)}\n\n"
        f"{rows[0]['device']}, torch {torch.__version__}; {machine()}. A job prunes half of the channels and retrains "
        "them; the plain loop trains the same pruned network in the same run, with the images on the card as bytes, "
        "their order drawn there, channels last, SGD with momentum, and nothing that waits within a step; it is the "
        "faster of two, with and without cuDNN's search for the fastest algorithms, which a job does without so that "
        "the same seed gives the same bits. A teacher's answers are computed before, in both. Images a second are "
        f"the {RESNET.train:,} of ResNet-18 over the median epoch without the first, which includes validation on "
        f"{RESNET.held_out:,} more, for both. Busy: the share of time in which the card "
        "ran anything, from the second epoch on. Outside training: from the post of a job to its end, without its "
        f"epochs. Goals: a ratio of {GOALS['teacher off']} with the teacher off and {GOALS['teacher on']} with it on, "
        f"at most {MOST_OUTSIDE_S:g} s outside training, {LEAST_BUSY:g} % busy.\n\n`make bench-gpu`"
    )


if __name__ == "__main__":
    main()
