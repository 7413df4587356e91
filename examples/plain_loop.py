"""A plain training loop that ends with a smaller model: train, send to pared, download.

    python plain_loop.py [DIRECTORY]

It needs a pared server: `pared up`, or PARED_URL and PARED_API_KEY of another one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import pared

EPOCHS = 6


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Your own loop."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main(directory: Path) -> None:
    """Train, prune to half of the parameters, download."""
    digits = load_digits()
    x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    model = train(torch.from_numpy(x), torch.from_numpy(y))

    torch.jit.script(model).save(directory / "digits_mlp.pt")
    np.savez(directory / "digits.npz", x=x, y=y)
    with pared.Client() as client:
        job = client.prune(
            directory / "digits_mlp.pt",
            directory / "digits.npz",
            target={"params": 0.5},
            retrain={"epochs": 2, "lr": 0.02},
        )
        print(job.watch().report())
        print("saved", job.download(directory / "digits_mlp_small.pt"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
