"""Channel groups found on TorchScript, and the one invariant: removing equals zeroing."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression.coupling import Coupling, Removed, compose_removed, find_groups, remove
from pared.compression.coupling.groups import merge
from pared.compression.coupling.interpreter import inlined_graph, nodes_of, reloaded


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
    removed = every_other(coupling)
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
            x = torch.softmax(self.a(x), -1)
            return self.c(torch.cumsum(self.b(x), 1).relu())

    x = torch.randn(2, 4)
    coupling = find_groups(as_file(Mixed().eval(), "scripted", (x,)), (x,))
    assert coupling.groups == []
    assert "aten::softmax" in coupling.reasons["a"]
    assert "aten::cumsum" in coupling.reasons["b"]


def test_rules_that_would_be_wrong_are_caught_by_the_check() -> None:
    """A roll over the channels passes the rules (it only moves elements), but removing would not equal zeroing."""

    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.roll(self.a(x), 3, 1))))

    x = torch.randn(2, 4)
    coupling = find_groups(as_file(Rolled().eval(), "scripted", (x,)), (x,))
    assert [group.layers for group in coupling.groups] == [["b"]]
    assert "differ" in coupling.reasons["a"]


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
