"""The method of a distill job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.distillation.objective import hold_others, make_objective
from pared.compression.distillation.teachers import Teachers
from pared.compression.export.formats import Formats
from pared.compression.export.own_types import round_to_own_types
from pared.compression.export.settings import settings_of
from pared.compression.export.writers import usual_outputs
from pared.compression.jobs.distill_start import (
    before_teaching,
    called,
    made_samples,
    start_of,
    teacher_scores,
    teachers_of,
    timed_target,
    too_slow,
)
from pared.compression.jobs.stages import EXAMPLE_BATCH, Stages, assessed, beside, plain, settled
from pared.compression.jobs.tasking import data_of, for_student
from pared.compression.jobs.timing import batch_sizes
from pared.compression.loading import LoadedModel, confirmed, load_model
from pared.compression.measuring.finite import hold_finite_on_example
from pared.compression.measuring.quality import compare
from pared.compression.measuring.references import held_outputs
from pared.compression.measuring.size import count_bytes, count_parameters
from pared.compression.pruning.weights import Masks, zeros_held
from pared.compression.report.parts import layer_reports, measure_both, split_warning
from pared.compression.report.publishing import publish
from pared.compression.report.verdict import distill_verdict, kept_as_before
from pared.compression.tasks import TaskRules
from pared.compression.training.calibration import copied, learn_labels
from pared.compression.training.loop import Fit, fit, trainable
from pared.compression.training.seeds import seed_of
from pared.compression.work import Work
from pared.errors import ValidationError
from pared.reports import EpochRecord, FeaturePair, Report
from pared.specs import DistillSpec, Train


def distill(spec: DistillSpec, work: Work) -> Report:
    """Train a student to answer as the teacher does, measure it against the teacher, and export it.

    A resumed job goes on in the training and epoch of its newest checkpoint.
    """
    return distilled(spec, work)[0]


def distilled(spec: DistillSpec, work: Work) -> tuple[Report, LoadedModel]:
    """`distill`, with the student itself."""
    with settled(work):
        stages = Stages(work.observer)
        stages.enter("validate")
        teacher = load_model(work.models["teacher"], plain(spec.teacher_architecture))
        teacher = called(spec, teacher)
        made = None if work.dataset is not None else made_samples(spec, teacher, stages)
        spec, data = data_of(spec, work, teacher, made=made)
        assert data is not None  # noqa: S101 - there is a data set, or there are made samples
        upload_bytes = beside(lambda: count_bytes(work.models["teacher"].path))  # compressing it takes seconds
        example = data.example(EXAMPLE_BATCH)
        teacher = confirmed(teacher, example)
        teachers = teachers_of(spec, work, teacher, data, example)

        training = spec.train.on(data.samples("train"))
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": training.epochs})})

        stages.enter("baseline")
        baseline = None if made is not None else assessed(teacher.module, data, work, stages)
        scores = teacher_scores(spec, work, teachers, data, baseline, stages)

        stages.enter("compress")
        checkpoint = work.observer.resume()
        found = None if checkpoint is None else checkpoint.get("found")
        start = start_of(spec, work, teacher, data, example, stages, found=found)
        student, cut = start.loaded, start.cut
        if spec.example_inputs and made is None and teacher.given is None and student.given is None:
            text = "is for values among the arguments of teacher or student, and both take tensors alone: leave it out"
            raise ValidationError(f"`example_inputs` {text}.", errors=[{"pointer": "/example_inputs", "detail": text}])
        of_student = for_student(data, student, teacher)
        student = confirmed(student, example)
        if not trainable(student.module):
            raise ValidationError(
                "Nothing in the student can be trained: its file is frozen or marks every weight as fixed. Upload it "
                "as it was before freezing.",
                errors=[{"pointer": "/student", "detail": "has no trainable weights"}],
            )
        work.observer.log(
            f"the student has {count_parameters(student.module)[0]:,} parameters, the teacher "
            f"{count_parameters(teacher.module)[0]:,}"
        )
        before, better = before_teaching(spec, work, student.module, of_student, baseline, stages)
        began = start.report(spec, before)
        alone = copied(student.module) if spec.compare_with_labels_only else None
        asked = spec.outputs or usual_outputs(teacher)
        settings = settings_of(spec, student, example, asked)
        formats = Formats(asked, example, settings=settings, log=work.observer.log, tick=stages.beat)
        if checkpoint is None:
            formats.try_out(student)
            checkpoint = {"found": start.found, "taught": None, "taught_state": None, "fit": None}

        stages.enter("retrain")
        halves = 2 if spec.compare_with_labels_only else 1
        taught, features = _teach(
            spec,
            training,
            work,
            teacher,
            teachers,
            student,
            of_student,
            data.task,
            example,
            checkpoint,
            stages.span(0, halves),
        )
        alone_fit = None
        if alone is not None:
            alone_fit = _labels_only(
                spec, training, work, student, alone, of_student, (taught, features), checkpoint, stages.span(1, 2)
            )

        place(student.module.eval(), CPU)
        round_to_own_types(student)
        stages.enter("evaluate")
        final = None
        if baseline is not None:
            final = assessed(student.module, of_student, work, stages, upload=baseline, role="The student")
        place(teacher.module, CPU)
        hold_finite_on_example(teacher.module, student.module, example)
        comparison = None if baseline is None or final is None else compare(baseline, final)
        if comparison is not None and of_student.task.held is not None:
            outputs = held_outputs(of_student, teacher.module, student.module, tick=stages.beat)
            comparison = comparison.model_copy(update={"outputs": outputs})
        role = "The student that was trained on labels alone"
        without = None if alone is None else assessed(alone, of_student, work, stages, upload=baseline, role=role)
        layers = []
        if cut is not None:
            layers = layer_reports(teacher.module, student.module, cut.removed, cut.reasons, cut.output_dims)
        target = timed_target(spec)
        of_upload = upload_bytes()  # nothing else is to run while latency is measured
        measured = measure_both(teacher, student, example, work, stages.beat, batch_sizes(target))
        stages.enter("export")
        written = formats.write(student, work.directory)
        sizes = measured.with_files(of_upload, written.paths, baseline, final)
        alone_quality, against = None, None
        if without is not None and final is not None:
            alone_quality, against = without.quality, compare(without, final)
        report = publish(
            spec,
            work,
            verdict=distill_verdict(*sizes, comparison, alone_quality, against),
            sizes_and_scores=sizes,
            features=features,
            layers=layers,
            granularity=None,
            baseline=baseline,
            measured=measured,
            written=written,
            training=training,
            warnings=[
                *dict.fromkeys([*teacher.warnings, *student.warnings, *data.warnings]),
                *split_warning(None if made is not None else data),
                *better,
                *too_slow(target if work.timed else None, *sizes),
                *kept_as_before("distillation", taught.best_epoch),
                *dict.fromkeys([*taught.warnings, *([] if alone_fit is None else alone_fit.warnings)]),
            ],
            comparison=comparison,
            labels_only=alone_quality,
            student=began,
            teachers=scores,
            removed={} if cut is None else cut.removed,
            history=taught.history + (alone_fit.history if alone_fit else []),
            best_epoch=taught.best_epoch,
            seconds=stages.finish(),
        )
        return report, student


def _teach(
    spec: DistillSpec,
    training: Train,
    work: Work,
    teacher: LoadedModel,
    teachers: Teachers,
    student: LoadedModel,
    data: Data,
    of_teacher: TaskRules,
    example: Sequence[Tensor],
    checkpoint: dict[str, Any],
    span: tuple[float, float],
) -> tuple[Fit, list[FeaturePair]]:
    """Train the student on the teacher, or take it up from a checkpoint that was made after that.

    Returns:
        What came of it, and the pairs of inner layers that the loss compared.
    """
    if checkpoint["taught"] is not None:
        student.module.load_state_dict(checkpoint["taught_state"])
        done = checkpoint["taught"]
        history = [EpochRecord.model_validate(record) for record in done["history"]]
        pairs = [FeaturePair.model_validate(pair) for pair in done.get("features", [])]
        return Fit(history, done["best_epoch"], done["best_score"]), pairs
    teaching = make_objective(
        spec.loss,
        teacher.module,
        student.module,
        data,
        example,
        task=data.task,
        teacher_task=of_teacher,
        seed=spec.seed,
        device=work.device,
        augment=spec.train.augment,
        teachers=teachers,
    )
    teaching = hold_others(teaching, teacher.module, data.task, device=work.device, augment=spec.train.augment)
    for pair in teaching.features:
        work.observer.log(f"{pair.term}: {pair.student} learns from the teacher's {pair.teacher}, {pair.compared}")
    fitted = fit(
        student.module,
        teaching.data,
        training,
        teaching.loss,
        task=data.task,
        seed=seed_of(spec.seed, "train"),
        phase="distill",
        masks=_zeros_held(student.module, student),
        companion=teaching.companion,
        device=work.device,
        record=work.record_steps,
        ranks=work.ranks,
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint(checkpoint | {"taught": None, "taught_state": None, "fit": state}),
        resume=checkpoint["fit"],
    )
    return fitted, teaching.features


def _labels_only(
    spec: DistillSpec,
    training: Train,
    work: Work,
    student: LoadedModel,
    alone: nn.Module,
    data: Data,
    taught: tuple[Fit, list[FeaturePair]],
    checkpoint: dict[str, Any],
    span: tuple[float, float],
) -> Fit:
    """Train the same start on labels alone: the same epochs, and the same samples in the same order."""
    taught_state = {name: tensor.detach().cpu() for name, tensor in student.module.state_dict().items()}
    fitted, features = taught
    done = {
        "history": [record.model_dump() for record in fitted.history],
        "best_epoch": fitted.best_epoch,
        "best_score": fitted.best_score,
        "features": [pair.model_dump() for pair in features],
    }
    return fit(
        alone,
        data,
        training,
        learn_labels(data.task, spec.train.augment),
        task=data.task,
        seed=seed_of(spec.seed, "train"),
        phase="labels only",
        masks=_zeros_held(alone, student),
        device=work.device,
        record=work.record_steps,
        ranks=work.ranks,
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint(
            checkpoint | {"taught": done, "taught_state": taught_state, "fit": state}
        ),
        resume=checkpoint["fit"] if checkpoint["taught"] is not None else None,
    )


def _zeros_held(module: nn.Module, student: LoadedModel) -> Masks | None:
    """The zeros that masks in the student's file stood for."""
    zeros = zeros_held(module, student.sparse)
    return Masks(zeros) if zeros else None
