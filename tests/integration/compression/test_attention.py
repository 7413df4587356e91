"""Whole heads leave attention of every kind, and removing them equals zeroing them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression.coupling import Removed, find_groups, remove
from pared.compression.coupling.interpreter import inlined_graph, nodes_of
from pared.compression.coupling.model import merge
from tests.support.campaign import in_every_run
from tests.unit.compression.test_coupling import as_file, zeroed

TOKENS = (torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [1, 1, 2, 2, 3]]),)
TABLE = (torch.randn(2, 6, generator=torch.Generator().manual_seed(1)),)
IMAGE = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Separate(nn.Module):
    """Four heads of width 4, written out, with the width of the model read off its input."""

    def __init__(self, keys: int = 16) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(10, 16), nn.LayerNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, keys), nn.Linear(16, keys)
        self.o, self.fc = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.o(self.mix(self.norm(x)))
        return self.fc(x.mean(1))

    def heads(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        return x.view(batch, length, 4, width // 4).transpose(1, 2)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(k.size(-1)))
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(x.size(0), x.size(1), x.size(2))


class Permuted(Separate):
    """Shapes put together from lists, as in BERT."""

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size()[:-1] + [4, 4]).permute(0, 2, 1, 3)  # noqa: RUF005 - TorchScript does not unpack

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        mixed = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 2, -1), v).permute(0, 2, 1, 3)
        return mixed.contiguous().view(mixed.size()[0:2] + [16])  # noqa: RUF005


class Batched(Separate):
    """Heads beside samples in one dimension, for a batched product."""

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), 4, 4).permute(0, 2, 1, 3).reshape(x.size(0) * 4, x.size(1), 4)

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        mixed = torch.bmm(torch.softmax(torch.bmm(q / 2, k.transpose(1, 2)), -1), v)
        return mixed.view(x.size(0), 4, x.size(1), 4).transpose(1, 2).reshape(x.size(0), x.size(1), 16)


class Einsum(Separate):
    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        weights = torch.softmax(torch.einsum("...qe,...ke->...qk", q, k) * 0.5, -1)
        return torch.einsum("bhqk, bhke -> bqhe", weights, v).flatten(2)


class Weighed(Separate):
    """Per head a temperature, a bias for each distance, and a scale; a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.scale = nn.Parameter(torch.rand(4, 1, 1)), nn.Parameter(torch.rand(1, 4, 1, 1))
        self.distances = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)
        self.register_buffer("seen", torch.ones(8, 8).tril())

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        bias = self.distances[self.index.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * self.temperature + bias
        scores = scores.masked_fill(self.seen[: x.size(1), : x.size(1)] == 0, float("-inf"))
        return (torch.softmax(scores, -1) @ v * self.scale).transpose(1, 2).flatten(2)


class Biased(Separate):
    """A bias for each head and distance as the mask of the fused operator, as in T5; keys and values from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.distances = nn.Embedding(9, 4)
        self.register_buffer("index", torch.arange(5)[:, None] - torch.arange(3)[None] + 4)

    def mix(self, x: Tensor) -> Tensor:
        memory = torch.tanh(x[:, :3])
        q, k, v = self.heads(self.q(x)), self.heads(self.k(memory)), self.heads(self.v(memory))
        mask = self.distances(self.index).permute(2, 0, 1)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Rotary(Separate):
    """Positions by rotation, and a norm over the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(8.0), torch.tensor([1.0, 0.1])).repeat(1, 2)
        self.head_norm = nn.LayerNorm(4)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        a, b = self.head_norm(x).chunk(2, -1)
        return x * self.cos[: x.size(2)] + torch.cat([-b, a], -1) * self.sin[: x.size(2)]

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = self.turned(self.heads(self.q(x))), self.turned(self.heads(self.k(x))), self.heads(self.v(x))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Grouped(Separate):
    """Two heads of keys and values, each for two of queries."""

    def __init__(self, how: str) -> None:
        super().__init__(keys=8)
        self.how = how

    def mix(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        q = self.heads(self.q(x))
        k, v = self.k(x).view(batch, length, 2, 4).transpose(1, 2), self.v(x).view(batch, length, 2, 4).transpose(1, 2)
        if self.how == "repeated":
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        elif self.how == "expanded":
            k = k[:, :, None].expand(batch, 2, 2, length, 4).reshape(batch, 4, length, 4)
            v = v[:, :, None].expand(batch, 2, 2, length, 4).reshape(batch, 4, length, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.how == "flag")
        return mixed.transpose(1, 2).flatten(2)


class OneKey(Separate):
    """One head of keys and values for all queries: only queries can lose heads."""

    def __init__(self) -> None:
        super().__init__(keys=4)

    def mix(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        k, v = self.k(x)[:, None].expand(batch, 4, length, 4), self.v(x)[:, None].expand(batch, 4, length, 4)
        return F.scaled_dot_product_attention(self.heads(self.q(x)), k, v).transpose(1, 2).flatten(2)


class Fused(Separate):
    """Queries, keys and values from one layer, told apart in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv, self.how = nn.Linear(16, 48), how

    def mix(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        y = self.qkv(x)
        if self.how == "heads first":  # (heads, 3, width)
            q, k, v = y.view(batch, length, 4, 3, 4).unbind(3)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        elif self.how == "heads last":  # (width, heads, 3)
            y = y.view(batch, length, 4, 4, 3).transpose(1, 3)
            q, k, v = y[..., 0].transpose(2, 3), y[..., 1].transpose(2, 3), y[..., 2].transpose(2, 3)
        elif self.how == "chunks of a head":
            q, k, v = y.view(batch, length, 4, 12).transpose(1, 2).chunk(3, -1)
        elif self.how == "slices":
            q, k, v = self.heads(y[..., :16]), self.heads(y[..., 16:32]), self.heads(y[..., 32:])
        else:
            q, k, v = y.view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Linearised(Separate):
    """Without a softmax: elu + 1 of queries and keys."""

    def mix(self, x: Tensor) -> Tensor:
        q, k, v = F.elu(self.heads(self.q(x))) + 1, F.elu(self.heads(self.k(x))) + 1, self.heads(self.v(x))
        norm = 1 / torch.einsum("bhqe,bhe->bhq", q, k.sum(2))
        return torch.einsum("bhqe,bhef,bhq->bqhf", q, torch.einsum("bhke,bhkf->bhef", k, v), norm).flatten(2)


class OnPixels(nn.Module):
    """Over the pixels of an image, its projections convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv, self.o, self.fc = (nn.Conv2d(a, b, 1) for a, b in ((3, 8), (8, 48), (16, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        batch, _, height, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, 3, 4, 4, height * width).unbind(1)
        weights = torch.softmax(q.transpose(-2, -1) @ k / 2, -1)
        return self.fc(x + self.o((v @ weights.transpose(-2, -1)).reshape(batch, 16, height, width))).mean((2, 3))


class Multihead(nn.Module):
    """`nn.MultiheadAttention`, of itself or of a memory, with what a caller leaves at its defaults."""

    def __init__(self, *, cross: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 16), nn.Linear(16, 3)
        self.attention, self.cross = nn.MultiheadAttention(16, 4, batch_first=batch_first, add_bias_kv=cross), cross

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        memory = torch.tanh(x[:, :3]) if self.cross else x
        return self.fc((x + self.attention(x, memory, memory)[0]).mean(1))


class Columns(nn.Module):
    """Each column of a table becomes a token, by its own row of a weight; one more is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.token = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(1, 1, 16))
        self.attention, self.fc = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x[:, :, None] * self.weight], 1)
        return self.fc((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Encoder(nn.Module):
    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 16), nn.Linear(16, 3)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.layers(self.embedding(ids), src_key_padding_mask=ids == 5).mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        hidden = torch.triu(torch.ones(5, 5), 1) > 0
        return self.fc(self.layer(x, torch.tanh(x[:, :3]), tgt_mask=hidden).mean(1))


QKV = [["q", "k", "v"]]


@pytest.mark.parametrize(
    ("make", "form", "layers", "heads"),
    [
        (Separate, "scripted", QKV, 4),
        (Batched, "traced", QKV, 4),
        (Einsum, "traced", QKV, 4),
        (Weighed, "scripted", QKV, 4),
        (Biased, "traced", [["q", "k", "v", "distances"]], 4),
        (Rotary, "scripted", QKV, 4),
        (Linearised, "traced", QKV, 4),
        (lambda: Grouped("flag"), "traced", QKV, 2),
        (OneKey, "scripted", [["q"]], 4),
        (lambda: Fused("heads first"), "traced", [["qkv"]], 4),
        (lambda: Fused("chunks of a head"), "traced", [["qkv"]], 4),
        (OnPixels, "scripted", [["qkv"]], 4),
        (Multihead, "traced", [["attention"]], 4),
        (lambda: Multihead(cross=True), "traced", [["attention"]], 4),
        (Columns, "traced", [["attention"]], 4),
        (lambda: Encoder(norm_first=True), "traced", [["layers.layers.0.self_attn"]], 4),
        (Decoder, "traced", [["layer.self_attn"], ["layer.multihead_attn"]], 4),
        *in_every_run(
            [
                (Permuted, "scripted", QKV, 4),
                (Batched, "scripted", QKV, 4),
                (Weighed, "traced", QKV, 4),
                (lambda: Grouped("repeated"), "traced", QKV, 2),
                (lambda: Grouped("expanded"), "traced", QKV, 2),
                (lambda: Fused("heads last"), "traced", [["qkv"]], 4),
                (lambda: Fused("slices"), "traced", [["qkv"]], 4),
                (lambda: Fused("three first"), "traced", [["qkv"]], 4),
                (Multihead, "scripted", [["attention"]], 4),
                (lambda: Multihead(batch_first=False), "traced", [["attention"]], 4),
                (Encoder, "scripted", [["layers.layers.0.self_attn"]], 4),
            ],
            (),
        ),
    ],
)
def test_removing_heads_equals_zeroing_them(
    make: Callable[[], nn.Module], form: str, layers: list[list[str]], heads: int
) -> None:
    module = make().eval()
    example = {OnPixels: IMAGE, Columns: TABLE}.get(type(module), TOKENS)
    with torch.no_grad():  # where torch's fused operators run, if anywhere
        file = as_file(module, form, example)
        coupling = find_groups(file, example)
        groups = [group for group in coupling.groups if group.kind == "head"]
        assert sorted(sorted(group.layers) for group in groups) == sorted(sorted(names) for names in layers)
        assert {group.units for group in groups} == {heads}
        removed: Removed = {}
        for group in groups:
            merge(removed, group.removal([0] if heads == 2 else [1, 2]))
        small = remove(coupling.script, removed, coupling.patches)
        torch.testing.assert_close(small(*example), zeroed(file, removed)(*example), atol=1e-5, rtol=1e-5)
        more = torch.cat([example[0], example[0]])
        torch.testing.assert_close(small(more), zeroed(file, removed)(more), atol=1e-5, rtol=1e-5)


def test_attention_without_heads_loses_width_and_keeps_its_scale() -> None:
    class Single(nn.Module):
        """By torch's operator, whose scale follows the width, and by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Embedding(10, 16), nn.Linear(16, 3)
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.q2, self.k2 = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            x = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
            q, k = self.q2(x), self.k2(x)
            return self.fc((torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), -1) @ x).mean(1))

    module = Single().eval()
    coupling = find_groups(as_file(module, "scripted", TOKENS), TOKENS)
    assert {tuple(sorted(group.layers)): group.units for group in coupling.groups} == {
        ("embedding",): 16,
        ("k", "q"): 16,
        ("k2", "q2"): 8,
        ("v",): 16,
    }
    assert {group.kind for group in coupling.groups} == {"channel"}
    removed: Removed = {}
    for group in coupling.groups:
        merge(removed, group.removal([1, 2, 3]))
    small = remove(coupling.script, removed, coupling.patches)
    torch.testing.assert_close(small(*TOKENS), zeroed(module, removed)(*TOKENS), atol=1e-5, rtol=1e-5)


def test_weights_averaged_over_heads_and_given_out_keep_the_heads_but_not_their_width() -> None:
    class Shown(Multihead):
        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embedding(ids)
            mixed, weights = self.attention(x, x, x)
            return self.fc(mixed), weights

    coupling = find_groups(as_file(Shown().eval(), "traced", TOKENS), TOKENS)
    assert {(group.kind, group.units) for group in coupling.groups if group.layers == ["attention"]} == {("channel", 4)}


def test_a_head_keeps_its_name_after_others_went() -> None:
    coupling = find_groups(as_file(Multihead().eval(), "traced", TOKENS), TOKENS)
    (group,) = (group for group in coupling.groups if group.kind == "head")
    small = remove(coupling.script, group.removal([3]), coupling.patches)
    (again,) = (group for group in find_groups(small, TOKENS).groups if group.kind == "head")
    assert (again.units, again.members.keys(), again.layers) == (3, group.members.keys(), group.layers)


def test_torch_runs_fused_attention_where_no_gradient_is_wanted() -> None:
    """What `fused.py` is for: these operators, which later versions of torch may replace."""
    with torch.no_grad():
        for module, kind in (
            (Multihead(), "_native_multi_head_attention"),
            (Encoder(), "_transformer_encoder_layer_fwd"),
        ):
            graph = inlined_graph(as_file(module.eval(), "traced", TOKENS))
            assert any(node.kind() == f"aten::{kind}" for node in nodes_of(graph))
