"""Int8 weights: how they are rounded, put into TorchScript and ONNX, and left out where they cost too much."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pared.compression.measuring.onnx_runtime import OnnxModule
from pared.compression.quantization.int8 import pays, rounded
from pared.compression.quantization.onnx_file import (
    Calibrated,
    float_file,
    precisions_in,
    write_quantized,
    write_short,
)
from pared.compression.quantization.onnx_smoothing import WEIGHTS_GROW, smooth
from pared.compression.quantization.rounded_training import with_rounding
from pared.compression.quantization.script import rounded_weights, with_int8_weights
from pared.compression.quantization.sensitivity import least_left_out, relative_error
from pared.errors import ExportFailed, ModelFailed
from pared.reports import Precision
from pared.specs import Calibration


def test_a_weight_is_off_by_at_most_half_a_scale_of_its_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    weight[2] *= 1000
    weight[4] = 0
    found = rounded(weight, name="w")
    assert (found.codes.dtype, found.scales.shape) == (np.int8, (5, 1, 1, 1))
    assert (np.abs(found.weight - weight) <= found.scales / 2 * (1 + 1e-5)).all()
    assert np.abs(found.codes[:4]).reshape(4, -1).max(1).tolist() == [127] * 4
    assert not found.codes[4].any()


def test_seven_bits_add_up_in_pairs_within_int16() -> None:
    codes = rounded(np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32), name="w", bits=7).codes
    assert 2 * 255 * int(np.abs(codes).max()) < 1 << 15


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ModelFailed, match=r"weights of fc are not all finite"):
        rounded(np.array([[1.0, np.nan, 0, 0]], np.float32), name="fc")


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 4), True), ((3, 3), False), ((7,), False), ((8, 1, 3, 3), True), ((0, 9), False)]
)
def test_only_weights_that_get_smaller_become_int8(shape: tuple[int, ...], expected: bool) -> None:
    assert pays(shape) == expected


class Everything(nn.Module):
    """One layer of each kind that has weights, one of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv, self.norm, self.back = nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.ConvTranspose1d(8, 6, 3)
        self.free = nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, 40)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(self.lstm(self.table(x))[0])[0]
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = self.back(torch.relu(self.norm(self.conv(y.transpose(1, 2)))))
        return self.head(y.transpose(1, 2) @ self.free)


@pytest.fixture(scope="module")
def everything() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Everything().eval(), torch.randint(0, 40, (3, 9))


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_a_script_with_int8_weights_answers_nearly_alike_and_loads_without_pared(
    everything: tuple[nn.Module, Tensor], form: str
) -> None:
    module, x = everything
    script = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, x, check_trace=False)
    weights = rounded_weights(script)
    small = with_int8_weights(script, weights)
    file = io.BytesIO()
    torch.jit.save(small, file)
    file.seek(0)
    with torch.no_grad():
        again = torch.jit.load(file)
        assert relative_error(small, [module(x)], [(x,)]) < 0.03
        assert torch.allclose(again(x), small(x), atol=1e-6)
    held = dict(again.named_buffers())
    assert not [name for name, parameter in again.named_parameters() if parameter.dim() > 1]
    assert {name for name, tensor in held.items() if tensor.dtype == torch.int8} == set(weights)
    assert weights["back.weight"].scales.shape == (1, 6, 1)
    assert weights["free"].scales.shape == (1, 8)
    assert "head.weight" not in weights  # it is the table


def exported(module: nn.Module, example: Tensor, path: Path) -> Path:
    axes = {"x0": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(module, (example,), path, dynamo=False, input_names=["x0"], output_names=["y"], dynamic_axes=axes)
    return path


def test_layers_are_found_in_onnx_and_rounded_there(everything: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    module, x = everything
    file = float_file(exported(module, x, tmp_path / "float.onnx"), module, "weight_only", tmp_path)
    names = {"table", "lstm", "gru", "attention", "attention.out_proj", "conv", "back", "free"}
    assert {layer.name for layer in file.layers} == names
    kept: dict[str, Precision] = {**file.usual(), "gru": "float32"}
    path = tmp_path / "int8.onnx"
    write_quantized(file, kept, path, None)
    assert precisions_in(path, file) == kept
    with torch.no_grad():
        expected = module(x)
        found = OnnxModule(path, None, expected, threads=1)
        assert 1e-4 < relative_error(found, [expected], [(x,)]) < 0.03
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert stored["table.weight.int8"].data_type == onnx.TensorProto.INT8
    assert "table.weight" not in stored


def test_dynamic_int8_is_for_linear_and_lstm_layers(everything: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    module, x = everything
    file = float_file(exported(module, x, tmp_path / "float.onnx"), module, "dynamic", tmp_path)
    path = tmp_path / "int8.onnx"
    write_quantized(file, file.usual(), path, None)
    found = precisions_in(path, file)
    assert found == file.usual()
    assert {name for name, precision in found.items() if precision == "int8"} >= {"lstm", "free"}
    assert {found[name] for name in ("conv", "gru", "table", "back")} == {"int8_weights"}
    with torch.no_grad():
        expected = module(x)
        assert relative_error(OnnxModule(path, None, expected, threads=1), [expected], [(x,)]) < 0.06


def test_static_int8_is_run_by_integer_kernels_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 16), nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip
    x = torch.randn(8, 1, 8, 8)
    file = float_file(exported(module, x, tmp_path / "float.onnx"), module, "static", tmp_path)
    write_quantized(file, file.usual(), tmp_path / "made.onnx", Calibrated(file, Calibration(), [(x,)]))
    assert set(precisions_in(tmp_path / "made.onnx", file).values()) == {"int8"}
    write_short(tmp_path / "made.onnx", tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    run = [node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node]
    assert (run.count("QLinearConv"), run.count("QGemm")) == (1, 2)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(run)
    with torch.no_grad():
        expected = module(x)
        assert relative_error(OnnxModule(tmp_path / "int8.onnx", None, expected, threads=1), [expected], [(x,)]) < 0.05


def test_static_int8_keeps_what_linear_layers_of_a_transformer_give_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16)).eval()
    with torch.no_grad():
        module[3].weight[0] *= 300  # as the few channels of real ones that are far larger than all others
    x = torch.randn(8, 6, 16)
    file = float_file(exported(module, x, tmp_path / "float.onnx"), module, "static", tmp_path)
    write_quantized(file, file.usual(), tmp_path / "int8.onnx", Calibrated(file, Calibration(), [(x,)]))
    found = precisions_in(tmp_path / "int8.onnx", file)
    assert [found[name] for name in ("1", "3")] == ["int8", "int8"]
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    linear = {name for node in nodes if node.op_type in ("Gemm", "MatMul") for name in node.output}
    assert len(linear) == 2
    assert not linear & {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    with torch.no_grad():
        small, expected = module[3](module[2](module[1](module[0](x)))), module(x)
        assert small.abs().amax((0, 1)).max() > 50 * small.abs().amax((0, 1)).median()
        assert relative_error(OnnxModule(tmp_path / "int8.onnx", None, expected, threads=1), [expected], [(x,)]) < 0.1


@pytest.mark.parametrize("dims", [2, 3], ids=["gemm", "matmul"])
def test_a_large_channel_of_what_a_linear_layer_takes_goes_into_its_weights(tmp_path: Path, dims: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.Softmax(-1)).eval()
    with torch.no_grad():
        module[0].weight[3] = 30.0  # as behind the layer norms of real ones
        module[1].weight[:, 3] /= 10
    x = torch.randn(8, 16) if dims == 2 else torch.randn(8, 6, 16)
    model = onnx.load(exported(module, x, tmp_path / "float.onnx"))
    before = model.ByteSize()
    smooth(model, [(x,)])
    onnx.save(model, tmp_path / "smoothed.onnx")
    with torch.no_grad():
        expected = module(x)
    smoothed = OnnxModule(tmp_path / "smoothed.onnx", None, expected, threads=1)
    torch.testing.assert_close(smoothed(x), expected)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    by = next(each for name, each in weights.items() if name.endswith("_smoothing"))
    assert by.argmin() == 3
    assert by[3] < 0.5
    assert by.max() == 1
    largest = module[1].weight.abs().amax(1)
    matrix = next(each for each in weights.values() if each.ndim == 2)
    grown = np.abs(matrix).max(0 if matrix.shape[0] == 16 else 1) / largest.detach().numpy()
    assert grown.max() <= WEIGHTS_GROW * (1 + 1e-5)
    file = float_file(tmp_path / "float.onnx", module, "static", tmp_path)
    write_quantized(file, file.usual(), tmp_path / "int8.onnx", Calibrated(file, Calibration(), [(x,)]))
    assert precisions_in(tmp_path / "int8.onnx", file)["1"] == "int8"
    int8 = OnnxModule(tmp_path / "int8.onnx", None, expected, threads=1)
    assert relative_error(int8, [expected], [(x,)]) < 0.01  # 0.05 without
    smooth(same := onnx.load(tmp_path / "float.onnx"), [(torch.zeros_like(x),)])
    assert same.ByteSize() == model.ByteSize() > before  # whatever the samples are


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros_like(x).masked_fill(x > 1, float("-inf"))
        return self.fc(torch.softmax(self.fc(x) + mask, -1))


def test_histograms_of_masks_are_refused_with_the_method_that_needs_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Masked().eval(), torch.randn(8, 6, 16)
    file = float_file(exported(module, x, tmp_path / "float.onnx"), module, "static", tmp_path)
    calibrated = Calibrated(file, Calibration(method="percentile"), [(x,)])
    with pytest.raises(ExportFailed, match=r'not finite.*"min_max"'):
        write_quantized(file, file.usual(), tmp_path / "int8.onnx", calibrated)


def test_as_few_layers_are_left_out_as_the_goal_allows_those_first_that_matter_most() -> None:
    cost = {("a", "int8"): 4.0, ("b", "int8"): 1.0, ("c", "int8"): 2.0}
    cost |= {("a", "int8_weights"): 0.1, ("b", "int8_weights"): 0.2, ("c", "int8_weights"): 0.4}
    usual: dict[str, Precision] = {"a": "int8", "b": "int8", "c": "int8"}

    def lost(precisions: dict[str, Precision]) -> float:
        return sum(cost.get(each, 0.0) for each in precisions.items())

    def error(name: str, precision: Precision) -> float:
        return cost[name, precision]

    expected: dict[float, dict[str, Precision]] = {
        7.0: usual,
        4.0: {**usual, "a": "int8_weights"},
        1.7: {**usual, "a": "int8_weights", "c": "int8_weights"},
        0.5: {"a": "int8_weights", "b": "int8_weights", "c": "float32"},
        0.0: dict.fromkeys(usual, "float32"),
    }
    for most, precisions in expected.items():
        found = least_left_out(usual, error, lost, most)
        assert found.precisions == precisions, most
        assert found.errors == ({} if most == 7.0 else {"a": 4.0, "b": 1.0, "c": 2.0})


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_training_sees_what_the_int8_file_will_answer_and_gradients_go_straight_through(
    everything: tuple[nn.Module, Tensor], form: str
) -> None:
    module, x = everything
    script = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, x, check_trace=False)
    weights = rounded_weights(script)
    trained = with_rounding(script, weights, "weight_only")
    assert sorted(trained.state_dict()) == sorted(script.state_dict())
    with torch.no_grad():
        assert torch.allclose(trained(x), with_int8_weights(script, weights)(x), atol=1e-5)
    rounds_inputs = with_rounding(script, weights, "static")
    assert relative_error(rounds_inputs, [module(x)], [(x,)]) > relative_error(trained, [module(x)], [(x,)])
    parameters = dict(rounds_inputs.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(requires_grad=True)
    rounds_inputs(x).square().mean().backward()
    for name in weights:
        assert parameters[name].grad is not None, name
        assert parameters[name].grad.any(), name


def test_what_a_rounded_tensor_gets_as_gradient_the_tensor_gets() -> None:
    layer = nn.Linear(4, 2, bias=False)
    script = torch.jit.script(layer)
    rounded_layer = with_rounding(script, rounded_weights(script), "weight_only")
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    rounded_layer(x).sum().backward()
    (parameter,) = rounded_layer.parameters()
    assert torch.equal(parameter.grad, x.expand(2, 4))
