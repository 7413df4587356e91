"""Twenty pairs of model and goal, each posted to a running pared: `make bench-goals`.

Every result is downloaded and measured again by `measured.py`, in a process of its own that shares no code with pared,
and held against the report, the verdict on the goal, and the plan that was asked for before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine, table, write_section
from server import running_pared
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared

WORK = Path("build/bench-goals")
RETRAIN = {"epochs": 3, "lr": 0.02}
MLP = [
    ["Flatten", {}, "flat"],
    ["Linear", {"in_features": 64, "out_features": 128}, "fc1"],
    ["ReLU", {}, "act1"],
    ["Linear", {"in_features": 128, "out_features": 64}, "fc2"],
    ["ReLU", {}, "act2"],
    ["Linear", {"in_features": 64, "out_features": 10}, "fc3"],
]
TIMED_APART = 1.25  # a share of time that is measured again may differ by this factor, either way


class Cnn(nn.Module):
    """Two convolutions with batch norms, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.fc1, self.fc2 = nn.Linear(48 * 4, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """A stem and two residual blocks that share its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.first = nn.ModuleList([nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)])
        self.second = nn.ModuleList([nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.first[1](F.relu(self.first[0](x))))
        x = F.max_pool2d(x, 2)
        x = F.relu(x + self.second[1](F.relu(self.second[0](x))))
        return self.head(x.mean((2, 3)))


class Mlp(nn.Sequential):
    """The layers of `MLP`."""

    def __init__(self) -> None:
        super().__init__()
        for kind, given, name in MLP:
            self.add_module(name, getattr(nn, kind)(**given))


@dataclass(frozen=True)
class Pair:
    """A model in the form of its upload, and a goal; `fields`: what else the job says."""

    model: str
    form: str
    target: dict[str, float]
    fields: dict[str, Any]
    possible: bool = True


WEIGHT = {"granularity": "weight"}
PACKED = {"granularity": "weight", "outputs": ["packed"]}
STATE = {"outputs": ["state_dict"]}
PAIRS = [
    Pair("cnn", "scripted", {"params": 0.5}, {}),
    Pair("cnn", "scripted", {"macs": 0.3}, {"criterion": "taylor"}),
    Pair("cnn", "scripted", {"file_bytes": 0.5}, {}),
    Pair("cnn", "traced", {"params": 0.25, "macs": 0.3}, {}),
    Pair("cnn", "traced", {"max_accuracy_drop": 0.03}, {}),
    Pair("cnn", "pt2", {"params": 0.4}, {"round_to": 4}),
    Pair("cnn", "pt2", {"file_bytes": 0.6}, {}),
    Pair("residual", "scripted", {"macs": 0.5}, {}),
    Pair("residual", "traced", {"params": 0.3}, {"scope": "global"}),
    Pair("residual", "scripted", {"latency": 0.7, "latency_batch_size": 32}, {}),
    Pair("cnn", "scripted", {"params": 0.5, "max_accuracy_drop": 0.05}, {}),
    Pair("residual", "pt2", {"macs": 0.4}, {"retrain": None}),
    Pair("mlp", "state dict", {"params": 0.2}, STATE),
    Pair("mlp", "state dict", {"params": 0.1}, STATE | WEIGHT),
    Pair("mlp", "state dict", {"file_bytes": 0.2}, PACKED | {"retrain": None}),
    Pair("mlp", "state dict", {"file_bytes": 0.08}, PACKED | {"quantize": {"bits": 5}}),
    Pair("cnn", "scripted", {"params": 0.0005}, {}, possible=False),
    Pair("residual", "traced", {"file_bytes": 0.01}, {}, possible=False),
    Pair("mlp", "state dict", {"params": 0.05, "max_accuracy_drop": 0.0}, STATE, possible=False),
    Pair("residual", "pt2", {"macs": 0.00001}, {}, possible=False),
]


def main() -> None:
    """Run all pairs, print and write the section `goals`; exits with 1 if anything contradicts anything."""
    WORK.mkdir(parents=True, exist_ok=True)
    data = digits(WORK / "digits.npz")
    rows, contradictions, began = [], [], time.monotonic()
    with running_pared(WORK / "data") as url, pared.Client(url) as client:
        uploads = {name: uploaded(client, *name, data) for name in dict.fromkeys((p.model, p.form) for p in PAIRS)}
        for number, pair in enumerate(PAIRS, 1):
            row, found = tried(client, pair, *uploads[pair.model, pair.form], data, number)
            print(f"{number}/{len(PAIRS)} {' | '.join(row)}", *found, sep="\n  ", flush=True)
            rows.append(row)
            contradictions += [f"{number}: {each}" for each in found]
    write_section("goals", section(rows, contradictions, time.monotonic() - began))
    sys.exit(1 if contradictions else 0)


def tried(
    client: pared.Client, pair: Pair, model: Any, upload: Path, data: Path, number: int
) -> tuple[list[str], list[str]]:
    """One pair: a line of the table, and whatever contradicts."""
    fields = {"target": pair.target, "retrain": RETRAIN, **pair.fields}
    plan = None
    if not {"latency", "max_accuracy_drop"} & set(pair.target):
        plan = client.plan(model, data, **fields)
    began = time.monotonic()
    job = client.prune(model, data, **fields)
    job.wait()
    seconds = time.monotonic() - began
    report, folder = job.report(), WORK / str(number)
    folder.mkdir(exist_ok=True)
    files = {a.name: job.download(folder / a.name, name=a.name) for a in job.artifacts()}
    result = next(path for name, path in files.items() if name.startswith("model."))
    again = measured(result, data, report.reproduce.threads, upload if "latency" in pair.target else None)
    goal = report.goal
    assert goal is not None
    found = [
        *differences(report, again, result),
        *goal_differences(pair, report, again, upload),
        *([] if plan is None else plan_differences(plan, report, result)),
    ]
    if (goal.status == "met") != pair.possible and "max_accuracy_drop" not in pair.target:
        found.append(f"the goal is {goal.status}")
    if (files["frontier.csv"].read_text().count("\n") - 1) != len(report.frontier):
        found.append("frontier.csv has other points than the report")
    shown = {name: share for name, share in pair.target.items() if name != "latency_batch_size"}
    row = [
        f"{pair.model}, {pair.form}",
        ", ".join(f"{name} ≤ {share:g}" for name, share in shown.items()),
        ", ".join([str(pair.fields.get("granularity", "channel")), *extra(pair)]),
        goal.status,
        ", ".join(f"{goal.reached[name]:.4g}" for name in shown),
        ", ".join(f"{value:.4g}" for value in shares(pair, report, again, upload).values()),
        f"{goal.amount:g}",
        str(len(report.frontier)),
        ""
        if plan is None
        else "equal"
        if plan.exact and all(f.exact for f in plan.files.values())
        else "equal, bytes about",
        f"{seconds:.0f}",
    ]
    return row, found


def extra(pair: Pair) -> list[str]:
    """What a job says beside its goal, for the table."""
    told = [f"{name} {pair.fields[name]}" for name in ("round_to", "scope", "criterion") if name in pair.fields]
    told += [f"{pair.fields['quantize']['bits']} bits"] if "quantize" in pair.fields else []
    return told + (["not retrained"] if pair.fields.get("retrain", "") is None else [])


# -- what must agree ----------------------------------------------------------------------------


def differences(report: Any, again: dict[str, Any], result: Path) -> list[str]:
    """Where the file is not what its report says."""
    after = report.after
    told = {
        "parameters": after.parameters,
        "nonzero_parameters": after.nonzero_parameters,
        "macs": after.macs,
        "file_bytes": after.file_bytes,
        "accuracy": after.quality.test.value,
    }
    found = [
        f"{name}: reported {value}, measured {again[name]}" for name, value in told.items() if again[name] != value
    ]
    if result.name not in report.reproduce.outputs:
        found.append(f"{result.name} is not in the report")
    return found


def shares(pair: Pair, report: Any, again: dict[str, Any], upload: Path) -> dict[str, float]:
    """The goal's own figures from what was measured again."""
    kept = again["nonzero_parameters" if pair.fields.get("granularity") == "weight" else "parameters"]
    all_of_them = {
        "params": kept / report.before.parameters,
        "macs": again["macs"] / report.before.macs,
        "file_bytes": again["file_bytes"] / upload.stat().st_size,
        "latency": again["latency"],
        "max_accuracy_drop": report.before.quality.test.value - again["accuracy"],
    }
    return {name: all_of_them[name] for name in all_of_them if name in pair.target}


def goal_differences(pair: Pair, report: Any, again: dict[str, Any], upload: Path) -> list[str]:
    """Where the word on the goal does not follow from what was measured again."""
    goal, found = report.goal, []
    ours = shares(pair, report, again, upload)
    for name, share in ours.items():
        apart = max(share, goal.reached[name]) / min(share, goal.reached[name]) if name == "latency" else 1
        if apart > TIMED_APART or (name != "latency" and abs(share - goal.reached[name]) > 1e-12):
            found.append(f"goal {name}: reported {goal.reached[name]}, measured {share}")
        most = pair.target[name] * (TIMED_APART if name == "latency" else 1)
        if goal.status == "met" and share > most + 1e-12:
            found.append(f"goal {name}: called met, and measured {share}")
    if goal.status == "infeasible" and all(goal.reached[name] <= pair.target[name] for name in ours):
        found.append("called infeasible, and is met")
    return found


def plan_differences(plan: Any, report: Any, result: Path) -> list[str]:
    """Where the job did what its plan did not say."""
    found = []
    for name in ("parameters", "nonzero_parameters", "macs"):
        planned, done = getattr(plan.after, name), getattr(report.after, name)
        if plan.exact and planned != done:
            found.append(f"planned {name} {planned}, done {done}")
    file = plan.files[result.name]
    if file.exact and file.size_bytes != result.stat().st_size:
        found.append(f"planned {file.size_bytes} bytes, done {result.stat().st_size}")
    if plan.exact and file.exact and plan.goal != report.goal:
        found.append(f"planned {plan.goal}, done {report.goal}")
    return found


def measured(result: Path, data: Path, threads: int, upload: Path | None) -> dict[str, Any]:
    """The figures of a file, from a process that knows torch alone."""
    script = Path(__file__).with_name("measured.py").resolve()
    given = [result, data, threads, *([] if upload is None else [upload])]
    command = [sys.executable, "-I", str(script), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


# -- models and data ----------------------------------------------------------------------------


def digits(path: Path) -> Path:
    """scikit-learn's handwritten digits with splits of their own."""
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    parts = {"train": order[:1200], "val": order[1200:1500], "test": order[1500:]}
    np.savez(path, **{f"{name}_{part}": a[rows] for part, rows in parts.items() for name, a in (("x", x), ("y", y))})
    return path


def uploaded(client: pared.Client, model: str, form: str, data: Path) -> tuple[Any, Path]:
    """The trained model as a stored upload, and its file."""
    module = trained(model, data)
    path = WORK / f"{model}-{form.replace(' ', '-')}"
    example = torch.rand(2, 1, 8, 8)
    if form == "pt2":
        path = path.with_suffix(".pt2")
        free = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=free), path)
    elif form == "state dict":
        path = path.with_suffix(".pt")
        torch.save(module.state_dict(), path)
        return client.models.upload(path, architecture={"layers": MLP}), path
    else:
        path = path.with_suffix(".pt")
        script = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, example, check_trace=False)
        torch.jit.save(script, path)
    return client.models.upload(path), path


@cache
def trained(model: str, data: Path) -> nn.Module:
    """A model after 8 epochs of Adam 0.003."""
    torch.manual_seed(0)
    module = {"cnn": Cnn, "residual": Residual, "mlp": Mlp}[model]()
    arrays = np.load(data)
    x, y = torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module.eval()


def section(rows: list[list[str]], contradictions: list[str], seconds: float) -> str:
    """The table, and what contradicted."""
    header = ["model and upload", "goal", "what goes", "verdict", "reached", "measured again", "amount", "points"]
    header += ["plan", "job, s"]
    infeasible = sum(row[3] == "infeasible" for row in rows)
    told = "; ".join(contradictions) if contradictions else "none"
    return (
        f"## Goals\n\n{table(header, rows)}\n\n"
        f"{len(rows)} pairs of model and goal, {infeasible} of them infeasible. Contradictions between report, file "
        f"and plan: **{told}**. Each result was downloaded and measured again in a process of its own with torch alone "
        "(packed files with the reader of the format's page): parameters, multiply-adds, bytes and test accuracy must "
        f"be equal, and a share of time within {TIMED_APART:g} times the report's, on as many threads. Shares are "
        "of the upload's. Seed 0; scikit-learn's digits, 1,200 to train on, 300 to validate, 297 to test; 3 epochs of "
        "SGD 0.02. "
        f"{machine()}; torch {torch.__version__}; {seconds / 60:.0f} minutes.\n\n`make bench-goals`"
    )


if __name__ == "__main__":
    main()
