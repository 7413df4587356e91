"""The method of a pipeline: its steps one after the other, each by the method of its type, and one report."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pared.compression.jobs.against_upload import compared_with_upload, is_of_upload
from pared.compression.jobs.pipeline_steps import MODEL_FILES, Chain, StepObserver, labelled, trainings
from pared.compression.jobs.plan_pipeline import first_file_bytes, look_ahead, shares_of
from pared.compression.report.parts import reproduce
from pared.compression.report.verdict import goal_sentence, not_written, pipeline_verdict
from pared.compression.work import Work
from pared.job_types import type_of
from pared.reports import Goal, Measurement, Report, StepReport
from pared.specs import CompressionSpec, PipelineSpec, Target

REPORT = "report.json"
_AHEAD = 0.03  # of the progress: the steps without their training
_SOME_EPOCHS = 30  # of a training whose number hangs on the data


def pipeline(spec: PipelineSpec, work: Work) -> Report:
    """Go through the steps, keep what each one makes, and compare the last result with the upload.

    All steps are first gone through without training: what one of them would refuse is refused before any trains. A
    resumed job goes on in the step, and there in the epoch, of its newest checkpoint.

    Raises:
        ParedError: a step cannot be done; the text says which.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=work.directory) as folder:
        run = _Run(Chain(spec, work), Path(folder))
        run.begin(work.observer.resume())
        while not run.ended:
            run.step()
        return run.publish()


class _Run:
    """A pipeline as far as it has come. Each step has a folder of its own there, until its files become artifacts."""

    def __init__(self, chain: Chain, folder: Path) -> None:
        self._chain, self._folder = chain, folder
        self._target: Target | None = None
        self._reports: list[Report] = []
        self._files: list[dict[str, Tensor]] = []  # of each step that is done, as a checkpoint holds them
        self._resumed: dict[str, Any] | None = None
        self._previous = chain.upload

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return len(self._reports) == len(self._chain.names)

    def begin(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Look ahead at all steps, or take up what an earlier attempt had come to."""
        if checkpoint is None:
            self._look_ahead()
            return
        target = checkpoint["target"]
        self._target = None if target is None else Target.model_validate(target)
        for index, (report, files) in enumerate(zip(checkpoint["reports"], checkpoint["files"], strict=True)):
            folder = self._directory(index)
            for name, content in files.items():
                (folder / name).write_bytes(content.numpy().tobytes())
            self._done(Report.model_validate_json(report))
        self._resumed = checkpoint["state"]

    def _look_ahead(self) -> None:
        chain, observer = self._chain, self._chain.work.observer
        observer.stage("validate")
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            outlook = look_ahead(chain, Path(folder))
        self._target = outlook.target
        if outlook.target is not None:
            observer.log(f"{outlook.tries} sizes of the pruned model were tried without training, to meet the target")
        self._keep(None)

    def step(self) -> None:
        """Do the next step."""
        chain, index = self._chain, len(self._reports)
        observer = chain.work.observer
        observer.stage("validate")
        observer.log(f"step {index + 1} of {len(chain.names)}: {chain.names[index]}")
        of_step = StepObserver(observer, self._span(index), chain.label(index), self._keep, self._resumed)
        self._resumed = None
        with chain.telling_which(index):
            job = self._job(index)
            work = chain.work_on(index, self._previous, self._directory(index), of_step)
            report = type_of(job).load_method()(job, work)
        assert isinstance(report, Report)  # noqa: S101 - all that makes a model of one reports so
        self._done(report)
        if not self.ended:
            self._keep(None)

    def _job(self, index: int) -> CompressionSpec:
        return self._chain.job(index, self._target if index == self._chain.spec.searched else None)

    def _done(self, report: Report) -> None:
        index = len(self._reports)
        self._reports.append(report)
        if not self.ended:
            self._files.append(_read(self._directory(index)))
            self._previous = self._chain.result(index, self._directory(index))

    def _directory(self, index: int) -> Path:
        folder = self._folder / self._chain.label(index)
        folder.mkdir(exist_ok=True)
        return folder

    def _span(self, index: int) -> tuple[float, float]:
        """The part of the progress that a step has: by the epochs that it trains."""
        jobs = [self._job(each) for each in range(len(self._chain.names))]
        weights = [
            1 + sum(_SOME_EPOCHS if each.epochs is None else each.epochs for each in trainings(job).values())
            for job in jobs
        ]
        unit = (1 - _AHEAD) / sum(weights)
        return _AHEAD + unit * sum(weights[:index]), _AHEAD + unit * sum(weights[: index + 1])

    def _keep(self, state: dict[str, Any] | None) -> None:
        """Keep a checkpoint: what is done, and a state of the step that runs."""
        target = None if self._target is None else self._target.model_dump()
        self._chain.work.observer.checkpoint(
            {
                "target": target,
                "reports": [report.model_dump_json() for report in self._reports],
                "files": self._files,
                "state": state,
            }
        )

    # -- the end ----------------------------------------------------------------------------------

    def publish(self) -> Report:
        """Make the files of all steps artifacts, and report on all of it."""
        chain, last = self._chain, self._reports[-1]
        spec, work = chain.spec, chain.work
        result = self._directory(len(self._reports) - 1)
        compared = compared_with_upload(chain, self._reports, result)
        names = self._publish_files()
        before, after, comparison = compared.before, compared.after, compared.comparison
        goal = _judged(spec, before, after, {name: (work.directory / name).stat().st_size for name in names[-1]})
        if goal is not None and spec.searched is not None:
            found = self._reports[spec.searched].goal
            goal.amount = None if found is None else found.amount
        verdict = pipeline_verdict(chain.names, before, after, comparison) + not_written(last.failed_outputs)
        outputs = [work.directory / name for name in last.reproduce.outputs]
        jobs = [self._job(index) for index in range(len(chain.names))]
        taught = [training for job in jobs for training in trainings(job).values()]
        report = Report(
            type=spec.type,
            task=last.task,
            verdict=verdict if goal is None else f"{goal.sentence} {verdict}",
            goal=goal,
            before=before,
            after=after,
            comparison=comparison,
            steps=[self._row(index, names[index]) for index in range(len(self._reports))],
            history=[
                record.model_copy(update={"phase": f"{chain.label(index)}: {record.phase}"})
                for index, each in enumerate(self._reports)
                for record in each.history
            ],
            frontier=[] if spec.with_search is None else self._reports[spec.with_search].frontier,
            seconds={chain.label(index): sum(each.seconds.values()) for index, each in enumerate(self._reports)},
            failed_outputs=last.failed_outputs,
            warnings=[*labelled(chain, list(map(self._warnings, self._reports))), *compared.notes],
            sandbox=work.sandbox,
            reproduce=reproduce(spec, work, outputs, taught[-1] if taught else None),
        )
        (work.directory / REPORT).write_text(report.model_dump_json(indent=1) + "\n")
        work.observer.log(report.verdict)
        work.observer.progress(1.0)
        return report

    def _warnings(self, report: Report) -> list[str]:
        """Those of a step. What it calls the upload is what it began with, where it compared its result with that."""
        if is_of_upload(self._chain, report):
            return report.warnings
        return [re.sub(r"\bthe upload\b", "the result of the step before", text) for text in report.warnings]

    def _publish_files(self) -> list[list[str]]:
        """Move the files of each step to the artifacts. Returns the names that they have there, by step.

        Those of the last step keep their names, as those of any job; before all others the step is named.
        """
        chain, names = self._chain, []
        for index in range(len(chain.names)):
            moved = []
            for path in sorted(self._directory(index).iterdir()):
                plain = chain.is_last(index) and path.name != REPORT
                name = path.name if plain else f"{chain.label(index)}.{path.name}"
                path.replace(chain.work.directory / name)
                moved.append(name)
            names.append(moved)
        return names

    def _row(self, index: int, names: Sequence[str]) -> StepReport:
        report = self._reports[index]
        endings = tuple(MODEL_FILES.values())
        return StepReport(
            type=report.type,
            verdict=report.verdict,
            parameters=report.after.parameters,
            nonzero_parameters=report.after.nonzero_parameters,
            macs=report.after.macs,
            file_bytes=report.after.file_bytes,
            quality=report.after.quality,
            seconds=sum(report.seconds.values()),
            artifact=next((name for name in names if name.endswith(endings)), None),
        )


def _read(folder: Path) -> dict[str, Tensor]:
    """The files of a folder, as a checkpoint holds them: bytes, by name."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in contents.items() if content
    }


def _judged(spec: PipelineSpec, before: Measurement, after: Measurement, files: Mapping[str, int]) -> Goal | None:
    """Whether the last result meets the target of the whole, by the report's own measurements."""
    target = spec.target
    if target is None:
        return None
    reached = shares_of(spec, target, before, after, first_file_bytes(spec, files))
    if target.latency is not None:
        pairs = zip(before.latency, after.latency, strict=False)
        of_batch = [(old, new) for old, new in pairs if old.batch_size == new.batch_size == target.latency_batch_size]
        if of_batch:
            reached["latency"] = of_batch[0][1].p50_ms / of_batch[0][0].p50_ms
    if target.quality_drop is not None and before.quality is not None and after.quality is not None:
        reached[target.quality_field] = before.quality.test.value - after.quality.test.value
    return Goal(
        status="infeasible" if target.missed(reached) else "met",
        target=target.goals,
        reached=reached,
        sentence=goal_sentence(target, reached, before.quality, after.quality, None),
    )
