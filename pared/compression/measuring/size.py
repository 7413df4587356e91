"""Counts a model's parameters, its multiply-adds, and the bytes of its file."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pared.compression.devices.placement import device_of


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Weights, and those of them that are not exactly zero. A tensor that is used twice counts once.

    A frozen TorchScript file has its weights as constants of its graph; they count as well.
    """
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
    for tensor in [*module.parameters(), *_constants(module)]:
        seen.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.stride()), tensor)
    return sum(t.numel() for t in seen.values()), sum(int(torch.count_nonzero(t)) for t in seen.values())


def _constants(module: nn.Module) -> list[Tensor]:
    if not isinstance(module, torch.jit.ScriptModule) or next(module.parameters(), None) is not None:
        return []
    graph: Any = module.inlined_graph  # whose type has no declared methods
    nodes = graph.findAllNodes("prim::Constant", recurse=True)
    values = [node.output().toIValue() for node in nodes if node.hasAttribute("value")]
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim()]


def count_macs(module: nn.Module, example: Sequence[Tensor]) -> int | None:
    """Multiply-adds of convolutions and matrix products for one sample; None where they cannot be counted.

    Args:
        example: inputs with a batch dimension, of which the first sample is used; none where they are not known.
    """
    if not example:
        return None
    inputs = [tensor[:1].to(device_of(module), copy=True) for tensor in example]
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point())
    counter = FlopCounterMode(display=False)
    try:
        with _decomposed(), counter:
            module(*inputs)
    except Exception:  # noqa: BLE001 - a model may refuse a batch of one in any way it likes
        return None
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations


@contextmanager
def _decomposed() -> Iterator[None]:
    """Runs attention and recurrent layers as the products they consist of, for the counter knows no fused kernel.

    Where a gradient may be asked for, torch takes no fast path of a whole encoder layer.
    """
    with (
        warnings.catch_warnings(action="ignore"),  # mkldnn's flags set one of other hardware too
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield


def count_bytes(path: Path) -> tuple[int, int]:
    """Bytes of a file, and bytes of the same file under gzip -6."""
    gzip = zlib.compressobj(6, wbits=31)
    raw = compressed = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            raw += len(chunk)
            compressed += len(gzip.compress(chunk))
    return raw, compressed + len(gzip.flush())
