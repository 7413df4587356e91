"""Half the multiply-adds of nets of six kinds, retrained on labels and on their own answers: `make bench-tasks`.

Each net is trained here, and scored here on test samples that pared never sees, with plain PyTorch and none of pared's
code. It then loses channels until half of its multiply-adds are left, and is retrained twice: on labels, and on inputs
without labels, where the task is `match`. Epochs are chosen on validation samples that pared holds out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Kept, machine, table, write_section
from task_nets import (
    SHAPES,
    Detector,
    Embedder,
    LanguageModel,
    ManyLabels,
    Samples,
    Tagger,
    UNet,
    characters,
    highlighted,
    masked,
    one_shape,
    one_shape_class,
    several_shapes,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression import prune
from pared.errors import ParedError

SEEDS = (0, 1, 2)
WORK = Path("build/bench-tasks")


@dataclass(frozen=True)
class Kind:
    """One kind of net.

    Attributes:
        data: (training samples, test samples), by seed.
        make: the net.
        loss: of its answer and the labels, as it is trained here.
        score: of its answers to the test samples; larger is better.
        measure: the score's name.
        labelled: fields of the spec for retraining on labels.
        epochs, lr: of the training here.
        retrain_epochs: of the job.
    """

    data: Callable[[int], tuple[Samples, Samples]]
    make: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    score: Callable[[Any, Tensor], float]
    measure: str
    labelled: dict[str, Any]
    epochs: int = 12
    lr: float = 0.005
    retrain_epochs: int = 24


# -- scores, each in a few lines of its own -----------------------------------------------------


def mean_iou(logits: Tensor, masks: Tensor) -> float:
    """Mean over the classes of the intersection over the union, of all pixels."""
    predicted = logits.argmax(1)
    shares = [
        ((predicted == k) & (masks == k)).sum() / ((predicted == k) | (masks == k)).sum() for k in range(SHAPES + 1)
    ]
    return float(torch.stack(shares).mean())


def token_accuracy(logits: Tensor, tokens: Tensor) -> float:
    """Share of the tokens that are right."""
    return float((logits.argmax(-1) == tokens)[tokens != -100].double().mean())


def class_accuracy(answer: dict[str, Tensor], labels: Tensor) -> float:
    """Share of the images whose class is right."""
    return float((answer["logits"].argmax(1) == labels[:, 0].long()).double().mean())


def first_neighbour(embeddings: Tensor, labels: Tensor) -> float:
    """Share of the samples whose nearest other sample is of the same class (recall at 1)."""
    unit = F.normalize(embeddings)
    near = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return float((labels[near] == labels).double().mean())


def mean_label_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of all labels that are right."""
    return float(((logits > 0) == (labels > 0)).double().mean())


def detector_loss(answer: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the class and the squared error of the box."""
    return F.cross_entropy(answer["logits"], labels[:, 0].long()) + 10 * F.mse_loss(answer["box"], labels[:, 1:])


def triplet_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Each sample's class is told by its neighbours in the batch (a soft nearest neighbour, temperature 0.1)."""
    unit = F.normalize(embeddings)
    near = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf).softmax(1)
    same = (labels[:, None] == labels[None]).float().fill_diagonal_(0)
    return -(near * same).sum(1).clamp(min=1e-6).log().mean()


KINDS = {
    "segmentation, U-Net": Kind(
        masked, UNet, F.cross_entropy, mean_iou, "mean IoU", {"task": "segmentation"}, 24, 0.01
    ),
    "token tagging, convolutions": Kind(
        highlighted,
        Tagger,
        lambda logits, tags: F.cross_entropy(logits.transpose(1, 2), tags),
        token_accuracy,
        "accuracy",
        {"task": "token_classification"},
    ),
    "language model, transformer": Kind(
        characters,
        LanguageModel,
        lambda logits, tokens: F.cross_entropy(logits.transpose(1, 2), tokens),
        token_accuracy,
        "accuracy",
        {"task": "language_modeling"},
    ),
    "two heads, class and box": Kind(
        one_shape, Detector, detector_loss, class_accuracy, "class accuracy", {"output": "logits"}
    ),
    "embedding, siamese": Kind(
        one_shape_class, Embedder, triplet_loss, first_neighbour, "recall at 1", {"task": "embedding"}
    ),
    "multi-label": Kind(
        several_shapes,
        ManyLabels,
        F.binary_cross_entropy_with_logits,
        mean_label_accuracy,
        "label accuracy",
        {"task": "multilabel"},
    ),
}


# -- training, pruning, scoring -----------------------------------------------------------------


def trained(kind: Kind, samples: Samples, seed: int) -> nn.Module:
    """The net after Adam along a one-cycle rate, batches of 64."""
    torch.manual_seed(seed)
    net = kind.make()
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    steps = kind.epochs * (len(x) // 64)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.lr, total_steps=steps)
    for _ in range(kind.epochs):
        for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            kind.loss(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def scored(kind: Kind, net: nn.Module, samples: Samples) -> float:
    """The net's score on samples, in percent."""
    answers = [net(x) for x in torch.from_numpy(samples.x).split(256)]
    whole: Any = (
        {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
        if isinstance(answers[0], dict)
        else torch.cat(answers)
    )
    return 100 * kind.score(whole, torch.from_numpy(samples.y))


def halved(kind: Kind, net: nn.Module, samples: Samples, *, labels: bool) -> tuple[nn.Module, float, float]:
    """The net with half of its multiply-adds, retrained. Returns it, the share left, and seconds."""
    y = samples.y[:, 0].astype(np.int64) if labels and "output" in kind.labelled else samples.y
    data = (samples.x, y) if labels else (samples.x, None)
    retrain = {"epochs": kind.retrain_epochs, "optimizer": "adam", "lr": kind.lr, "lr_schedule": "cosine"}
    retrain["warmup"] = 0.1
    fields = kind.labelled if labels else {"task": "match"}
    began = time.monotonic()
    result = prune(net, data, target={"macs": 0.5}, retrain=retrain, **fields)
    before, after = result.report.before.macs, result.report.after.macs
    if before is None or after is None:
        raise ValueError("the multiply-adds were not counted")
    return result.model.eval(), after / before, time.monotonic() - began


def main() -> None:
    """Train, prune, score, and write the section `tasks`."""
    chosen = [name for name in KINDS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    kept = Kept(WORK)
    for name in chosen:
        for seed in SEEDS:
            if f"{name}/{seed}" not in kept:
                kept[f"{name}/{seed}"] = one(KINDS[name], seed)
            print(name, seed, kept[f"{name}/{seed}"], flush=True)
    rows = [row(name, [kept[f"{name}/{seed}"] for seed in SEEDS]) for name in KINDS if f"{name}/{SEEDS[-1]}" in kept]
    header = ["mean of 3 seeds", "dense, %", "on labels, %", "on its own answers, %", "labels − dense, points",
              "answers − labels, points", "multiply-adds left", "job, s"]  # fmt: skip
    text = (
        f"## Tasks\n\n{table(header, rows)}\n\n"
        "Scores on test samples that the jobs never saw, with the standard deviation over the seeds 0, 1, 2; "
        "differences are paired. Channels went by the default importance until half of the multiply-adds was left "
        "(`target: {macs: 0.5}`), then all was retrained for 24 epochs (dense nets: 12, the U-Net 24) by Adam at the "
        "dense net's rate along a cosine. `On its own answers`: no labels, and the task was `match`. Scores: "
        + ", ".join(f"{name}: {kind.measure}" for name, kind in KINDS.items())
        + f". {machine()}; torch {torch.__version__}.\n\n`make bench-tasks`"
    )
    print(text)
    write_section("tasks", text)


def one(kind: Kind, seed: int) -> dict[str, float]:
    """What one seed comes to."""
    train, test = kind.data(seed)
    net = trained(kind, train, seed)
    found = {"dense": scored(kind, net, test)}
    for way in ("labels", "match"):
        try:
            smaller, share, seconds = halved(kind, net, train, labels=way == "labels")
        except ParedError as error:
            raise SystemExit(f"{way}: {error}") from error
        found |= {way: scored(kind, smaller, test), f"{way}_share": share, f"{way}_s": seconds}
    return found


def row(name: str, found: list[dict[str, float]]) -> list[str]:
    """One line of the table."""
    columns = [
        [run["dense"] for run in found],
        [run["labels"] for run in found],
        [run["match"] for run in found],
        [run["labels"] - run["dense"] for run in found],
        [run["match"] - run["labels"] for run in found],
    ]
    cells = [f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns]
    share = statistics.mean(run["labels_share"] for run in found)
    return [
        f"{name} ({KINDS[name].measure})",
        *cells,
        f"{share:.2f}",
        f"{statistics.mean(r['labels_s'] for r in found):.0f}",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
