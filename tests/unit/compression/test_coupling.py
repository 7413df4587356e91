"""Channel groups found on TorchScript, and the one invariant: removing equals zeroing."""

from __future__ import annotations

import copy
import gc
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression.coupling import Coupling, Removed, compose_removed, find_groups, remove, unsound
from pared.compression.coupling.interpreter import Call, Interpreter, Step, inlined_graph, nodes_of
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.model import merge
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.rules import RULES, Rule
from pared.compression.coupling.rules.layout import layout
from pared.compression.coupling.verify import zeroed_outputs
from pared.errors import ModelFailed


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_file(module: nn.Module, form: str, example: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """Scripted or traced, saved and loaded, as an upload is."""
    script = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, example, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def every_other(coupling: Coupling) -> Removed:
    removed: Removed = {}
    for group in coupling.groups:
        merge(removed, group.removal(range(0, group.units, 2)))
    return removed


def first_third(coupling: Coupling) -> Removed:
    removed: Removed = {}
    for group in coupling.groups:
        merge(removed, group.removal(range(group.units // 3)))
    return removed


def zeroed(module: nn.Module, removed: Removed) -> nn.Module:
    """The original with the same slices of the same tensors set to zero: written without the engine."""
    twin = copy.deepcopy(module)
    state = twin.state_dict()
    for name, by_dim in removed.items():
        for dim, indices in by_dim.items():
            state[name].index_fill_(int(dim), torch.tensor(indices), 0.0)
    return twin


def assert_removing_equals_zeroing(module: nn.Module, example: tuple[Tensor, ...], form: str) -> Coupling:
    module.eval()
    file = as_file(module, form, example)
    coupling = find_groups(file, example)
    for removed in (first_third(coupling), every_other(coupling)):
        small = remove(coupling.script, removed, coupling.patches)
        with torch.no_grad():
            torch.testing.assert_close(small(*example), zeroed(module, removed)(*example), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in file.parameters())
    return coupling


class BakedSizes(nn.Module):
    """Depthwise groups, and sizes written as literals in reshape, all of which must follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.pointwise(self.depthwise(x)))
        return self.fc(x.reshape(-1, 192))


class GatedBranches(nn.Module):
    """Concatenation, grouped and transposed convolution, a gate, sigmoid(0) = ½ on the way to a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.squeeze = nn.Linear(16, 4)
        self.excite = nn.Linear(4, 16)
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.out = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(torch.cat([F.relu(self.a(x)), torch.sigmoid(self.b(x))], 1))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        y = self.up(F.max_pool2d(y * gate[:, :, None, None], 2))
        return self.out(torch.cat([x, y], 1)).mean((2, 3))


class Heads(nn.Module):
    """Attention with heads split by a literal view, and a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.o = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(12, 16)
        self.fc = nn.Linear(16, 3)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = F.scaled_dot_product_attention(self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x)))
        x = x + self.o(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], 16))
        x = x + self.down(F.glu(self.up(x), -1))
        return self.fc(x.mean(1))


class Gpt(nn.Module):
    """Fused q/k/v, widths computed from shapes (C // heads), head and embedding tied."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 16
        self.tokens, self.positions = nn.Embedding(10, 16), nn.Embedding(8, 16)
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 10, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(0, ids.size(1)))
        batch, length, width = x.size()
        q, k, v = self.qkv(x).split(self.width, dim=2)
        q = q.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        k = k.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).contiguous().view(batch, length, width))
        return self.head(x + self.down(F.gelu(self.up(x))))[:, -1]


class ImageTokens(nn.Module):
    """Queries, keys and values from one layer, told apart by a view to (3, heads, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv, self.o = nn.Embedding(10, 16), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        q, k, v = self.qkv(x).view(x.size(0), x.size(1), 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


class Decoder(nn.Module):
    """Features that a literal view turns into an image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8 * 4 * 4)
        self.conv = nn.Conv2d(8, 6, 3, padding=1)
        self.out = nn.ConvTranspose2d(6, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(torch.relu(self.fc(x)).view(-1, 8, 4, 4))))


class Shuffled(nn.Module):
    """Channels shuffled between groups, and turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shuffle, self.b = nn.Conv2d(3, 12, 1), nn.ChannelShuffle(2), nn.Conv2d(12, 6, 1)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.flip(torch.relu(self.b(self.shuffle(torch.relu(self.a(x))))), [1]))


class DepthwiseUp(nn.Module):
    """A depthwise transposed convolution, whose filters lie along dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.up(torch.relu(self.a(x)))))


class Defaults(nn.Module):
    """Optional arguments, of which a caller gives none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, bend: bool = True) -> Tensor:
        x = self.a(x) * scale
        if bend:
            x = torch.tanh(x)
        return self.b(x if mask is None else x * mask)


class Blurred(nn.Module):
    """A fixed depthwise filter held in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.register_buffer("blur", torch.ones(8, 1, 2, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.conv2d(torch.relu(self.a(x)), self.blur, groups=8))


class Constants(nn.Module):
    """Tensors that the code makes, of sizes that are written in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.code, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x)) + torch.ones(8)
        x = torch.cat([self.code(x), torch.zeros(2, 4)], 1)
        return self.c(x * torch.full((12,), 2.0) + torch.ones_like(x))


class Stacked(nn.Module):
    """Two sets of features one above the other; a layer whose gated half is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 2), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), torch.relu(self.b(x))], 1).mean(1)
        return self.d(torch.cat([F.glu(self.c(x), 1), y], 1))


class Products(nn.Module):
    """Bare weights, (in, out) and (out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(10))
        self.w1, self.w2 = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 10))
        self.w3, self.w4 = nn.Parameter(torch.randn(12, 10)), nn.Parameter(torch.randn(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, torch.relu(x @ self.w1), self.w2)
        return torch.relu(self.w3 @ x.t()).t() @ self.w4


FEATURES = (torch.randn(2, 6, generator=torch.Generator().manual_seed(1)),)
IMAGE = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)
TOKENS = (torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]),)


@pytest.mark.parametrize("form", ["scripted", "traced"])
@pytest.mark.parametrize(
    ("make", "example", "groups"),
    [
        (BakedSizes, IMAGE, [["conv", "depthwise"], ["pointwise"]]),
        (GatedBranches, IMAGE, None),
        (Gpt, TOKENS, [["tokens", "positions", "o", "down"], ["qkv"], ["up"]]),
        (Heads, TOKENS, [["embedding", "o", "down"], ["q", "k", "v"], ["up"]]),
        (ImageTokens, TOKENS, [["embedding"], ["qkv"]]),
        (Decoder, FEATURES, [["fc"], ["conv"]]),
        (Shuffled, IMAGE, [["a"], ["b"]]),
        (DepthwiseUp, IMAGE, [["a", "up"]]),
        (Defaults, FEATURES, [["a"]]),
        (Blurred, IMAGE, [["a"]]),
        (Constants, FEATURES, [["a"], ["code"]]),
        (Stacked, FEATURES, [["a", "b"]]),
        (Products, FEATURES, [["w1"], ["w2"], ["w3"]]),
    ],
)
def test_removing_equals_zeroing(
    form: str, make: Callable[[], nn.Module], example: tuple[Tensor, ...], groups: list[list[str]] | None
) -> None:
    coupling = assert_removing_equals_zeroing(make(), example, form)
    if groups is not None:
        assert sorted(sorted(g.layers) for g in coupling.groups) == sorted(sorted(names) for names in groups)


def test_classifier_outputs_are_never_removed() -> None:
    coupling = find_groups(as_file(BakedSizes().eval(), "scripted", IMAGE), IMAGE)
    assert all(("fc.weight", 0) not in group.members for group in coupling.groups)
    assert coupling.reasons["fc"] == "the model's output"


def test_norm_over_removed_channels_uses_statistics_of_the_kept() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.norm(self.a(x))))

    module = Normed().eval()
    nn.init.uniform_(module.norm.weight)
    x = torch.randn(3, 6)
    coupling = find_groups(as_file(module, "scripted", (x,)), (x,))
    removed = every_other(coupling)
    small = remove(coupling.script, removed, coupling.patches)
    kept = [1, 3, 5, 7]
    with torch.no_grad():
        hidden = F.layer_norm(module.a(x)[:, kept], [4], module.norm.weight[kept], module.norm.bias[kept])
        expected = torch.tanh(hidden) @ module.b.weight[:, kept].T + module.b.bias
    assert removed["norm.weight"] == {"0": [0, 2, 4, 6]}
    torch.testing.assert_close(small(x), expected, atol=1e-6, rtol=1e-6)


def test_what_mixes_channels_is_left_alone_and_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sort(self.a(x), -1)[0]
            return self.c(torch.cumsum(self.b(x), 1).relu())

    x = torch.randn(2, 4)
    coupling = find_groups(as_file(Mixed().eval(), "scripted", (x,)), (x,))
    assert coupling.groups == []
    assert "torch.sort" in coupling.reasons["a"]
    assert "torch.cumsum" in coupling.reasons["b"]


class OverChannels(nn.Module):
    """Softmax, largest value and sum over the channels; a norm written by hand; a gate by a mean, no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.a(x), -1)
        x = self.b(x)
        x = torch.exp(x - x.amax(-1, keepdim=True))
        x = x / x.sum(-1, keepdim=True)
        x = self.c(x)
        return self.d(x * torch.sigmoid(x.mean(-1, keepdim=True)))


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_softmax_and_norms_by_hand_take_what_is_kept_and_a_mean_elsewhere_counts_zeros(form: str) -> None:
    module = OverChannels().eval()
    coupling = find_groups(as_file(module, form, FEATURES), FEATURES)
    assert sorted(group.layers for group in coupling.groups) == [["a"], ["b"], ["c"]]
    small = remove(coupling.script, every_other(coupling), coupling.patches)
    a, b, c, d = ((layer.weight, layer.bias) for layer in (module.a, module.b, module.c, module.d))
    with torch.no_grad():
        x = torch.softmax(FEATURES[0] @ a[0][1::2].T + a[1][1::2], -1)
        x = torch.softmax(x @ b[0][1::2, 1::2].T + b[1][1::2], -1)
        x = x @ c[0][1::2, 1::2].T + c[1][1::2]
        expected = F.linear(x * torch.sigmoid(x.sum(-1, keepdim=True) / 8), d[0][:, 1::2], d[1])
        torch.testing.assert_close(small(*FEATURES), expected)


class Rolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.roll(self.a(x), 3, 1))))


def test_a_roll_over_the_channels_fixes_them() -> None:
    x = torch.randn(2, 4)
    coupling = find_groups(as_file(Rolled().eval(), "scripted", (x,)), (x,))
    assert [group.layers for group in coupling.groups] == [["b"]]
    assert coupling.reasons["a"] == "torch.roll: shifts the channels"


def test_rules_that_would_be_wrong_are_caught_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll only moves elements, but what it moves is no longer what comes out once channels are gone."""
    monkeypatch.setitem(RULES, "aten::roll", Rule(layout))
    x = torch.randn(2, 4)
    coupling = find_groups(as_file(Rolled().eval(), "scripted", (x,)), (x,))
    assert [group.layers for group in coupling.groups] == [["b"]]
    assert "differ" in coupling.reasons["a"]


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_channels_are_scored_by_their_incoming_weights(form: str) -> None:
    coupling = find_groups(as_file(Products().eval(), form, FEATURES), FEATURES)
    assert sorted(group.out_axes for group in coupling.groups) == [[("w1", 1)], [("w2", 1)], [("w3", 0)]]
    assert coupling.output_dims == {"w1": 1, "w2": 1, "w3": 0, "w4": 1}
    assert {use.name: use.channels for use in coupling.layers} == {"w1": 8, "w2": 10, "w3": 12, "w4": 3}
    assert coupling.reasons == {"w4": "the model's output"}


def test_a_tied_weights_output_dimension_is_the_one_that_loses_channels() -> None:
    coupling = find_groups(as_file(Gpt().eval(), "scripted", TOKENS), TOKENS)
    assert coupling.output_dims["tokens.weight"] == 1
    assert coupling.output_dims["qkv.weight"] == 0


def test_a_filter_in_a_buffer_is_sliced_but_makes_no_layer() -> None:
    coupling = find_groups(as_file(Blurred().eval(), "scripted", IMAGE), IMAGE)
    (group,) = coupling.groups
    assert group.out_axes == [("a.weight", 0)]
    assert group.removal([0, 3])["blur"] == {"0": [0, 3]}
    assert [use.name for use in coupling.layers] == ["a", "b"]


def test_a_tensor_that_is_neither_parameter_nor_buffer_fixes_its_channels() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), torch.arange(8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale)

    coupling = find_groups(as_file(Scaled().eval(), "scripted", FEATURES), FEATURES)
    assert coupling.groups == []
    assert coupling.reasons["a"] == "torch.mul: combines them with channels that stay"


def test_a_model_that_fails_is_told_from_an_analysis_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.a(x) * weights

    with pytest.raises(ModelFailed, match="'weights'"):
        find_groups(as_file(Two().eval(), "scripted", FEATURES), FEATURES)

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setitem(RULES, "aten::tanh", Rule(broken))
    coupling = find_groups(as_file(Defaults().eval(), "scripted", FEATURES), FEATURES)
    assert coupling.groups == []
    assert coupling.reasons.keys() == {"a", "b"}
    assert coupling.reasons["a"].startswith("torch.tanh (KeyError: 'ours')")


def test_only_removals_that_hold_together_are_kept() -> None:
    file = as_file(Decoder().eval(), "scripted", FEATURES)
    coupling = find_groups(file, FEATURES)
    fc, conv = (group.removal([1, 2]) for group in coupling.groups)

    def shrunk(removed: Removed) -> nn.Module:
        return remove(coupling.script, removed, coupling.patches)

    def never_both(removed: Removed) -> nn.Module:
        if removed.keys() >= {"fc.bias", "out.weight"}:
            raise ValueError("not both")
        return shrunk(removed)

    half_a_channel: Removed = {"conv.weight": {"0": [0]}}
    assert unsound(coupling.original, FEATURES, [fc, conv], shrunk) == {}
    assert unsound(coupling.original, FEATURES, [], shrunk) == {}
    assert unsound(coupling.original, FEATURES, [half_a_channel, fc, conv], shrunk).keys() == {0}
    together = unsound(coupling.original, FEATURES, [fc, conv], never_both)
    assert together == {1: "the shrunk model cannot be built: not both"}


def test_data_dependent_branches_and_loops_run() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            large = bool(x.sum() > 1e9)
            x = self.a(x)
            for _ in range(3):
                x = torch.relu(self.b(x))
            if large:
                x = x * 2
            return self.c(x)

    coupling = assert_removing_equals_zeroing(Branching(), (torch.randn(2, 4),), "scripted")
    assert [sorted(group.layers) for group in coupling.groups] == [["a", "b"]]


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    assert_removing_equals_zeroing(Tied(), (torch.randn(2, 4),), "scripted")


def test_a_code_that_one_weight_writes_and_reads_shrinks() -> None:
    class Code(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.weight), self.weight.t())

    coupling = assert_removing_equals_zeroing(Code(), FEATURES, "scripted")
    assert [group.out_axes for group in coupling.groups] == [[("weight", 0)]]


def test_a_shrunk_file_trains_and_shrinks_again() -> None:
    file = as_file(BakedSizes().eval(), "scripted", IMAGE)
    first = find_groups(file, IMAGE)
    removed = every_other(first)
    small = remove(first.script, removed, first.patches)
    training = reloaded(small).train()
    training(*IMAGE).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in training.parameters())
    second = find_groups(small, IMAGE)
    more = every_other(second)
    smaller = remove(second.script, more, second.patches)
    shapes = {name: tuple(t.shape) for name, t in file.state_dict().items()}
    at_once = remove(first.script, compose_removed(removed, more, shapes), first.patches)
    torch.testing.assert_close(smaller(*IMAGE), at_once(*IMAGE))


def test_the_model_given_is_not_changed() -> None:
    file = as_file(BakedSizes().eval(), "scripted", IMAGE)
    before, code = file(*IMAGE), file.code
    find_groups(file, IMAGE)
    assert torch.equal(file(*IMAGE), before)
    assert file.code == code


def test_private_graph_api_keeps_the_order_of_nodes_and_an_edit_of_the_graph() -> None:
    """What `remove` relies on in torch: same file, same node order; an edited inlined graph is what is saved."""
    file = as_file(BakedSizes().eval(), "scripted", IMAGE)
    kinds = [[node.kind() for node in nodes_of(inlined_graph(reloaded(file)))] for _ in range(2)]
    assert kinds[0] == kinds[1]
    copy_ = reloaded(file)
    graph = inlined_graph(copy_)
    (reshape,) = [node for node in nodes_of(graph) if node.kind() == "aten::reshape"]
    with graph.insert_point_guard(reshape):
        reshape.replaceInput(1, graph.insertConstant([-1, 96]))
    assert "96" in reloaded(copy_).code


def test_a_call_that_is_run_again_keeps_no_tensor_of_it() -> None:
    """Cycles would hold the labels of every activation until the next collection: gigabytes, for large images."""
    module = torch.jit.trace(nn.Linear(4, 4).eval(), torch.rand(2, 4))
    held: list[ReferenceType[Tensor]] = []

    def visit(call: Call) -> None:
        stand_in = torch.zeros(2, 4)
        held.append(ref(stand_in))
        call.run_again({id(call.arguments["input"]): stand_in})

    gc.disable()
    try:
        Interpreter(module).run((torch.rand(2, 4),), lambda name, tensor: Tracked(tensor), visit)
        assert len(held) == 1
        assert held[0]() is None
    finally:
        gc.enable()


def test_zeroed_weights_live_no_longer_than_they_are_read() -> None:
    torch.manual_seed(0)
    module = torch.jit.trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).eval(), torch.rand(2, 8))
    removed = {f"{index}.weight": {"0": [1]} for index in range(4)}
    live: list[int] = []
    known: list[ReferenceType[Tensor]] = []

    class Watched(Interpreter):
        def _call(self, step: Step, args: list[Any]) -> list[Any]:
            known.append(ref(next(arg.tensor for arg in args if isinstance(arg, Tracked) and arg.name)))
            live.append(sum(each() is not None for each in known))
            return super()._call(step, args)

    zeroed_outputs(Watched(module), (torch.rand(2, 8),), removed)
    assert len(known) == 4
    assert max(live) == 1
