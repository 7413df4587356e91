"""Takes a model through the steps of a pruning schedule, and says what a checkpoint must hold of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pared.compression.coupling import (
    BiasCorrection,
    LostInputs,
    Removed,
    compose_removed,
    find_bias_correction,
)
from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.distillation.objective import Objective, hold_others, make_objective
from pared.compression.export.own_types import round_to_own_types
from pared.compression.jobs.prune_job import PruneJob, choice, of_folded, prunable_weights, removable_channels
from pared.compression.jobs.stages import assessed
from pared.compression.loading import LoadedModel
from pared.compression.measuring.finite import hold_finite_on_example, hold_finite_weights
from pared.compression.names import matching, tensors, tied_names, weight_layers
from pared.compression.pruning.channels import RemovableChannels, apply_removal
from pared.compression.pruning.output_projection import projections_of
from pared.compression.pruning.residual_blocks import apply_block_removal, remove_blocks
from pared.compression.pruning.schedules import Amounts, cubic, step_amounts
from pared.compression.pruning.weights import Masks, n_m_masks, zero_share, zeros_held
from pared.compression.quantization.shared_values import SharedValues, share_values
from pared.compression.training.calibration import copied, learn_labels
from pared.compression.training.constraints import WeightConstraint
from pared.compression.training.gradual import GradualSchedule
from pared.compression.training.loop import fit
from pared.compression.training.seeds import seed_of
from pared.criteria import CRITERIA
from pared.errors import NothingToPrune
from pared.reports import EpochRecord, Quality
from pared.specs import PHYSICAL, Quantize, Retrain
from pared.wording import listed, shortened

_THIN = 0.1  # a layer left with a smaller share of its channels is pointed out

Keep = Callable[[dict[str, Any]], None]


class Pruning:
    """Takes a copy of the original through all steps of the schedule; `loaded` is how far it has come."""

    def __init__(self, job: PruneJob, channels: RemovableChannels | None = None) -> None:
        """Args: channels: those of the original, where they have been looked for already."""
        self.job = job
        self._channels = channels
        # What channels go from stays as it is, and what is left of it is another module.
        own = job.spec.granularity not in PHYSICAL
        self.loaded = replace(job.start, module=copied(job.start.module, own_parameters=own))
        self.masks: Masks | None = None
        self.removed: Removed = {}
        self.reasons: dict[str, str] = {}
        self.output_dims: dict[str, int] = {}
        self.units: dict[str, int] = {}  # channels of each group that could be chosen from at the start
        self.removed_units = 0
        self.before_retraining: Quality | None = None
        self.history: list[EpochRecord] = []
        self.best_epoch: int | None = None
        self._notes: list[str] = []
        self._corrections: list[BiasCorrection] = []
        self._taught: Objective | None = None
        self._held: LoadedModel | None = None  # what was found to answer with finite numbers, and has not changed since

    def run(self, checkpoint: dict[str, Any] | None, keep: Keep) -> None:
        """Go through the steps, from where a checkpoint was made on.

        Raises:
            NothingToPrune: no step removes anything.
            ExportFailed: it would be trained, and can then be written in no format that the job asks for.
            NotFinite: what is left answers NaN or infinity where the upload does not.
        """
        spec, work, stages = self.job.spec, self.job.work, self.job.stages
        if checkpoint is not None:
            self._restore(checkpoint)
        amounts = step_amounts(spec)
        parts = len(amounts) + (spec.quantize is not None)
        for step, amount in enumerate(amounts):
            if checkpoint is not None and step < checkpoint["step"]:
                continue
            resumed = checkpoint["fit"] if checkpoint is not None and step == checkpoint["step"] else None
            if resumed is None and not spec.ramps:
                stages.enter("compress")
                if not self._remove(step, amount, last=step == len(amounts) - 1):
                    of = f"step {step + 1} of {len(amounts)}"
                    work.observer.log(f"{of} is less than one {self._unit}, and is left to a later one")
                    continue
                self._hold_finite()  # before a training that could only diverge
                work.observer.log(self._progress_line(step, len(amounts)))
                if self.job.data is not None and self.job.retrain is not None and len(amounts) == 1:
                    upload = self.job.baseline
                    assessment = assessed(self.loaded.module, self.job.data, work, stages, upload=upload)
                    self.before_retraining = assessment.quality
            if self.job.data is not None and self.job.retrain is not None:
                self.job.formats.try_out(self.loaded)
                stages.enter("retrain")
                ramp = self._ramp(step, self._begin(step, amounts), amount) if spec.ramps else None
                phase = "retrain" if len(amounts) == 1 else f"retrain {step + 1}"
                self._fit(self.job.retrain, self.job.data, phase, (step, parts), self.masks, ramp, resumed, keep)
                if ramp is not None:
                    work.observer.log(self._progress_line(step, len(amounts)))
        place(self.loaded.module.eval(), CPU)
        if self.masks is not None:
            self.masks.apply(self.loaded.module)
        if spec.quantize is not None:
            resumed = checkpoint["fit"] if checkpoint is not None and checkpoint["step"] == len(amounts) else None
            self._share_values(spec.quantize, len(amounts), resumed, keep)
        round_to_own_types(self.loaded)
        if self._held is not self.loaded or self.masks is not None or spec.quantize is not None or self.loaded.forms:
            self._hold_finite()

    def _hold_finite(self) -> None:
        self._held = self.loaded
        if not self.job.original.runs:
            hold_finite_weights(self.job.original.module, self.loaded.module)
            return
        hold_finite_on_example(self.job.original.module, self.loaded.module, self.job.example)

    # -- removing -------------------------------------------------------------------------------

    def _remove(self, step: int, amount: Amounts, *, last: bool) -> bool:
        """One step of the schedule, up to `amount` in all. False: it rounds to nothing, and a later step follows."""
        spec = self.job.spec
        module = self.loaded.module.eval()
        place(module, CPU)
        if spec.granularity not in PHYSICAL:
            self._take_up(self._masks(module, step, amount))
            masks = self._masks_of_now()
            correction = self._correction(masks.lost(module))
            masks.apply(module)
            correction.apply(module)
            return True
        try:
            if spec.granularity == "residual_block":
                self._remove_residual_blocks(module, step, amount)
                return True
            channels = self._channels if step == 0 else None
            channels = channels or removable_channels(
                self.job, self.loaded, step, self.units or None, self.removed_units
            )
            removal = channels.removal(amount, spec.round_to or 1)
        except NothingToPrune:
            if last and not self.removed_units:
                raise
            return False
        self.output_dims = self.output_dims or removal.output_dims
        self.units = self.units or removal.units
        self.removed_units += removal.removed_units
        shapes = {name: tuple(tensor.shape) for name, tensor in self.job.start.module.state_dict().items()}
        self.removed = compose_removed(self.removed, removal.removed, shapes)
        self.reasons = removal.reasons | self.reasons
        self._correction(LostInputs(module, removal.removed, removal.output_dims)).apply(
            removal.loaded.module, removal.removed
        )
        self.loaded = removal.loaded
        return True

    def _correction(self, lost: Mapping[str, Tensor]) -> BiasCorrection:
        """What makes up for lost weights without data; with data, that is for retraining to do."""
        if self.job.data is not None or not self.job.example:
            return BiasCorrection({}, set(), set())
        self._corrections.append(find_bias_correction(self.loaded.module, self.job.example, lost))
        return self._corrections[-1]

    def _remove_residual_blocks(self, module: nn.Module, step: int, amount: Amounts) -> None:
        job = self.job
        removal = remove_blocks(
            job.original,
            module,
            job.example,
            amount=amount,
            removed=self.removed,
            uniform=job.uniform,
            **choice(job, module, step),
        )
        self.units = self.units or removal.units
        self.removed_units += removal.removed_units
        self.removed = removal.removed
        self.reasons = removal.reasons | self.reasons
        self.loaded = removal.loaded

    def _masks(
        self,
        module: nn.Module,
        step: int,
        amount: Amounts,
        regrow: float = 0.0,
        slopes: Mapping[str, Tensor] | None = None,
    ) -> Masks:
        """Which weights of a module live when this much is gone."""
        spec = self.job.spec
        if spec.granularity == "n:m":
            n, m = spec.n_m
            how = choice(self.job, module, step, slopes) | of_folded(self.job.original)
            return n_m_masks(module, n=n, m=m, **how)
        return prunable_weights(self.job, module, step, slopes).masks(amount, regrow)

    def _begin(self, step: int, amounts: Sequence[Amounts]) -> float:
        """The share from which a step's ramp rises: an upload that was pruned before goes on from there."""
        if step:
            return amounts[step - 1].default
        spec, original = self.job.spec, self.job.original
        patterns = {"include": spec.include, "exclude": spec.exclude}
        return zero_share(original.module, scope=spec.scope, **patterns, left_out=original.left_out)

    def _ramp(self, step: int, begin: float, end: Amounts) -> GradualSchedule:
        """The masks of one stage, from the share that is gone when it begins to its own amounts."""
        spec = self.job.spec

        def masks(module: nn.Module, progress: float, slopes: Mapping[str, Tensor] | None) -> Masks:
            amount = end.each(lambda share: cubic(min(begin, share), share, progress))
            return self._masks(module, step, amount, spec.regrow * (1 - progress), slopes)

        # Some samples' gradients, taken in each renewal, say less: of a trained model they are near zero but for a few.
        trains_all = all(parameter.requires_grad for parameter in self.loaded.module.parameters())
        return GradualSchedule(masks, spec.ramp, by_gradients=CRITERIA[spec.criterion].needs_gradients and trains_all)

    def _take_up(self, masks: Masks) -> None:
        module = self.loaded.module
        self.masks = masks
        layers, names_of = weight_layers(module), tied_names(module)
        spec, left_out = self.job.spec, self.job.original.left_out
        chosen = masks.kept.keys() & matching(module, spec.include, spec.exclude).keys()
        covered = {layers[alias] for name in chosen for alias in names_of[name] if alias in layers}
        reasons = dict.fromkeys(layers.values(), "left out by include/exclude") | left_out
        self.reasons = {layer: reasons[layer] for layer in layers.values() if layer not in covered}

    def _masks_of_now(self) -> Masks:
        assert self.masks is not None  # noqa: S101 - the caller has just set them
        return self.masks

    # -- retraining -----------------------------------------------------------------------------

    def _fit(
        self,
        retrain: Retrain,
        data: Data,
        phase: str,
        part: tuple[int, int],
        constraint: WeightConstraint | None,
        ramp: GradualSchedule | None,
        resumed: dict[str, Any] | None,
        keep: Keep,
    ) -> None:
        """Retrain after one step, or through a ramp. `part`: which of how many trainings it is."""
        spec, work, step = self.job.spec, self.job.work, part[0]
        earlier = list(self.history)

        def keep_all(state: dict[str, Any]) -> None:
            quality = self.before_retraining
            keep(
                {
                    "step": step,
                    "removed": self.removed,
                    "reasons": self.reasons,
                    "output_dims": self.output_dims,
                    "units": self.units,
                    "gone": self.removed_units,
                    "masks": None if self.masks is None else self.masks.state(),
                    "before_retraining": None if quality is None else quality.model_dump(),
                    "history": [record.model_dump() for record in earlier],
                    "fit": state,
                }
            )

        taught = self._taught = self._taught or self._lesson(retrain, data)
        if constraint is None and (zeros := zeros_held(self.loaded.module, self.loaded.sparse)):
            constraint = Masks(zeros)
        self._held = None
        fitted = fit(
            self.loaded.module,
            taught.data,
            retrain,
            taught.loss,
            task=data.task,
            seed=seed_of(spec.seed, "retrain", step),
            phase=phase,
            masks=constraint,
            ramp=ramp,
            device=work.device,
            record=work.record_steps,
            ranks=work.ranks,
            observer=work.observer,
            span=self.job.stages.span(*part),
            keep=keep_all,
            resume=resumed,
        )
        self.history = earlier + fitted.history
        self.best_epoch = fitted.best_epoch
        self._notes = list(dict.fromkeys([*self._notes, *fitted.warnings]))
        if isinstance(fitted.masks, Masks) and spec.granularity not in PHYSICAL:
            self._take_up(Masks.from_state({name: kept.cpu() for name, kept in fitted.masks.state().items()}))

    def _share_values(self, quantize: Quantize, step: int, resumed: dict[str, Any] | None, keep: Keep) -> None:
        """Let weights share values, and train these."""
        spec, job, module = self.job.spec, self.job, self.loaded.module
        shared = SharedValues({}, {})  # a checkpoint brings its own
        if resumed is None:
            job.stages.enter("compress")
            patterns = {"include": spec.include, "exclude": spec.exclude}
            shared = share_values(module, quantize.bits, **patterns, kept=self.masks, biases=True)
            shared.apply(module)
            job.work.observer.log(f"weights share at most {1 << quantize.bits} values a tensor")
        if job.data is not None and job.retrain is not None and quantize.epochs:
            job.stages.enter("retrain")
            rate = quantize.lr or job.retrain.lr / 10
            training = job.retrain.model_copy(update={"epochs": quantize.epochs, "lr": rate})
            self._fit(training, job.data, "shared values", (step, step + 1), shared, None, resumed, keep)
            place(self.loaded.module.eval(), CPU)

    def _lesson(self, retrain: Retrain, data: Data) -> Objective:
        """What retraining learns from: the labels, or the answers of the model as it came."""
        spec, teacher = self.job.spec, self.job.upload.module
        if retrain.teach is None:
            learned = Objective(data, learn_labels(data.task, retrain.augment), None)
            return hold_others(learned, teacher, data.task, device=self.job.work.device, augment=retrain.augment)
        objective = make_objective(
            retrain.teach,
            teacher,
            self.loaded.module,
            data,
            self.job.example,
            task=data.task,
            teacher_task=self.job.reference_task,
            seed=spec.seed,
            device=self.job.work.device,
            augment=retrain.augment,
            of_pruning=True,
        )
        place(teacher, CPU)
        return hold_others(objective, teacher, data.task, device=self.job.work.device, augment=retrain.augment)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Take up what an earlier attempt had reached; weights and masks come with the training state."""
        self.removed, self.reasons = checkpoint["removed"], checkpoint["reasons"]
        self.output_dims = checkpoint["output_dims"]
        self.units, self.removed_units = checkpoint["units"], checkpoint["gone"]
        if self.job.spec.granularity == "residual_block":
            self.loaded = apply_block_removal(
                self.job.original, self.job.example, self.removed, uniform=self.job.uniform
            )
        else:
            self.loaded = apply_removal(self.loaded, self.job.example, self.removed)
        if checkpoint["masks"] is not None:
            self._take_up(Masks.from_state(checkpoint["masks"]))
        if checkpoint["before_retraining"] is not None:
            self.before_retraining = Quality.model_validate(checkpoint["before_retraining"])
        self.history = [EpochRecord.model_validate(record) for record in checkpoint["history"]]

    # -- telling --------------------------------------------------------------------------------

    @property
    def _unit(self) -> str:
        """The name of what is removed."""
        return self.job.spec.granularity.replace("_", " ")

    def _progress_line(self, step: int, steps: int) -> str:
        of = f"step {step + 1} of {steps}: " if steps > 1 else ""
        if self.masks is not None:
            return f"{of}{100 * self.masks.sparsity():.2f} % of the prunable weights are zero"
        return f"{of}{self.removed_units} of {sum(self.units.values())} removable {self._unit}s are gone"

    def warnings(self) -> list[str]:
        """Warnings where the outcome is not what the spec seems to ask for."""
        spec, notes = self.job.spec, [*self.loaded.lost, *self._corrected(), *self._projections(), *self._notes]
        if spec.granularity in PHYSICAL:
            asked = step_amounts(spec)[-1]
            wanted = sum(round(asked.default * units) for units in self.units.values())
            if spec.scope == "global":
                wanted = round(asked.default * sum(self.units.values()))
            coarse = spec.round_to or self.job.uniform  # where a share is rounded to what may be left
            if self.removed_units < wanted and not spec.amounts and not coarse:
                least = "" if spec.granularity == "residual_block" else "each group of layers keeps at least one, and "
                notes.append(
                    f"{self.removed_units} of {sum(self.units.values())} removable {self._unit}s went, where an amount "
                    f"of {asked.default:g} asks for {wanted}: {least}one whose removal did not hold keeps all. "
                    "The layers' own lines say which."
                )
            if spec.scope == "global" and (thin := self._thin()):
                notes.append(
                    f"Little is left of {', '.join(thin)}. The scope `layer` takes the same share of each layer; "
                    "`exclude` keeps a layer whole."
                )
        elif self.masks is not None and self.job.retrain is not None:
            weights = tensors(self.job.original.module)
            revived = sum(int(((weights[name] == 0) & kept).sum()) for name, kept in self.masks.kept.items())
            if revived:
                notes.append(
                    f"{revived:,} weights beyond this amount were zero in the upload already, and were free to change "
                    "in retraining. Give a larger amount to keep them at zero."
                )
        return notes

    def _projections(self) -> list[str]:
        """What was put behind outputs whose width would have changed."""
        if self.job.projected is None:
            return []
        parts = [
            f"{name} ({weight.shape[1]} to {weight.shape[0]})"
            for name, weight in projections_of(self.loaded.module).items()
        ]
        return [f"The model's code was given a projection back to the width of its output: {listed(parts, 'and')}."]

    def _corrected(self) -> list[str]:
        """What was done in the place of retraining."""
        layers = sorted(set().union(*(correction.corrected for correction in self._corrections)))
        unknown = sorted(set().union(*(correction.unknown for correction in self._corrections)) - set(layers))
        if not layers:
            return []
        note = (
            "Without data nothing was retrained, but biases and batch norms took up what the removed parts gave on "
            f"average, as far as the upload's batch norms tell it, for {shortened(layers, 5)}."
        )
        return [f"{note} For {shortened(unknown, 5)} that average is not known." if unknown else note]

    def _thin(self) -> list[str]:
        """The layers that are left with less than a tenth of their channels."""
        module = self.job.start.module
        weights, layers = tensors(module), weight_layers(module)
        channels_left = {}
        for name, dim in self.output_dims.items():
            size = weights[name].shape[dim]
            left = size - len(self.removed.get(name, {}).get(str(dim), []))
            if left < _THIN * size:
                channels_left[layers[name]] = f"{left} of {size}"
        return [f"{layer} ({left} channels)" for layer, left in channels_left.items()]
