"""The spec of a prune job: what is removed, by which criterion and schedule, and how the rest is retrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pared.criteria import CRITERIA, SCORED_AS, scoring
from pared.specs.architectures import Architecture
from pared.specs.base import Spec
from pared.specs.common import WITHOUT_CLASSES, WITHOUT_LABELS, CompressionSpec, TensorSpec
from pared.specs.streaming import needs_whole_model
from pared.specs.targets import Target
from pared.specs.training import Retrain
from pared.specs.uploads import DatasetReference, ModelId, Text
from pared.wording import listed

if TYPE_CHECKING:
    Criterion = str  # for a type checker knows only names that are written out
else:
    Criterion = Literal[tuple(CRITERIA)]

Granularity = Literal["weight", "n:m", "block", "channel", "head", "residual_block"]
Scope = Literal["global", "layer"]
Schedule = Literal["one_shot", "iterative", "cubic"]

PHYSICAL: tuple[Granularity, ...] = ("channel", "head", "residual_block")
"""The granularities that make tensors smaller; the others leave zeros in them."""


class Quantize(Spec):
    """Few values for many weights: k-means codebooks, retrained. Han et al. 2016, arXiv:1510.00149."""

    bits: int = Field(ge=1, le=8, description="Each tensor has at most 2^bits values beside zero.")
    epochs: int = Field(2, ge=0, le=1000, description="Epochs of training the shared values.")
    lr: float | None = Field(None, gt=0, le=10, description="Without one: a tenth of that of `retrain`.")


SOFTENED_CLASSES = {"kind": "knowledge", "alpha": 0.0, "temperature": 4.0, "labels": 0.5}
"""What retraining learns from where a spec says nothing and answers are odds of classes."""


def with_usual_teacher(retrain: Any, task: Any) -> Any:
    """What a spec says of retraining, with what it learns from where that is left out, or `true` or `false`."""
    if not isinstance(retrain, dict):
        return retrain
    numbers = task in WITHOUT_CLASSES
    # Measured: with Adam, softened classes cost more accuracy than they bring.
    teach = retrain.get("teach", not numbers and retrain.get("optimizer", "sgd") == "sgd")
    if not isinstance(teach, bool):
        return retrain
    taught = {"kind": "output_mse"} if numbers else SOFTENED_CLASSES
    return {**retrain, "teach": taught if teach and task not in WITHOUT_LABELS else None}  # which learn nothing else


class PruneSpec(CompressionSpec):
    """Remove weights or whole channels by score, then retrain."""

    type: Literal["prune"]
    model: ModelId
    architecture: Architecture | None = Field(None, description="For a state dict that was uploaded without one.")
    dataset: DatasetReference | None = Field(
        None,
        description="None: no retraining and no accuracy. Biases and batch norms are then corrected for the mean of "
        "what was removed.",
    )
    example_inputs: list[TensorSpec] | None = Field(
        None,
        max_length=8,
        description="The arguments of the model's forward, where there is no data set to take them from; beside one, "
        "where some are values: its inputs are then the tensors among them.",
        examples=[[{"shape": [1, 512]}, {"value": 16000}]],
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
        description="A goal, instead of an `amount`: the job searches for the least pruning that meets it. If nothing "
        "does, the result is the nearest, and the report says `infeasible`.",
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
    uniform: bool | None = Field(
        None,
        description="`channel`, `head` and `residual_block`, of an uploaded Hugging Face model folder: remove only "
        "what its config.json can say, so that the result is such a folder too: equal widths in all layers, and whole "
        "layers. Without one: true where `outputs` has `huggingface`, as it has for a folder if it is left out.",
    )
    streamed: bool | None = Field(
        None,
        description="`channel`, `head` and `residual_block`, of an uploaded folder of a Llama, Mistral or Qwen2: read, "
        "pruned and written layer by layer, in the memory of about one layer, without retraining. Without one: true "
        "where the weights have more than 2 GiB and nothing else in the job needs the model as a whole.",
    )
    schedule: Schedule = Field(
        "one_shot",
        description="`iterative`: the same share of what is left in each of `steps`, with retraining after each. "
        "`cubic`: fast at first and then ever slower; weights and blocks while training runs, others in `steps`.",
    )
    steps: int = Field(5, ge=2, le=100, description="Prune and retrain this many times.")
    stages: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list,
        max_length=20,
        description="Amounts to reach on the way, each with a retraining of its own, before `amount`.",
        examples=[[0.9, 0.98]],
    )
    ramp: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="`cubic`, while training runs: the share of its steps over which weights are removed.",
    )
    regrow: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="`cubic`, while training runs: share of the remaining weights that are replaced each time by "
        "removed ones with the largest gradients; it falls to 0 along the ramp.",
    )
    include: list[Text] = Field(default_factory=lambda: ["*"], min_length=1, description="Layer name patterns.")
    exclude: list[Text] = Field(default_factory=list, description="Layer name patterns, stronger than include.")
    output_width: Literal["keep", "project"] = Field(
        "keep",
        description="`channel`: `project` lets the width shrink that a model of embeddings answers with. Behind such "
        "an output comes a small projection to the width that it had.",
    )
    quantize: Quantize | None = Field(
        None, description="After pruning, let weights share values, which makes a `packed` file smaller."
    )
    retrain: Retrain | None = Field(
        default_factory=Retrain,
        description="Without it, and with a data set: 5 epochs. None, or no data set: prune only.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        # Sums over different numbers of weights do not compare: ranked together, channels of thin layers go first.
        if values.get("granularity") in ("weight", "residual_block") and not values.get("amounts"):
            values.setdefault("scope", "global")
        match values.get("granularity"), values.get("n_m", (2, 4)):
            case "n:m", (int(n), int(m)) if 0 < n < m and values.get("amount") is None and values.get("target") is None:
                values["amount"] = 1 - n / m
        if values.get("streamed") is True:
            values.setdefault("retrain", None)
        if "retrain" in values or values.get("dataset") is not None:
            values["retrain"] = with_usual_teacher(values.get("retrain", {}), values.get("task"))
        return values

    @property
    def trains(self) -> bool:
        """Whether what is left is retrained."""
        if self.dataset is None or self.retrain is None:
            return False
        return self.retrain.trains or (self.quantize is not None and self.quantize.epochs > 0)

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
            idle["output_width"] = "is of channels: leave it out, or make `granularity` channel"
        if self.granularity not in PHYSICAL:
            idle["uniform"] = "is about what is removed physically: leave it out, or make `granularity` channel"
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
            idle["output"] = idle["ignore_index"] = "is of labels, which come with a data set: leave it out"
        elif all(each.is_plain for each in self.example_inputs or []):
            idle["example_inputs"] = "has no effect beside a data set, which shows the inputs: leave it out"
        self._must_be_left_out(idle)
        if self.streamed and (unfit := needs_whole_model(self)):
            self._refuse(unfit)
        return self

    def _target_can_be_met(self) -> None:
        if self.target is None:
            if self.amount is None:
                rest = ", for the layers that `amounts` does not name" if self.amounts else ""
                self._refuse({"amount": f'is required where there is no `target`, such as {{"params": 0.25}}{rest}'})
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
                what = {"macs": "are no fewer", "latency": "is no lower"}[named[0]]
                self._refuse({f"target/{named[0]}": f"{what} where weights are zero; make `granularity` channel"})
            if self.target.file_bytes is not None and (self.outputs or ["torchscript"])[0] != "packed":
                why = "zeros make only a packed file smaller; let `outputs` begin with `packed`, or prune channels"
                self._refuse({"target/file_bytes": why})
        if self.target.quality_drop is not None and self.dataset is None:
            field, why = self.target.needs_data
            self._refuse({f"target/{field}": why})

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
        self._retraining_is_of_the_task(self.retrain)
