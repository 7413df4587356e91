"""Quantize jobs from upload to files: what each method does, what a goal leaves out, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pared.compression import quantize
from pared.errors import InvalidArchitecture, NothingToQuantize, UnsupportedModel, ValidationError
from pared.weights import packed
from tests.support.models import zoo

Data = tuple[np.ndarray, np.ndarray]


def data_of(family: str) -> Data:
    return zoo.FAMILIES[family].samples(240, 3)


@pytest.fixture
def cnn() -> tuple[nn.Module, Data]:
    return zoo.trained("plain_cnn"), data_of("plain_cnn")


@pytest.mark.parametrize(
    ("family", "method"),
    [("resnet", "weight_only"), ("resnet", "static"), ("text_pool", "weight_only"), ("mlp", "dynamic")],
)
def test_the_onnx_file_scores_as_it_is_reported(family: str, method: Any, tmp_path: Path) -> None:
    x, y = data_of(family)
    arrays = {"x_train": x[:120], "y_train": y[:120], "x_val": x[120:160], "y_val": y[120:160]}
    np.savez(tmp_path / "data.npz", **arrays, x_test=x[160:], y_test=y[160:])
    report = quantize(
        zoo.trained(family), tmp_path / "data.npz", method=method, outputs=["onnx"], directory=tmp_path
    ).report
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (name,) = (each.name for each in session.get_inputs())
    right = session.run(None, {name: x[160:]})[0].argmax(1) == y[160:]
    assert report.after.quality is not None
    assert report.before.quality is not None
    assert report.after.quality.test.value == pytest.approx(right.mean())
    assert right.mean() >= report.before.quality.test.value - 0.05
    assert report.runtime == "onnxruntime"
    assert [each.batch_size for each in report.after.latency] == [1, 32]
    stored = {
        tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) > 1
    }
    assert onnx.TensorProto.INT8 in stored
    precisions = {layer.precision for layer in report.layers}
    assert precisions <= (
        {"int8_weights", "float32"} if method == "weight_only" else {"int8", "int8_weights", "float32"}
    )
    assert ("int8" in precisions) == (method != "weight_only")


def test_each_format_holds_the_same_int8_weights(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    module, (x, _) = cnn
    outputs: Any = ["torchscript", "exported_program", "state_dict", "packed"]
    example: Any = [{"shape": [2, *x.shape[1:]]}]
    report = quantize(module, example_inputs=example, outputs=outputs, directory=tmp_path).report
    assert report.after.quality is None
    assert "quality was not measured" in report.verdict
    inputs = torch.from_numpy(x[:3])
    state = load_file(tmp_path / "model.safetensors")
    script = torch.jit.load(tmp_path / "model.pt")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(inputs), script(inputs), atol=1e-5)
        assert float((script(inputs) - module(inputs)).norm() / module(inputs).norm()) < 0.02
    tensors = packed.read(tmp_path / "model.packed").tensors
    for name, weight in module.state_dict().items():
        if weight.dim() < 2:
            continue
        assert state[name].dtype == torch.int8
        assert torch.equal(state[name], script.state_dict()[name])
        assert np.array_equal(tensors[name], state[name].numpy())
        scales = state[f"{name}_scale"]
        assert ((state[name] * scales - weight).abs() <= scales / 2 * (1 + 1e-5)).all()


def test_layers_that_cost_too_much_are_left_out_by_their_sensitivity(tmp_path: Path) -> None:
    """One layer's inputs are of two sizes that no uint8 has both of, so that static int8 ruins it, and it alone."""

    class Stretched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(17, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            y = torch.cat([y, 1e4 * torch.ones_like(y[:, :1])], 1)
            return self.last(torch.relu(self.middle(y)))

    torch.manual_seed(0)
    module = Stretched().eval()
    with torch.no_grad():
        module.middle.weight[:, 16] = 0
    x = torch.randn(400, 8)
    y = module(x).argmax(1)
    options: Any = {"method": "static", "outputs": ["onnx"], "directory": tmp_path}
    plain = quantize(module, (x, y), **options).report
    assert plain.comparison is not None
    assert plain.comparison.quality_difference.value < -0.1
    report = quantize(module, (x, y), target={"max_accuracy_drop": 0.03}, **options).report
    found = {layer.name: layer for layer in report.layers}
    assert {name: layer.precision for name, layer in found.items()} == {
        "first": "int8", "middle": "int8_weights", "last": "int8"
    }  # fmt: skip
    assert found["middle"].sensitivity > max(found["first"].sensitivity or 0, found["last"].sensitivity or 0)
    assert "changes the answers" in (found["middle"].reason or "")
    assert report.goal is not None
    assert (report.goal.status, report.goal.target) == ("met", {"max_accuracy_drop": 0.03})
    assert report.verdict.startswith("Goal met")


def test_excluded_layers_stay_float32(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    module, data = cnn
    first = next(name for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    for outputs in (["onnx"], ["torchscript"]):
        report = quantize(module, data, outputs=outputs, exclude=[first], directory=tmp_path).report
        kept = {layer.name: (layer.precision, layer.reason) for layer in report.layers}
        assert kept.pop(first) == ("float32", "left out by include/exclude")
        assert {precision for precision, _ in kept.values()} == {"int8_weights"}


def test_a_state_dict_without_architecture_becomes_int8_where_nothing_runs(tmp_path: Path) -> None:
    weight = torch.randn(16, 8)
    save_file({"a.b.weight": weight, "a.b.bias": torch.ones(16).half()}, tmp_path / "weights.safetensors")
    quantize(tmp_path / "weights.safetensors", directory=tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "a.b.weight": torch.int8, "a.b.weight_scale": torch.float32, "a.b.bias": torch.float16
    }  # fmt: skip
    assert torch.allclose(state["a.b.weight"] * state["a.b.weight_scale"], weight, atol=0.02)
    with pytest.raises(InvalidArchitecture):
        quantize(tmp_path / "weights.safetensors", outputs=["onnx"])


def test_what_is_int8_already_is_refused(cnn: tuple[nn.Module, Data], tmp_path: Path) -> None:
    module, data = cnn
    outputs: Any = ["torchscript", "onnx", "state_dict"]
    quantize(module, data, outputs=outputs, directory=tmp_path)
    for name in ("model.pt", "model.onnx", "model.safetensors"):
        with pytest.raises(NothingToQuantize, match="holds int8 weights already"):
            quantize(tmp_path / name)
    quantize(module, data, method="static", directory=tmp_path)
    with pytest.raises(UnsupportedModel, match="quantized"):
        quantize(tmp_path / "model.onnx")


def test_where_nothing_can_become_int8_it_says_why() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    images: Any = [{"shape": [2, 3, 8, 8]}]
    with pytest.raises(NothingToQuantize, match="at least 4 elements for each output channel"):
        quantize(Scaled(), example_inputs=[{"shape": [2, 8]}])
    with pytest.raises(NothingToQuantize, match=r"dynamic is for linear and LSTM layers.*make `method` weight_only"):
        quantize(conv, example_inputs=images, method="dynamic")
    with pytest.raises(ValidationError, match="'head' matches no layer"):
        quantize(conv, example_inputs=images, exclude=["head"])
    with pytest.raises(NothingToQuantize, match="No layer is left"):
        quantize(copy.deepcopy(conv), example_inputs=images, exclude=["*"])


@pytest.mark.parametrize(("method", "output"), [("weight_only", "torchscript"), ("static", "onnx")])
def test_a_model_that_is_trained_with_rounded_weights_is_the_one_that_becomes_int8(
    method: Any, output: Any, tmp_path: Path
) -> None:
    module, data = zoo.trained("mlp"), data_of("mlp")
    before = copy.deepcopy(module.state_dict())
    options: Any = {"method": method, "outputs": [output], "directory": tmp_path}
    report = quantize(module, data, retrain={"epochs": 2, "lr": 0.01}, **options).report
    assert [record.phase for record in report.history] == ["retrain"] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert report.reproduce.precision == "float32"
    assert report.after.quality is not None
    assert report.best_epoch is not None
    if output == "torchscript" and report.best_epoch > 0:
        held = torch.jit.load(tmp_path / "model.pt").state_dict()
        changed = [name for name, its in before.items() if name.endswith("bias") and not torch.equal(held[name], its)]
        assert changed
