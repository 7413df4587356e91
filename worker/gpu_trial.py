"""Owns trying a GPU: a confined child computes on it what jobs compute, in small, and reports how it went."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import torch
from torch import nn

from pared.errors import telling_line
from worker import forkserver

_DEVICE = "cuda"


def main() -> None:
    """Serve the worker; each child tries the one card that it sees."""
    request = forkserver.enter()
    try:
        result = _try_card()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is why the card cannot be used
        result = {"problem": telling_line(error)}  # without the advice for people who debug CUDA kernels
    os.write(request["messages"], json.dumps(result).encode() + b"\n")
    os._exit(0)  # not through the teardown of CUDA, which may hang where the card does


def _try_card() -> dict[str, Any]:
    """The card, once all of this went through. Raises what CUDA raises."""
    torch.cuda.init()  # type: ignore[no-untyped-call]  # unlike is_available, it says why not
    card = torch.cuda.get_device_properties(0)
    _train()
    _copy_and_save()
    return {"name": card.name, "uuid": _uuid(card), "memory_bytes": card.total_memory, "torch": torch.__version__}


def _train() -> None:
    """Convolution, matrix product and their gradients, in float32 and in bfloat16 where the card has it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    model = model.to(_DEVICE)
    samples = torch.randn(4, 3, 16, 16).pin_memory().to(_DEVICE, non_blocking=True)
    for half in (False, torch.cuda.is_bf16_supported()):
        with torch.autocast(_DEVICE, torch.bfloat16, enabled=half):
            loss = model(samples).float().square().mean()
        model.zero_grad()
        loss.backward()
        numbers = [loss, *(each.grad for each in model.parameters() if each.grad is not None)]
        if not all(torch.isfinite(each).all() for each in numbers):
            raise RuntimeError("it computes numbers that are not finite")
    eye = torch.eye(256, device=_DEVICE)
    if not torch.equal(eye @ eye, eye):
        raise RuntimeError("it multiplies matrices wrongly")


def _copy_and_save() -> None:
    """A tensor comes back from the card as it went there, also by way of a file."""
    before = torch.arange(1 << 16, dtype=torch.float32)
    file = io.BytesIO()
    torch.save(before.to(_DEVICE), file)
    file.seek(0)
    if not torch.equal(torch.load(file, weights_only=True).cpu(), before):
        raise RuntimeError("what is copied to it does not come back as it was")


def _uuid(card: Any) -> str | None:
    uuid = str(getattr(card, "uuid", ""))
    return f"GPU-{uuid.removeprefix('GPU-')}" if uuid else None  # torch gives the bare digits
