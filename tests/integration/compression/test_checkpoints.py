"""Jobs on checkpoints: the same wrapping again with smaller weights, and weights that nothing can run."""

from __future__ import annotations

import argparse
import contextlib
from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pared.compression import distill, prune
from pared.compression.architectures import build
from pared.errors import ExportFailed, InvalidArchitecture, UnsupportedModel, ValidationError
from pared.weights import packed
from pared.weights.prune_file import prune_file
from tests.unit.compression.test_checkpoints import EMA, NET, OPTIMIZER, STATE, state

ZEROS = {"granularity": "weight", "amount": 0.5}


def saved(tmp_path, value, **how):
    path = tmp_path / "upload.ckpt"
    torch.save(value, path, **how)
    return path


def checkpoint(found_in):
    return torch.load(found_in / "model.ckpt", weights_only=False)


def runs(weights, architecture_file, inputs):
    module = build(architecture_file)
    module.load_state_dict(weights)
    return module.eval()(inputs)


# -- the same wrapping again --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old format"])
def test_a_checkpoint_comes_back_with_smaller_weights_and_all_else_as_it_was(dtype, legacy, tmp_path):
    beside = {"epoch": 3, "best_acc1": torch.tensor(0.9), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    wrapped = {f"module.{name}": tensor.to(dtype) for name, tensor in STATE.items()} | {"loss_fn.weight": torch.ones(3)}
    value = beside | {"run": {"state_dict": OrderedDict(wrapped)}, "optimizer_states": [OPTIMIZER], "lr": {"last": 3}}
    path = saved(tmp_path, value, _use_new_zipfile_serialization=not legacy)
    result = prune(path, architecture=NET, amount=0.5, outputs=["checkpoint", "state_dict"], directory=tmp_path)
    found = checkpoint(tmp_path)
    weights = found.pop("run")["state_dict"]
    assert found.pop("optimizer_states") == []
    assert found == beside | {"lr": {"last": 3}}
    assert type(weights) is OrderedDict
    assert list(weights) == list(wrapped)
    small = {name.removeprefix("module."): tensor for name, tensor in weights.items() if name != "loss_fn.weight"}
    assert {tensor.dtype for tensor in small.values()} == {dtype}
    assert small["fc1.weight"].shape == (3, 4)
    held = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(held[name], tensor) and held[name].dtype == dtype for name, tensor in small.items())
    x = torch.randn(5, 4)
    torch.testing.assert_close(runs(small, result.model.architecture, x), result.model.float()(x), rtol=0, atol=0)
    notes = " ".join(result.report.warnings)
    assert "without the state of its optimizers (optimizer_states.0)" in notes
    assert "a part of what the file lost is theirs" in notes


def test_the_chosen_state_dict_is_replaced_and_the_other_stays(tmp_path):
    path = saved(tmp_path, EMA)
    result = prune(path, weights="ema", outputs=["checkpoint"], directory=tmp_path, architecture=NET, amount=0.5)
    found = checkpoint(tmp_path)
    assert {name: tensor.shape for name, tensor in found["ema"].items()}["fc1.weight"] == (3, 4)
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in STATE.items())
    assert any("other state dicts stay as they were uploaded: model." in note for note in result.report.warnings)


def test_one_dict_under_two_keys_and_one_tensor_under_two_names_stay_one(tmp_path):
    shared = torch.randn(4, 4)
    weights = {"in.weight": shared, "out.weight": shared, "flat.0": shared.view(-1)[:4]}
    prune(saved(tmp_path, {"model": weights, "state_dict": weights}), directory=tmp_path, **ZEROS)
    found = checkpoint(tmp_path)
    assert found["model"] is found["state_dict"]
    one, other = found["model"]["in.weight"], found["model"]["out.weight"]
    assert one.data_ptr() == other.data_ptr()
    assert int((one == 0).sum()) == 8
    assert torch.equal(found["model"]["flat.0"], shared.view(-1)[:4])  # a bias that only lay in the same memory


def test_plain_weights_take_the_place_of_what_they_were_computed_from(tmp_path):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    module = nn.ModuleDict({"norm": layer, "fc": nn.Linear(4, 2)})
    result = prune(saved(tmp_path, {"model": module.state_dict()}), directory=tmp_path, **ZEROS)
    found = checkpoint(tmp_path)["model"]
    assert list(found) == ["norm.bias", "norm.weight", "fc.weight", "fc.bias"]
    kept = found["norm.weight"] != 0
    torch.testing.assert_close(found["norm.weight"][kept], layer.weight.detach()[kept])
    assert any("folded" in note for note in result.report.warnings)


def test_the_same_job_writes_the_same_bytes(tmp_path):
    path = saved(tmp_path, EMA)
    contents = []
    for run in ("a", "b"):
        prune(path, weights="ema", directory=tmp_path / run, **ZEROS)
        contents.append((tmp_path / run / "model.ckpt").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", ["safetensors", "torchscript"])
def test_what_is_no_checkpoint_is_not_written_as_one(kind, tmp_path):
    if kind == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(STATE, path)
    else:
        path = tmp_path / "x.pt"
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))), path)
    with pytest.raises(ExportFailed, match=r"no state dict that torch\.save wrote"):
        prune(path, architecture=NET if kind == "safetensors" else None, amount=0.5, outputs=["checkpoint"])


# -- half precision -----------------------------------------------------------------------------


def test_half_precision_stays_so_in_packed_files_and_after_training(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in STATE.items()}, path)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data = x, (x[:, 0] > 0).astype(np.int64)
    result = prune(
        path,
        data,
        architecture=NET,
        retrain={"epochs": 1},
        outputs=["packed", "state_dict"],
        directory=tmp_path,
        **ZEROS,
    )
    held = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float16}
    assert {array.dtype.name for array in packed.read(tmp_path / "model.packed").tensors.values()} == {"float16"}
    # What was measured is what is in the file.
    assert all(torch.equal(tensor, held[name]) for name, tensor in result.model.state_dict().items())
    assert (tmp_path / "model.safetensors").stat().st_size < 1.2 * path.stat().st_size


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_code_made_of_a_state_dict_is_in_the_types_of_its_weights(kind, tmp_path):
    path = saved(tmp_path, {name: tensor.to(kind) for name, tensor in STATE.items()})
    outputs = ["torchscript", "exported_program", "onnx", "packed"]
    result = prune(path, architecture=NET, amount=0.5, outputs=outputs, directory=tmp_path)
    assert not result.report.failed_outputs
    x = torch.randn(5, 4, dtype=kind)
    with torch.no_grad():
        expected = result.model(x)
        assert expected.dtype == kind
        for module in (torch.jit.load(tmp_path / "model.pt"), torch.export.load(tmp_path / "model.pt2").module()):
            assert {tensor.dtype for tensor in module.state_dict().values()} == {kind}
            torch.testing.assert_close(module(x), expected)
    assert {array.dtype.itemsize for array in packed.read(tmp_path / "model.packed").tensors.values()} == {
        kind.itemsize
    }
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {torch.float16: 10, torch.bfloat16: 16, torch.float64: 11}[kind]
    assert {tensor.data_type for tensor in graph.initializer if tensor.dims} == {stored}
    assert graph.input[0].type.tensor_type.elem_type == {torch.bfloat16: 1}.get(kind, stored)
    said = any("onnx: It computes in float32, and takes inputs in it" in note for note in result.report.warnings)
    assert said == (kind == torch.bfloat16)


def test_code_is_in_float32_where_half_precision_only_saves_space(tmp_path):
    weights = {name: tensor.half() * 1000 for name, tensor in STATE.items()}  # whose products float16 cannot hold
    outputs = ["state_dict", "torchscript"]
    example = [{"shape": [2, 4]}]
    fields = {"architecture": NET, "amount": 0.5, "outputs": outputs, "example_inputs": example}
    report = prune(saved(tmp_path, weights), directory=tmp_path, **fields).report
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert {tensor.dtype for tensor in torch.jit.load(tmp_path / "model.pt").parameters()} == {torch.float32}
    assert any("torchscript: It is in float32. In the types of its file" in note for note in report.warnings)


# -- weights alone ------------------------------------------------------------------------------

WITHOUT = {
    "global": ZEROS,
    "by layer": ZEROS | {"scope": "layer", "amounts": {"*fc1": 0.25}},
    "n:m": {"granularity": "n:m", "n_m": (1, 2)},
    "blocks": {"granularity": "block", "block": (2, 2), "amount": 0.5},
    "in steps": ZEROS | {"schedule": "iterative", "steps": 2},
    "lamp": ZEROS | {"criterion": "lamp"},
    "a goal of parameters": {"granularity": "weight", "target": {"params": 0.6}},
    "packed": {"granularity": "weight", "target": {"file_bytes": 0.4}, "outputs": ["packed"]},
    "shared values": ZEROS | {"quantize": {"bits": 2}, "outputs": ["packed", "checkpoint"]},
}


@pytest.mark.parametrize("case", WITHOUT)
def test_weights_without_an_architecture_are_zeroed_as_with_one(case, tmp_path):
    path = saved(tmp_path, {"model": state(0, "net."), "epoch": 1})
    report = prune(path, directory=tmp_path, **WITHOUT[case]).report
    assert report.after.nonzero_parameters < report.before.nonzero_parameters == report.after.parameters
    assert (report.after.macs, report.after.latency, report.after.quality) == (None, [], None)
    assert any(note.startswith("Not run: no architecture was given") for note in report.warnings)
    if "packed" in WITHOUT[case].get("outputs", []):
        found = {
            name: torch.from_numpy(array) for name, array in packed.read(tmp_path / "model.packed").tensors.items()
        }
    else:
        found = checkpoint(tmp_path)["model"]
    zeros = sum(int((tensor == 0).sum()) for tensor in found.values())
    assert zeros == report.after.parameters - report.after.nonzero_parameters
    if "target" not in WITHOUT[case] and "quantize" not in WITHOUT[case]:
        known = saved(tmp_path, {"model": state(0, "net.")})
        alike = {"outputs": ["state_dict"], "directory": tmp_path, "architecture": NET, **WITHOUT[case]}
        weights = {
            name: tensor for name, tensor in prune(known, **alike).model.state_dict().items() if "weight" in name
        }
        assert all(torch.equal(found[f"net.{name}"], tensor) for name, tensor in weights.items())


NEEDS_TO_RUN = {
    "channels": ({"amount": 0.5}, None, "granularity channel finds out"),
    "blocks": ({"granularity": "residual_block", "amount": 0.5}, None, "residual_block"),
    "data": (ZEROS, (np.zeros((9, 4), "float32"), np.zeros(9, "int64")), "scoring, retraining and criteria"),
    "inputs": (ZEROS | {"example_inputs": [{"shape": [2, 4]}]}, None, "to run it on"),
}


@pytest.mark.parametrize("case", NEEDS_TO_RUN)
def test_what_needs_to_run_asks_for_the_architecture_and_says_what_goes_without(case, tmp_path):
    fields, data, says = NEEDS_TO_RUN[case]
    with pytest.raises(InvalidArchitecture, match=r"a known name.*torch.jit.trace.*granularity weight, .*fc1") as told:
        prune(saved(tmp_path, STATE), data, **fields)
    assert says in told.value.detail
    assert told.value.errors[0]["pointer"] == "/architecture"


def test_formats_of_code_cost_themselves_alone(tmp_path):
    path = saved(tmp_path, STATE)
    report = prune(path, outputs=["torchscript", "state_dict"], directory=tmp_path, **ZEROS).report
    assert [failed.format for failed in report.failed_outputs] == ["torchscript"]
    with pytest.raises(ExportFailed, match="give the `architecture`"):
        prune(path, outputs=["onnx"], **ZEROS)


@pytest.mark.parametrize("fields", [ZEROS, {"architecture": NET, "amount": 0.5}, {"amount": 0.5}], ids=str)
def test_a_job_looks_for_a_known_architecture_once_at_most(fields, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("pared.compression.loading.opening.recognised", looked.append)
    with pytest.raises(InvalidArchitecture) if fields == {"amount": 0.5} else contextlib.nullcontext():
        prune(saved(tmp_path, STATE), directory=tmp_path, **fields)
    assert len(looked) == ("architecture" not in fields)


# -- from file to file --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_are_pruned_from_file_to_file_without_being_opened(dtype, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in STATE.items()} | {"n": torch.tensor(3)}, path)
    monkeypatch.setattr("pared.compression.jobs.prune.open_for", None)
    report = prune(path, directory=tmp_path / "out", exclude=["fc2"], **ZEROS).report
    prune_file(path, tmp_path / "same.safetensors", amount=0.5, exclude=["fc2"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    assert (report.before.parameters, report.after.nonzero_parameters) == (51, 51 - 12)
    assert [(layer.name, layer.sparsity, layer.reason) for layer in report.layers] == [
        ("fc1", 0.5, None), ("fc2", 0.0, "left out by include/exclude"),
    ]  # fmt: skip
    assert any(note.startswith("Not run") for note in report.warnings)


def test_from_file_to_file_equal_weights_go_as_in_memory(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "x.safetensors"
    few = {name: torch.randint(-3, 4, tensor.shape).to(torch.bfloat16) for name, tensor in STATE.items()}
    save_file(few | {"a.weight": torch.randint(-3, 4, (5, 5)).float()}, path)
    fields = {"granularity": "weight", "amount": 0.6}
    prune(path, directory=tmp_path / "a", **fields)
    prune(path, directory=tmp_path / "b", outputs=["state_dict", "packed"], **fields)
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("a", "b"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_student_of_half_precision_is_made_of_a_teacher_of_half_precision(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in STATE.items()}, path)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data, fields = (x, (x[:, 0] > 0).astype(np.int64)), {"train": {"epochs": 1}, "outputs": ["state_dict"]}
    student = {"from_teacher": {"width": 0.5}}
    result = distill(path, student, data, teacher_architecture=NET, directory=tmp_path, **fields)
    held = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float16}
    assert all(torch.equal(tensor, held[name]) for name, tensor in result.model.state_dict().items())


def test_from_file_to_file_a_pattern_of_nothing_and_a_broken_weight_are_told(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(STATE, path)
    with pytest.raises(ValidationError, match="'fc9' matches no layer"):
        prune(path, exclude=["fc9"], **ZEROS)
    save_file(STATE | {"fc1.weight": torch.full((6, 4), float("nan"))}, path)
    with pytest.raises(UnsupportedModel, match="NaN"):
        prune(path, **ZEROS)
