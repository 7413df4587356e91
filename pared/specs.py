"""Job specs: the one contract that the API, the worker, the client and the compression library share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pared.criteria import CRITERIA, SCORED_AS, listed, scoring

BUILTIN_DATASETS = ("builtin:digits",)

ModelId = Annotated[str, Field(pattern=r"^mdl_[0-9A-Za-z]{26}$", examples=["mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"])]


def _dataset_reference(value: str) -> str:
    if value in BUILTIN_DATASETS or re.fullmatch(r"dst_[0-9A-Za-z]{26}", value):
        return value
    raise ValueError(f"must be the id of an uploaded data set (dst_…) or one of {', '.join(BUILTIN_DATASETS)}")


DatasetReference = Annotated[str, AfterValidator(_dataset_reference)]


class Spec(BaseModel):
    """Base of every spec: frozen, and a field it does not know is an error, not a silent no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _must_be_left_out(self, advice: dict[str, str]) -> None:
        """Refuse these fields (name -> why, and what to do), which can have no effect beside the others.

        At null or its default a field may stay: a stored spec names every field, and whoever posts it again asked for
        nothing.
        """
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in advice}
        idle = {name: why for name, why in advice.items() if getattr(self, name) not in (None, defaults[name])}
        if idle:
            self._refuse(idle)

    def _refuse(self, advice: dict[str, str]) -> NoReturn:
        """Refuse these fields (name -> what is wrong, and what to do), given or left out."""
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("advice", "{why}", {"why": why}), loc=(name,), input=getattr(self, name)
            )
            for name, why in advice.items()
        ]
        raise ValidationError.from_exception_data(type(self).__name__, errors)


def _meant(given: Any) -> str | None:
    """The tag of the alternative that a value is meant for, by its keys, so that only that one complains."""
    tags = {
        "from_teacher": "FromTeacher",
        "layers": "LayeredArchitecture",
        "name": "NamedArchitecture",
        "kwargs": "NamedArchitecture",
    }
    if isinstance(given, dict):
        return next((tag for key, tag in tags.items() if key in given), None)
    return type(given).__name__


# -- architectures ------------------------------------------------------------------------------


class NamedArchitecture(Spec):
    """An architecture pared knows by name (`pared.compression.architectures.ARCHITECTURES`)."""

    name: str = Field(min_length=1, max_length=64)
    kwargs: dict[str, Any] = Field(default_factory=dict)


class LayeredArchitecture(Spec):
    """Layers in order: `["Conv2d", {kwargs}]`, or with the name its weights have, `["Conv2d", {kwargs}, "conv1"]`."""

    layers: list[Any] = Field(min_length=1, max_length=1000)


_Named = Annotated[NamedArchitecture, Tag("NamedArchitecture")]
_Layered = Annotated[LayeredArchitecture, Tag("LayeredArchitecture")]
Architecture = Annotated[
    Annotated[str, Tag("str")] | _Named | _Layered,
    Discriminator(
        _meant,
        custom_error_type="alternatives",
        custom_error_message='must be a name, {"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]


# -- parts --------------------------------------------------------------------------------------


class TensorSpec(Spec):
    """Shape (batch first) and type of one model input, for jobs that bring no data."""

    shape: list[Annotated[int, Field(ge=1, le=1 << 20)]] = Field(min_length=1, max_length=8)
    dtype: Literal["float32", "int64"] = "float32"

    @model_validator(mode="after")
    def _bounded(self) -> TensorSpec:
        if math.prod(self.shape) > 1 << 28:
            raise ValueError("must have at most 2^28 elements in all")
        return self


class Preprocess(Spec):
    """How stored arrays become model inputs: `(x * scale - mean) / std`, mean and std a channel (dim 1)."""

    scale: float = Field(1.0, gt=0)
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None


Optimizer = Literal["sgd", "adam"]
LrSchedule = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]


class Train(Spec):
    """One training run. The epoch with the best validation score is kept, not the last."""

    epochs: int = Field(5, ge=0, le=1000)
    optimizer: Optimizer = "sgd"
    lr: float = Field(0.01, gt=0, le=10, description="Without one: 0.01 for sgd, 0.001 for adam.")
    lr_schedule: LrSchedule = Field(
        "constant", description="`cosine`: the learning rate falls from `lr` to 0 along half a cosine."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps over which the rate first rises to `lr`.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only.")
    nesterov: bool = Field(False, description="SGD only: Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, le=1)
    batch_size: int = Field(64, ge=1, le=65536)
    precision: Precision = Field(
        "auto",
        description="`bfloat16`: convolutions and matrix products of the training compute in it, which is faster on "
        "processors that have it; weights, updates, losses and all measurements stay as they are. `auto`: bfloat16 on "
        "GPUs that have it, else float32. On a GPU, float32 products of a training are TF32 where it has that.",
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Stop after so many epochs without a better validation score."
    )

    @model_validator(mode="before")
    @classmethod
    def _lr_of_the_optimizer(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("lr") is not None:
            return given
        adam = given.get("optimizer", cls.model_fields["optimizer"].default) == "adam"
        return {**given, "lr": 0.001 if adam else 0.01}

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Train:
        if self.nesterov and (self.optimizer == "adam" or not self.momentum):
            self._refuse({"nesterov": "is a kind of SGD's momentum: leave it out, or give both"})
        return self


class TeachTrain(Train):
    """A training run of a student: Adam by default, for a distance of logits is too steep for SGD's usual rate."""

    optimizer: Optimizer = "adam"


class OutputMse(Spec):
    """Output distillation: L = (1/N) Σ ‖f(x_i; θ_t) − f'(x_i; θ_s)‖²."""

    kind: Literal["output_mse"]


class Knowledge(Spec):
    """Knowledge distillation: L = α · output distance + (1−α) · T² · KL(teacher ‖ student)."""

    kind: Literal["knowledge"]
    alpha: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(4.0, gt=0, le=100)
    features: list[tuple[str, str]] | None = Field(
        None,
        max_length=16,
        description="Pairs [teacher layer, student layer]. With pairs, the KL term runs over the softened outputs of "
        "these layers (projected where widths differ); without, over the logits.",
    )
    labels: float = Field(0.0, ge=0, lt=1, description="Share of the loss on the hard labels.")


DistillLoss = Annotated[OutputMse | Knowledge, Field(discriminator="kind")]


class Retrain(Train):
    """Training after, or while, weights go."""

    teach: DistillLoss | None = Field(
        None,
        description="Learn from the answers of the model as it came, computed once, beside the labels or instead. "
        "`true` stands for half softened classes and half labels, or for `output_mse` in a regression; `false` for "
        "labels alone. Without one, SGD learns classes as with `true`; Adam, and any regression, from labels alone.",
        examples=[True, {"kind": "knowledge", "alpha": 0.0, "temperature": 4, "labels": 0.1}],
    )

    @model_validator(mode="after")
    def _teaches_outputs(self) -> Retrain:
        if isinstance(self.teach, Knowledge) and self.teach.features is not None:
            self._refuse({"teach": "compares outputs: leave `features` out"})
        return self


class Target(Spec):
    """What the result must come to, instead of an amount: one goal, or several that hold together.

    Sizes are shares left of the upload's. The least pruning that meets them all is looked for.
    """

    params: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Parameters left, of the upload's. For single weights and blocks only those count that are not "
        "zero.",
    )
    macs: float | None = Field(None, gt=0, lt=1, description="Multiply-adds of one sample left. Channels only.")
    file_bytes: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Bytes of the file of the first format in `outputs`, of the uploaded file's. For single weights "
        "and blocks this must be `packed`.",
    )
    latency: float | None = Field(
        None, gt=0, lt=1, description="Time of a forward pass left, measured in turns with the upload. Channels only."
    )
    latency_batch_size: int = Field(1, ge=1, le=4096, description="Samples in the batch whose time is measured.")
    max_accuracy_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="How much accuracy (0.01: one point) or R² may be lost. Alone: the smallest model that holds it on "
        "the validation split. The test split has the last word.",
    )

    @property
    def sizes(self) -> dict[str, float]:
        """The shares that may be left, of what is named."""
        named = {name: getattr(self, name) for name in ("params", "macs", "file_bytes", "latency")}
        return {name: share for name, share in named.items() if share is not None}

    @property
    def goals(self) -> dict[str, float]:
        """All that is asked for."""
        return self.sizes | ({} if self.max_accuracy_drop is None else {"max_accuracy_drop": self.max_accuracy_drop})

    def missed(self, reached: Mapping[str, float]) -> list[str]:
        """Which goals are not met by what was reached of each; a last bit of arithmetic misses none.

        What was not reached at all, such as the bytes of a file that could not be written, is missed.
        """
        return [name for name, most in self.goals.items() if reached.get(name, math.inf) > most + 1e-12]

    @model_validator(mode="after")
    def _asks_for_something(self) -> Target:
        if not self.goals:
            raise ValueError("names no goal: give params, macs, file_bytes, latency or max_accuracy_drop")
        if self.latency is None:
            why = "is the batch whose latency is measured: leave it out, or give `latency`"
            self._must_be_left_out({"latency_batch_size": why})
        return self


class FromTeacher(Spec):
    """A student made from the teacher by keeping this share of its channels (and their weights)."""

    class Width(Spec):
        """`width`: the share of channels kept in every layer."""

        width: float = Field(gt=0, lt=1)

    from_teacher: Width


Student = Annotated[
    Annotated[ModelId, Tag("str")] | Annotated[FromTeacher, Tag("FromTeacher")] | _Named | _Layered,
    Discriminator(
        _meant,
        custom_error_type="alternatives",
        custom_error_message='must be the id of an uploaded model, {"from_teacher": {"width": 0.5}}, '
        '{"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]

Output = Literal["torchscript", "state_dict", "exported_program", "onnx", "packed"]
Outputs = Annotated[list[Output], Field(min_length=1, max_length=len(get_args(Output)))]


Task = Literal["classification", "regression"]
Device = Literal["auto", "cpu", "cuda"]


class CommonFields(Spec):
    """What every compression job has."""

    seed: int = Field(0, ge=0, lt=1 << 32)
    task: Task = "classification"
    preprocess: Preprocess | None = None
    outputs: Outputs | None = Field(
        None,
        description="Formats of the result. Without one: `exported_program` for an upload that is one, else "
        "`torchscript`. `packed` is the smallest where weights were pruned: sparse and entropy-coded; `pared unpack` "
        "makes a dense model of it. A format that cannot hold the model is left out and named in `failed_outputs` of "
        "the report; the job fails, before it trains, only where none can be written.",
    )
    time_limit_s: int | None = Field(None, ge=1, le=7 * 86400, description="Ends the job as failed after so long.")
    device: Device = Field(
        "auto",
        description="What the job computes on. `cuda`: an NVIDIA GPU; only a worker that has one takes the job. `cpu`: "
        "the processor, on whichever worker. `auto`: the worker that is free first takes it, and uses its GPU if it "
        "has one.",
    )
    latency_device: Literal["cpu", "cuda"] | None = Field(
        None,
        description="Where latency is measured, for the report and for a goal of latency: where the model will run. "
        "Without one, where the job computes. `cuda` asks for a worker with a GPU, as `device` does.",
    )

    @property
    def needs_device(self) -> Device:
        """What a worker must have to take the job."""
        return "cuda" if self.latency_device == "cuda" else self.device

    @model_validator(mode="after")
    def _outputs_once(self) -> CommonFields:
        if self.outputs is not None and len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs names a format twice")
        return self

    @model_validator(mode="after")
    def _latency_device_is_there(self) -> CommonFields:
        if self.device == "cpu" and self.latency_device == "cuda":
            why = "cuda is not there for a job whose `device` is cpu: make `device` cuda or auto, or leave this out"
            self._refuse({"latency_device": why})
        return self


if TYPE_CHECKING:
    Criterion = str  # for a type checker knows only names that are written out
else:
    Criterion = Literal[tuple(CRITERIA)]

Granularity = Literal["weight", "n:m", "block", "channel", "head", "residual_block"]
Scope = Literal["global", "layer"]
Schedule = Literal["one_shot", "iterative", "cubic"]

PHYSICAL: tuple[Granularity, ...] = ("channel", "head", "residual_block")
"""The granularities that make tensors smaller; the others leave zeros in them."""

# -- jobs ---------------------------------------------------------------------------------------


class Quantize(Spec):
    """Few values for many weights: k-means codebooks, retrained. Han et al. 2016, arXiv:1510.00149."""

    bits: int = Field(ge=1, le=8, description="Each tensor has at most 2^bits values beside zero.")
    epochs: int = Field(2, ge=0, le=1000, description="Of training the shared values.")
    lr: float | None = Field(None, gt=0, le=10, description="Without one: a tenth of that of `retrain`.")


_SOFTENED_CLASSES = {"kind": "knowledge", "alpha": 0.0, "temperature": 4.0, "labels": 0.5}


class PruneSpec(CommonFields):
    """Remove weights or whole channels by score, then retrain."""

    type: Literal["prune"]
    model: ModelId
    architecture: Architecture | None = Field(None, description="For a state dict that was uploaded without one.")
    dataset: DatasetReference | None = Field(
        None,
        description="None: no retraining and no accuracy, but biases and batch norms take up what went, as far as the "
        "weights tell it.",
    )
    example_inputs: list[TensorSpec] | None = Field(
        None, max_length=8, description="The model's inputs, where there is no data set to take them from."
    )
    granularity: Granularity = Field(
        "channel",
        description="`weight` zeroes single weights, `n:m` all but n of m neighbours, `block` rectangles of a layer's "
        "matrix; `channel` removes neurons, channels and heads physically, `head` whole heads of attention alone, and "
        "`residual_block` whole blocks: of an addition x + f(x), f.",
    )
    n_m: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=2, le=64)]] = Field(
        (2, 4), description="`n:m`: so many weights are kept of so many neighbours along the layer's inputs."
    )
    block: tuple[Annotated[int, Field(ge=1, le=256)], Annotated[int, Field(ge=1, le=256)]] = Field(
        (4, 4), description="`block`: rows (outputs) and columns (inputs and kernel places) that go together."
    )
    criterion: Criterion = Field(
        "magnitude",
        description="How importance is measured. Removed first is the smallest "
        f"{listed((f'{each.phrase} (`{name}`)' for name, each in CRITERIA.items()), 'or')}. "
        "Where weights go while training runs, the slopes are those of the training.",
    )
    scope: Scope = Field(
        "layer",
        description="Rank all units together, or layer by layer. Without one: `layer` for channels, `global` for "
        "weights and residual blocks.",
    )
    target: Target | None = Field(
        None,
        description="What the result must come to; the least pruning that meets it is looked for. Where nothing does, "
        "the nearest is the result, and the report says so.",
        examples=[{"params": 0.25}, {"macs": 0.5, "max_accuracy_drop": 0.01}],
    )
    amount: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of weights, blocks, channels, heads or residual blocks to remove, where there is no "
        "`target`; `n:m` says it itself.",
        examples=[0.5],
    )
    round_to: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="`channel`: layers keep a multiple of so many channels, which many devices run faster. Without "
        "one, and with a goal of latency, it is chosen by measurement.",
        examples=[8],
    )
    amounts: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=dict,
        max_length=100,
        description="Scope `layer`: another amount for layers whose name matches a pattern; the first match counts.",
        examples=[{"conv*": 0.3, "fc*": 0.8}],
    )
    schedule: Schedule = Field(
        "one_shot",
        description="`iterative`: by the same share of what is left in each of `steps`, retraining after each. "
        "`cubic`: fast first and then ever slower: single weights and blocks while training runs, else in `steps`.",
    )
    steps: int = Field(5, ge=2, le=100, description="Prune and retrain this many times.")
    stages: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list,
        max_length=20,
        description="Amounts to reach on the way, each with a retraining of its own, before `amount`.",
        examples=[[0.9, 0.98]],
    )
    ramp: float = Field(
        0.5, gt=0, lt=1, description="`cubic`, while training runs: the share of its steps over which weights go."
    )
    regrow: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="`cubic`, while training runs: share of the living weights that give way each time to removed ones "
        "with the steepest gradient; it falls to 0 along the ramp.",
    )
    include: list[str] = Field(default_factory=lambda: ["*"], min_length=1, description="Layer name patterns.")
    exclude: list[str] = Field(default_factory=list, description="Layer name patterns, stronger than include.")
    quantize: Quantize | None = Field(
        None, description="After pruning, let weights share values, which makes a `packed` file smaller."
    )
    retrain: Retrain | None = Field(default_factory=Retrain, description="None, or no data set: prune only.")

    @model_validator(mode="before")
    @classmethod
    def _meant_by_what_is_left_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = dict(given)
        # Sums over different numbers of weights do not compare: ranked together, channels of thin layers go first.
        if given.get("granularity") in ("weight", "residual_block") and not given.get("amounts"):
            given.setdefault("scope", "global")
        match given.get("granularity"), given.get("n_m", (2, 4)):
            case "n:m", (int(n), int(m)) if 0 < n < m and given.get("amount") is None and given.get("target") is None:
                given["amount"] = 1 - n / m
        retrain, regression = given.get("retrain", {}), given.get("task") == "regression"
        if isinstance(retrain, dict) and ("retrain" in given or given.get("dataset") is not None):
            # Measured: with Adam, softened classes cost more accuracy than they bring.
            teach = retrain.get("teach", not regression and retrain.get("optimizer", "sgd") == "sgd")
            if isinstance(teach, bool):
                taught = {"kind": "output_mse"} if regression else _SOFTENED_CLASSES
                given["retrain"] = {**retrain, "teach": taught if teach else None}
        return given

    @property
    def ramps(self) -> bool:
        """Whether weights go while training runs, rather than before it."""
        return self.schedule == "cubic" and self.granularity not in PHYSICAL

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> PruneSpec:
        self._granularity_has_what_it_needs()
        self._target_can_be_met()
        if self.quantize is not None and "packed" not in (self.outputs or []):
            self._refuse({"quantize": "makes packed files smaller, and no other: add `packed` to `outputs`"})
        self._schedule_has_what_it_needs()
        idle = {}
        if self.granularity != "n:m":
            idle["n_m"] = "is for the granularity n:m: leave it out, or set `granularity`"
        if self.granularity != "channel":
            idle["round_to"] = "counts channels: leave it out, or make `granularity` channel"
        if self.granularity != "block":
            idle["block"] = "is for the granularity block: leave it out, or set `granularity`"
        if self.schedule == "one_shot":
            idle["steps"] = "has no effect with the schedule one_shot: leave it out, or make `schedule` iterative"
        if self.ramps:
            idle["steps"] = "has no effect where weights go while training runs: leave it out; `ramp` says how long"
        else:
            why = "is for weights that go while training runs: leave it out, or make `schedule` cubic"
            idle["ramp"] = idle["regrow"] = why
        if self.scope == "global":
            idle["amounts"] = "are amounts of layers: leave them out, or make `scope` layer"
        if self.dataset is None:
            idle["retrain"] = idle["preprocess"] = "has no effect without data: leave it out, or name a `dataset`"
        else:
            idle["example_inputs"] = "has no effect beside a data set, which shows the inputs: leave it out"
        self._must_be_left_out(idle)
        return self

    def _target_can_be_met(self) -> None:
        if self.target is None:
            if self.amount is None:
                self._refuse({"amount": 'is required where there is no `target`, such as {"params": 0.25}'})
            return
        if self.granularity == "n:m":
            self._refuse({"target": "has nothing to choose where n:m says the amount itself: leave it out"})
        if self.granularity == "residual_block":
            self._refuse({"target": "is not looked for among residual blocks: give an `amount` of them"})
        if self.amount is not None:
            self._refuse({"amount": "is what a `target` looks for: give one of the two"})
        self._must_be_left_out(
            {
                "amounts": "are what a `target` looks for: leave them out; `exclude` keeps layers whole",
                "stages": "lead to an `amount` that is known: leave them out beside a `target`",
            }
        )
        if self.granularity not in PHYSICAL:
            named = [name for name in ("macs", "latency") if getattr(self.target, name) is not None]
            if named:
                what = {"macs": "MACs are no fewer", "latency": "latency is no lower"}[named[0]]
                self._refuse({"target": f"`{named[0]}`: {what} where weights are zero; make `granularity` channel"})
            if self.target.file_bytes is not None and (self.outputs or ["torchscript"])[0] != "packed":
                why = "zeros make only a packed file smaller; let `outputs` begin with `packed`, or prune channels"
                self._refuse({"target": f"`file_bytes`: {why}"})
        if self.target.max_accuracy_drop is not None and self.dataset is None:
            self._refuse({"target": "`max_accuracy_drop`: accuracy is measured on data: name a `dataset`"})

    def _granularity_has_what_it_needs(self) -> None:
        if self.granularity == "n:m":
            n, m = self.n_m
            if n >= m:
                self._refuse({"n_m": f"keeps {n} of {m}, which removes nothing: the first number is the smaller"})
            if self.amount is not None and abs(self.amount - (1 - n / m)) > 1e-9:
                self._refuse({"amount": f"is {1 - n / m:g} where {n} of {m} are kept: leave it out"})
            if self.scope == "global" or self.amounts:
                why = "says nothing to n:m, which removes the same share everywhere: leave it out"
                self._refuse({"amounts" if self.amounts else "scope": why})
            if self.schedule != "one_shot" or self.stages:
                self._refuse({"schedule": "must be one_shot for the granularity n:m, without `stages`"})
        if self.granularity == "residual_block" and (self.scope == "layer" or self.amounts):
            why = "is of layers, where residual blocks are ranked together: leave it out"
            self._refuse({"amounts" if self.amounts else "scope": why})
        self._criterion_has_what_it_needs()

    def _criterion_has_what_it_needs(self) -> None:
        criterion = CRITERIA[self.criterion]
        if self.granularity not in criterion.granularities:
            scored = {"weights": "single weights", "channels": "channels", "residual_blocks": "blocks"}
            what = scored[SCORED_AS[self.granularity]]
            why = f"does not compare {what}: use {listed(scoring(self.granularity), 'or')}"
            if what == "single weights" and criterion.channels is not None:
                why = "scores channels: use another one for single weights"
            self._refuse({"criterion": f"{self.criterion} {why}"})
        if self.dataset is None and criterion.needs_data:
            self._refuse({"criterion": f"{self.criterion} looks at training samples: name a `dataset`"})

    def _schedule_has_what_it_needs(self) -> None:
        if self.ramps and (self.dataset is None or self.retrain is None or self.retrain.epochs == 0):
            why = "cubic removes weights while training runs: name a `dataset` and let `retrain` have epochs"
            self._refuse({"schedule": why})
        if self.stages and self.schedule == "iterative":
            self._refuse({"stages": "are for one_shot and cubic; iterative has its `steps`: leave them out"})
        if self.stages and self.amounts:
            self._refuse({"stages": "are shares of all layers alike: leave them out beside `amounts`"})
        if self.stages and self.stages != sorted(share for share in {*self.stages} if share < (self.amount or 1)):
            self._refuse({"stages": "must rise, and end below `amount`"})
        teach = None if self.retrain is None else self.retrain.teach
        if self.task == "regression" and isinstance(teach, Knowledge) and teach.alpha < 1:
            why = 'softens class probabilities, which a regression does not have: use {"kind": "output_mse"}'
            self._refuse({"retrain": f"`teach` {why}"})


class DistillSpec(CommonFields):
    """Train a smaller student to answer as the teacher does."""

    type: Literal["distill"]
    teacher: ModelId
    teacher_architecture: Architecture | None = None
    student: Student
    student_architecture: Architecture | None = Field(None, description="For an uploaded student state dict.")
    dataset: DatasetReference
    loss: DistillLoss = Field(
        default_factory=lambda: Knowledge(kind="knowledge"),
        description="Without one: `knowledge` for a classification, `output_mse` for a regression.",
    )
    train: TeachTrain = Field(default_factory=TeachTrain)
    compare_with_labels_only: bool = Field(
        False, description="Also train the same student from the same start on labels alone, and report it."
    )

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_task(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("task") == "regression":
            return {"loss": {"kind": "output_mse"}, **given}
        return given

    @model_validator(mode="after")
    def _an_architecture_is_for_an_upload(self) -> DistillSpec:
        if not isinstance(self.student, str):
            why = "is for a student given by the id of an upload; this one says itself what it is: leave it out"
            self._must_be_left_out({"student_architecture": why})
        return self

    @model_validator(mode="after")
    def _softens_only_classes(self) -> DistillSpec:
        loss = self.loss
        if self.task == "regression" and isinstance(loss, Knowledge) and loss.features is None and loss.alpha < 1:
            why = (
                'must be {"kind": "output_mse"} or name `features`: the KL term of `knowledge` compares class '
                "probabilities, which a regression does not have"
            )
            self._refuse({"loss": why})
        return self


class InspectSpec(Spec):
    """Open an upload in the sandbox and say what is in it. Made by the API itself on upload."""

    type: Literal["inspect"]
    subject: str
    architecture: Architecture | None = None


class PlanSpec(Spec):
    """Say what a prune job would do, without retraining and without a result. Made by the API itself when asked."""

    type: Literal["plan"]
    job: PruneSpec

    @model_validator(mode="after")
    def _is_known_beforehand(self) -> PlanSpec:
        goals = {"latency": "measuring", "max_accuracy_drop": "retraining"}
        found = {by for name, by in goals.items() if self.job.target and getattr(self.job.target, name) is not None}
        if found:
            raise ValueError(f"is met by {' and '.join(sorted(found))}, which a plan does without: post the job itself")
        return self


CompressionSpec = Annotated[PruneSpec | DistillSpec, Field(discriminator="type")]
JobSpec = Annotated[PruneSpec | DistillSpec | InspectSpec | PlanSpec, Field(discriminator="type")]

compression_spec: TypeAdapter[PruneSpec | DistillSpec] = TypeAdapter(CompressionSpec)
job_spec: TypeAdapter[PruneSpec | DistillSpec | InspectSpec | PlanSpec] = TypeAdapter(JobSpec)
