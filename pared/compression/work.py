"""What a compression method is handed: the files it works on, where results go, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pared.compression.onnx_form import OnnxForm
from pared.compression.ranks import ALONE, Ranks
from pared.statuses import Stage


class Observer(Protocol):
    """Who follows a running method. In the service it is the child's pipe to its parent."""

    def stage(self, name: Stage) -> None:
        """A stage of the job begins."""

    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None:
        """The whole job is this far, 0 to 1. Also the sign of life: call it at least every few seconds of work."""

    def metric(self, name: str, value: float, *, step: int, phase: str) -> None:
        """One point of a curve, such as `train_loss` at an epoch."""

    def log(self, text: str) -> None:
        """One line for the person who follows."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep this state durably: nested dicts and lists of tensors, numbers and strings (`weights_only` loadable)."""

    def resume(self) -> dict[str, Any] | None:
        """The newest whole checkpoint of an earlier attempt, if there is one."""


class SilentObserver:
    """An observer that keeps nothing: for use as a library."""

    def stage(self, name: Stage) -> None: ...
    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None: ...
    def metric(self, name: str, value: float, *, step: int, phase: str) -> None: ...
    def log(self, text: str) -> None: ...
    def checkpoint(self, state: dict[str, Any]) -> None: ...
    def resume(self) -> dict[str, Any] | None:
        return None


@dataclass(frozen=True)
class ModelFile:
    """An upload as a local file. `architecture` is what was posted with it, if anything."""

    path: Path
    filename: str
    sha256: str
    architecture: Any | None = None
    notes: tuple[str, ...] = ()
    """What to warn of that was done to the model before it became this file."""
    sparse: frozenset[str] = frozenset()
    """Weights whose zeros are held while it trains, for masks stood for them before."""
    weights: str | None = None
    """Which state dict of a checkpoint is meant, by the keys that lead to it: `ema`, or `generator.state_dict`."""
    prefix: str | None = None
    """Only the tensors whose names begin so are meant, by the rest of their names: `student.`."""
    onnx: OnnxForm | None = None
    """How the ONNX file looked that the model came from, where this file cannot say it."""


@dataclass(frozen=True)
class DatasetFile:
    """A data set as a local file, or a built-in one by its `builtin:` name."""

    path: Path | None
    filename: str
    sha256: str = ""
    memory_bytes: int | None = None
    """Memory of the job that reads it; None: what the machine has. Larger data sets are read as needed."""
    tokenizer: bytes | None = None
    """A `tokenizer.json` for texts that bring none: that of the model which reads them."""
    classes: tuple[str, ...] = ()
    """What the model that learned from it calls its classes, in the order of its outputs, if it says so."""
    most: int | None = None
    """Samples of each split that are used, where nothing is trained or measured by them; None: all."""


@dataclass(frozen=True)
class AnswerFiles:
    """Where a job finds the answers of its teachers that an earlier one kept, and where it leaves its own."""

    given: Path | None
    made: Path


@dataclass(frozen=True)
class Work:
    """One run of a method. The files it leaves in `directory` are the job's artifacts."""

    models: dict[str, ModelFile]
    dataset: DatasetFile | None
    directory: Path
    observer: Observer = field(default_factory=SilentObserver)
    device: str = "cpu"
    latency_device: str | None = None
    notes: tuple[str, ...] = ()
    """What is to be said in the report of where the work was done."""
    record_steps: bool = True
    """Whether a card may run training steps from a recording of one."""
    reference: ModelFile | None = None
    """In a later step of a pipeline: the upload, which the result is compared with and learns from. None: the model
    that the job is about is that itself."""
    timed: bool = True
    """Whether latency is measured for the report."""
    threads: int = 1
    """Of the whole job, which its ranks share."""
    ranks: Ranks = ALONE
    """This process among those that run the method together, each with a folder and an observer of its own."""
    sandbox: str = "none"
    answers: AnswerFiles | None = None
    """Where answers of teachers are kept between jobs, if they are."""

    @property
    def timed_on(self) -> str:
        """Where latency is measured."""
        return self.latency_device or self.device
