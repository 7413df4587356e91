"""Runs ONNX files by ONNX Runtime on the processor, as functions of tensors and as modules that can be scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ARRAY_TYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def running(path: Path, names: Sequence[str] | None, *, threads: int = 0) -> Callable[..., list[Tensor]]:
    """The file as a function of tensors, whatever types it takes them in.

    Args:
        names: of its inputs; without them these are x0, x1, ….
        threads: that it computes with; 0: as many as the machine has cores.
    """
    session = _session(path, threads)
    types = {value.name: _ARRAY_TYPES.get(value.type) for value in session.get_inputs()}
    halved = any(value.type in _ARRAY_TYPES for value in session.get_outputs())

    def run(*inputs: Tensor) -> list[Tensor]:
        called = names or [f"x{index}" for index in range(len(inputs))]
        given = dict(zip(called, (x.numpy() for x in inputs), strict=True))
        arrays = {name: array.astype(types[name] or array.dtype) for name, array in given.items() if name in types}
        answers = [torch.from_numpy(output) for output in session.run(None, arrays)]
        return [answer.float() if halved and names and answer.is_floating_point() else answer for answer in answers]

    return run


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are exceptions too
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxModule(nn.Module):
    """An ONNX file as a module: it answers in the form in which the model answers that the file was made of."""

    def __init__(self, path: Path, names: Sequence[str] | None, like: Any = None, *, threads: int) -> None:
        """Args: names, threads: as `running` takes them; like: an answer of the model. Without one: its tensors."""
        super().__init__()
        self._run = running(path, names, threads=threads)
        self._like = like

    def forward(self, *inputs: Tensor) -> Any:
        """The file's answer."""
        answers = self._run(*(x.detach() for x in inputs))
        if self._like is None:
            return answers[0] if len(answers) == 1 else tuple(answers)
        return _filled(self._like, iter(answers))


def _filled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The same dict, list or tuple with other tensors in it."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, dict):
        return {name: _filled(part, tensors) for name, part in like.items()}
    if isinstance(like, tuple):
        return tuple(_filled(part, tensors) for part in like)
    return [_filled(part, tensors) for part in like] if isinstance(like, list) else like
