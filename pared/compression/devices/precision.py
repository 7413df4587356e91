"""Owns what arithmetic computes in: the precision of a training, and how exact float32 products are on a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from pared.specs import Training


def training_precision(config: Training, device: str) -> Literal["float32", "bfloat16"]:
    """What convolutions and matrix products of a training compute in."""
    if config.precision != "auto":
        return config.precision
    if torch.device(device).type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


@contextmanager
def float32_products(how: Literal["exact", "usual", "fast"]) -> Iterator[None]:
    """Whether cards multiply float32 numbers as TF32, which keeps 10 bits of 23 and is several times faster.

    `exact`: never, so that what is measured is the model's own. `usual`: in convolutions alone, and by whichever
    algorithms, as torch does unless told otherwise. `fast`: wherever it can.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic
    torch.set_float32_matmul_precision("high" if how == "fast" else "highest")
    cudnn.allow_tf32, cudnn.deterministic = how != "exact", how != "usual" and cudnn.deterministic
    try:
        yield
    finally:
        matmul, cudnn.allow_tf32, cudnn.deterministic = before
        torch.set_float32_matmul_precision(matmul)
