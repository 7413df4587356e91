"""Test error of a packed LeNet-5, read by the reader of docs/packed-format.md: `packed_error.py FILE MNIST`.

Runs by itself, with numpy alone: it shares no code with what wrote the file, nor with torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

DOCUMENT = Path(__file__).parents[1] / "docs" / "packed-format.md"


def main() -> None:
    """Print the share of the test images that the network gets wrong, as a percentage."""
    packed, mnist = sys.argv[1:]
    weights = documented_reader()(packed)[0]
    given = np.load(mnist)
    images = (given["x_test"].reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.1307) / 0.3081
    answers = np.concatenate([logits(weights, part).argmax(1) for part in np.split(images, 20)])
    assert not {"pared", "torch"} & set(sys.modules)
    print(100 * np.mean(answers != given["y_test"]))


def documented_reader() -> Callable[[str], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """The function `read` that the document defines."""
    code = re.search(r"```python\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["read"]


def logits(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Images (n, 1, 28, 28) -> (n, 10)."""
    for layer in ("conv1", "conv2"):
        windows = sliding_window_view(x, (5, 5), axis=(2, 3))  # (n, inputs, height, width, 5, 5)
        x = np.tensordot(windows, weights[f"{layer}.weight"], ((1, 4, 5), (1, 2, 3)))  # (n, height, width, outputs)
        x = np.moveaxis(x + weights[f"{layer}.bias"], -1, 1)
        n, channels, height, width = x.shape
        x = np.maximum(x.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5)), 0)
    hidden = np.maximum(x.reshape(len(x), -1) @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    return hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


if __name__ == "__main__":
    main()
