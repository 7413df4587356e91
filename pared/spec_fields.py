"""The fields of job specs as typed keywords and dicts, for the client, the library and editors.

They are what `pared.specs` accepts: a test holds names, types and required fields equal. Every other field may be left
out; defaults and limits are those of the spec.
"""

# Annotations are evaluated here: `__required_keys__` does not see a `Required` that is a string.
from typing import Any, Literal, Required, TypedDict

from pared.specs import Criterion, Device, Granularity, LrSchedule, Optimizer, Output, Precision, Schedule, Scope, Task

# -- parts ----------------------------------------------------------------------------------------


class NamedArchitectureFields(TypedDict, total=False):
    """An architecture that pared knows by name."""

    name: Required[str]
    """Such as `lenet5` or torchvision's `resnet50`."""
    kwargs: dict[str, Any]
    """Arguments of the architecture, such as `num_classes`."""


class LayeredArchitectureFields(TypedDict, total=False):
    """An architecture as its layers in order."""

    layers: Required[list[Any]]
    """Each `["Conv2d", {kwargs}]`, or `["Conv2d", {kwargs}, "conv1"]` with the name that its weights have."""


ArchitectureFields = str | NamedArchitectureFields | LayeredArchitectureFields
"""An architecture's name, or one of the two dicts."""


class TensorFields(TypedDict, total=False):
    """One argument of a model: a tensor by its `shape`, a fixed `value`, or the `items` of a list, tuple or dict."""

    shape: list[int] | None
    """Sizes of a tensor, the batch first or where `batch_dim` says."""
    dtype: Literal["float32", "int64"]
    """Type of a tensor's elements; float32 by default."""
    batch_dim: Literal[0, 1] | None
    """Where a tensor has its batch; by default it is found by trying."""
    value: bool | int | float | str | list[bool | int | float | str] | None
    """A number, a flag, a text or a list of these; None for an optional argument that is not given."""
    items: "list[TensorFields] | dict[str, TensorFields] | None"
    """What a list, a tuple or a dict holds."""


class PreprocessFields(TypedDict, total=False):
    """How stored arrays become inputs of the model: `(x * scale - mean) / std`."""

    scale: float
    """Factor of every element; 1 by default."""
    mean: list[float] | None
    """One for each channel (dimension 1)."""
    std: list[float] | None
    """One for each channel (dimension 1), above 0."""
    max_length: int | None
    """Tokens of a text that are kept; by default 512."""


class OutputMseFields(TypedDict, total=False):
    """The squared distance of the student's outputs from the teacher's."""

    kind: Required[Literal["output_mse"]]
    """Names this loss."""


class KnowledgeFields(TypedDict, total=False):
    """Knowledge distillation: α · output distance + (1 − α) · T² · KL(teacher ‖ student)."""

    kind: Required[Literal["knowledge"]]
    """Names this loss."""
    alpha: float
    """Weight α of the output distance, 0 to 1; 0 by default."""
    temperature: float
    """Temperature T that softens the outputs, above 0; 2 by default."""
    features: list[tuple[str, str]] | None
    """Pairs of a teacher's and a student's layer: the KL term compares their softened outputs, not the logits."""
    labels: float
    """Share of the loss on the labels, 0 to below 1; 0.5 by default."""


class FlipFields(TypedDict, total=False):
    """Mirrors an image."""

    p: float
    """Share of the samples; 0.5 by default."""


class CropFields(TypedDict, total=False):
    """Pads an image, and cuts one of its former size out of it at a random place."""

    padding: int
    """Pixels on each side; 4 by default."""
    fill: float
    """Value of the padding; 0 by default."""


class ResizedCropFields(TypedDict, total=False):
    """Stretches a random rectangle of an image to the size of the whole."""

    scale: tuple[float, float]
    """Least and largest share of the image's area; (0.08, 1) by default."""
    ratio: tuple[float, float]
    """Least and largest width as a multiple of the height; (3/4, 4/3) by default."""


class ErasingFields(TypedDict, total=False):
    """Overwrites a random rectangle of an image."""

    p: float
    """Share of the samples; 0.5 by default."""
    scale: tuple[float, float]
    """Least and largest share of the image's area; (0.02, 0.33) by default."""
    ratio: tuple[float, float]
    """Least and largest width as a multiple of the height; (0.3, 3.3) by default."""
    value: float
    """What is written; 0 by default."""


class ColorJitterFields(TypedDict, total=False):
    """Multiplies each by a factor between 1 − strength and 1 + strength."""

    brightness: float
    """Strength; 0.4 by default."""
    contrast: float
    """Strength; 0.4 by default."""
    saturation: float
    """Strength, for images with three channels; 0.4 by default."""


class MixupFields(TypedDict, total=False):
    """Blends each sample of a batch with another one, and their losses alike."""

    alpha: float
    """The share of the first is drawn from Beta(alpha, alpha); 1 by default."""
    p: float
    """Share of the batches; all by default."""


class CutmixFields(TypedDict, total=False):
    """Pastes a rectangle of another image into each image of a batch."""

    alpha: float
    """The area left of the first is drawn from Beta(alpha, alpha); 1 by default."""
    p: float
    """Share of the batches; all by default."""


class TokenDropoutFields(TypedDict, total=False):
    """Replaces single tokens."""

    p: float
    """Share of the tokens; 0.1 by default."""
    id: int
    """The token id that stands in their place; 0 by default."""


class AugmentFields(TypedDict, total=False):
    """Random changes of training samples, at least one; an empty dict stands for the usual numbers of a change."""

    horizontal_flip: FlipFields | None
    """Mirror images left to right."""
    vertical_flip: FlipFields | None
    """Mirror images upside down."""
    crop: CropFields | None
    """Shift images by some pixels."""
    resized_crop: ResizedCropFields | None
    """Enlarge a part of each image."""
    color_jitter: ColorJitterFields | None
    """Change brightness, contrast and saturation."""
    erasing: ErasingFields | None
    """Overwrite a part of images."""
    mixup: MixupFields | None
    """Blend samples; beside `cutmix`, each batch gets one of the two."""
    cutmix: CutmixFields | None
    """Paste parts of images into others."""
    token_dropout: TokenDropoutFields | None
    """Replace tokens by one that says nothing."""


class TrainingFields(TypedDict, total=False):
    """How a module is trained; the epoch with the best validation score is kept."""

    optimizer: Optimizer
    """`sgd` or `adam`."""
    lr: float
    """Learning rate; what it is without one hangs on the optimizer."""
    lr_schedule: LrSchedule
    """`constant`, or `cosine`: it falls to 0 along half a cosine."""
    warmup: float
    """Share of all steps over which the learning rate first rises."""
    momentum: float
    """Of SGD."""
    nesterov: bool
    """Nesterov's momentum, of SGD."""
    weight_decay: float
    """L2 penalty on the weights."""
    batch_size: int
    """Samples in a training step."""
    precision: Precision
    """What convolutions and matrix products of the training compute in: `auto`, `float32` or `bfloat16`."""
    patience: int | None
    """Stop after so many epochs without a better validation score."""
    augment: AugmentFields | None
    """Change the training samples at random, anew in each epoch."""
    class_weights: Literal["balanced"] | list[float] | None
    """Of each class, in the loss on labels; `balanced`: all classes weigh the same."""
    label_smoothing: float
    """Share of each label that is spread over all classes."""


class TrainFields(TrainingFields, total=False):
    """A training run of so many epochs, 5 by default; by default by SGD at 0.01 (Adam at 0.001)."""

    epochs: int
    """Epochs of training."""


class TeachTrainFields(TrainingFields, total=False):
    """The training of a student; by default by Adam at 0.003, along a cosine after a warm-up."""

    epochs: int | None
    """Epochs of training; without a number as many as make 6,000 steps, but at least 10 and at most 200."""


class RetrainFields(TrainFields, total=False):
    """The training after, or while, weights are removed."""

    teach: bool | OutputMseFields | KnowledgeFields | None
    """Learn from the outputs of the model as it was, beside the labels or instead: a loss, or whether to."""


class TargetFields(TypedDict, total=False):
    """What the result must reach, each size as the share left of the upload's; at least one."""

    params: float | None
    """Parameters left; for single weights and blocks, parameters that are not zero."""
    macs: float | None
    """Multiply-adds of one sample left."""
    file_bytes: float | None
    """Bytes left of the file in the first format of `outputs`."""
    latency: float | None
    """Time of a forward pass left."""
    latency_batch_size: int
    """Samples in the batch whose time is measured; 1 by default."""
    max_quality_drop: float | None
    """How much of the task's own measure may be lost, such as accuracy (0.01: one point) or R²."""
    max_accuracy_drop: float | None
    """The older name of `max_quality_drop`."""


class QuantizeFields(TypedDict, total=False):
    """Few values shared by many weights, for packed files."""

    bits: Required[int]
    """Each tensor has at most 2^bits values beside zero."""
    epochs: int
    """Epochs of training the shared values."""
    lr: float | None
    """Learning rate of that training; by default a tenth of that of `retrain`."""


# -- jobs -----------------------------------------------------------------------------------------


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


class PruneFields(CommonFields, total=False):
    """The options of `prune`."""

    example_inputs: list[TensorFields] | None
    """The arguments of the model's forward, where no data set shows them, or some have fixed values."""
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
    """How the pruned model is retrained; None does not."""


class PruneJobFields(PruneFields, total=False):
    """The options of `Client.prune` and `Client.plan`."""

    architecture: ArchitectureFields | None
    """For a state dict that was uploaded without one."""


class DistillFields(CommonFields, total=False):
    """The options of `distill`."""

    loss: OutputMseFields | KnowledgeFields
    """How the student's outputs are compared with the teacher's."""
    train: TeachTrainFields
    """How the student is trained."""
    compare_with_labels_only: bool
    """Also train the same student on labels alone, and report it."""


class DistillJobFields(DistillFields, total=False):
    """The options of `Client.distill`."""

    teacher_architecture: ArchitectureFields | None
    """For a teacher's state dict that was uploaded without one."""
    student_architecture: ArchitectureFields | None
    """For a student's state dict that was uploaded without one."""
