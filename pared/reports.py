"""What pared says about a model: the inspection of an upload, the plan and the before/after report of a job.

Units are in the names. Every figure is measured on the files themselves: `before` on the upload as
it was loaded, `after` on the result, or on what a plan made in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from pared.report_frames import Frame


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Printed(_Part):
    """A part with a verdict, which a terminal shows as tables (`__rich__`)."""

    if TYPE_CHECKING:
        verdict: str  # a field of each, which has a place of its own among the others

        def __rich__(self) -> RenderableType: ...

    def __str__(self) -> str:
        """What `print` shows: what a terminal does, without colours."""
        from pared.report_tables import as_text

        return as_text(self)

    def __repr__(self) -> str:
        """The verdict alone, for all of it fills screens; `model_dump()` has that."""
        return f"<{type(self).__name__}: {self.verdict}>"


# -- inspection ---------------------------------------------------------------------------------


class LayerInspection(_Part):
    """One layer that has weights, and whether its units can be removed."""

    name: str
    kind: str = Field(description="Operator that uses the weights, such as conv2d or linear.")
    weights: dict[str, list[int]] = Field(description="Tensor name (within the model) to shape.")
    parameters: int
    macs: int | None = Field(None, description="Multiply-adds with its weights for one sample, where they are counted.")
    channels: int | None = Field(None, description="Output channels or neurons, where the layer has them.")
    prunable_channels: bool = False
    reason: str | None = Field(None, description="Why channels cannot be removed, naming the operator.")


class ModelInspection(_Part):
    """What opening the file in the sandbox showed."""

    format: Literal["torchscript", "state_dict", "exported_program", "onnx", "huggingface"]
    flavour: Literal["scripted", "traced", "frozen", "state_dict", "exported", "onnx"]
    parameters: int
    trainable_parameters: int
    macs: int | None = Field(None, description="Multiply-adds of one sample; None where they could not be counted.")
    inputs: list[dict[str, Any]] | None = Field(None, description="Shape and dtype of each input, as far as known.")
    architecture: dict[str, Any] | None = None
    layers: list[LayerInspection] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    sandbox: str = "none"


class DatasetInspection(_Part):
    """What is in a data set."""

    format: str
    task: str | None = Field(None, description="What the targets look like; a job looks at the model's outputs too.")
    inputs: list[dict[str, Any]] = Field(description="Shape of one sample and dtype, an entry an input.")
    samples: dict[str, int] = Field(description="Samples in each split.")
    splits: Literal["given", "by_seed"]
    labelled: bool = Field(True, description="False: inputs alone. A job then has the task `match`.")
    target: dict[str, Any] | None = Field(description="dtype and, for classes, their number; None without labels.")
    warnings: list[str] = Field(default_factory=list)


# -- report -------------------------------------------------------------------------------------


class Interval(_Part):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Latency(_Part):
    """Wall-clock time of one forward pass, milliseconds, measured alternately with the other model."""

    batch_size: int
    p50_ms: float
    p95_ms: float
    noise: float = Field(description="Relative spread (interquartile range / median) of the runs.")
    runs: int
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where it was measured.")


Metric = Literal["accuracy", "r2", "f1", "mean_iou", "log_likelihood", "cosine", "match"]


class Quality(_Part):
    """How well the model does on the test split, which no step ever trained or chose on."""

    metric: Metric = Field(
        description="The task's own measure; more is better. `f1` is over all labels together, `log_likelihood` in "
        "nats a token, `cosine` that to the original's embeddings, `match` one minus the relative error to its answers."
    )
    test: Interval
    validation: float
    loss: float | None = Field(
        description="Mean test loss: cross-entropy or squared error. None where it is no finite number, as with a "
        "masked class."
    )
    samples: int
    beside: dict[str, float] = Field(
        default_factory=dict,
        description="Further measures on the test split, such as `pixel_accuracy`, `perplexity`, `macro_f1` or "
        "`neighbour_overlap`.",
    )


class Size(_Part):
    """One model, counted."""

    parameters: int
    nonzero_parameters: int
    macs: int | None = Field(None, description="Multiply-adds of one sample; None where they could not be counted.")
    file_bytes: int


class Measurement(Size):
    """One model, measured."""

    compressed_bytes: int = Field(description="The same file under gzip -6.")
    latency: list[Latency] = Field(default_factory=list)
    quality: Quality | None = None


class Comparison(_Part):
    """The result against the baseline on the same test samples."""

    quality_difference: Interval = Field(description="after − before, in the metric's own unit.")
    p_value: float = Field(
        description="McNemar's exact test for classes, paired t-test for regression, a t-test of the pseudo-values of "
        "samples for all other measures."
    )
    test: Literal["mcnemar", "paired_t", "jackknife_t"]
    equal_predictions: float | None = Field(None, description="Share of test samples both answer alike.")
    per_class: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Of each class its accuracy before and after; its IoU in a segmentation, its F1 in a multilabel.",
    )
    outputs: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Of each output that is compared with the original's: `relative_error`, `cosine`, and `agreement`, "
        "the share of places where the largest number, or the integer, is the same.",
    )


Precision = Literal["int8", "int8_weights", "float32"]
"""What a layer computes in: all in int8, in float32 with weights kept as int8, or all in float32."""


class LayerReport(_Part):
    """One layer before and after."""

    name: str
    shape_before: list[int]
    shape_after: list[int]
    sparsity: float = Field(description="Share of exact zeros in the layer's weights afterwards.")
    removed_units: list[int] | None = Field(None, description="Indices, in the upload, of removed output channels.")
    reason: str | None = Field(None, description="Why it was left alone.")
    precision: Precision | None = Field(
        None,
        description="quantize: `int8`: inputs and weights are multiplied as integers; `int8_weights`: weights are kept "
        "as int8 and computed with in float32; `float32`: left as it was.",
    )
    sensitivity: float | None = Field(
        None,
        description="quantize, of a job with a `target`: relative error of the model's answers where this layer alone "
        "is int8, on validation samples.",
    )


class StudentStart(_Part):
    """Where a student of a distillation began."""

    source: Literal["from_teacher", "upload", "architecture"]
    parameters: int
    parameters_from_teacher: int = Field(description="How many of them had the values of the teacher's.")
    tensors_from_teacher: list[str] = Field(
        default_factory=list,
        description="Those that were taken from the teacher by name and shape, if it was asked for.",
    )
    width: float | None = Field(None, description="from_teacher: the share of channels that was kept.")
    layers: int | None = Field(None, description="from_teacher: residual blocks, or layers, of the teacher.")
    dropped: list[str] = Field(default_factory=list, description="from_teacher: those of them that went.")
    validation: float | None = Field(None, description="Its score on the validation split before it was taught.")


class TeacherScore(_Part):
    """One of several teachers."""

    pointer: str = Field(description="Where the spec names it.")
    weight: float
    validation: float | None = Field(description="Its score on the validation split; None without data.")


class Point(_Part):
    """One point that the search for a goal tried; what was not looked at there is None."""

    amount: float
    round_to: int | None = None
    parameters: int
    nonzero_parameters: int
    macs: int | None = None
    file_bytes: int | None = Field(None, description="Of the file of the first format in `outputs`.")
    latency: float | None = Field(None, description="Share left of the upload's, measured in turns with it.")
    validation: float | None = Field(None, description="The task's measure, such as accuracy, on the validation split.")
    test: float | None = Field(None, description="The same on the test split: only of the result.")
    met: bool | None = Field(description="Whether it meets the goal, as far as was looked at; None: not looked at yet.")


class Goal(_Part):
    """What was asked for, and what the result came to."""

    status: Literal["met", "infeasible"]
    target: dict[str, float] = Field(description="Shares that may be left, and the quality that may be lost.")
    reached: dict[str, float] = Field(
        description="The same of the result; where infeasible, the nearest that was found."
    )
    amount: float | None = Field(
        None,
        description="The share that was removed for it; of a quantize job the share of the parameters that are int8; "
        "None of a pipeline in which no amount was looked for.",
    )
    round_to: int | None = None
    sentence: str


class FeaturePair(_Part):
    """An inner layer of the student that learned from one of the teacher."""

    term: str = Field(description="The loss, or its term, that compares them, such as `hint`.")
    teacher: str = Field(description="The teacher's layer.")
    student: str = Field(description="The student's layer.")
    teacher_shape: list[int] = Field(description="What the layer gives for one sample.")
    student_shape: list[int]
    chosen: Literal["auto", "named"] = Field(description="By depth and shape, or by the spec.")
    compared: str = Field(description="What is done to make the two comparable, such as a projection.")


class EpochRecord(_Part):
    """One epoch of training."""

    phase: str
    epoch: int
    train_loss: float
    validation: float | None
    seconds: float


class Reproduce(_Part):
    """All that is needed to run this again."""

    spec: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str = Field(description="The GPU's name, or `cpu` with the kind of processor.")
    driver: str | None = Field(None, description="Version of the NVIDIA driver; None without a GPU.")
    threads: int
    ranks: int = Field(
        1, description="Processes that trained the model together, each on its share of every batch and of the threads."
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="What products computed in while the model was trained; None where nothing was trained."
    )
    inputs: dict[str, str] = Field(description="File to SHA-256.")
    outputs: dict[str, str] = Field(default_factory=dict, description="File to SHA-256.")


class FailedOutput(_Part):
    """A format that was asked for and could not be written; the others are there."""

    format: str = Field(description="As in `outputs`.")
    code: str = Field(description="Of the problem, as a failed job has one.")
    detail: str = Field(description="What kept it from being written.")


class StepReport(_Part):
    """One step of a pipeline. The report of its own is among the artifacts: `1-prune.report.json`."""

    type: str
    verdict: str = Field(description="Of the step's own report.")
    parameters: int
    nonzero_parameters: int
    macs: int | None = Field(None, description="Multiply-adds of one sample.")
    file_bytes: int
    quality: Quality | None = Field(None, description="Of the step's result, on the same samples as the upload's.")
    seconds: float = Field(description="Wall-clock seconds; of a resumed step, of its last attempt.")
    artifact: str | None = Field(
        None, description="The artifact that holds the result, which the next step began with."
    )


class Report(_Printed):
    """The before/after report of one job."""

    type: str
    task: str | None = Field(None, description="What the model was scored as: that of the spec, or the one guessed.")
    verdict: str
    goal: Goal | None = Field(None, description="prune: of a job with a `target`.")
    before: Measurement
    after: Measurement
    before_retraining: Quality | None = Field(None, description="prune, one-shot: after removal, before retraining.")
    comparison: Comparison | None = None
    steps: list[StepReport] = Field(default_factory=list, description="pipeline: a row a step.")
    labels_only: Quality | None = Field(None, description="distill: the same student trained on labels alone.")
    features: list[FeaturePair] = Field(
        default_factory=list, description="distill: the pairs of inner layers that the loss compared."
    )
    student: StudentStart | None = Field(None, description="distill: where the student began.")
    teachers: list[TeacherScore] = Field(
        default_factory=list,
        description="distill: each of several teachers, the first being the one it is compared with.",
    )
    layers: list[LayerReport] = Field(default_factory=list)
    removed: dict[str, dict[str, list[int]]] = Field(
        default_factory=dict,
        description="channel pruning: tensor name -> dimension -> removed indices, in the upload's own numbering.",
    )
    history: list[EpochRecord] = Field(default_factory=list)
    best_epoch: int | None = None
    frontier: list[Point] = Field(
        default_factory=list,
        description="Every point that the search for a goal tried; of a pipeline as the step left it that searched.",
    )
    seconds: dict[str, float] = Field(default_factory=dict, description="Wall-clock seconds of each stage.")
    runtime: Literal["onnxruntime", "torch"] | None = Field(
        None,
        description="quantize: what ran the file whose latency and quality `after` has; beside it, and for latency, "
        "ran the float32 model in the same format.",
    )
    failed_outputs: list[FailedOutput] = Field(
        default_factory=list, description="Formats that were asked for and could not be written; the others were."
    )
    warnings: list[str] = Field(default_factory=list)
    sandbox: str = "none"
    reproduce: Reproduce

    def to_html(self) -> str:
        """The report as one HTML page that needs no other file, for people who were not there."""
        from pared.report_page import render

        return render(self)

    def to_pandas(self, table: Frame = "layers") -> pd.DataFrame:
        """A table of the report as a pandas DataFrame.

        Args:
            table: `layers`: a row a layer, with shapes and weights before and after; `history`: a row an epoch of
                training; `search`: a row for each point that the search for a goal tried.

        Raises:
            ImportError: pandas is not installed.
            ValueError: there is no such table.
        """
        from pared.report_frames import frame_of

        return frame_of(self, table)

    def __rich__(self) -> RenderableType:
        """The verdict, and figures before and after."""
        from pared.report_tables import report_tables

        return report_tables(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from pared.notebook.reports import html_of_report

        return html_of_report(self)


# -- plan ---------------------------------------------------------------------------------------


class PlannedFile(_Part):
    """A file that the job would write."""

    size_bytes: int
    exact: bool = Field(description="False: about so many, for retraining changes what they depend on.")


class PlannedLayer(_Part):
    """One layer before and after."""

    name: str
    shape_before: list[int]
    shape_after: list[int]
    removed_units: int = Field(0, description="Output channels or neurons that go.")
    zeroed_weights: int = Field(0, description="Weights that are set to zero and held there.")
    precision: Precision | None = Field(None, description="quantize: what it would compute in, as in a report.")
    reason: str | None = Field(None, description="Why it would be left alone.")


class PlannedStep(Size):
    """One step of a pipeline, with the size of its result."""

    type: str
    verdict: str
    exact: bool = Field(description="Whether its figures will be just these; if not, `notes` of the plan say why.")


class Plan(_Printed):
    """What a job would do: found out by doing all of it save the training and the measuring."""

    verdict: str
    amount: float | None = Field(
        description="Share that goes: that of the spec, or the one that meets its target; of a quantize job the share "
        "of the parameters that become int8. Of a pipeline that of its prune step, if it has just one."
    )
    round_to: int | None = None
    goal: Goal | None = Field(None, description="What the spec's `target` comes to.")
    exact: bool = Field(
        description="Whether layers, parameters and multiply-adds will be just these. If not, `notes` say which may "
        "differ, and why."
    )
    before: Size
    after: Size = Field(description="`file_bytes` are those of the result in the upload's own format, if any.")
    files: dict[str, PlannedFile]
    failed_outputs: list[FailedOutput] = Field(
        default_factory=list, description="Formats that the job would not write, and why; it would write the others."
    )
    layers: list[PlannedLayer] = Field(description="Of a pipeline those of its prune step, if it has just one.")
    steps: list[PlannedStep] = Field(default_factory=list, description="pipeline: a row a step.")
    frontier: list[Point] = Field(default_factory=list, description="Every point that the search for a goal tried.")
    notes: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list, description="Where the outcome may not be what was meant.")

    def __rich__(self) -> RenderableType:
        """The layers, and figures before and after."""
        from pared.report_tables import plan_tables

        return plan_tables(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from pared.notebook.reports import html_of_plan

        return html_of_plan(self)
