"""Typed keywords of jobs, and of the steps of a pipeline."""

from typing import Literal, Required, TypedDict

from pared.spec_fields.losses import DistillLossFields
from pared.spec_fields.parts import (
    ArchitectureFields,
    LayeredArchitectureFields,
    NamedArchitectureFields,
    PreprocessFields,
    TensorFields,
)
from pared.spec_fields.training import CalibrationFields, QuantizeFields, RetrainFields, TargetFields, TeachTrainFields
from pared.specs import Criterion, Device, Granularity, Output, Schedule, Scope, Task
from pared.specs.quantization import Method


class CommonFields(TypedDict, total=False):
    """What every compression job has."""

    seed: int
    """Seed of every random choice."""
    task: Task | None
    """What the model is for, such as `segmentation`; by default what its outputs and the labels look like."""
    output: str | int | None
    """Of several outputs the one that the labels belong to: its name or its number."""
    ignore_index: int | None
    """A label of pixels or tokens that says nothing, beside −100, −1 and 255."""
    preprocess: PreprocessFields | None
    """How stored arrays become inputs of the model."""
    outputs: list[Output] | None
    """Formats of the result."""
    dynamic: dict[str, dict[int, str]] | Literal["auto"] | None
    """Free sizes beside the batch in onnx and exported_program, such as {"x": {2: "height", 3: "width"}}."""
    onnx_opset: int | None
    """Version of ONNX's operators."""
    time_limit_s: int | None
    """Ends the job as failed after so many seconds."""
    device: Device
    """What the job computes on: `auto`, `cpu` or `cuda`."""
    latency_device: Literal["cpu", "cuda"] | None
    """Where latency is measured; by default where the job computes."""


class PruneStepFields(TypedDict, total=False):
    """What is of pruning alone: the options of a prune step in a pipeline."""

    granularity: Granularity
    """What is removed: `channel`, `head`, `residual_block`, or zeroed: `weight`, `n:m`, `block`."""
    n_m: tuple[int, int]
    """`n:m`: how many weights are kept of how many neighbours, such as (2, 4)."""
    block: tuple[int, int]
    """`block`: rows and columns that are zeroed together, such as (4, 4)."""
    criterion: Criterion
    """How importance is scored; the least important is removed first."""
    scope: Scope
    """Rank all units together (`global`), or layer by layer (`layer`)."""
    target: TargetFields | None
    """What the result must reach, in place of an `amount`."""
    amount: float | None
    """Share to remove, between 0 and 1."""
    round_to: int | None
    """`channel`: layers keep a multiple of so many channels."""
    uniform: bool | None
    """Of a Hugging Face model folder: remove only what its config.json can say, so that the result is one again."""
    amounts: dict[str, float]
    """Another amount for layers whose name matches a pattern, such as {"conv*": 0.3}."""
    schedule: Schedule
    """`one_shot`, `iterative` or `cubic`."""
    steps: int
    """How often an iterative job prunes and retrains."""
    stages: list[float]
    """Amounts to reach on the way, each with a retraining of its own."""
    ramp: float
    """`cubic`, while training runs: the share of its steps over which weights are removed."""
    regrow: float
    """`cubic`, while training runs: the share of the weights that may change places with removed ones."""
    include: list[str]
    """Layer name patterns."""
    exclude: list[str]
    """Layer name patterns, stronger than `include`."""
    output_width: Literal["keep", "project"]
    """`channel`: `project` lets the width that reaches an output shrink, and projects it to what it was."""
    quantize: QuantizeFields | None
    """After pruning, let weights share values."""
    retrain: RetrainFields | None
    """How the pruned model is retrained; None does not. Left out, where there is a data set: for 5 epochs."""


class PruneFields(CommonFields, PruneStepFields, total=False):
    """The options of `prune`."""

    example_inputs: list[TensorFields] | None
    """The arguments of the model's forward, where no data set shows them, or some have fixed values."""
    streamed: bool | None
    """Of a folder of a Llama, Mistral or Qwen2: read, pruned and written layer by layer, without retraining."""


class PruneJobFields(PruneFields, total=False):
    """The options of `Client.prune` and `Client.plan`."""

    architecture: ArchitectureFields | None
    """For a state dict that was uploaded without one."""


class TeacherFields(TypedDict, total=False):
    """A model that teaches beside the teacher."""

    model: Required[str]
    """The id of an upload; the client takes a file as well, which it uploads."""
    architecture: ArchitectureFields | None
    """For a state dict that was uploaded without one."""
    weight: float
    """How much its answers weigh in the mean; 1 by default."""


class TeachFields(TypedDict, total=False):
    """What is of distillation alone."""

    teacher_weight: float
    """Of the teacher, among `teachers`; 1 by default."""
    combine: Literal["mean", "best"]
    """What several teachers answer together: the `mean`, or of each sample the answer of the `best` by its label."""
    student_weights: Literal["own", "teacher"]
    """Where a student that is no part of the teacher begins: `teacher` takes each tensor of the same name and shape."""
    made_samples: int
    """How many inputs are made up where there is no data set."""
    loss: DistillLossFields
    """How the student's outputs are compared with the teacher's."""
    train: TeachTrainFields
    """How the student is trained."""
    compare_with_labels_only: bool
    """Also train the same student on labels alone, and report it."""


class DistillFields(CommonFields, TeachFields, total=False):
    """The options of `distill`."""

    example_inputs: list[TensorFields] | None
    """The arguments of the teacher's forward, where some have fixed values, or where there is no data set."""


class DistillJobFields(DistillFields, total=False):
    """The options of `Client.distill`."""

    teacher_architecture: ArchitectureFields | None
    """For a teacher's state dict that was uploaded without one."""
    student_architecture: ArchitectureFields | None
    """For a student's state dict that was uploaded without one."""
    teachers: list[TeacherFields]
    """Further models that teach, with outputs of the same shape."""


class QuantizeStepFields(TypedDict, total=False):
    """The options of a quantize step in a pipeline."""

    method: Method
    """`weight_only`, `dynamic` or `static`; the last two are for ONNX."""
    calibration: CalibrationFields
    """`static`: on how many samples the ranges between layers are found, and how."""
    include: list[str]
    """Layer name patterns."""
    exclude: list[str]
    """Layer name patterns, stronger than `include`: these layers stay float32."""
    retrain: RetrainFields | None
    """Train the model while it computes with rounded weights and inputs; None does not."""
    target: TargetFields | None
    """How much quality may be lost, as `max_quality_drop`; layers are left out of int8 until no more is."""


class Int8Fields(CommonFields, QuantizeStepFields, total=False):
    """The options of `quantize`."""

    example_inputs: list[TensorFields] | None
    """The arguments of the model's forward, where no data set shows them, or some have fixed values."""


class Int8JobFields(Int8Fields, total=False):
    """The options of `Client.quantize`."""

    architecture: ArchitectureFields | None
    """For a state dict that was uploaded without one."""


class StudentTargetFields(TypedDict, total=False):
    """What a student that is cut from its teacher may have at most."""

    params: float | None
    """Share of the teacher's parameters."""
    macs: float | None
    """Share of the multiply-adds of one sample."""
    latency: float | None
    """Share of the time of a forward pass."""
    latency_batch_size: int
    """Samples in the batch whose time is measured."""


class TeacherCutFields(TypedDict, total=False):
    """What a student keeps of its teacher."""

    width: float | None
    """The share of channels kept in every layer."""
    depth: float | None
    """The share of residual blocks kept; of a transformer, of its layers."""
    drop: Literal["evenly", "least_important"]
    """Which blocks go."""
    target: StudentTargetFields | None
    """Sizes to come to, instead of a width or a depth."""


class FromTeacherFields(TypedDict):
    """A student made from the teacher, with its weights."""

    from_teacher: TeacherCutFields
    """How much is kept."""


class DistillStepFields(TeachFields, total=False):
    """The options of a distill step in a pipeline."""

    teacher: Literal["upload", "previous"]
    """Who teaches: the upload, or the result of the step before."""
    student: str | FromTeacherFields | NamedArchitectureFields | LayeredArchitectureFields | None
    """By default the result of the step before."""
    student_architecture: ArchitectureFields | None
    """For a student's state dict that was uploaded without one."""
    teachers: list[TeacherFields]
    """Further models that teach, with outputs of the same shape."""


class StepFields(TypedDict, total=False):
    """One step of a pipeline: one of these."""

    prune: PruneStepFields | None
    """Remove weights or channels."""
    distill: DistillStepFields | None
    """Teach the result of the step before, or a student of its own."""
    quantize: QuantizeStepFields | None
    """Make the result of the step before int8."""


class PipelineFields(CommonFields, total=False):
    """The options of `pipeline`."""

    steps: Required[list[StepFields]]
    """What is done, in order, each on the result of the step before."""
    target: TargetFields | None
    """What the last result must come to, as shares of the upload's."""
    example_inputs: list[TensorFields] | None
    """The arguments of the model's forward, where no data set shows them, or some have fixed values."""


class PipelineJobFields(PipelineFields, total=False):
    """The options of `Client.pipeline`."""

    architecture: ArchitectureFields | None
    """For a state dict that was uploaded without one."""
