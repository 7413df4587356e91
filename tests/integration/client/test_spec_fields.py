"""The typed keywords of the client and the library: what `pared.specs` accepts, and what mypy makes of calls."""

from __future__ import annotations

import ast
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Union

import pytest
from mypy import api
from pydantic import BaseModel

import pared.compression
from pared import AsyncClient, Client, spec_fields, specs

STEP = typing.get_args(typing.get_type_hints(specs.PipelineSpec)["steps"])[0]
PRUNE_STEP, DISTILL_STEP, QUANTIZE_STEP = (
    typing.get_args(STEP.model_fields[name].annotation)[0] for name in ("prune", "distill", "quantize")
)
FIELDS: dict[type[BaseModel], Any] = {
    specs.PipelineSpec: spec_fields.PipelineJobFields,
    STEP: spec_fields.StepFields,
    PRUNE_STEP: spec_fields.PruneStepFields,
    DISTILL_STEP: spec_fields.DistillStepFields,
    specs.FromTeacher: spec_fields.FromTeacherFields,
    QUANTIZE_STEP: spec_fields.QuantizeStepFields,
    specs.TeacherCut: spec_fields.TeacherCutFields,
    specs.StudentTarget: spec_fields.StudentTargetFields,
    specs.PruneSpec: spec_fields.PruneJobFields,
    specs.DistillSpec: spec_fields.DistillJobFields,
    specs.NamedArchitecture: spec_fields.NamedArchitectureFields,
    specs.LayeredArchitecture: spec_fields.LayeredArchitectureFields,
    specs.TensorSpec: spec_fields.TensorFields,
    specs.Preprocess: spec_fields.PreprocessFields,
    specs.OutputMse: spec_fields.OutputMseFields,
    specs.Knowledge: spec_fields.KnowledgeFields,
    specs.Combined: spec_fields.CombinedFields,
    specs.OutputMseTerm: spec_fields.OutputMseTermFields,
    specs.KlTerm: spec_fields.KlTermFields,
    specs.DecoupledTerm: spec_fields.DecoupledTermFields,
    specs.DistTerm: spec_fields.DistTermFields,
    specs.LabelsTerm: spec_fields.LabelsTermFields,
    specs.HintTerm: spec_fields.HintTermFields,
    specs.AttentionTerm: spec_fields.AttentionTermFields,
    specs.RelationalTerm: spec_fields.RelationalTermFields,
    specs.CosineTerm: spec_fields.CosineTermFields,
    specs.Flip: spec_fields.FlipFields,
    specs.Crop: spec_fields.CropFields,
    specs.ResizedCrop: spec_fields.ResizedCropFields,
    specs.Erasing: spec_fields.ErasingFields,
    specs.ColorJitter: spec_fields.ColorJitterFields,
    specs.Mixup: spec_fields.MixupFields,
    specs.Cutmix: spec_fields.CutmixFields,
    specs.TokenDropout: spec_fields.TokenDropoutFields,
    specs.Augment: spec_fields.AugmentFields,
    specs.Train: spec_fields.TrainFields,
    specs.TeachTrain: spec_fields.TeachTrainFields,
    specs.Retrain: spec_fields.RetrainFields,
    specs.Target: spec_fields.TargetFields,
    specs.Teacher: spec_fields.TeacherFields,
    specs.Quantize: spec_fields.QuantizeFields,
    specs.Calibration: spec_fields.CalibrationFields,
    specs.QuantizeSpec: spec_fields.Int8JobFields,
}
POSITIONAL = {kind: {"type", "model", "dataset"} for kind in (specs.PruneSpec, specs.QuantizeSpec, specs.PipelineSpec)}
POSITIONAL[specs.DistillSpec] = {"type", "teacher", "student", "dataset"}
ALSO = {(specs.Retrain, "teach"): bool}
"""What a spec makes another value of before it looks at the types."""


def accepted(annotation: Any) -> Any:
    """A spec's annotation without limits, with typed dicts for the specs in it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return accepted(arguments[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(accepted(each) for each in arguments)]  # noqa: UP007 - made at run time
    if origin in (list, dict, tuple):
        return origin[tuple(accepted(each) for each in arguments)]
    return FIELDS.get(annotation, annotation)


@pytest.mark.parametrize("spec", FIELDS, ids=lambda spec: spec.__name__)
def test_keywords_are_the_fields_of_the_spec(spec: type[BaseModel]) -> None:
    annotations = typing.get_type_hints(spec, include_extras=True)
    fields = {name: field for name, field in spec.model_fields.items() if name not in POSITIONAL.get(spec, ())}
    expected = {name: accepted(annotations[name]) for name in fields}
    for (kind, name), more in ALSO.items():
        if kind is spec:
            expected[name] |= more
    assert typing.get_type_hints(FIELDS[spec]) == expected
    assert FIELDS[spec].__required_keys__ == {name for name, field in fields.items() if field.is_required()}


def test_every_keyword_is_documented() -> None:
    trees = [ast.parse(path.read_text()) for path in Path(spec_fields.__file__).parent.glob("*.py")]
    kinds = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(kinds) > len(FIELDS)
    for kind in kinds:
        for statement, following in zip(kind.body, [*kind.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{kind.name}.{ast.unparse(statement.target)}"


def test_every_method_takes_typed_keywords() -> None:
    of_prune = [client.prune for client in (Client, AsyncClient)] + [client.plan for client in (Client, AsyncClient)]
    methods = dict.fromkeys(of_prune, "PruneJobFields")
    methods |= dict.fromkeys([Client.distill, AsyncClient.distill], "DistillJobFields")
    methods |= dict.fromkeys([Client.quantize, AsyncClient.quantize], "Int8JobFields")
    of_pipeline = [getattr(client, name) for client in (Client, AsyncClient) for name in ("pipeline", "plan_pipeline")]
    methods |= dict.fromkeys(of_pipeline, "PipelineJobFields")
    methods |= {pared.compression.pipeline: "PipelineFields"}
    methods |= {pared.compression.prune: "PruneFields", pared.compression.distill: "DistillFields"}
    methods[pared.compression.quantize] = "Int8Fields"
    for method, fields in methods.items():
        assert method.__annotations__["fields"] == f"Unpack[{fields}]", method


GOOD = """
import pared
from pared.compression import distill, pipeline, prune, quantize
from pared.spec_fields import RetrainFields

retrain: RetrainFields = {"epochs": 3, "lr": 0.02, "teach": {"kind": "knowledge", "temperature": 4}}
retrain["augment"] = {"crop": {"padding": 4}, "mixup": {}}
client = pared.Client()
client.prune("m.pt", "d.npz", amount=0.5, granularity="channel", retrain=retrain, seed=1).wait()
client.prune("m.pt", "d.npz", target={"params": 0.25, "max_accuracy_drop": 0.02}, retrain=None, n_m=(2, 4))
client.plan("m.pt", architecture={"layers": [["Linear", {"in_features": 2, "out_features": 1}]]}, amount=0.5)
client.distill("t.pt", {"from_teacher": {"width": 0.5}}, "d.npz", loss={"kind": "output_mse"}, train={"epochs": 1})
client.pipeline("m.pt", "d.npz", steps=[{"prune": {"amount": 0.5}}, {"distill": {"train": {"epochs": 1}}}]).wait()
client.plan_pipeline("m.pt", "d.npz", steps=[{"prune": {}}], target={"file_bytes": 0.1})
pipeline("m.pt", "d.npz", steps=[{"distill": {"student": {"from_teacher": {"width": 0.5}}}}])
prune("m.pt", granularity="weight", amount=0.9, directory="out")
distill("t.pt", "s.pt", "d.npz", student_architecture="mlp", compare_with_labels_only=True)
client.quantize("m.pt", "d.npz", method="static", calibration={"samples": 64}, target={"max_quality_drop": 0.01})
quantize("m.pt", outputs=["packed"], exclude=["head"])


async def prune_and_wait() -> None:
    async with pared.AsyncClient() as client:
        job = await client.prune("m.pt", "d.npz", amounts={"conv*": 0.3}, schedule="iterative", steps=2)
        await job.wait()
"""
BAD = {
    'client.prune("m.pt", amonut=0.5)': "amonut",
    'client.prune("m.pt", amount="half")': '"amount"',
    'client.prune("m.pt", granularity="channels")': '"granularity"',
    'client.prune("m.pt", "d.npz", retrain={"epoch": 3})': '"retrain"',
    'client.prune("m.pt", "d.npz", retrain={"augment": {"flip": {}}})': '"retrain"',
    'client.plan("m.pt", target={"flops": 0.5})': '"target"',
    'client.distill("t.pt", "s.pt", "d.npz", trian={"epochs": 1})': "trian",
    'client.distill("t.pt", "s.pt", "d.npz", loss={"kind": "mse"})': '"loss"',
    'client.quantize("m.pt", method="int8")': '"method"',
    'client.pipeline("m.pt", "d.npz", steps=[{"prune": {"amonut": 0.5}}])': '"prune"',
    'client.pipeline("m.pt", "d.npz", target={"params": 0.5})': '"steps"',
    'prune("m.pt", amount=0.5, archtecture="mlp")': "archtecture",
    'distill("t.pt", "s.pt", "d.npz", temperature=4)': "temperature",
}
# What does not matter for the signatures is not looked into: that takes a third of the time.
CONFIG = """
[mypy]
strict = true
mypy_path = {root}
follow_imports = silent
[mypy-torch.*,numpy.*,scipy.*,sklearn.*,onnx.*,pydantic.*,pydantic_core.*,httpx.*,pared.notebook.*]
follow_imports = skip
[mypy-{inside}]
follow_imports = skip
"""


def test_mypy_accepts_good_calls_and_finds_what_is_misspelt(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    head = "import pared\nfrom pared.compression import distill, prune\n\nclient = pared.Client()\n"
    (tmp_path / "bad.py").write_text(head + "\n".join(BAD) + "\n")
    parts = Path(pared.compression.__file__).parent.iterdir()
    inside = ",".join(f"pared.compression.{part.name}.*" for part in parts if (part / "__init__.py").exists())
    (tmp_path / "mypy.ini").write_text(CONFIG.format(root=Path(pared.__file__).parents[1], inside=inside))
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    found, problems, _ = api.run([*options, str(tmp_path / "good.py"), str(tmp_path / "bad.py")])
    assert not problems
    assert "good.py" not in found, found
    lines = found.splitlines()
    for number, (call, says) in enumerate(BAD.items(), start=head.count("\n") + 1):
        assert any(f"bad.py:{number}: error" in line and says in line for line in lines), (call, found)
