"""Writes the formats that a job asks for, each by itself, so that one that cannot be written costs that one alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.export.checking import OutputDiffers, of_the_machine, repeats
from pared.compression.export.settings import Settings
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel
from pared.errors import BY_CODE, ExportFailed, OutOfMemory, ParedError, StorageFull, Unavailable
from pared.full_disk import FULL, no_room
from pared.reports import FailedOutput
from pared.specs import Output

_CHOOSY: frozenset[Output] = frozenset({"onnx", "exported_program", "checkpoint", "huggingface"})
"""Formats that cannot hold every model. The others hold whatever runs and answers alike each time."""


@dataclass(frozen=True)
class Written:
    """What came of the formats that were asked for: the files of each, its model first, and which are missing."""

    files: dict[Output, list[Path]]
    failed: list[FailedOutput]
    notes: list[str] = field(default_factory=list)
    """Which sizes the files leave free, where the job asks for some."""

    @property
    def paths(self) -> list[Path]:
        """All files, in the order in which their formats were asked for."""
        return [path for files in self.files.values() for path in files]

    def model(self, output: Output) -> Path | None:
        """The model in one format, if it was written."""
        return self.files[output][0] if output in self.files else None


class Formats:
    """The formats of one job: tried once before it trains, and written at its end."""

    def __init__(
        self,
        asked: Sequence[Output],
        example: Sequence[Tensor],
        *,
        settings: Settings | None = None,
        log: Callable[[str], None] = lambda line: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Args: example: inputs to check each file with; log: is told what is missing; tick: a sign of life."""
        self.asked = list(asked)
        self._notes: dict[Output, str] = {}
        self.settings = replace(settings or Settings(), note=self._note)
        self._example, self._log, self._tick = tuple(example), log, tick
        self._tried = False
        self._left: list[Path] = []

    def have_been_tried(self) -> None:
        """An earlier attempt at the job went on from there."""
        self._tried = True

    def try_out(self, loaded: LoadedModel) -> None:
        """Say before the first training what will be missing: whether a format can be written, the structure decides.

        Raises:
            ExportFailed: none can be written.
            ParedError: the model itself fails.
        """
        if self._tried:
            return
        self._tried = True
        failed: list[FailedOutput] = []
        doubtful: list[FailedOutput] = []
        with torch.random.fork_rng(devices=[]):  # training finds the generator as it would without this
            place(loaded.module, CPU)
            alike = repeats(loaded.module.eval(), self._example)
            for output in self.asked:
                if output not in _CHOOSY and (alike or output == "state_dict"):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    outcome = self._outcome(loaded, output, Path(folder))
                if isinstance(outcome, list):
                    continue
                # Trained weights may agree where these do not, and there may be room by then.
                certain = isinstance(outcome, ExportFailed) and not (alike and isinstance(outcome, OutputDiffers))
                (failed if certain else doubtful).append(self._failure(loaded, output, outcome))
        if len(failed) == len(self.asked):
            raise _none_written(failed)
        for failure in failed:
            self._log(f"{failure.format} will be missing from the result: {failure.detail}")
        for failure in doubtful:
            self._log(f"{failure.format} may be missing from the result: {failure.detail}")

    def write(self, loaded: LoadedModel, directory: Path) -> Written:
        """Write each format that can be written, and nothing of the others. What an earlier call has left goes first.

        Raises:
            ExportFailed: none can be written.
            ParedError: the same of one format, where memory or disk gave out; or the model itself fails.
        """
        for path in self._left:
            path.unlink()
        self._left = []
        written = Written({}, [])
        for output in self.asked:
            outcome = self._outcome(loaded, output, directory)
            if isinstance(outcome, list):
                written.files[output] = outcome
                written.notes.extend(f"{output}: {note}" for note in [self._notes.pop(output, "")] if note)
                self._left += outcome
            else:
                written.failed.append(self._failure(loaded, output, outcome))
                self._log(f"{output} is missing from the result: {written.failed[-1].detail}")
        if not written.files:
            raise _none_written(written.failed)
        return written

    def _outcome(self, loaded: LoadedModel, output: Output, directory: Path) -> list[Path] | Exception:
        """The files of one format, or why it is missing. Raises ParedError for what would spoil every format."""
        self._tick()
        self._notes.pop(output, None)
        try:
            with tempfile.TemporaryDirectory(prefix=".", dir=directory) as folder:
                try:
                    files = export(loaded, self._example, [output], Path(folder), self.settings)
                except ParedError:
                    raise
                except Exception as error:
                    if full := no_room(error, Path(folder)):  # looked at while the files are there
                        raise OSError(full, os.strerror(full)) from error
                    raise
                return _moved(Path(folder), files, directory)
        except ExportFailed as error:
            return error
        except ParedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other formats may be written
            return error

    def _note(self, output: Output, text: str) -> None:
        self._notes[output] = " ".join(filter(None, [self._notes.get(output), text]))

    def _failure(self, loaded: LoadedModel, output: Output, error: Exception) -> FailedOutput:
        """What a report says of it."""
        named = _named(error)
        detail = " ".join(named.detail.split()).removesuffix(".") + "."
        if isinstance(error, OutputDiffers) and not repeats(loaded.module, self._example):
            detail += (
                " The model answers the same inputs otherwise each time, so that no file of it can be checked: take "
                "out what is random, or ask for `state_dict`, which holds the weights alone."
            )
        return FailedOutput(format=output, code=named.code, detail=detail)


def _moved(folder: Path, models: Sequence[Path], directory: Path) -> list[Path]:
    """Move all files of a folder, those named first; all or none."""
    names = [path.name for path in models]
    names += sorted(path.name for path in folder.iterdir() if path.name not in names)  # ONNX puts large tensors aside
    try:
        for name in names:
            (folder / name).replace(directory / name)
    except OSError:
        for name in names:
            if not (folder / name).exists():
                (directory / name).unlink()
        raise
    return [directory / name for name in names]


def _named(error: Exception) -> ParedError:
    """What went wrong with a format, as one of our own errors."""
    if isinstance(error, ParedError):
        return error
    if isinstance(error, OSError):
        full = error.errno in FULL
        return (StorageFull if full else ExportFailed)(f"It could not be written: {error.strerror or error}.")
    if of_the_machine(error):
        return OutOfMemory("Writing it took more memory than there is.")
    text = " ".join(str(error).split())[:400]
    return ExportFailed(f"It could not be written: {type(error).__name__}: {text}.")


def _none_written(failed: Sequence[FailedOutput]) -> ParedError:
    """The problem of a job that can write no format it was asked for."""
    full = next((failure for failure in failed if failure.code == StorageFull.code), None)
    if full is not None:  # which passes, where the job does not
        return Unavailable(f"The result has no room on the disk. {full.format}: {full.detail}")
    others = [f"`{output}`" for output in get_args(Output) if output not in {failure.format for failure in failed}]
    advice = f" `outputs` may name {', '.join(others)} instead." if others else ""
    if len(failed) == 1:
        return BY_CODE[failed[0].code](failed[0].detail + advice)
    whys = " ".join(f"{failure.format}: {failure.detail}" for failure in failed)
    return ExportFailed(f"None of the formats in `outputs` can be written.{advice} {whys}")
