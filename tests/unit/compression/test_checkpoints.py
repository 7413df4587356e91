"""Checkpoints as training scripts save them: which state dict is meant, by which names, and what is refused."""

from __future__ import annotations

import argparse
import io

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from pared.compression.loading import inspect_weights, load_model, load_weights
from pared.compression.work import ModelFile
from pared.errors import ParedError, ShapeMismatch, UnsupportedModel

NET = {
    "layers": [
        ["Linear", {"in_features": 4, "out_features": 6}, "fc1"],
        ["ReLU", {}],
        ["Linear", {"in_features": 6, "out_features": 3}, "fc2"],
    ]
}


def state(seed: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layers = {"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 3)}
    return {prefix + name: tensor for name, tensor in nn.ModuleDict(layers).state_dict().items()}


STATE = state()


def moments(*shape: int) -> dict:
    return {"step": torch.tensor(1.0), "exp_avg": torch.full(shape, 0.1), "exp_avg_sq": torch.full(shape, 0.001)}


# As Adam saves it for a linear layer. To make one here would import half of torch wherever tests are collected.
OPTIMIZER = {
    "state": {0: moments(3, 3), 1: moments(3)},
    "param_groups": [
        {
            "lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0, "amsgrad": False, "maximize": False,
            "foreach": None, "capturable": False, "differentiable": False, "fused": None,
            "decoupled_weight_decay": False, "params": [0, 1],
        }
    ],
}  # fmt: skip


@pytest.fixture
def upload(tmp_path):
    def write(value, architecture=NET, *, legacy=False, **chosen) -> ModelFile:
        path = tmp_path / "upload"
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        return ModelFile(path, "upload", "0" * 64, architecture, **chosen)

    return write


def test_adam_saves_its_state_so():
    module = nn.Linear(3, 3)
    made = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    made.step()
    torch.testing.assert_close(made.state_dict(), OPTIMIZER)


# -- what opens ---------------------------------------------------------------------------------

HABITS = {
    "ImageNet example": {
        "epoch": 3, "arch": "resnet", "state_dict": state(0, "module."), "best_acc1": torch.tensor(0.9),
        "optimizer": OPTIMIZER, "scheduler": {"last_epoch": 3},
    },
    "Lightning with a loss beside": {
        "pytorch-lightning_version": "2.1.0", "state_dict": state(0, "model.") | {"loss_fn.weight": torch.ones(3)},
        "callbacks": {"EMA": {"shadow": state(1)}}, "optimizer_states": [OPTIMIZER],
        "hyper_parameters": {"lr": 0.1, "class_weights": torch.ones(3)}, "loops": {},
    },
    "a metric beside": {"state_dict": state(0, "net.") | {"val_acc.total": torch.tensor(0)}},
    "a loss beside bare names": STATE | {"criterion.centers": torch.ones(3, 3)},
    "averaged model": {"n_averaged": torch.tensor(4)} | state(0, "module."),
    "compiled within data-parallel": state(0, "module._orig_mod."),
    "wrappers inside names": {
        name.replace("fc1.", "fc1._orig_mod.").replace("fc2.", "fc2.module."): tensor for name, tensor in STATE.items()
    },
    "deep, in a list": {"run": {"last": {"weights": [STATE]}}},
    "a copy under another key": {"model": STATE, "ema": {name: tensor.clone() for name, tensor in STATE.items()}},
    "a generator with its optimizer": {
        "G": {"state_dict": STATE, "optimizer": OPTIMIZER}, "D": {"state_dict": {"fc1.weight": torch.ones(2, 2)}},
    },
    "arguments and numbers of numpy": {
        "model": STATE, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "epoch": np.int64(3),
    },
    "parameters": {name: nn.Parameter(tensor) for name, tensor in STATE.items()},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("habit", HABITS)
def test_the_weights_of_a_checkpoint_are_found_whatever_lies_beside_them(habit, legacy, upload):
    loaded = load_model(upload(HABITS[habit], legacy=legacy))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in loaded.module.state_dict().items())


def test_what_is_left_out_and_taken_off_is_said(upload):
    notes = " ".join(load_model(upload(HABITS["Lightning with a loss beside"])).warnings)
    assert "taken from 'state_dict'" in notes
    assert "'model.' was taken off" in notes
    assert "beside the model were left out: loss_fn.weight (3,)" in notes
    notes = " ".join(load_model(upload(HABITS["wrappers inside names"])).warnings)
    assert "taken out of them, as of 'fc1._orig_mod.weight'" in notes


def test_large_integers_beside_the_weights_are_no_claims(upload):
    value = {"model": STATE, "step": 10**12, "optimizer": {140178894849152: torch.ones(3)}}
    assert torch.equal(load_model(upload(value, legacy=True)).module.fc1.weight, STATE["fc1.weight"])


def test_half_precision_is_remembered_by_tensor(upload):
    mixed = {name: tensor.half() if "weight" in name else tensor.bfloat16() for name, tensor in STATE.items()}
    loaded = load_model(upload({"model": {"module." + name: tensor for name, tensor in mixed.items()}}))
    assert {name: form.dtype for name, form in loaded.forms.items()} == {n: each.dtype for n, each in mixed.items()}
    assert {tensor.dtype for tensor in loaded.module.parameters()} == {torch.float32}


def test_a_checkpoint_that_holds_itself_opens(upload):
    value: dict = {"inner": {}, "sd": STATE}
    value["inner"]["outer"] = value["inner"]
    assert torch.equal(load_model(upload(value)).module.fc1.weight, STATE["fc1.weight"])


# -- choosing -----------------------------------------------------------------------------------

EMA = {"model": STATE, "ema": state(1), "epoch": 3, "optimizer": OPTIMIZER}
STUDENT = state(0, "student.") | state(1, "teacher.")


@pytest.mark.parametrize("architecture", [NET, None], ids=["with", "without architecture"])
def test_several_state_dicts_are_listed_with_what_to_type(architecture, upload):
    open_ = load_model if architecture else load_weights
    with pytest.raises(
        UnsupportedModel, match=r"'model' \(4 tensors, 51 numbers\), 'ema' .*\?weights=ema.*--state-dict ema"
    ):
        open_(upload(EMA, architecture))


@pytest.mark.parametrize(("weights", "seed"), [("ema", 1), ("model", 0)])
def test_weights_chooses_among_state_dicts(weights, seed, upload):
    assert torch.equal(load_model(upload(EMA, weights=weights)).module.fc1.weight, state(seed)["fc1.weight"])


@pytest.mark.parametrize("name", ["G", "G.state_dict"])
def test_weights_may_name_the_whole_way_or_what_holds_the_one(name, upload):
    loaded = load_weights(upload(HABITS["a generator with its optimizer"], None, weights=name))
    assert set(loaded.module.state_dict()) == set(STATE)


def test_prefixes_under_which_several_fit_are_listed_with_what_to_type(upload):
    with pytest.raises(UnsupportedModel, match=r"'student\.', 'teacher\.'.*\?prefix=student\..*--prefix student\."):
        load_model(upload(STUDENT))


@pytest.mark.parametrize("prefix", ["teacher.", "teacher"])
def test_prefix_chooses_among_the_tensors(prefix, upload):
    loaded = load_model(upload(STUDENT, prefix=prefix))
    assert torch.equal(loaded.module.fc1.weight, state(1)["fc1.weight"])
    assert any("do not begin with 'teacher.' were left out" in note for note in loaded.warnings)
    alone = load_weights(upload(STUDENT, None, prefix=prefix))
    assert set(alone.module.state_dict()) == set(STATE)


def test_layers_beside_those_that_fit_are_not_dropped_unless_it_is_said(upload):
    value = state(0, "backbone.") | {"head.weight": torch.ones(2, 3)}
    with pytest.raises(ShapeMismatch, match=r"the file holds more: head\.weight \(2, 3\).*\?prefix=backbone\."):
        load_model(upload(value))
    assert torch.equal(load_model(upload(value, prefix="backbone.")).module.fc1.weight, STATE["fc1.weight"])


def test_of_several_state_dicts_none_of_which_fits_each_says_why(upload):
    with pytest.raises(ShapeMismatch, match=r"None .* fits\. 'a': .*Missing.* 'b': .*Missing"):
        load_model(upload({"a": {"x.weight": torch.ones(2, 2)}, "b": {"y.weight": torch.ones(2, 2)}}))


def test_state_dicts_that_an_architecture_tells_apart_are_left_to_the_job(upload):
    other = {"head.weight": torch.ones(2, 9), "head.bias": torch.ones(2)}
    several = {"G": STATE, "G_average": state(1), "D": {f"module.{name}": value for name, value in other.items()}}
    found = inspect_weights(upload(several, None))
    assert "'D' (2 tensors, 20 numbers)" in found.warnings[1]
    assert "`weights` set to its name" in found.warnings[1]
    assert "the `architecture` that one of them fits" in found.warnings[1]
    assert [layer.name for layer in found.layers] == [
        "G.fc1", "G.fc2", "G_average.fc1", "G_average.fc2", "D.module.head"
    ]  # fmt: skip
    head = {"layers": [["Linear", {"in_features": 9, "out_features": 2}, "head"]]}
    assert torch.equal(load_model(upload(several, head)).module.head.weight, other["head.weight"])
    for open_, architecture in ((load_weights, None), (load_model, None), (load_model, NET)):
        with pytest.raises(UnsupportedModel, match=r"state dicts.*`weights` set to its name"):
            open_(upload(several, architecture))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_of_the_same_architecture_are_refused_at_once(prefix, upload):
    with pytest.raises(UnsupportedModel, match=r"2 state dicts: .*'ema'.*`weights` set to its name"):
        inspect_weights(upload({"model": STATE, "ema": state(1, prefix)}, None))


# -- what is refused ----------------------------------------------------------------------------


def nested(depth: int) -> dict:
    outer: dict = {}
    inner = outer
    for _ in range(depth):
        inner["n"] = {}
        inner = inner["n"]
    return outer | {"sd": STATE}


REFUSED = {
    "weights that no key is": (EMA, {"weights": "emma"}, r"`weights`: 'emma' is no state dict .*'model' .*'ema'"),
    "weights that name a number": (EMA, {"weights": "epoch"}, r"`weights`: 'epoch' is no state dict"),
    "weights that name an optimizer": (EMA, {"weights": "optimizer"}, r"'optimizer' is no state dict"),
    "weights that may be several": (
        {"G": {"net": STATE}, "D": {"net": state(1)}}, {"weights": "net"}, r"'net' may be several.*'G\.net'.*'D\.net'"),
    "weights of safetensors": (safetensors_bytes(STATE), {"weights": "ema"}, r"'ema' is no state dict in this file"),
    "a prefix of nothing": (STUDENT, {"prefix": "pupil."}, r"`prefix`: no tensor.*student\., teacher\."),
    "an optimizer alone": (OPTIMIZER, {}, r"holds the state of an optimizer alone\. Save the weights alone"),
    "a list of tensors": ([*STATE.values()], {}, r"without the names .*the file itself: a list of 4"),
    "keys that are numbers": ({0: torch.ones(2, 2), 1: torch.ones(2)}, {}, r"without the names .*0, 1"),
    "nested beyond measure": (nested(300), {}, r"more than 100 deep"),
    "many empty dicts": ({"x": [{} for _ in range(100_001)], "sd": STATE}, {}, r"more than 100,000 dicts and lists"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_checkpoint_is_refused_with_the_true_reason(case, upload):
    value, chosen, says = REFUSED[case]
    for architecture, open_ in ((NET, load_model), (None, load_weights), (None, inspect_weights)):
        with pytest.raises(UnsupportedModel, match=says):
            open_(upload(value, architecture, **chosen))


def test_a_choice_among_weights_is_refused_for_a_whole_model(upload):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    with pytest.raises(UnsupportedModel, match="`prefix` chooses among the tensors of a state dict"):
        load_model(upload(buffer.getvalue(), None, prefix="a."))


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)


class Config:
    pass


PICKLED = {
    "a container of torch": (nn.ModuleDict({"fc": nn.Linear(4, 2)}), r"\(torch\.nn\.modules\.container\.ModuleDict\)"),
    "a class of one's own": (Mine(), r"nn\.Module \(\S*Mine\)"),
    "a module beside arguments": ({"args": argparse.Namespace(), "model": Mine()}, r"nn\.Module \(\S*Mine\)"),
    "a configuration": (
        {"state_dict": STATE, "cfg": Config()},
        r"objects besides tensors \(\S*Config\).*weights_only=False",
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("case", PICKLED)
def test_the_class_that_was_pickled_is_named(case, legacy, upload):
    value, says = PICKLED[case]
    with pytest.raises(UnsupportedModel, match=says):
        load_model(upload(value, legacy=legacy))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"K\x15N", b"J\x00\x00\x00\x70N"), (b"K\x07K\x03\x86", b"J\x00\x00\x00\x10K\x03\x86")],
    ids=["a storage", "a tensor"],
)
def test_an_old_file_that_claims_more_than_it_holds_is_refused_without_making_room(old, new, upload):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(7, 3)}, buffer, _use_new_zipfile_serialization=False)
    assert old in buffer.getvalue()
    with pytest.raises(UnsupportedModel, match="claims tensors larger than itself"):
        load_weights(upload(buffer.getvalue().replace(old, new), None))


# -- weights alone ------------------------------------------------------------------------------


def test_names_of_any_form_and_tied_tensors_are_held_as_they_are(upload):
    shared = torch.ones(3, 3)
    value = {"training": torch.ones(2, 2), "a": torch.ones(2), "a.b": torch.ones(2), "x..y": torch.ones(2, 2)}
    loaded = load_weights(upload(value | {"in.weight": shared, "out.weight": shared, "n": torch.tensor(3)}, None))
    assert {*loaded.module.state_dict()} == {*value, "in.weight", "out.weight", "n"}
    assert sum(tensor.numel() for tensor in loaded.module.parameters()) == 4 + 2 + 2 + 4 + 9
    assert not loaded.runs


def test_an_inspection_of_safetensors_reads_no_tensor(upload, monkeypatch):
    half = {name: tensor.half() for name, tensor in STATE.items()}
    monkeypatch.setattr("safetensors.torch.load_file", None)
    found = inspect_weights(upload(safetensors_bytes(half), None))
    assert found.parameters == 51
    assert any("float16" in note for note in found.warnings)
    with pytest.raises(ParedError, match="damaged"):
        inspect_weights(upload(safetensors_bytes(half)[:-3], None))
