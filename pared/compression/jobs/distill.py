"""The method of a distill job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.distillation.objective import hold_others, make_objective
from pared.compression.export.formats import Formats
from pared.compression.export.own_types import round_to_own_types
from pared.compression.export.settings import settings_of
from pared.compression.export.writers import usual_outputs
from pared.compression.jobs.inputs import called_on_tensors
from pared.compression.jobs.stages import EXAMPLE_BATCH, Stages, assessed, beside, plain, settled
from pared.compression.jobs.tasking import data_of, for_student
from pared.compression.loading import LoadedModel, confirmed, load_model
from pared.compression.loading.arguments import needs_values, takes
from pared.compression.measuring.finite import hold_finite_on_example
from pared.compression.measuring.quality import compare
from pared.compression.measuring.references import held_outputs
from pared.compression.measuring.size import count_bytes, count_parameters
from pared.compression.pruning.channels import ChannelRemoval, remove_channels
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
from pared.specs import DistillSpec, FromTeacher, Train


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
        teacher = _on_tensors(spec, teacher)
        spec, data = data_of(spec, work, teacher)
        if data is None:
            raise ValidationError(
                "Distillation needs a data set.", errors=[{"pointer": "/dataset", "detail": "a data set is needed"}]
            )
        upload_bytes = beside(lambda: count_bytes(work.models["teacher"].path))  # compressing it takes seconds
        example = data.example(EXAMPLE_BATCH)
        teacher = confirmed(teacher, example)

        training = spec.train.on(data.samples("train"))
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": training.epochs})})

        stages.enter("baseline")
        baseline = assessed(teacher.module, data, work, stages)

        stages.enter("compress")
        student, removal = _student(spec, work, teacher, example)
        if spec.example_inputs and teacher.given is None and student.given is None:
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
        alone = copied(student.module) if spec.compare_with_labels_only else None
        asked = spec.outputs or usual_outputs(teacher)
        settings = settings_of(spec, student, example, asked)
        formats = Formats(asked, example, settings=settings, log=work.observer.log, tick=stages.beat)
        checkpoint = work.observer.resume()
        if checkpoint is None:
            formats.try_out(student)
            checkpoint = {"taught": None, "taught_state": None, "fit": None}

        stages.enter("retrain")
        halves = 2 if spec.compare_with_labels_only else 1
        taught, features = _teach(
            spec, training, work, teacher, student, of_student, data.task, example, checkpoint, stages.span(0, halves)
        )
        alone_fit = None
        if alone is not None:
            alone_fit = _labels_only(
                spec, training, work, student, alone, of_student, (taught, features), checkpoint, stages.span(1, 2)
            )

        place(student.module.eval(), CPU)
        round_to_own_types(student)
        stages.enter("evaluate")
        final = assessed(student.module, of_student, work, stages, upload=baseline, role="The student")
        place(teacher.module, CPU)
        hold_finite_on_example(teacher.module, student.module, example)
        comparison = compare(baseline, final)
        if of_student.task.held is not None:
            outputs = held_outputs(of_student, teacher.module, student.module, tick=stages.beat)
            comparison = comparison.model_copy(update={"outputs": outputs})
        role = "The student that was trained on labels alone"
        without = None if alone is None else assessed(alone, of_student, work, stages, upload=baseline, role=role)
        layers = []
        if removal is not None:
            layers = layer_reports(
                teacher.module, student.module, removal.removed, removal.reasons, removal.output_dims
            )
        of_upload = upload_bytes()  # nothing else is to run while latency is measured
        measured = measure_both(teacher, student, example, work, stages.beat)
        stages.enter("export")
        written = formats.write(student, work.directory)
        before, after = measured.with_files(of_upload, written.paths, baseline, final)
        alone_quality, against = (None, None) if without is None else (without.quality, compare(without, final))
        report = publish(
            spec,
            work,
            verdict=distill_verdict(before, after, comparison, alone_quality, against),
            sizes_and_scores=(before, after),
            features=features,
            layers=layers,
            granularity=None,
            baseline=baseline,
            measured=measured,
            written=written,
            training=training,
            warnings=[
                *dict.fromkeys([*teacher.warnings, *student.warnings, *data.warnings]),
                *split_warning(data),
                *kept_as_before("distillation", taught.best_epoch),
                *dict.fromkeys([*taught.warnings, *([] if alone_fit is None else alone_fit.warnings)]),
            ],
            comparison=comparison,
            labels_only=alone_quality,
            removed={} if removal is None else removal.removed,
            history=taught.history + (alone_fit.history if alone_fit else []),
            best_epoch=taught.best_epoch,
            seconds=stages.finish(),
        )
        return report, student


def _student(
    spec: DistillSpec, work: Work, teacher: LoadedModel, example: Sequence[Tensor]
) -> tuple[LoadedModel, ChannelRemoval | None]:
    """The student as it starts; of one cut from the teacher also what was removed."""
    if isinstance(spec.student, FromTeacher):
        removal = remove_channels(teacher, example, amount=1 - spec.student.from_teacher.width, scope="layer")
        return removal.loaded, removal
    if isinstance(spec.student, str):
        loaded = _on_tensors(spec, load_model(work.models["student"], plain(spec.student_architecture)))
    else:
        torch.manual_seed(seed_of(spec.seed, "student"))
        module = build(spec.student)
        loaded = LoadedModel(module.eval(), "state_dict", "state_dict", architecture=module.architecture)
    return loaded, None


def _on_tensors(spec: DistillSpec, loaded: LoadedModel) -> LoadedModel:
    """A teacher or an uploaded student as it is called on tensors alone; the other of the two may take other arguments.

    Raises:
        ValidationError: it must be given values, and they are missing or do not fit.
    """
    specs = spec.example_inputs or []
    if loaded.format != "torchscript" or not isinstance(loaded.module, torch.jit.ScriptModule):
        return loaded
    described = needs_values(loaded.module) or takes(loaded.module, len(specs))
    return called_on_tensors(specs if described else None, loaded, is_run=True)


def _teach(
    spec: DistillSpec,
    training: Train,
    work: Work,
    teacher: LoadedModel,
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
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint({"taught": None, "taught_state": None, "fit": state}),
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
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint({"taught": done, "taught_state": taught_state, "fit": state}),
        resume=checkpoint["fit"] if checkpoint["taught"] is not None else None,
    )


def _zeros_held(module: nn.Module, student: LoadedModel) -> Masks | None:
    """The zeros that masks in the student's file stood for."""
    zeros = zeros_held(module, student.sparse)
    return Masks(zeros) if zeros else None
