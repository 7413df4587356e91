"""Weights that a model computes are folded into plain ones on opening: scores, zeros and training are theirs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils.parametrizations as now
import torch.nn.utils.prune as torch_prune
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, spectral_norm, weight_norm

from pared.compression import distill, prune
from pared.compression.architectures import build
from pared.compression.jobs.prune import prepared
from pared.compression.jobs.pruning_steps import Pruning
from pared.compression.jobs.stages import Stages, assessed
from pared.compression.loading import confirmed, inspect_model, inspect_weights, load_model
from pared.compression.measuring.finite import hold_finite_on_example
from pared.compression.work import DatasetFile, ModelFile, SilentObserver, Work
from pared.errors import NothingToPrune, UnsupportedModel
from pared.specs import PruneSpec
from tests.support.campaign import one_form_each
from tests.support.models import zoo

IDS = {"model": "mdl_" + "0" * 26, "type": "prune"}


def masked(layer):
    torch_prune.l1_unstructured(layer, "weight", 0.3)
    torch_prune.random_unstructured(layer, "bias", 0.3)
    return layer


PARAMETRIZATIONS = {
    "weight norm": now.weight_norm,
    "old weight norm": weight_norm,
    "spectral norm": now.spectral_norm,
    "old spectral norm": spectral_norm,
    "orthogonal": now.orthogonal,
    "mask": masked,
}
LAYERS = [
    ["Conv2d", {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "padding": 1}, "conv1"],
    ["ReLU", {}, "act1"],
    ["Conv2d", {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1}, "conv2"],
    ["ReLU", {}, "act2"],
    ["Flatten", {}, "flat"],
    ["Linear", {"in_features": 128, "out_features": 8}, "fc1"],
    ["ReLU", {}, "act3"],
    ["Linear", {"in_features": 8, "out_features": 4}, "fc2"],
]
PLAIN = {f"{layer}.{tensor}" for layer in ("conv1", "conv2", "fc1", "fc2") for tensor in ("weight", "bias")}
X = torch.randn(40, 4, 4, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0, 0, 0] > 0).long() + 2 * (X[:, 1, 0, 0] > 0).long()
EXAMPLE = [{"shape": [4, 4, 4, 4]}]


def net(parametrization):
    """Trained a little, so that power iterations have run and masks are old."""
    torch.manual_seed(0)
    module = build({"layers": LAYERS})
    for layer in (module.conv2, module.fc1):
        PARAMETRIZATIONS[parametrization](layer)
    module.train()(X).sum().backward()
    module.zero_grad()
    return module.eval()


def file_of(content, path, architecture=None):
    if isinstance(content, nn.Module):
        content = zoo.saved(content)
    elif isinstance(content, dict):
        torch.save(content, path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    return ModelFile(path, path.name, "", architecture)


def traced(module, *example):
    with torch.no_grad():
        return torch.jit.trace(module.eval(), example, check_trace=False)


def program(module, x):
    dims = {0: torch.export.Dim("batch", min=2, max=512)}
    return torch.export.export(module, (x,), dynamic_shapes=[dims])


def uploaded(form, module, path):
    if form == "state_dict":
        return file_of(module.state_dict(), path, {"layers": LAYERS})
    if form == "program":
        torch.export.save(program(module, X[:4]), path)
        return ModelFile(path, path.name, "")
    return file_of(traced(module, X[:4]), path)


GRANULARITIES = {
    "weight": {"amount": 0.6},
    "n:m": {},
    "block": {"amount": 0.5, "block": [2, 2]},
    "channel": {"amount": 0.25},
}


@pytest.mark.parametrize(
    ("parametrization", "form"), one_form_each(PARAMETRIZATIONS, ["traced", "state_dict", "program"], n=2)
)
def test_what_is_pruned_is_what_the_layers_multiply_by(parametrization, form, tmp_path):
    module = net(parametrization)
    suffix = {"program": "pt2"}.get(form, "pt")
    file = uploaded(form, module, tmp_path / f"model.{suffix}")
    np.savez(tmp_path / "data.npz", x=X.numpy(), y=Y.numpy())
    if (parametrization, form) == ("orthogonal", "state_dict"):
        with pytest.raises(UnsupportedModel, match=r"conv2.*original.*remove_parametrizations"):
            load_model(file)
        return
    loaded = load_model(file)
    assert {name for name, _ in loaded.module.named_parameters()} == PLAIN
    assert not [*loaded.module.buffers()]
    assert any("folded into plain weights: conv2.weight (from" in note for note in loaded.warnings)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(X), module(X), rtol=1e-5, atol=1e-5)
    for granularity, fields in GRANULARITIES.items():
        if form == "program" and granularity in ("n:m", "block"):
            continue  # it is opened as TorchScript, and so is no other case
        for data in (None, DatasetFile(tmp_path / "data.npz", "data.npz")):
            told = (
                {"example_inputs": EXAMPLE}
                if data is None
                else {"dataset": "dst_" + "0" * 26, "retrain": {"epochs": 1, "lr": 0.01}}
            )
            spec = PruneSpec.model_validate(IDS | fields | told | {"granularity": granularity})
            work, stages = Work({"model": file}, data, tmp_path), Stages(SilentObserver())
            start, _ = prepared(spec, work, stages)
            if data is not None:
                baseline = assessed(start.original.module, start.data, work, stages)
                start = replace(start, baseline=baseline)
            state = Pruning(start)
            state.run(None, lambda _: None)
            _check(state.loaded.module, granularity, fields)
            if data is not None:
                assessed(state.loaded.module, start.data, work, stages, upload=baseline)


def _check(result, granularity, fields):
    """Finite everywhere, and as many zeros among what the layers multiply by as were asked for."""
    with torch.no_grad():
        assert bool(result(X).isfinite().all())
    weights = {name: tensor for name, tensor in result.named_parameters() if tensor.dim() > 1}
    assert weights.keys() == {f"{layer}.weight" for layer in ("conv1", "conv2", "fc1", "fc2")}
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    share = zeros / sum(weight.numel() for weight in weights.values())
    if granularity == "channel":
        assert weights["conv2.weight"].shape[0] < 8 or weights["fc1.weight"].shape[0] < 8
    elif granularity == "n:m":
        for weight in weights.values():
            groups = weight.movedim(1, -1).reshape(-1, 4)
            assert int((groups == 0).sum(1).min()) >= 2
    else:
        assert share == pytest.approx(fields["amount"], abs=0.1 if granularity == "block" else 1e-3)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_module_is_folded_in_a_copy_and_its_job_says_so(parametrization):
    module = net(parametrization)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        answer = module(X)
    found = prune(nn.Sequential(module), (X, Y), granularity="weight", amount=0.9, retrain={"epochs": 1})
    with torch.no_grad():
        assert torch.equal(module(X), answer)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        assert bool(found.model(X).isfinite().all())
    assert {name.removeprefix("0.") for name, _ in found.model.named_parameters()} == PLAIN
    (note,) = (note for note in found.report.warnings if "folded" in note)
    assert f"counts {found.report.before.parameters:,} parameters" in note
    weights = [tensor for tensor in found.model.parameters() if tensor.dim() > 1]
    share = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(0.9, abs=1e-3)


# -- other units, other layers --------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 8, 3, padding=1)
        self.a, self.b = (now.weight_norm(nn.Conv1d(8, 8, 3, padding=1)) for _ in range(2))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.a(x))
        x = x + torch.relu(self.b(x))
        return self.fc(x.mean(2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (now.spectral_norm(nn.Linear(8, 8)) for _ in range(4))

    def forward(self, x):
        q, k, v = (part(x).view(x.size(0), x.size(1), 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2)).mean(1)


BLOCKS_AND_HEADS = [("residual_block", Residual, (2, 6)), ("head", Attention, (5, 8))]


@pytest.mark.parametrize(("granularity", "make", "shape"), BLOCKS_AND_HEADS)
def test_whole_blocks_and_heads_go_behind_norms(granularity, make, shape):
    torch.manual_seed(0)
    module, x = make().eval(), torch.randn(4, *shape)
    script = traced(module, x)
    found = prune(script, None, granularity=granularity, amount=0.5, example_inputs=[{"shape": [4, *shape]}])
    assert found.report.after.parameters < found.report.before.parameters
    assert not any("parametrizations" in name for name in found.model.state_dict())
    assert bool(found.model(x).isfinite().all())


def test_recurrent_embedding_and_transposed_layers_fold(tmp_path):
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = now.weight_norm(nn.Embedding(12, 6))
            self.rnn = nn.LSTM(6, 5, batch_first=True)
            for name in ("weight_ih_l0", "weight_hh_l0"):
                weight_norm(self.rnn, name)
            self.up = now.spectral_norm(nn.ConvTranspose1d(5, 3, 2))

        def forward(self, x):
            return self.up(self.rnn(self.words(x))[0].transpose(1, 2)).mean(2)

    module, x = Reader().eval(), torch.randint(0, 12, (3, 7))
    loaded = load_model(file_of(traced(module, x), tmp_path / "model.pt"))
    assert {name for name, tensor in loaded.module.named_parameters() if tensor.dim() > 1} == {
        *("words.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "up.weight")
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), module(x))


def test_a_transposed_convolution_in_a_state_dict_is_divided_along_its_second_dimension(tmp_path):
    layers = [["ConvTranspose1d", {"in_channels": 4, "out_channels": 4, "kernel_size": 3}, "up"]]
    for norm in (now.spectral_norm, spectral_norm):
        module = build({"layers": layers})
        norm(module.up)
        module.train()(torch.randn(2, 4, 5))
        state = {f"module.{name}": tensor for name, tensor in module.eval().state_dict().items()}
        loaded = load_model(file_of(state, tmp_path / "model.pt", {"layers": layers}))
        x = torch.randn(2, 4, 5)
        torch.testing.assert_close(loaded.module(x), module(x))


# -- computed by the model's own code -------------------------------------------------------------


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.bias = nn.Parameter(torch.zeros(6))
        self.register_buffer("u", functional.normalize(torch.randn(6), dim=0))


class Standardized(ByHand):
    def forward(self, x):
        centred = self.weight - self.weight.mean(1, keepdim=True)
        return functional.linear(x, centred / (self.weight.std(1, keepdim=True) + 1e-5), self.bias)


class PowerIteration(ByHand):
    """Spectral norm as it is written by hand: it changes its buffer while it trains."""

    def forward(self, x):
        u = self.u
        v = functional.normalize(torch.mv(self.weight.t(), u), dim=0)
        if self.training:
            with torch.no_grad():
                for _ in range(2):
                    u = functional.normalize(torch.mv(self.weight, v), dim=0)
                    v = functional.normalize(torch.mv(self.weight.t(), u), dim=0)
                self.u.copy_(u)
        return functional.linear(x, self.weight / torch.dot(u, torch.mv(self.weight, v)), self.bias)


class Reassigned(ByHand):
    def forward(self, x):
        v = functional.normalize(torch.mv(self.weight.t(), self.u), dim=0)
        if self.training:
            self.u = functional.normalize(torch.mv(self.weight, v), dim=0).detach()
        return functional.linear(x, self.weight / torch.dot(self.u, torch.mv(self.weight, v)), self.bias)


class Adapted(ByHand):
    def __init__(self):
        super().__init__()
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        return functional.linear(x, self.weight + 0.5 * (self.up @ self.down), self.bias)


class Styled(ByHand):
    """The data has a part in the weight, but not in its norm."""

    def __init__(self):
        super().__init__()
        self.style = nn.Linear(6, 1)

    def forward(self, x):
        weight = self.weight / self.weight.norm(2, 1, keepdim=True)
        return functional.linear(x, weight * self.style(x).mean(), self.bias)


@pytest.mark.parametrize("kind", [Standardized, PowerIteration, Reassigned, Adapted, Styled])
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_weights_computed_by_hand_fold(kind, form, tmp_path):
    torch.manual_seed(0)
    module, x = nn.Sequential(kind(), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(4, 6)
    script = torch.jit.script(module) if form == "scripted" else traced(module, x)
    loaded = load_model(file_of(script, tmp_path / "model.pt"))
    weights = [name for name, tensor in loaded.module.named_parameters() if tensor.dim() > 1]
    assert sorted(weights) == ["0.style.weight", "0.weight", "2.weight"][kind is not Styled :]
    assert not [*loaded.module.buffers()]
    assert not loaded.left_out
    torch.testing.assert_close(loaded.module(x), module(x))
    again = torch.jit.load(zoo_file(loaded.module, tmp_path)).train()
    again(x).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def zoo_file(module, tmp_path):
    path = tmp_path / "again.pt"
    torch.jit.save(module, path)
    return path


class LowRank(ByHand):
    """A product of two weights: as one it would be larger, and zeros among them are honest zeros."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2))
        self.down = nn.Parameter(torch.randn(2, 6))

    def forward(self, x):
        return functional.linear(x, self.weight @ self.down, self.bias)


class Attending(ByHand):
    """Parts of a weight, moved about."""

    def forward(self, x):
        q, k = self.weight.chunk(2)
        return torch.cat([functional.linear(x, q), x @ k.t()], 1) + self.bias


@pytest.mark.parametrize("kind", [LowRank, Attending])
def test_what_only_moves_or_multiplies_weights_stays(kind, tmp_path):
    script = torch.jit.script(nn.Sequential(kind(), nn.Linear(6, 3)).eval())
    loaded = load_model(file_of(script, tmp_path / "model.pt"))
    assert [name for name, _ in loaded.module.named_parameters()] == [name for name, _ in script.named_parameters()]
    assert (loaded.left_out, loaded.inlined, loaded.warnings) == ({}, False, [])


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_models_without_computed_weights_stay_as_they_are(form, tmp_path):
    for family in ("resnet", "squeeze_excite", "text_transformer", "shared"):
        loaded = load_model(file_of(zoo.upload(family, form), tmp_path / "model.pt"))
        assert (loaded.inlined, loaded.left_out) == (False, {})


# -- what cannot be folded ------------------------------------------------------------------------


class TwoWays(ByHand):
    """Trains with one norm, and is used with another."""

    def forward(self, x):
        if self.training:
            return functional.linear(x, self.weight / self.weight.norm(), self.bias)
        return functional.linear(x, self.weight / self.weight.abs().amax(), self.bias)


class ReadTwice(ByHand):
    def forward(self, x):
        x = functional.linear(x, self.weight / self.weight.norm(), self.bias)
        return functional.linear(x, self.weight.t())


class SizedByData(ByHand):
    def forward(self, x):
        return functional.linear(x, self.weight / float(x.size(0)) ** self.weight.norm(), self.bias)


@pytest.mark.parametrize("kind", [TwoWays, ReadTwice, SizedByData])
def test_what_cannot_be_folded_is_left_out_of_single_weights_with_a_reason(kind):
    torch.manual_seed(0)
    module = nn.Sequential(kind(), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 3)).eval()
    script, example = torch.jit.script(module), [{"shape": [4, 6]}]
    found = prune(script, None, granularity="weight", amount=0.5, example_inputs=example)
    assert torch.equal(found.model.state_dict()["0.weight"], module[0].weight)
    zeros = sum(int((found.model.state_dict()[name] == 0).sum()) for name in ("2.weight", "3.weight"))
    assert zeros == round(0.5 * (48 + 24))
    (row,) = (layer for layer in found.report.layers if layer.name == "0")
    assert row.reason
    assert any("Single weights are not pruned there" in note and row.reason in note for note in found.report.warnings)
    with pytest.raises(NothingToPrune, match=r"computed while the model runs.*0: "):
        prune(script, None, granularity="weight", amount=0.5, example_inputs=example, include=["0"])


def test_a_folding_that_could_not_be_tried_out_is_tried_on_the_first_inputs(tmp_path):
    module = nn.Sequential(now.weight_norm(nn.ConvTranspose1d(3, 4, 3)), nn.Flatten(), nn.Linear(32, 2))
    x = torch.randn(2, 3, 6)
    loaded = load_model(file_of(traced(module, x), tmp_path / "model.pt"))
    assert loaded.unfolded is not None
    assert confirmed(loaded, (x,)).unfolded is None
    with torch.no_grad():
        next(loaded.module.parameters()).add_(1)
    with pytest.raises(UnsupportedModel, match="answers would differ by"):
        confirmed(loaded, (x,))


def test_a_weight_that_is_not_finite_is_not_folded(tmp_path):
    module = nn.Sequential(now.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 3))
    with torch.no_grad():
        module[0].parametrizations.weight.original1[2] = 0
    loaded = load_model(file_of(traced(module, torch.randn(4, 6)), tmp_path / "model.pt"))
    assert loaded.left_out == {"0.parametrizations.weight": "they come to NaN or infinity"}


# -- what stays true of folded weights ------------------------------------------------------------


class Autoregressive(ByHand):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(6, 6)))

    def forward(self, x):
        return functional.linear(x, self.weight * self.mask, self.bias)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("form", ["scripted", "module"])
def test_zeros_of_a_mask_stay_zeros_in_training(granularity, form):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    layer = Autoregressive() if form == "scripted" else masked(nn.Linear(6, 6))
    forced = layer.mask == 0 if form == "scripted" else layer.weight_mask == 0
    module = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    upload = torch.jit.script(module) if form == "scripted" else module
    fields = {"exclude": ["0"], "amount": 0.25, "retrain": {"epochs": 2, "lr": 0.1}}
    found = prune(upload, (x, y), granularity=granularity, **fields)
    weight = found.model.state_dict()["0.weight"]
    assert bool((weight[forced] == 0).all())
    assert not torch.equal(weight, layer.weight * ~forced)
    student = distill(nn.Linear(6, 3).eval(), upload, (x, y), train={"epochs": 1, "lr": 0.1}).model
    assert bool((student.state_dict()["0.weight"][forced] == 0).all())


def test_frozen_and_tied_weights_stay_so(tmp_path):
    first = now.weight_norm(nn.Linear(6, 6))
    for parameter in first.parametrizations.weight.parameters():
        parameter.requires_grad_(False)
    module = nn.Sequential(first, nn.ReLU(), now.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), first, nn.Linear(6, 2))
    x = torch.randn(4, 6)
    loaded = load_model(file_of(traced(module, x), tmp_path / "model.pt"))
    assert {name: tensor.requires_grad for name, tensor in loaded.module.named_parameters() if tensor.dim() > 1} == {
        "0.weight": False,
        "2.weight": True,
        "5.weight": True,
    }
    assert loaded.frozen_names == ["0.weight"]
    torch.testing.assert_close(loaded.module(x), module.eval()(x))


def test_a_parametrization_of_ones_own_folds_and_the_class_of_the_module_stays():
    class Symmetric(nn.Module):
        def forward(self, weight):
            return weight.triu() + weight.triu(1).transpose(-1, -2)

    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    module = nn.Sequential(layer, nn.Linear(6, 3)).eval()
    prune(module, None, granularity="weight", amount=0.5, example_inputs=[{"shape": [2, 6]}])
    assert torch.equal(layer.weight, layer.weight.t())


def test_a_mask_on_what_a_norm_takes_comes_off_with_it():
    layer = spectral_norm(nn.Linear(6, 6))
    torch_prune.l1_unstructured(layer, "weight_orig", 0.3)
    module = nn.Sequential(layer, nn.Linear(6, 3)).eval()
    x = torch.randn(4, 6)
    with torch.no_grad():
        module(x)  # which applies the mask
        found = prune(module, None, granularity="weight", amount=0.1, example_inputs=[{"shape": [4, 6]}], include=["1"])
        assert [name for name, _ in found.model.named_parameters()] == ["0.bias", "0.weight", "1.weight", "1.bias"]
        assert torch.allclose(found.model.state_dict()["0.weight"], layer.weight)


def test_the_inspection_tells_of_it(tmp_path):
    module = net("weight norm")
    loaded = load_model(uploaded("traced", module, tmp_path / "model.pt"))
    inspection = inspect_model(loaded, (X[:4],))
    (note,) = (note for note in inspection.warnings if "folded" in note)
    assert "conv2.weight (from conv2.parametrizations.weight.original0, " in note
    parameters = sum(tensor.numel() for tensor in module.parameters())
    assert f"{inspection.parameters:,} parameters, where the upload has {parameters:,}" in note
    assert {layer.name for layer in inspection.layers} == {"conv1", "conv2", "fc1", "fc2"}
    file = uploaded("state_dict", module, tmp_path / "state.pt")
    bare = inspect_weights(replace(file, architecture=None))
    assert {layer.name for layer in bare.layers} == {"conv1", "conv2", "fc1", "fc2"}
    assert any("folded" in note for note in bare.warnings)


def test_names_that_only_look_like_a_norm_are_left_alone(tmp_path):
    state = {"fc.weight": torch.randn(3, 6), "fc.bias": torch.zeros(3)}
    odd = {"layers": [["Linear", {"in_features": 6, "out_features": 3}, "fc"]]}
    loaded = load_model(file_of(state, tmp_path / "model.pt", odd))
    assert loaded.warnings == []
    broken = {"fc.weight_g": torch.ones(2), "fc.weight_v": torch.randn(3, 6), "fc.bias": torch.zeros(3)}
    with pytest.raises(UnsupportedModel, match=r"fc\.weight_g, fc\.weight_v in the place of fc\.weight"):
        load_model(file_of(broken, tmp_path / "broken.pt", odd))


def test_a_healthy_weight_normed_network_stays_finite_at_any_amount(tmp_path):
    """The network that answered NaN once a row of zeros came under its norm."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), now.weight_norm(nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 3))
    script, x = traced(module, torch.randn(4, 6)), torch.randn(60, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    for fields in ({"retrain": None}, {"retrain": {"epochs": 1}}):
        found = prune(script, (x, y), granularity="weight", amount=0.95, directory=tmp_path, **fields)
        assert math.isfinite(found.report.after.quality.loss)
        hold_finite_on_example(module, torch.jit.load(Path(tmp_path, "model.pt")), (x,))
