"""Counts a model's parameters, its multiply-adds, and the bytes of its file."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    counter = _Counter()
    return counter.macs if _counted(module, example, counter) else None


def macs_by_weight(module: nn.Module, example: Sequence[Tensor]) -> tuple[int | None, dict[str, int]]:
    """The same, and of it what each tensor of the module is multiplied in, by its name.

    Products of activations alone, as in attention, belong to no tensor; nor do weights that are computed first.
    """
    counter = _Counter()
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in module.named_parameters()}
    shares = _Shares(counter, names)
    return (counter.macs, shares.macs) if _counted(module, example, counter, shares) else (None, {})


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch declares no types of it
    """Looks at operators, without importing torch's compiler, which takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled


class _Counter(_Mode):
    """Counts as torch's `FlopCounterMode` does, whose count for each module needs torch's compiler imported."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations = 0

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return self._operations // 2  # torch takes a multiply-add for two operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        operations = flop_registry.get(func._overloadpacket)
        if operations is not None:
            self._operations += operations(*args, **kwargs, out_val=out)
        return out


class _Shares(_Mode):
    """Tells whose weight an operator multiplies with: views of a tensor have its storage."""

    def __init__(self, counter: _Counter, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = {}
        self._counter, self._names = counter, names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.macs
        out = func(*args, **(kwargs or {}))
        macs = self._counter.macs - before
        if macs:
            tensors = [each for each in args if isinstance(each, Tensor) and each.dim() > 1]
            found = (self._names.get(each.untyped_storage().data_ptr()) for each in reversed(tensors))
            name = next(filter(None, found), None)
            if name is not None:
                self.macs[name] = self.macs.get(name, 0) + macs
        return out


def _counted(module: nn.Module, example: Sequence[Tensor], *modes: AbstractContextManager[Any]) -> bool:
    """Run the first sample of the example under these modes; whether that went well."""
    if not example:
        return False
    inputs = [tensor[:1].to(device_of(module), copy=True) for tensor in example]
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point())
    try:
        with _decomposed(), _nothing_saved(), ExitStack() as entered:
            for mode in modes:
                entered.enter_context(mode)
            module(*inputs)
    except Exception:  # noqa: BLE001 - a model may refuse a batch of one in any way it likes
        return False
    return True


def _nothing_saved() -> AbstractContextManager[Any]:
    """Keeps no activation for a gradient, which nobody will ask for."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)


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
