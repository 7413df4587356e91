"""Trains a small CNN on scikit-learn's handwritten digits: plain PyTorch, which knows nothing of pared.

    python train_digits.py DIRECTORY

leaves `digits.npz` (the images, already split) and `digits_cnn.pt` (TorchScript) in the directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, BATCH, SEED = 25, 64, 0


class DigitsCNN(nn.Module):
    """Two convolutions and two linear layers for 8×8 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)  # (batch, 64, 4, 4)
        x = functional.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


def main(directory: Path) -> None:
    """Make the data, train, save."""
    directory.mkdir(parents=True, exist_ok=True)
    data = split_digits()
    np.savez(directory / "digits.npz", **data)  # type: ignore[arg-type]
    model = train(data)
    torch.jit.script(model).save(str(directory / "digits_cnn.pt"))  # type: ignore[no-untyped-call]
    print(f"saved {directory / 'digits_cnn.pt'} and {directory / 'digits.npz'}")


def split_digits() -> dict[str, np.ndarray]:
    """1,797 images: 360 for the last test, 240 to choose by, the rest to learn from."""
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)  # (1797, 1, 8, 8), 0 to 1
    y = digits.target.astype(np.int64)
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=SEED, stratify=y)
    x, x_val, y, y_val = train_test_split(x, y, test_size=240, random_state=SEED, stratify=y)
    return {"x_train": x, "y_train": y, "x_val": x_val, "y_val": y_val, "x_test": x_test, "y_test": y_test}


def train(data: dict[str, np.ndarray]) -> nn.Module:
    """The model after the last epoch, in eval mode."""
    torch.manual_seed(SEED)
    model = DigitsCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    x, y = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    x_val, y_val = torch.from_numpy(data["x_val"]), torch.from_numpy(data["y_val"])
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch in torch.split(torch.randperm(len(x)), BATCH):
            # Moved by up to a pixel, so that the model does not learn where a stroke lies.
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = functional.cross_entropy(model(x[batch].roll(shift, dims=(2, 3))), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(x_val).argmax(1) == y_val).float().mean().item()
        print(f"epoch {epoch:2d}: loss {loss.item():.4f}, validation accuracy {accuracy:.2%}", flush=True)
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
