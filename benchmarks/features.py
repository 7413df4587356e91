"""Twelve pairs of a teacher and a student of other families, distilled from files alone: `make bench-features`.

Each teacher is trained here on scikit-learn's digits by plain PyTorch, and saved without its source. Its student learns
from a hundred labelled samples, as few as let a teacher matter: by softened answers and labels, and by these with each
loss of inner layers, whose pairs `auto` chooses. Epochs are chosen on validation samples that the job holds out; scores
are of test samples that no job sees. Some of the pairs: `python benchmarks/features.py GRU`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from feature_nets import PAIRS, saved
from results import Kept, machine, table, write_section
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression import distill
from pared.errors import ParedError

SEEDS = (0, 1, 2)
WORK = Path("build/bench-features")
TEACHING, STUDYING, TESTED = 1000, 100, 500
EPOCHS = 100
KL = {"kind": "kl", "temperature": 4.0}
LABELS = {"kind": "labels", "weight": 0.5}
WAYS: dict[str, list[dict[str, Any]]] = {
    "kl": [],
    "hint": [{"kind": "hint"}],
    "attention": [{"kind": "attention"}],
    "relational": [{"kind": "relational", "features": "auto"}],
}


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) and their classes, in an order of the seed."""
    stored = load_digits()
    order = torch.randperm(len(stored.target), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(stored.images).float()[:, None] / 16
    return x[order], torch.from_numpy(stored.target)[order]


def trained(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The net after 20 epochs of Adam along a one-cycle rate, batches of 50."""
    steps = 20 * len(x) // 50
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(20):
        for batch in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent."""
    return 100 * float((net(x).argmax(1) == y).double().mean())


def one(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """What one pair comes to: scores by way, and the pairs of layers."""
    make, form, make_student, student_form = PAIRS[name]
    x, y = digits(seed)
    test = x[-TESTED:], y[-TESTED:]
    torch.manual_seed(seed)
    net = trained(make(), x[:TEACHING], y[:TEACHING])
    teacher = str(saved(net, form, folder, "teacher"))
    student = str(saved(make_student(), student_form, folder, "student"))
    found: dict[str, Any] = {"teacher": accuracy(net, *test)}
    studied = x[:STUDYING].numpy(), y[:STUDYING].numpy()
    for way, terms in WAYS.items():
        try:
            done = distill(
                teacher,
                student,
                studied,
                seed=seed,
                loss={"kind": "combined", "terms": [KL, LABELS, *terms]},
                train={"epochs": EPOCHS, "lr": 0.005, "batch_size": 25, "lr_schedule": "cosine"},
                directory=folder / way,
                outputs=["torchscript"],
            )
        except ParedError as error:
            if "has no positions" not in str(error):
                raise SystemExit(f"{name}, {way}: {error}") from error
            continue  # `attention` compares positions, which a vector has not
        found[way] = accuracy(torch.jit.load(folder / way / "model.pt"), *test)
        if way == "hint":
            found["pairs"] = [f"{pair.teacher} → {pair.student}" for pair in done.report.features]
    return found


def main() -> None:
    """Train, distill, score, and write the section `features`."""
    kept = Kept(WORK)
    for name in [name for name in PAIRS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]:
        for seed in SEEDS:
            if f"{name}/{seed}" not in kept:
                with tempfile.TemporaryDirectory() as folder:
                    kept[f"{name}/{seed}"] = one(name, seed, Path(folder))
            print(name, seed, kept[f"{name}/{seed}"], flush=True)
    rows = [row(name, [kept[f"{name}/{seed}"] for seed in SEEDS]) for name in PAIRS if f"{name}/{SEEDS[-1]}" in kept]
    header = ["teacher → student", "teacher, %", "softened answers, %", *(f"+ {way}, points" for way in [*WAYS][1:]),
              "layers that `auto` paired"]  # fmt: skip
    text = (
        f"## Inner layers of other families\n\n{table(header, rows)}\n\n"
        f"Accuracy on {TESTED} digits that no job saw, the mean of {len(SEEDS)} seeds with their standard deviation. "
        f"Teachers learned from {TEACHING} samples, students from {STUDYING} of these in {EPOCHS} epochs, by the KL of "
        "softened answers (T = 4) and labels (weight 0.5); then with one term of inner layers more (weight 1, pairs by "
        "`auto`), as the paired difference. Teacher and student are files (TorchScript scripted or traced, or .pt2) "
        f"without their source. A dash: a vector has no positions to compare. {machine()}; torch {torch.__version__}."
        "\n\n`make bench-features`"
    )
    print(text)
    write_section("features", text)


def row(name: str, found: list[dict[str, Any]]) -> list[str]:
    """One line of the table."""

    def told(values: list[float], sign: str = "") -> str:
        return f"{statistics.mean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"

    gains = [
        told([run[way] - run["kl"] for run in found], "+") if all(way in run for run in found) else "–"
        for way in [*WAYS][1:]
    ]
    return [
        name.replace("->", "→"),
        told([run["teacher"] for run in found]),
        told([run["kl"] for run in found]),
        *gains,
        ", ".join(found[0]["pairs"]),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
