from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pared.compression.architectures import build
from pared.compression.coupling import find_groups
from pared.compression.export.scripting import as_torchscript
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel, load_model
from pared.compression.pruning.channels import apply_removal
from pared.compression.work import ModelFile
from pared.errors import ExportFailed, ModelFailed
from tests.support.campaign import one_form_each
from tests.support.models import zoo

ALL = ["torchscript", "state_dict", "packed", "onnx"]


def opened(family: str, form: str, tmp_path: Path) -> LoadedModel:
    torch.manual_seed(0)
    module = zoo.FAMILIES[family].make().eval()
    path = tmp_path / f"upload.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match form:
            case "scripted":
                torch.jit.save(torch.jit.script(module), path)
            case "traced":
                torch.jit.save(torch.jit.trace(module, (zoo.FAMILIES[family].inputs(2),), check_trace=False), path)
            case _:
                torch.save(module.state_dict(), path)
    return load_model(ModelFile(path, path.name, ""), zoo.architecture(family) if form == "state_dict" else None)


def of(module: nn.Module) -> LoadedModel:
    return LoadedModel(module.eval(), "state_dict", "state_dict", getattr(module, "architecture", None))


FIRST, *OTHERS = zoo.FAMILIES  # in every run those that tests/e2e/test_matrix.py leaves out


@pytest.mark.parametrize(("family", "form"), one_form_each([*OTHERS, FIRST], zoo.FORMS, n=2))
def test_every_family_comes_out_in_every_format_at_any_batch(family, form, tmp_path):
    loaded = opened(family, form, tmp_path)
    inputs = zoo.FAMILIES[family].inputs
    files = {path.name: path for path in export(loaded, (inputs(2),), ALL, tmp_path)}
    assert ("architecture.json" in files) == (form == "state_dict")
    script = torch.jit.load(files["model.pt"])
    for batch in (1, 7):
        expected = loaded.module(inputs(batch))
        torch.testing.assert_close(script(inputs(batch)), expected)
        session = onnxruntime.InferenceSession(files["model.onnx"])
        (answer,) = session.run(None, {"x0": inputs(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=1e-4, atol=1e-4)


def test_a_shrunk_state_dict_and_its_architecture_load_again_and_are_smaller(tmp_path):
    loaded = opened("resnet", "state_dict", tmp_path)
    example = (zoo.FAMILIES["resnet"].inputs(4),)
    removed = find_groups(loaded.module, example).groups[0].removal([0, 1, 2])
    small = apply_removal(loaded, example, removed)
    files = {path.name: path for path in export(small, example, ["state_dict"], tmp_path)}
    again = load_model(
        ModelFile(files["model.safetensors"], "m", "", json.loads(files["architecture.json"].read_text()))
    )
    torch.testing.assert_close(again.module(*example), small.module(*example))
    assert files["model.safetensors"].stat().st_size < loaded.file_bytes


def test_shared_weights_keep_both_names(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    module = Tied().eval()
    buffer = io.BytesIO(zoo.saved(torch.jit.script(module)))
    loaded = LoadedModel(torch.jit.load(buffer), "torchscript", "scripted")
    files = export(loaded, (torch.randn(2, 4),), ALL, tmp_path)
    assert [path.name for path in files] == ["model.pt", "model.safetensors", "model.packed", "model.onnx"]
    state = load_file(files[1])
    assert torch.equal(state["a.weight"], state["b.weight"])


SAME_BYTES = """
import sys, torch, pathlib
from pared.compression.architectures import build
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel
torch.manual_seed(0)
module = build({"name": "resnet_small", "kwargs": {"widths": [4, 8]}}).eval()
loaded = LoadedModel(module, "state_dict", "state_dict", module.architecture)
export(loaded, (torch.randn(2, 3, 8, 8),), sys.argv[2:], pathlib.Path(sys.argv[1]))
"""


def digests_of_a_process(folder: Path, *outputs: str) -> dict[str, str]:
    folder.mkdir()
    # Scripting writes a module's constants in the order of a set of strings; the sandbox fixes it the same way.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-W", "ignore", "-c", SAME_BYTES, str(folder), *outputs]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return digests_of(folder)


def digests_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_model_gives_the_same_bytes_in_another_process(tmp_path):
    others = ["state_dict", "exported_program", "packed", "onnx"]
    first = digests_of_a_process(tmp_path / "first", "torchscript", *others)
    names = {"model.safetensors", "architecture.json", "model.pt2", "model.packed", "model.onnx"}
    assert first.keys() == names | {"model.pt"}
    # TorchScript numbers the classes that a process compiles; all else may be written by this one.
    assert digests_of_a_process(tmp_path / "second", "torchscript")["model.pt"] == first["model.pt"]
    torch.manual_seed(0)
    loaded = of(build({"name": "resnet_small", "kwargs": {"widths": [4, 8]}}))
    here = tmp_path / "here"
    here.mkdir()
    export(loaded, (torch.randn(2, 3, 8, 8),), others, here)
    assert digests_of(here) == {name: first[name] for name in names}


def test_a_torchscript_upload_gives_the_same_bytes_each_time(tmp_path):
    path = tmp_path / "upload.pt"
    path.write_bytes(zoo.saved(torch.jit.script(zoo.families.ResNet().eval())))
    example = (zoo.FAMILIES["resnet"].inputs(2),)
    contents = []
    for _ in range(2):
        loaded = load_model(ModelFile(path, path.name, ""))
        contents.append([file.read_bytes() for file in export(loaded, example, ALL, tmp_path)])
    assert contents[0] == contents[1]


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    class Svd(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    module = torch.jit.script(Svd())
    with pytest.raises(ExportFailed, match=r"ONNX cannot hold this model: .*linalg_svdvals"):
        export(LoadedModel(module, "torchscript", "scripted"), (torch.randn(2, 3, 3),), ["onnx"], tmp_path)


def test_a_module_that_cannot_be_scripted_is_traced(tmp_path):
    class Unscriptable(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, **options):
            return self.fc(x)

    module = Unscriptable()
    (path,) = export(of(module), (torch.randn(2, 4),), ["torchscript"], tmp_path)
    x = torch.randn(7, 4)
    torch.testing.assert_close(torch.jit.load(path)(x), module(x))


def test_a_file_that_answers_otherwise_is_not_delivered(tmp_path):
    class Restless(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(ExportFailed, match="differs from the model's"):
        export(of(Restless()), (torch.randn(2, 4),), ["torchscript"], tmp_path)


class Choosy(nn.Module):
    """Gives two outputs, and takes no single sample."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        if x.shape[0] < 2:
            raise ValueError("at least two samples")
        return self.fc(x), x.sum()


def test_several_outputs_and_batches_of_two_or_more_are_no_obstacle(tmp_path):
    loaded = LoadedModel(torch.jit.script(Choosy()).eval(), "torchscript", "scripted")
    (path,) = export(loaded, (torch.rand(4, 3),), ["torchscript"], tmp_path)
    assert len(torch.jit.load(path)(torch.rand(5, 3))) == 2


def test_inputs_that_the_model_does_not_take_are_named(tmp_path):
    loaded = LoadedModel(torch.jit.script(nn.Linear(3, 2)).eval(), "torchscript", "scripted")
    with pytest.raises(ModelFailed, match="example of its inputs"):
        export(loaded, (torch.rand(4, 5),), ["torchscript"], tmp_path)


def test_a_module_that_scripts_and_then_does_not_run_is_traced():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert as_torchscript(module.eval(), (torch.rand(2, 3),))(torch.rand(5, 3)).shape == (5, 2)


def test_the_module_stays_as_it_was(tmp_path):
    loaded = of(build({"name": "cnn_small", "kwargs": {"batch_norm": True, "size": 8}}))
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    export(replace(loaded), (torch.randn(3, 1, 8, 8),), ALL, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.module.state_dict().items())
