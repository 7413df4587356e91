"""Owns which models a job has to run, so that weights alone are not enough, and what to do about such weights."""

from __future__ import annotations

from dataclasses import dataclass

from pared.specs.base import JobSpec
from pared.specs.distillation import DistillSpec
from pared.specs.pipelines import PipelineSpec
from pared.specs.planning import PlanSpec
from pared.specs.pruning import PHYSICAL, PruneSpec
from pared.specs.quantization import QuantizeSpec

EXPORT_IT = (
    "Where the class of the model is at hand, export it and upload that file, which needs no architecture. With a "
    'batch of inputs x: `torch.jit.save(torch.jit.trace(model.eval(), x), "model.pt")` for TorchScript, or '
    "`torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=[{0: torch.export.Dim.AUTO}]), "
    '"model.pt2")`, or `torch.onnx.export(model.eval(), (x,), "model.onnx")` for ONNX.'
)
"""What makes of a model in Python a file that runs."""
GIVE_ARCHITECTURE = (
    'Give the job its `architecture` (`--architecture` on the command line): a known name such as "resnet_small", or '
    '{"layers": [["Linear", {"in_features": …, "out_features": …}, "fc1"], …]} whose layer names match the file\'s.'
)
WITHOUT_RUNNING = (
    "Without either, weights can be set to zero, quantized and packed, which runs nothing: a prune job of the "
    "granularity weight, n:m or block, or a quantize job, without a data set."
)


@dataclass(frozen=True)
class Run:
    """Of a model that a job runs: the field that says its architecture, as a JSON pointer, and why it is run."""

    architecture: str
    why: str

    def refused(self, named: str = "the file") -> dict[str, str]:
        """What is wrong where it holds weights alone, as an entry of a problem's `errors`."""
        why = f"is required: {named} holds weights alone, and {self.why}. "
        return {"pointer": self.architecture, "detail": f"{why}{GIVE_ARCHITECTURE} {EXPORT_IT} {WITHOUT_RUNNING}"}


def runs(spec: JobSpec) -> dict[str, Run]:
    """The models that a job runs and whose architecture it does not say: JSON pointer of each -> what is known."""
    if isinstance(spec, PlanSpec):
        return runs(spec.job)
    if isinstance(spec, PruneSpec | QuantizeSpec):
        why = why_run(spec)
        return {"/model": Run("/architecture", why)} if why and spec.architecture is None else {}
    if isinstance(spec, DistillSpec):
        return _of_distillation(spec)
    if isinstance(spec, PipelineSpec):
        of_upload = {} if spec.architecture else {"/model": Run("/architecture", "a pipeline runs what it works on")}
        return of_upload | {
            spec.pointer(index, model): Run(spec.pointer(index, run.architecture), run.why)
            for index in range(len(spec.steps))
            for model, run in runs(spec.job(index)).items()
            if model not in ("/model", "/teacher")  # the upload, or what an earlier step made
        }
    return {}


def why_run(spec: PruneSpec | QuantizeSpec) -> str | None:
    """Why a job runs its model; None: it only looks at the weights."""
    if isinstance(spec, PruneSpec) and spec.granularity in PHYSICAL:
        return f"granularity {spec.granularity} finds out what belongs together by running it"
    if spec.dataset is not None:
        return "a data set is for scoring, retraining and criteria that look at samples"
    if isinstance(spec, PruneSpec):
        return None if spec.example_inputs is None else "`example_inputs` are to run it on"
    if spec.method != "weight_only":
        return f"{spec.method} int8 is of what the model computes"
    return "an ONNX file holds what the model computes" if "onnx" in (spec.outputs or []) else None


def _of_distillation(spec: DistillSpec) -> dict[str, Run]:
    teaches = "distillation learns from the answers of its teachers"
    found = {} if spec.teacher_architecture else {"/teacher": Run("/teacher_architecture", teaches)}
    for index, each in enumerate(spec.teachers):
        if each.architecture is None:
            found[f"/teachers/{index}/model"] = Run(f"/teachers/{index}/architecture", teaches)
    if isinstance(spec.student, str) and spec.student_architecture is None:
        found["/student"] = Run("/student_architecture", "the student is trained")
    return found
