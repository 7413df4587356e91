"""What correcting biases and batch norms keeps where a job brings no data: `make bench-without-data`.

Each network is trained on 12,000 images of MNIST. It is then pruned twice through the API, with the same channels gone:
by a job that brings data but does not retrain, which only prunes, and by one without data, which corrects. Nothing is
chosen by the test images.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from results import machine, mnist_file, table, write_section
from server import running_pared
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

import pared

SEEDS = (0, 1, 2)
AMOUNTS = (0.3, 0.5)
WORK = Path("build/bench-without-data")


class Residual(nn.Module):
    """A strided convolution, three residual blocks of 24 channels, a pooling after the first, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = norm_of(nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                norm_of(nn.Conv2d(24, 24, 3, padding=1, bias=False)),
                nn.ReLU(),
                norm_of(nn.Conv2d(24, 24, 3, padding=1, bias=False)),
            )
            for _ in range(3)
        )
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 28, 28) to logits (batch, 10)."""
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            x = torch.relu(x + block(x))
            if index == 0:
                x = F.max_pool2d(x, 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def norm_of(layer: nn.Conv2d) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))


def plain(activation: type[nn.Module], *, pooled: bool) -> nn.Module:
    """Convolutions of 16, 32 and 48 channels, each halving its image by stride or max-pool, and two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 48)):
        stride = 1 if pooled else 2
        layers += [norm_of(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)), activation()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    width = 48 * (3 if pooled else 4) ** 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(width, 64), nn.BatchNorm1d(64), activation(), nn.Linear(64, 10)
    )


NETWORKS = {
    "strided convolutions, ReLU": lambda: plain(nn.ReLU, pooled=False),
    "strided convolutions, GELU": lambda: plain(nn.GELU, pooled=False),
    "convolutions and max-pool, ReLU": lambda: plain(nn.ReLU, pooled=True),
    "residual blocks": Residual,
}


def main() -> None:
    """Train, prune, score, and write the section `without-data`."""
    mnist = mnist_file()
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    given = np.load(mnist)
    x = {split: (given[f"x_{split}"].reshape(-1, 1, 28, 28) / 255).astype(np.float32) for split in ("train", "test")}
    y = {split: given[f"y_{split}"].astype(np.int64) for split in ("train", "test")}
    data = WORK / "mnist.npz"
    np.savez(data, x_train=x["train"][:12000], y_train=y["train"][:12000], x_test=x["test"], y_test=y["test"])
    test = torch.from_numpy(x["test"]), torch.from_numpy(y["test"])
    rows = []
    with running_pared(WORK / "data") as url, pared.Client(url) as client:
        dataset = client.datasets.upload(str(data))
        for name, make in NETWORKS.items():
            dense = []
            found: dict[float, list[tuple[float, float]]] = {amount: [] for amount in AMOUNTS}
            for seed in SEEDS:
                file = WORK / "dense.pt"
                module = trained(make, torch.from_numpy(x["train"][:12000]), torch.from_numpy(y["train"][:12000]), seed)
                torch.jit.script(module).save(str(file))
                dense.append(accuracy(module, *test))
                model = client.models.upload(str(file))
                for amount in AMOUNTS:
                    jobs = [
                        client.prune(model, dataset, amount=amount, retrain=None),
                        client.prune(model, None, amount=amount, example_inputs=[{"shape": [2, 1, 28, 28]}]),
                    ]
                    scores = []
                    for job in jobs:
                        job.wait()
                        job.download(str(WORK / "pruned.pt"))
                        scores.append(accuracy(torch.jit.load(WORK / "pruned.pt"), *test))
                    found[amount].append((scores[0], scores[1]))
                    print(f"{name}, seed {seed}, {amount:.0%}: {scores[0]:.2f} -> {scores[1]:.2f} of {dense[-1]:.2f}")
            rows += [row(name, amount, dense, pairs) for amount, pairs in found.items()]
    header = ["mean of 3 seeds", "as it came, %", "pruned, %", "pruned and corrected, %", "gained, points"]
    text = (
        f"## Without data\n\n{table(header, rows)}\n\n"
        "Test accuracy, with the standard deviation over the seeds 0, 1, 2; the gain is paired. Channels went by Σ|w|, "
        "layer by layer; nothing was retrained. Networks of three to seven convolutions with batch norms, trained for "
        f"three epochs on 12,000 images. {machine()}; torch {torch.__version__}.\n\n"
        "`make bench-without-data PARED_MNIST=mnist.npz`"
    )
    print(text)
    write_section("without-data", text)


def trained(make: object, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A network after three epochs of Nesterov SGD along a one-cycle rate of at most 0.1, batches of 128."""
    torch.manual_seed(seed)
    module: nn.Module = make()  # type: ignore[operator]
    steps = len(x) // 128
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * steps)
    for _ in range(3):
        for batch in torch.randperm(len(x))[: steps * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent."""
    right = sum(int((module(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


def row(name: str, amount: float, dense: list[float], pairs: list[tuple[float, float]]) -> list[str]:
    """One line of the table."""
    columns = [dense, [a for a, _ in pairs], [b for _, b in pairs], [b - a for a, b in pairs]]
    cells = [f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns]
    return [f"{name}: {amount:.0%} of channels", *cells]


if __name__ == "__main__":
    main()
