"""The methods that a job can name, from spec and files to artifacts and report: a literal table, a function each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.coupling import input_norms
from pared.compression.criteria import Evidence
from pared.compression.data import Data, check_fits, inspect_dataset, load_dataset
from pared.compression.distill import lesson
from pared.compression.export import export
from pared.compression.intake import (
    LoadedModel,
    example_from_specs,
    guess_example_inputs,
    inspect_model,
    inspect_weights,
    load_model,
)
from pared.compression.measure import (
    Assessment,
    assess,
    batch_of,
    compare,
    count_parameters,
    own_failures,
)
from pared.compression.prune import (
    ChannelRemoval,
    Masks,
    apply_removal,
    compose_removed,
    remove_channels,
    step_amounts,
    tensors,
    tied_names,
    unmatched_patterns,
    weight_layers,
    weight_masks,
)
from pared.compression.reporting import (
    Removed,
    layer_reports,
    measure_both,
    publish,
    reproduce,
    softmax_warning,
    split_warning,
)
from pared.compression.train import Fit, copied, fit, learn_labels, loss_gradients, seed_of, some_batches, trainable
from pared.compression.verdict import distill_verdict, kept_as_before, prune_verdict, warnings_of
from pared.compression.work import Observer, Stage, Work
from pared.errors import ModelFailed, NothingToPrune, ValidationError
from pared.reports import (
    DatasetInspection,
    EpochRecord,
    ModelInspection,
    Quality,
    Report,
)
from pared.specs import DistillSpec, FromTeacher, InspectSpec, PruneSpec, Spec, Train

_THIN = 0.1  # a layer left with a smaller share of its channels is pointed out
_EXAMPLE_BATCH = 4  # more than one, so that nothing hides in a dimension of size 1

# Where each stage of a job begins, as a share of the whole; training is most of the work.
_BEGINS: dict[Stage, float] = {
    "validate": 0.0,
    "baseline": 0.02,
    "compress": 0.06,
    "retrain": 0.1,
    "evaluate": 0.9,
    "export": 0.97,
}


# -- inspect ------------------------------------------------------------------------------------


def inspect(spec: InspectSpec, work: Work) -> ModelInspection | DatasetInspection:
    """Open an upload and say what is in it. `work` holds one model, or else a data set."""
    with _settled(work):
        work.observer.stage("validate")
        if work.dataset is not None:
            return inspect_dataset(work.dataset)
        (file,) = work.models.values()
        architecture = _plain(spec.architecture)
        inspection = inspect_weights(file) if architecture is None and file.architecture is None else None
        if inspection is None:
            loaded = load_model(file, architecture)
            inspection = inspect_model(loaded, guess_example_inputs(loaded))
        return inspection.model_copy(update={"sandbox": work.sandbox})


# -- prune --------------------------------------------------------------------------------------


def prune(spec: PruneSpec, work: Work) -> Report:
    """Remove weights or channels, retrain, measure against the upload, and export.

    A resumed job goes on in the step and epoch of its newest checkpoint.
    """
    return pruned(spec, work)[0]


def pruned(spec: PruneSpec, work: Work) -> tuple[Report, LoadedModel]:
    """`prune`, with the model itself."""
    with _settled(work):
        stages = _Stages(work.observer)
        stages.enter("validate")
        original = load_model(work.models["model"], _plain(spec.architecture))
        _check_patterns(spec, original.module)
        data = _data(spec, work)
        example = _example(spec, original, data)

        stages.enter("baseline")
        baseline = None if data is None else _assess(original.module, data, spec, work, stages)

        state = _Pruning(replace(original, module=copied(original.module)))
        state.retrain, skipped = _retraining(spec, original, data)
        checkpoint = work.observer.resume()
        if checkpoint is not None:
            state.restore(checkpoint, original, example)
        amounts = step_amounts(spec)
        for step, amount in enumerate(amounts):
            if checkpoint is not None and step < checkpoint["step"]:
                continue
            resumed = checkpoint["fit"] if checkpoint is not None and step == checkpoint["step"] else None
            if resumed is None:
                stages.enter("compress")
                evidence = None if data is None else state.evidence(spec, data, work.device, step)
                if not state.remove(spec, original, example, step, amount, evidence, last=step == len(amounts) - 1):
                    work.observer.log(
                        f"step {step + 1} of {len(amounts)} is less than one channel, and is left to a later one"
                    )
                    continue
                work.observer.log(state.progress_line(spec, step, len(amounts)))
                if data is not None and state.retrain is not None and spec.schedule == "one_shot":
                    state.before_retraining = _assess(state.loaded.module, data, spec, work, stages).quality
            if data is not None and state.retrain is not None:
                stages.enter("retrain")
                state.fit_step(spec, data, work, stages.span(step, len(amounts)), step, resumed)

        smaller = replace(state.loaded, module=state.loaded.module.cpu().eval())
        if state.masks is not None:
            state.masks.apply(smaller.module)
        stages.enter("evaluate")
        final = None if data is None else _assess(smaller.module, data, spec, work, stages)
        comparison = None if baseline is None or final is None else compare(baseline, final)
        layers = layer_reports(original.module, smaller.module, state.removed, state.reasons, state.output_dims)
        measured = measure_both(original, smaller, example, work, stages.beat)
        stages.enter("export")
        paths = export(smaller, example, spec.outputs, work.directory)
        before, after = measured.with_files(work.models["model"].path, paths, baseline, final)
        report = Report(
            type="prune",
            verdict=prune_verdict(spec.granularity, before, after, comparison),
            before=before,
            after=after,
            before_retraining=state.before_retraining,
            comparison=comparison,
            layers=layers,
            removed=state.removed,
            history=state.history,
            best_epoch=state.best_epoch,
            seconds=stages.finish(),
            warnings=[
                *original.warnings,
                *([] if data is None else data.warnings),
                *split_warning(data),
                *skipped,
                *kept_as_before(
                    "retraining" if spec.schedule == "one_shot" else "retraining after the last step", state.best_epoch
                ),
                *state.warnings(spec, original),
                *softmax_warning(baseline),
                *measured.warnings,
                *warnings_of(spec.granularity, before, after, layers),
            ],
            sandbox=work.sandbox,
            reproduce=reproduce(spec, work, paths),
        )
        publish(report, work)
        return report, smaller


class _Pruning:
    """The model on its way through the steps of a schedule, and all that a checkpoint must hold of it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.retrain: Train | None = None
        self.masks: Masks | None = None
        self.removed: Removed = {}
        self.reasons: dict[str, str] = {}
        self.output_dims: dict[str, int] = {}
        self.units: dict[str, int] = {}  # channels of each group that could be chosen from at the start
        self.gone = 0
        self.before_retraining: Quality | None = None
        self.history: list[EpochRecord] = []
        self.best_epoch: int | None = None

    def remove(
        self,
        spec: PruneSpec,
        original: LoadedModel,
        example: Sequence[Tensor],
        step: int,
        amount: float,
        evidence: Evidence | None,
        *,
        last: bool,
    ) -> bool:
        """One step of the schedule, up to `amount` in all. False: it rounds to nothing, and a later step follows."""
        module = self.loaded.module.cpu().eval()
        generator = torch.Generator().manual_seed(seed_of(spec.seed, "prune", step))
        choice: dict[str, Any] = {
            "criterion": spec.criterion,
            "scope": spec.scope,
            "include": spec.include,
            "exclude": spec.exclude,
        }
        choice |= {"evidence": evidence, "generator": generator}
        if spec.granularity == "weight":
            self.masks = weight_masks(module, amount=amount, **choice)
            self.masks.apply(module)
            layer_of, names_of = weight_layers(module), tied_names(module)
            covered = {layer_of[alias] for name in self.masks.kept for alias in names_of[name]}
            self.reasons = {layer: "left out by include/exclude" for layer in layer_of.values() if layer not in covered}
            return True
        try:
            removal: ChannelRemoval = remove_channels(
                self.loaded,
                example,
                amount=amount,
                upload_units=self.units or None,
                gone=self.gone,
                **choice,
            )
        except NothingToPrune:
            if last and not self.gone:
                raise
            return False
        self.output_dims = self.output_dims or removal.output_dims
        self.units = self.units or removal.units
        self.gone += removal.removed_units
        shapes = {name: tuple(tensor.shape) for name, tensor in original.module.state_dict().items()}
        self.removed = compose_removed(self.removed, removal.removed, shapes)
        self.reasons = removal.reasons | self.reasons
        self.loaded = removal.loaded
        return True

    def evidence(self, spec: PruneSpec, data: Data, device: str, step: int) -> Evidence:
        """For the criteria that look at data."""
        module, seed = self.loaded.module, seed_of(spec.seed, "evidence", step)

        def input_norms_of_some() -> Mapping[str, Tensor]:
            return input_norms(module, (inputs for inputs, _ in some_batches(data, seed)))

        return Evidence(partial(loss_gradients, module, data, spec.task, seed=seed, device=device), input_norms_of_some)

    def fit_step(
        self,
        spec: PruneSpec,
        data: Data,
        work: Work,
        span: tuple[float, float],
        step: int,
        resumed: dict[str, Any] | None,
    ) -> None:
        """Retrain after one step."""
        assert self.retrain is not None  # noqa: S101 - the caller asks first
        earlier = list(self.history)

        def keep(state: dict[str, Any]) -> None:
            work.observer.checkpoint(
                {
                    "step": step,
                    "removed": self.removed,
                    "reasons": self.reasons,
                    "output_dims": self.output_dims,
                    "units": self.units,
                    "gone": self.gone,
                    "masks": None if self.masks is None else self.masks.state(),
                    "before_retraining": None
                    if self.before_retraining is None
                    else self.before_retraining.model_dump(),
                    "history": [record.model_dump() for record in earlier],
                    "fit": state,
                }
            )

        found = fit(
            self.loaded.module,
            data,
            self.retrain,
            learn_labels(spec.task),
            task=spec.task,
            seed=seed_of(spec.seed, "retrain", step),
            phase="retrain" if spec.schedule == "one_shot" else f"retrain {step + 1}",
            masks=self.masks,
            device=work.device,
            observer=work.observer,
            span=span,
            keep=keep,
            resume=resumed,
        )
        self.history = earlier + found.history
        self.best_epoch = found.best_epoch

    def restore(self, checkpoint: dict[str, Any], original: LoadedModel, example: Sequence[Tensor]) -> None:
        """Take up what an earlier attempt had reached; the weights come with the training state."""
        self.removed, self.reasons = checkpoint["removed"], checkpoint["reasons"]
        self.output_dims = checkpoint["output_dims"]
        self.units, self.gone = checkpoint["units"], checkpoint["gone"]
        self.loaded = apply_removal(self.loaded, example, self.removed)
        self.masks = None if checkpoint["masks"] is None else Masks.from_state(checkpoint["masks"])
        if checkpoint["before_retraining"] is not None:
            self.before_retraining = Quality.model_validate(checkpoint["before_retraining"])
        self.history = [EpochRecord.model_validate(record) for record in checkpoint["history"]]

    def progress_line(self, spec: PruneSpec, step: int, steps: int) -> str:
        """What the person who follows is told after a removal."""
        of = f"step {step + 1} of {steps}: " if steps > 1 else ""
        if spec.granularity == "weight" and self.masks is not None:
            return f"{of}{100 * self.masks.sparsity():.2f} % of the prunable weights are zero"
        return f"{of}{self.gone} of {sum(self.units.values())} removable channels are gone"

    def warnings(self, spec: PruneSpec, original: LoadedModel) -> list[str]:
        """Where the outcome is not what the spec seems to ask for."""
        notes = []
        if spec.granularity == "channel":
            wanted = sum(round(spec.amount * units) for units in self.units.values())
            if spec.scope == "global":
                wanted = round(spec.amount * sum(self.units.values()))
            if self.gone < wanted:
                notes.append(
                    f"{self.gone} of {sum(self.units.values())} removable channels went, where an amount of "
                    f"{spec.amount:g} asks for {wanted}: each group of layers keeps at least one, and one "
                    "whose removal did not hold keeps all. The layers' own lines say which."
                )
            if spec.scope == "global" and (thin := self._thin(original)):
                notes.append(
                    f"Little is left of {', '.join(thin)}. The scope `layer` takes the same share of each layer; "
                    "`exclude` keeps a layer whole."
                )
        elif self.masks is not None and self.retrain is not None:
            weights = tensors(original.module)
            revived = sum(int(((weights[name] == 0) & kept).sum()) for name, kept in self.masks.kept.items())
            if revived:
                notes.append(
                    f"{revived:,} weights beyond this amount were zero in the upload already, and were free to change "
                    "in retraining. Give a larger amount to keep them at zero."
                )
        return notes

    def _thin(self, original: LoadedModel) -> list[str]:
        """The layers that are left with less than a tenth of their channels."""
        weights = tensors(original.module)
        told = {}
        for name, dim in self.output_dims.items():
            size = weights[name].shape[dim]
            left = size - len(self.removed.get(name, {}).get(str(dim), []))
            if left < _THIN * size:
                told[weight_layers(original.module)[name]] = f"{left} of {size}"
        return [f"{layer} ({left} channels)" for layer, left in told.items()]


def _retraining(spec: PruneSpec, original: LoadedModel, data: Data | None) -> tuple[Train | None, list[str]]:
    """The retraining to do, if any, and why not, where it was asked for and cannot be done."""
    if data is None or spec.retrain is None or spec.retrain.epochs == 0:
        return None, []
    if not trainable(original.module):
        why = (
            "There was no retraining: every weight of this file is marked as not to be trained (requires_grad=False). "
            "Save the model with its weights unfrozen to have it retrained."
        )
        return None, [why]
    return spec.retrain, []


# -- distill ------------------------------------------------------------------------------------


def distill(spec: DistillSpec, work: Work) -> Report:
    """Train a student to answer as the teacher does, measure it against the teacher, and export it.

    A resumed job goes on in the training and epoch of its newest checkpoint.
    """
    return distilled(spec, work)[0]


def distilled(spec: DistillSpec, work: Work) -> tuple[Report, LoadedModel]:
    """`distill`, with the student itself."""
    with _settled(work):
        stages = _Stages(work.observer)
        stages.enter("validate")
        teacher = load_model(work.models["teacher"], _plain(spec.teacher_architecture))
        data = _data(spec, work)
        if data is None:
            raise ValidationError(
                "Distillation needs a data set.", errors=[{"pointer": "/dataset", "detail": "a data set is needed"}]
            )
        check_fits(teacher, data)
        example = data.example(_EXAMPLE_BATCH)

        stages.enter("baseline")
        baseline = _assess(teacher.module, data, spec, work, stages)

        stages.enter("compress")
        student, removal = _student(spec, work, teacher, data, example)
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
        checkpoint = work.observer.resume() or {"taught": None, "taught_state": None, "fit": None}

        stages.enter("retrain")
        halves = 2 if spec.compare_with_labels_only else 1
        taught = _teach(spec, work, teacher, student, data, example, checkpoint, stages.span(0, halves))
        alone_fit = None
        if alone is not None:
            alone_fit = _labels_only(spec, work, student, alone, data, taught, checkpoint, stages.span(1, 2))

        student = replace(student, module=student.module.cpu().eval())
        stages.enter("evaluate")
        final = _assess(student.module, data, spec, work, stages)
        comparison = compare(baseline, final)
        without = None if alone is None else _assess(alone, data, spec, work, stages)
        layers = []
        if removal is not None:
            layers = layer_reports(
                teacher.module, student.module, removal.removed, removal.reasons, removal.output_dims
            )
        measured = measure_both(teacher, student, example, work, stages.beat)
        stages.enter("export")
        paths = export(student, example, spec.outputs, work.directory)
        before, after = measured.with_files(work.models["teacher"].path, paths, baseline, final)
        alone_quality, against = (None, None) if without is None else (without.quality, compare(without, final))
        report = Report(
            type="distill",
            verdict=distill_verdict(before, after, comparison, alone_quality, against),
            before=before,
            after=after,
            comparison=comparison,
            labels_only=alone_quality,
            layers=layers,
            removed={} if removal is None else removal.removed,
            history=taught.history + (alone_fit.history if alone_fit else []),
            best_epoch=taught.best_epoch,
            seconds=stages.finish(),
            warnings=[
                *dict.fromkeys([*teacher.warnings, *student.warnings, *data.warnings]),
                *split_warning(data),
                *kept_as_before("distillation", taught.best_epoch),
                *softmax_warning(baseline),
                *measured.warnings,
                *warnings_of(None, before, after, layers),
            ],
            sandbox=work.sandbox,
            reproduce=reproduce(spec, work, paths),
        )
        publish(report, work)
        return report, student


def _student(
    spec: DistillSpec, work: Work, teacher: LoadedModel, data: Data, example: Sequence[Tensor]
) -> tuple[LoadedModel, ChannelRemoval | None]:
    """The student as it starts; of one cut from the teacher also what was removed."""
    if isinstance(spec.student, FromTeacher):
        removal = remove_channels(teacher, example, amount=1 - spec.student.from_teacher.width, scope="layer")
        return removal.loaded, removal
    if isinstance(spec.student, str):
        loaded = load_model(work.models["student"], _plain(spec.student_architecture))
    else:
        torch.manual_seed(seed_of(spec.seed, "student"))
        module = build(spec.student)
        loaded = LoadedModel(module.eval(), "state_dict", "state_dict", architecture=module.architecture)
    check_fits(loaded, data)
    return loaded, None


def _teach(
    spec: DistillSpec,
    work: Work,
    teacher: LoadedModel,
    student: LoadedModel,
    data: Data,
    example: Sequence[Tensor],
    checkpoint: dict[str, Any],
    span: tuple[float, float],
) -> Fit:
    """Train the student on the teacher, or take it up from a checkpoint that was made after that."""
    if checkpoint["taught"] is not None:
        student.module.load_state_dict(checkpoint["taught_state"])
        done = checkpoint["taught"]
        history = [EpochRecord.model_validate(record) for record in done["history"]]
        return Fit(history, done["best_epoch"], done["best_score"])
    teaching = lesson(
        spec.loss,
        teacher.module,
        student.module,
        data,
        example,
        task=spec.task,
        seed=spec.seed,
        device=work.device,
    )
    return fit(
        student.module,
        teaching.data,
        spec.train,
        teaching.loss,
        task=spec.task,
        seed=seed_of(spec.seed, "train"),
        phase="distill",
        companion=teaching.companion,
        device=work.device,
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint({"taught": None, "taught_state": None, "fit": state}),
        resume=checkpoint["fit"],
    )


def _labels_only(
    spec: DistillSpec,
    work: Work,
    student: LoadedModel,
    alone: nn.Module,
    data: Data,
    taught: Fit,
    checkpoint: dict[str, Any],
    span: tuple[float, float],
) -> Fit:
    """Train the same start on labels alone: the same epochs, and the same samples in the same order."""
    taught_state = {name: tensor.detach().cpu() for name, tensor in student.module.state_dict().items()}
    done = {
        "history": [record.model_dump() for record in taught.history],
        "best_epoch": taught.best_epoch,
        "best_score": taught.best_score,
    }
    return fit(
        alone,
        data,
        spec.train,
        learn_labels(spec.task),
        task=spec.task,
        seed=seed_of(spec.seed, "train"),
        phase="labels only",
        device=work.device,
        observer=work.observer,
        span=span,
        keep=lambda state: work.observer.checkpoint({"taught": done, "taught_state": taught_state, "fit": state}),
        resume=checkpoint["fit"] if checkpoint["taught"] is not None else None,
    )


METHODS: Mapping[type[Spec], Callable[[Any, Work], Report | ModelInspection | DatasetInspection]] = {
    InspectSpec: inspect,
    PruneSpec: prune,
    DistillSpec: distill,
}


# -- parts of every method ----------------------------------------------------------------------


@contextmanager
def _settled(work: Work) -> Iterator[None]:
    """Same spec, same seed, same machine: same bits. What the process had set before comes back afterwards."""
    threads, python_state, numpy_state = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(max(work.threads, 1))
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = flags
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


class _Stages:
    """Says which stage runs, and how long each took."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seconds: dict[str, float] = {}
        self._current: Stage | None = None
        self._since = time.monotonic()
        self._fraction = 0.0

    def enter(self, name: Stage) -> None:
        """The next stage begins."""
        self._close()
        self._current = name
        self._fraction = max(self._fraction, _BEGINS[name])
        self._observer.stage(name)
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        self._observer.progress(self._fraction)

    def span(self, part: int, parts: int) -> tuple[float, float]:
        """Where one of several equal trainings begins and ends, as shares of the whole job."""
        width = (_BEGINS["evaluate"] - _BEGINS["retrain"]) / parts
        begin = _BEGINS["retrain"] + part * width
        self._fraction = begin + width
        return begin, begin + width

    def finish(self) -> dict[str, float]:
        """Seconds of each stage of this attempt."""
        self._close()
        self._current = None
        return self._seconds

    def _close(self) -> None:
        now = time.monotonic()
        if self._current is not None:
            self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._since
        self._since = now


def _plain(architecture: Any) -> Any:
    """A spec's architecture as plain data, which is what uploads carry too."""
    return architecture.model_dump() if isinstance(architecture, Spec) else architecture


def _data(spec: PruneSpec | DistillSpec, work: Work) -> Data | None:
    if work.dataset is None:
        return None
    return load_dataset(work.dataset, task=spec.task, preprocess=spec.preprocess, seed=spec.seed)


def _example(spec: PruneSpec, loaded: LoadedModel, data: Data | None) -> tuple[Tensor, ...]:
    """A few inputs of the model: from the data, from the spec, or guessed."""
    if data is not None:
        check_fits(loaded, data)
        return data.example(_EXAMPLE_BATCH)
    if spec.example_inputs:
        example = example_from_specs(spec.example_inputs)
        example = example if len(example[0]) > 1 else batch_of(example, _EXAMPLE_BATCH)
        _check_runs(loaded.module, example)
        return example
    guessed = guess_example_inputs(loaded)
    if guessed is None:
        text = (
            "The shape of the model's inputs could not be guessed. Name a data set, or give `example_inputs` such as "
            '[{"shape": [2, 3, 32, 32]}].'
        )
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])
    return guessed


def _check_patterns(spec: PruneSpec, module: nn.Module) -> None:
    """Raises ValidationError for an `exclude` that matches no layer: what it was to keep would be pruned."""
    idle = unmatched_patterns(module, spec.exclude)
    if idle:
        names = list(dict.fromkeys(weight_layers(module).values()))
        text = f"{', '.join(map(repr, idle))} matches no layer. The layers are: {', '.join(names[:20])}."
        raise ValidationError(text, errors=[{"pointer": "/exclude", "detail": text}])


def _check_runs(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Raises ValidationError unless the model takes the inputs that the spec describes."""
    try:
        with torch.no_grad(), own_failures():
            module(*example)
    except ModelFailed as error:
        shapes = " and ".join(str(list(tensor.shape)) for tensor in example)
        text = f"The model does not run on inputs of the shape {shapes}. {error.detail}"
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}]) from error


def _assess(module: nn.Module, data: Data, spec: PruneSpec | DistillSpec, work: Work, stages: _Stages) -> Assessment:
    found = assess(module.to(work.device), data, spec.task, device=work.device, tick=stages.beat)
    module.cpu()
    return found
