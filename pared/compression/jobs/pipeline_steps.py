"""The steps of a pipeline one by one: the job that each is, the files it works on, and what it hands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from hashlib import file_digest
from json import loads
from pathlib import Path
from typing import Any

from pared.compression.data.class_names import read_as_by
from pared.compression.jobs.stages import plain
from pared.compression.loading import load_model
from pared.compression.loading.file_format import STATE_DICTS, recognise
from pared.compression.loading.onnx import form_of
from pared.compression.names import tensors, weight_layers
from pared.compression.work import ModelFile, Observer, SilentObserver, Work
from pared.errors import ParedError
from pared.specs import PHYSICAL, CompressionSpec, Output, PipelineSpec, PruneSpec, Target, Training
from pared.statuses import Stage

MODEL_FILES: dict[Output, str] = {
    "torchscript": "model.pt",
    "exported_program": "model.pt2",
    "onnx": "model.onnx",
    "huggingface": "model.zip",
    "state_dict": "model.safetensors",
    "packed": "model.packed",
    "checkpoint": "model.ckpt",
}
"""Format -> the file that holds a model in it."""
_ARCHITECTURE = "architecture.json"


class Chain:
    """What a pipeline starts from: its spec, the upload, and the form in which steps hand their results on."""

    def __init__(self, spec: PipelineSpec, work: Work) -> None:
        upload = work.models["model"]
        container = recognise(upload.path)
        # What steps hand on has no names of inputs and outputs.
        self.onnx = form_of(upload.path) if container == "onnx" else None
        if container == "onnx" and spec.outputs is None:
            spec = spec.model_copy(update={"outputs": ["onnx"]})
        if container == "huggingface" and work.dataset is not None:
            # Steps behind the first may get TorchScript, which has neither tokenizer nor names of classes.
            work = replace(work, dataset=read_as_by(upload.path, work.dataset))
        self.spec, self.work = spec, work
        self.upload = replace(upload, architecture=plain(spec.architecture) or upload.architecture)
        self.handed_on: Output = "torchscript"
        if container == "exported_program":
            self.handed_on = "exported_program"
        elif container in STATE_DICTS:
            self.handed_on = "state_dict"
        elif container == "huggingface" and "huggingface" in (spec.outputs or ["huggingface"]):
            self.handed_on = "huggingface"

    def of_task(self, name: str | None) -> Chain:
        """The same, with the task named that its steps found; None: they have no data."""
        if name is None:
            return self
        named = copy(self)
        named.spec = self.spec.model_copy(update={"task": name})
        return named

    @property
    def names(self) -> list[str]:
        """The types of the steps, in order."""
        return [step.name for step in self.spec.steps]

    def label(self, index: int) -> str:
        """What a step is called: `1-prune`."""
        return f"{index + 1}-{self.names[index]}"

    def is_last(self, index: int) -> bool:
        """Whether no step follows."""
        return index == len(self.names) - 1

    def job(self, index: int, target: Target | None) -> CompressionSpec:
        """The whole spec of a step. `target`: of the step whose amount is searched for."""
        return self.spec.job(index, handed_on=self.handed_on, target=target)

    def work_on(
        self, index: int, previous: ModelFile, directory: Path, observer: Observer, *, timed: bool = True
    ) -> Work:
        """What the method of a step is handed.

        Args:
            previous: the result of the step before, or the upload.
            timed: whether it measures latency.
        """
        step, prefix = self.spec.steps[index], f"steps.{index}.{self.names[index]}."
        models = {role.removeprefix(prefix): file for role, file in self.work.models.items() if role.startswith(prefix)}
        if "student" in type(step.own).model_fields:
            models["teacher"] = self.upload if getattr(step.own, "teacher", "upload") == "upload" else previous
            if getattr(step.own, "student", None) is None:
                models["student"] = previous
        else:
            models["model"] = previous
        reference = self.upload if index else None
        timed = timed and self.work.timed
        return replace(
            self.work, models=models, reference=reference, directory=directory, observer=observer, timed=timed
        )

    def result(self, index: int, directory: Path) -> ModelFile:
        """What a step has left there for the next one."""
        path = directory / MODEL_FILES[self.handed_on]
        described = directory / _ARCHITECTURE
        architecture = loads(described.read_text()) if described.exists() else None
        with path.open("rb") as content:
            digest = file_digest(content, "sha256").hexdigest()
        file = ModelFile(path, f"{self.label(index)}.{path.name}", digest, architecture, onnx=self.onnx)
        return replace(file, sparse=_with_zeros(file)) if self._has_zeros(index) else file

    def _has_zeros(self, index: int) -> bool:
        """Whether a step up to this one has set weights to zero, which later steps must leave at zero."""
        return any(getattr(step.own, "granularity", "channel") not in PHYSICAL for step in self.spec.steps[: index + 1])

    @contextmanager
    def telling_which(self, index: int) -> Iterator[None]:
        """Errors that are raised within say which step they are of, and point into the pipeline."""
        try:
            yield
        except ParedError as error:
            errors = [each | {"pointer": self.spec.pointer(index, each["pointer"])} for each in error.errors]
            detail = f"Step {index + 1} of {len(self.names)}, {self.names[index]}: {error.detail}"
            raise type(error)(detail, errors=errors) from error


def _with_zeros(file: ModelFile) -> frozenset[str]:
    """The weights of a model that have zeros."""
    module = load_model(file).module
    found = tensors(module)
    return frozenset(name for name in weight_layers(module) if bool((found[name] == 0).any()))


def trainings(job: CompressionSpec) -> dict[str, Training]:
    """The trainings of a job, by field."""
    found = {name: getattr(job, name) for name in type(job).model_fields}
    return {name: value for name, value in found.items() if isinstance(value, Training)}


def labelled(chain: Chain, texts: Sequence[Sequence[str]]) -> list[str]:
    """What steps say, with the step in front; what several of them say, once."""
    flat = [text for step in texts for text in step]
    return list(
        dict.fromkeys(
            text if flat.count(text) > 1 else f"{chain.label(index)}: {text}"
            for index, step in enumerate(texts)
            for text in step
        )
    )


def untrained(job: CompressionSpec) -> CompressionSpec:
    """The same job, trained for no epoch."""
    changes: dict[str, Any] = {
        name: training.model_copy(update={"epochs": 0}) for name, training in trainings(job).items()
    }
    if getattr(job, "compare_with_labels_only", False):
        changes["compare_with_labels_only"] = False
    return job.model_copy(update=changes)


def needs_training(job: CompressionSpec) -> bool:
    """Whether how much a prune step removes is found by training or measuring."""
    target = job.target if isinstance(job, PruneSpec) else None
    return target is not None and (not target.sizes or target.latency is not None)


class StepObserver:
    """Hands on what a step says, with its place in the pipeline: its part of the progress, its name on curves."""

    def __init__(
        self,
        outer: Observer,
        span: tuple[float, float],
        label: str,
        keep: Callable[[dict[str, Any]], None],
        resumed: dict[str, Any] | None,
    ) -> None:
        """Args: span: where the step begins and ends, as shares of the whole job; keep: is handed its checkpoints."""
        self._outer, self._span, self._label, self._keep, self._resumed = outer, span, label, keep, resumed

    def stage(self, name: Stage) -> None:
        """A stage of the step begins."""
        self._outer.stage(name)

    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None:
        """The step is this far."""
        begin, end = self._span
        self._outer.progress(begin + (end - begin) * fraction, epoch=epoch, epochs=epochs)

    def metric(self, name: str, value: float, *, step: int, phase: str) -> None:
        """One point of a curve of the step."""
        self._outer.metric(name, value, step=step, phase=f"{self._label}: {phase}")

    def log(self, text: str) -> None:
        """One line for the person who follows."""
        self._outer.log(text)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep this state of the step, within that of the pipeline."""
        self._keep(state)

    def resume(self) -> dict[str, Any] | None:
        """The newest state of the step, of an earlier attempt that died in it."""
        return self._resumed


class Beats(SilentObserver):
    """Says only that work goes on, at one place of the progress."""

    def __init__(self, outer: Observer, fraction: float = 0.0) -> None:
        self._outer, self._fraction = outer, fraction

    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None:
        """A sign of life."""
        self._outer.progress(self._fraction)
