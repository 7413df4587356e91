"""What results are like: free sizes and opset of their files, and the types and layouts of the upload."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

from pared.compression import prune
from pared.compression.export.scripting import as_torchscript
from pared.errors import ExportFailed, ParedError, ValidationError
from tests.support.campaign import one_form_each
from tests.support.models.layers import Encoder, Recurrent, Upsampled

IMAGES = [{"shape": [2, 4, 8, 8]}]
HEIGHT_AND_WIDTH = {"x": {2: "height", 3: "width"}}


def sized(module: nn.Module, shape: list[int], folder: Path, outputs: list[Any], **fields: Any) -> Any:
    script = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module.eval())
    fields = {"granularity": "weight", "amount": 0.3, "example_inputs": [{"shape": shape}]} | fields
    return prune(script, None, outputs=outputs, directory=folder, **fields).report


def sizes_in(path: Path) -> list[list[Any]]:
    graph = onnx.load(path).graph
    return [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in graph.input]


# -- free sizes and opset -------------------------------------------------------------------------


def test_sizes_that_are_asked_for_are_free_in_both_formats(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = Upsampled(to_input=True)
    report = sized(module, [2, 4, 8, 8], tmp_path, ["onnx", "exported_program"], dynamic=HEIGHT_AND_WIDTH)
    assert capfd.readouterr().out == ""
    assert report.failed_outputs == []
    assert sizes_in(tmp_path / "model.onnx") == [["batch", 4, "height", "width"]]
    told = "dimensions of x free beside the batch: 2 (height), 3 (width); fixed: 1 (always 4). Checked at 2×4×16×24"
    assert [warning.partition(":")[0] for warning in report.warnings if told in warning] == ["onnx", "exported_program"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = torch.randn(3, 4, 10, 6)
    (answer,) = session.run(None, {"x0": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), program(x), rtol=1e-4, atol=1e-4)
    assert tuple(program(x).shape) == (3, 2, 10, 6)


def test_auto_frees_what_the_model_allows_and_says_what_stays(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))
    report = sized(flat, [2, 4, 8, 8], tmp_path, ["onnx", "exported_program"], dynamic="auto")
    stays = "free beside the batch: nothing; fixed: 1 (always 4), 2 (always 8), 3 (always 8)."
    assert sum(stays in warning for warning in report.warnings) == 2
    assert sizes_in(tmp_path / "model.onnx") == [["batch", 4, 8, 8]]


def test_a_transformer_takes_sequences_of_any_length(tmp_path: Path) -> None:
    report = sized(Encoder(), [2, 5, 8], tmp_path, ["onnx"], dynamic="auto")
    assert report.failed_outputs == []
    assert sizes_in(tmp_path / "model.onnx") == [["batch", "x_1", 8]]
    onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x0": np.zeros((1, 9, 8), "f")})


def test_a_recurrent_layer_is_free_in_onnx_and_fixed_in_a_program(tmp_path: Path) -> None:
    report = sized(Recurrent(nn.GRU), [2, 5, 8], tmp_path, ["onnx", "exported_program"], dynamic={"x": {1: "steps"}})
    assert sizes_in(tmp_path / "model.onnx") == [["batch", "steps", 8]]
    (failed,) = report.failed_outputs
    assert failed.format == "exported_program"
    assert "The size steps, dimension 1 of x, stays 5" in failed.detail


class Square(nn.Module):
    """An image that is added to itself on its side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv(x.transpose(2, 3))


def test_equal_sizes_take_one_name(tmp_path: Path) -> None:
    sized(Square(), [2, 4, 8, 8], tmp_path, ["onnx"], dynamic={"x": {2: "side", 3: "side"}})
    assert sizes_in(tmp_path / "model.onnx") == [["batch", 4, "side", "side"]]


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    sized(nn.Sequential(nn.Linear(6, 4), nn.GELU()), [2, 6], tmp_path, ["onnx"], onnx_opset=opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"dynamic": {"z": {2: "h"}}}, ValidationError, "names z, and the inputs of this model are: x"),
        ({"dynamic": {"x": {5: "h"}}}, ValidationError, "which has the dimensions 0 to 3"),
        ({"dynamic": {"x": {1: "c"}}}, ExportFailed, "The size c, dimension 1 of x, stays 4"),
        ({"dynamic": HEIGHT_AND_WIDTH}, ExportFailed, "calls one size both height and width"),
        ({"dynamic": {"x": {1: "n", 2: "n"}}}, ValidationError, "calls sizes of 4 and 8 both n"),
        ({"dynamic": {"x": {2: "batch"}}}, ValidationError, "is the name of dimension 0"),
        ({"dynamic": {"x": {0: "n"}}}, ValidationError, "greater than or equal to 1"),
        ({"dynamic": "auto", "outputs": ["torchscript"]}, ValidationError, "is for the formats onnx and"),
        ({"onnx_opset": 99}, ValidationError, "at least 11 and at most 23"),
        ({"onnx_opset": 18, "outputs": ["torchscript"]}, ValidationError, "is for the format onnx"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_what_cannot_be_free_is_refused(fields: dict[str, Any], kind: type[ParedError], says: str) -> None:
    script = torch.jit.script(Square().eval())
    with pytest.raises(kind, match=re.escape(says)):
        prune(
            script,
            None,
            **({"amount": 0.3, "granularity": "weight", "outputs": ["onnx"]} | {"example_inputs": IMAGES} | fields),
        )


# -- the form of the upload -----------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


class Named(nn.Module):
    """Code that names its own type, and answers with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        start = torch.zeros(x.shape[0], 8, dtype=torch.float16)
        state = torch.relu(self.one(x.to(torch.float16)) + start)
        return {"odds": self.two(state).float().softmax(-1).to(torch.float16), "sum": state.sum(-1)}


@pytest.mark.parametrize(
    ("kind", "form"), one_form_each([torch.float16, torch.bfloat16, torch.float64], ["module", "scripted", "traced"])
)
def test_a_result_has_the_type_of_its_upload(kind: torch.dtype, form: str, tmp_path: Path) -> None:
    module = net().to(kind)
    x = torch.randn(2, 3, 8, 8, dtype=kind)
    model = {"module": lambda: module, "scripted": lambda: torch.jit.script(module)}.get(
        form, lambda: torch.jit.trace(module, x, check_trace=False)
    )()
    outputs: list[Any] = ["torchscript", "state_dict", "packed", *(["exported_program"] if form == "module" else [])]
    fields: dict[str, Any] = {"amount": 0.5, "example_inputs": [{"shape": [2, 3, 8, 8]}]}
    result = prune(model, None, outputs=outputs, directory=tmp_path, **fields)
    assert result.report.failed_outputs == []
    script = torch.jit.load(tmp_path / "model.pt")
    for each in (script, result.model):
        assert {tensor.dtype for tensor in each.parameters()} == {kind}
        assert each(x).dtype == kind
    assert tuple(dict(script.named_parameters())["0.weight"].shape) == (4, 3, 3, 3)
    if form == "module":
        torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), script(x))
    assert any("are computed with in float32" in warning for warning in result.report.warnings)


def test_weights_that_stay_have_the_bits_of_the_upload() -> None:
    module = net().half()
    result = prune(module, None, granularity="weight", amount=0.5, example_inputs=[{"shape": [2, 3, 8, 8]}])
    weight, before = dict(result.model.named_parameters())["3.weight"], dict(module.named_parameters())["3.weight"]
    assert torch.equal(weight, torch.where(weight == 0, 0, before))


@pytest.mark.parametrize("traced", [False, True])
def test_code_that_names_its_type_runs_in_float32_and_in_its_own(traced: bool) -> None:
    module, x = Named().half().eval(), torch.randn(3, 6).half()
    model = torch.jit.trace(module, x, strict=False, check_trace=False) if traced else torch.jit.script(module)
    result = prune(model, None, amount=0.5, example_inputs=[{"shape": [2, 6]}])
    assert result.report.after.parameters < result.report.before.parameters
    answer = result.model(x)
    assert {name: tensor.dtype for name, tensor in answer.items()} == {"odds": torch.float16, "sum": torch.float16}


def test_a_channels_last_module_stays_so(tmp_path: Path) -> None:
    module = net().to(memory_format=torch.channels_last)
    fields: dict[str, Any] = {"amount": 0.5, "example_inputs": [{"shape": [2, 3, 8, 8]}]}
    result = prune(module, None, directory=tmp_path, **fields)
    for model in (result.model, torch.jit.load(tmp_path / "model.pt")):
        assert dict(model.named_parameters())["3.weight"].is_contiguous(memory_format=torch.channels_last)


# -- modules in memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_whatever_the_caller_has_switched_off(mode: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype("f"), np.arange(40) % 4
    with mode():
        result = prune(net(), (x, y), amount=0.5, retrain={"epochs": 1})
        assert not torch.is_grad_enabled()
    assert len(result.report.history) == 1


class Heads(nn.Module):
    """A dict of outputs that cannot be scripted: it is made by a comprehension over a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.names = nn.Linear(6, 8), ["cls", "box"]
        self.heads = nn.ModuleList(nn.Linear(8, size) for size in (3, 4))

    def forward(self, x: Tensor) -> Any:
        state = torch.relu(self.body(x))
        return {name: head(state) for name, head in zip(self.names, self.heads)}  # noqa: B905 - as people write it


def test_a_module_with_a_dict_of_outputs_is_traced() -> None:
    result = prune(Heads().eval(), None, amount=0.5, example_inputs=[{"shape": [2, 6]}])
    assert {name: tuple(each.shape) for name, each in result.model(torch.randn(5, 6)).items()} == {
        "cls": (5, 3),
        "box": (5, 4),
    }
    assert dict(result.model.named_parameters())["body.weight"].shape == (4, 6)


class Unscriptable(nn.Module):
    """Takes any number of inputs, which only tracing allows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        if inputs[0].sum() > 0:
            return self.two(self.one(inputs[0]))
        return self.two(-self.one(inputs[0]))


def test_what_tracing_decided_by_the_example_is_said() -> None:
    result = prune(Unscriptable().eval(), None, amount=0.5, example_inputs=[{"shape": [2, 6]}])
    assert any("decided by the example, once and for all" in warning for warning in result.report.warnings)


def test_both_errors_and_what_to_do_are_told() -> None:
    with pytest.raises(ExportFailed) as missing:
        prune(Unscriptable().eval(), None, amount=0.5)
    assert "Scripting: " in missing.value.detail
    assert "Tracing needs an example of its inputs. Give `example_inputs`" in missing.value.detail
    with pytest.raises(ExportFailed) as wrong:
        prune(Unscriptable().eval(), None, amount=0.5, example_inputs=[{"shape": [2, 7]}])
    assert "mat1 and mat2 shapes cannot be multiplied" in wrong.value.detail
    hooked = Unscriptable().eval()
    hooked.one.register_forward_hook(lambda module, inputs, output: output.tolist())
    with pytest.raises(ExportFailed, match=r"Take out its hooks \(in one\)"):
        prune(hooked, None, amount=0.5, example_inputs=[{"shape": [2, 6]}])


def test_masks_that_stand_in_the_way_are_named() -> None:
    module = Unscriptable().eval()
    masks.l1_unstructured(module.one, "weight", 0.5)
    with pytest.raises(ExportFailed, match=r"Its masks are hooks \(in one\): .*torch.nn.utils.prune.remove"):
        as_torchscript(module, (torch.randn(2, 7),))
