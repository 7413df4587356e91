"""Job specs: the one contract that the API, the worker, the client and the compression library share.

Which types of jobs there are, and what belongs to each, is said in `pared.job_types`.
"""

from __future__ import annotations

from pared.specs.architectures import NAMES_HELP, Architecture, LayeredArchitecture, NamedArchitecture
from pared.specs.augmentation import (
    Augment,
    ColorJitter,
    Crop,
    Cutmix,
    Erasing,
    Flip,
    Mixup,
    ResizedCrop,
    TokenDropout,
)
from pared.specs.base import Device, JobSpec, Spec
from pared.specs.common import (
    ONNX_OPSETS,
    WITH_FREE_SIZES,
    WITHOUT_CLASSES,
    WITHOUT_LABELS,
    CompressionSpec,
    Output,
    Outputs,
    Preprocess,
    Task,
    TensorSpec,
)
from pared.specs.distillation import DistillSpec
from pared.specs.inspection import InspectSpec
from pared.specs.losses import (
    OF_CLASSES,
    AttentionTerm,
    Combined,
    CosineTerm,
    DecoupledTerm,
    DistTerm,
    FeaturePairs,
    FeatureTerm,
    HintTerm,
    KlTerm,
    LabelsTerm,
    LossTerm,
    OutputMseTerm,
    RelationalTerm,
)
from pared.specs.pipelines import PipelineSpec
from pared.specs.planning import PlanSpec
from pared.specs.pruning import PHYSICAL, Criterion, Granularity, PruneSpec, Quantize, Schedule, Scope
from pared.specs.quantization import Calibration, QuantizeSpec
from pared.specs.students import FromTeacher, Student, StudentTarget, Teacher, TeacherCut
from pared.specs.targets import Target
from pared.specs.training import (
    DistillLoss,
    Knowledge,
    LrSchedule,
    Optimizer,
    OutputMse,
    Precision,
    Retrain,
    TeachTrain,
    Train,
    Training,
)
from pared.specs.uploads import BUILTIN_DATASETS, DatasetReference, Json, ModelId, Reference, Text, UploadKind

__all__ = [
    "BUILTIN_DATASETS",
    "NAMES_HELP",
    "OF_CLASSES",
    "ONNX_OPSETS",
    "PHYSICAL",
    "WITHOUT_CLASSES",
    "WITHOUT_LABELS",
    "WITH_FREE_SIZES",
    "Architecture",
    "AttentionTerm",
    "Augment",
    "Calibration",
    "ColorJitter",
    "Combined",
    "CompressionSpec",
    "CosineTerm",
    "Criterion",
    "Crop",
    "Cutmix",
    "DatasetReference",
    "DecoupledTerm",
    "Device",
    "DistTerm",
    "DistillLoss",
    "DistillSpec",
    "Erasing",
    "FeaturePairs",
    "FeatureTerm",
    "Flip",
    "FromTeacher",
    "Granularity",
    "HintTerm",
    "InspectSpec",
    "JobSpec",
    "Json",
    "KlTerm",
    "Knowledge",
    "LabelsTerm",
    "LayeredArchitecture",
    "LossTerm",
    "LrSchedule",
    "Mixup",
    "ModelId",
    "NamedArchitecture",
    "Optimizer",
    "Output",
    "OutputMse",
    "OutputMseTerm",
    "Outputs",
    "PipelineSpec",
    "PlanSpec",
    "Precision",
    "Preprocess",
    "PruneSpec",
    "Quantize",
    "QuantizeSpec",
    "Reference",
    "RelationalTerm",
    "ResizedCrop",
    "Retrain",
    "Schedule",
    "Scope",
    "Spec",
    "Student",
    "StudentTarget",
    "Target",
    "Task",
    "TeachTrain",
    "Teacher",
    "TeacherCut",
    "TensorSpec",
    "Text",
    "TokenDropout",
    "Train",
    "Training",
    "UploadKind",
]
