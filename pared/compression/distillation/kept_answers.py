"""Rounds what teachers answer to training samples to float16, and takes the same answers from an earlier job's file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pared.compression.data import Data
from pared.compression.tasks import TaskRules
from pared.compression.work import AnswerFiles
from pared.version import __version__

_LARGEST = 6e4  # of a float16, 65504


@dataclass(frozen=True)
class KeptAnswers:
    """The answers of one job's teachers to its training samples.

    They are rounded whether or not there is a file, so that a job ends with the same bytes either way. Only odds of
    classes are, for which float16 is fine enough, and only where all of them fit into it.

    `described`: all that the answers depend on beside the samples. `files`: where an earlier job's are, and where this
    job leaves its own; None: nothing is kept. `log`: told what was done.
    """

    described: Mapping[str, Any]
    task: TaskRules
    files: AnswerFiles | None = None
    log: Callable[[str], None] = lambda _: None

    def of(self, data: object, compute: Callable[[], Tensor], device: str) -> Tensor:
        """The answers to all training samples in their stored order, on the device.

        Args:
            data: the samples.
            compute: what answers where no file has it.
        """
        if not self.task.softens or not isinstance(data, Data):
            return compute()
        fingerprint = None if self.files is None else self._fingerprint(data)
        if self.files is not None and self.files.given is not None and fingerprint is not None:
            found = _read(self.files.given, fingerprint, data.samples("train"))
            if found is not None:
                self.log("the teacher's answers to the training samples are those that an earlier job kept")
                return found.to(device).to(torch.float32)
        answers = compute()
        finite = torch.where(answers.isinf(), 0.0, answers)
        if not bool((finite.abs() <= _LARGEST).all()):  # NaN is no such number either
            return answers
        rounded = answers.half()
        if self.files is not None and fingerprint is not None:
            _write(self.files.made, fingerprint, rounded.cpu())
        return rounded.to(torch.float32)

    def _fingerprint(self, data: Data) -> str | None:
        """A digest of all that the answers depend on; None where samples are read as needed, which would take long."""
        columns = [*data.inputs["train"], *([data.targets["train"]] if self.described["combine"] == "best" else [])]
        about = {
            **self.described,
            "pared": __version__,
            "torch": torch.__version__,
            "padding": [data.padding, data.masked],
            "scaling": [
                [each.scale, *(None if part is None else part.flatten().tolist() for part in (each.mean, each.std))]
                for each in data.scaling
            ],
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for column in columns:
            if not isinstance(column, Tensor):
                return None
            digest.update(f"{column.dtype} {tuple(column.shape)} ".encode())
            digest.update(_bytes_of(column))
        return digest.hexdigest()


def _read(path: Path, fingerprint: str, samples: int) -> Tensor | None:
    """The answers in a file; None where it is damaged, or has others."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != fingerprint or list(file.keys()) != ["answers"]:
                return None
            answers: Tensor = file.get_tensor("answers")
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None
    whole = answers.dtype == torch.float16 and answers.dim() >= 2 and len(answers) == samples
    return answers if whole and about.get("sha256") == _digest(answers) else None


def _write(path: Path, fingerprint: str, answers: Tensor) -> None:
    answers = answers.contiguous()
    with suppress(OSError, SafetensorError):  # without room for it, the job goes on
        save_file({"answers": answers}, path, {"fingerprint": fingerprint, "sha256": _digest(answers)})


def _digest(answers: Tensor) -> str:
    return hashlib.sha256(_bytes_of(answers)).hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it lies in order."""
    numbers: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(numbers)
