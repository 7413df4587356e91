"""Whole residual blocks: which ones are found, and that a model without them is as with what they add zeroed."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression.architectures import build
from pared.compression.export.programs import program_of, save_program
from pared.compression.graphs.rebuilding import without_unused
from pared.compression.loading import LoadedModel
from pared.compression.loading.opening import load_model
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.pruning.residual_blocks import apply_block_removal, remove_blocks
from pared.compression.pruning.residual_blocks.blocks import find_blocks, without_blocks
from pared.compression.pruning.residual_blocks.importance import block_scores
from pared.compression.work import ModelFile
from pared.errors import NothingToPrune
from tests.support.campaign import one_form_each

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


class Basic(nn.Module):
    """As torchvision has it: the addition and the activations are in place."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Resnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Basic(4, 4), Basic(4, 4))
        self.layer2 = nn.Sequential(Basic(4, 8, 2), Basic(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(torch.relu_(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x):
        batch, tokens, features = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, features // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, features))


class PreNorm(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(features), Attention(features)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = nn.Sequential(
            nn.Linear(features, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, features), nn.Dropout(0.1)
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNorm(PreNorm):
    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class Parallel(PreNorm):
    def forward(self, x):
        return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.embedding = nn.Linear(8, 8)
        self.position = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList([kind(8) for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embedding(x) + self.position[: x.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


# The last layers of each block, which add nothing once they are zero, in the order of the blocks.
ENDS = {
    Resnet: ["layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2", "layer2.1.bn2"],
    Transformer: ["blocks.0.attention.out", "blocks.0.mlp.3", "blocks.1.attention.out", "blocks.1.mlp.3"],
}


def made(kind):
    torch.manual_seed(0)
    module = (Transformer(kind) if issubclass(kind, PreNorm) else kind()).eval()
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.bias.normal_()
    return module, TOKENS if issubclass(kind, PreNorm) else IMAGES


def as_file(module, way, x):
    return torch.jit.script(module) if way == "scripted" else torch.jit.trace(module, (x,), check_trace=False)


def loaded(module, **fields):
    return LoadedModel(module, **{"format": "torchscript", "flavour": "scripted"} | fields)


def saved_bytes(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "way"), one_form_each([Resnet, PreNorm, PostNorm, Parallel], ["scripted", "traced"]))
def test_without_blocks_a_model_is_as_with_what_they_add_zeroed(kind, way):
    module, x = made(kind)
    script = as_file(module, way, x)
    found = find_blocks(script, [x])
    ends = ENDS[type(module)]
    assert len(found.blocks) == len(ends)
    for chosen in ([0], [3], [1, 2], [0, 1, 2, 3]):
        reference, _ = made(kind)
        with torch.no_grad():
            for index in chosen:
                for tensor in reference.get_submodule(ends[index]).parameters():
                    tensor.zero_()
        smaller = without_blocks(found.script, [found.blocks[index] for index in chosen])
        torch.testing.assert_close(smaller(x), reference(x))
        gone = {name for index in chosen for name in found.blocks[index].tensors}
        assert [name for name, _ in smaller.named_parameters()] == [
            name for name, _ in module.named_parameters() if name not in gone
        ]
        smaller.train()
        smaller(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in smaller.parameters())
    assert len(saved_bytes(smaller)) < len(saved_bytes(script)) / 2
    assert any(name.startswith("layer2.0.downsample") for name, _ in smaller.named_parameters()) == (kind is Resnet)


def test_what_is_left_trains_as_before():
    """Batch norms that stay count their batches and follow their statistics, and dropout is on in training."""
    module, x = made(Resnet)
    found = find_blocks(torch.jit.script(module), [x])
    smaller = without_blocks(found.script, found.blocks[:3]).train()
    smaller(x)
    buffers = dict(smaller.named_buffers())
    assert {name.rpartition(".")[0] for name in buffers} == {"layer2.0.downsample.1", "layer2.1.bn1", "layer2.1.bn2"}
    assert all(int(tensor) == 1 for name, tensor in buffers.items() if name.endswith("num_batches_tracked"))
    module, x = made(PreNorm)
    found = find_blocks(torch.jit.script(module), [x])
    smaller = without_blocks(found.script, found.blocks[:1])
    assert torch.equal(smaller(x), smaller(x))
    smaller.train()
    assert not torch.equal(smaller(x), smaller(x))


class Shared(nn.Module):
    """The kept path is read again after what stands in place of the sum was changed in place."""

    def __init__(self):
        super().__init__()
        self.first, self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.first(x)
        out = x + self.fc2(torch.relu(self.fc1(x)))
        out.relu_()
        return out + 2 * x


class OnTheInput(Shared):
    """Without the block, what is done in place would be done to what the caller gave."""

    def forward(self, x):
        out = self.fc2(torch.relu(self.fc1(x)))
        out += x
        return self.first(torch.relu_(out))


@pytest.mark.parametrize("kind", [Shared, OnTheInput])
@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_writing_in_place_spares_what_others_read(kind, way):
    torch.manual_seed(0)
    module = kind().eval()
    found = find_blocks(as_file(module, way, TOKENS), [TOKENS])
    (block,) = found.blocks
    smaller = without_blocks(found.script, [block])
    for tensor in module.fc2.parameters():
        tensor.data.zero_()
    given = TOKENS.clone()
    torch.testing.assert_close(smaller(given), module(TOKENS.clone()))
    assert torch.equal(given, TOKENS)


class Leaky(nn.Module):
    """What is inside of the block is also an answer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        return x + self.fc2(hidden), hidden


class Twice(Leaky):
    """The same block two times."""

    def forward(self, x):
        x = x + self.fc2(torch.relu(self.fc1(x)))
        return x + self.fc2(torch.relu(self.fc1(x)))


class Plain(Leaky):
    """An addition, but not to what passes by."""

    def forward(self, x):
        return self.fc1(x) + self.fc2(x)


class OfItsSize(Leaky):
    """What is added depends on the size of x alone."""

    def forward(self, x):
        return self.fc1(x) + self.fc2.weight[: x.size(1)]


class Wider(Leaky):
    """x + f(x) is larger than x."""

    def forward(self, x):
        return x[:, :1] + self.fc2(self.fc1(x[:, :1])).expand_as(x)


class Whole(Leaky):
    """Without its blocks no weight is left."""

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Whole, "fc1: without it no weight would be left"),
        (Leaky, "fc2: values inside its residual block are used outside of it"),
        (Twice, "fc1: the weights of its residual block are used outside of it"),
        (Plain, "fc1: it is in no residual block that could go"),
        (OfItsSize, "fc1: it is in no residual block that could go"),
        (Wider, "fc1: it is in no residual block that could go"),
    ],
)
def test_where_no_block_can_go_each_layer_says_why(kind, reason):
    script = torch.jit.script(kind().eval())
    with pytest.raises(NothingToPrune, match=reason) as caught:
        remove_blocks(loaded(script), script, [TOKENS], amount=0.9)
    assert "Granularity `channel`" in caught.value.detail


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.fc1(x)
        y = y + torch.tanh(self.fc2(y))
        return x + self.fc3(y)


def test_of_blocks_within_blocks_the_innermost_go():
    found = find_blocks(torch.jit.script(Nested().eval()), [TOKENS])
    assert [block.layers for block in found.blocks] == [["fc2"]]


def test_other_inputs_of_a_block_may_come_from_anywhere():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x, mask):
            x = x + self.fc1(x) * mask
            x = x + self.fc2(x).masked_fill(mask > 0, 0.0)
            return self.head(x) * mask.mean()

    module = Masked().eval()
    traced = torch.jit.trace(module, (TOKENS, TOKENS))
    found = find_blocks(traced, [TOKENS, TOKENS])
    assert [block.layers for block in found.blocks] == [["fc1"], ["fc2"]]
    smaller = without_blocks(found.script, found.blocks)
    torch.testing.assert_close(smaller(TOKENS, TOKENS), module.head(TOKENS) * TOKENS.mean())


def test_a_transformer_layer_that_is_one_fused_operator_in_evaluation_loses_blocks():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.encoder(x))

    torch.manual_seed(0)
    module = Encoder().eval()
    found = find_blocks(torch.jit.script(module), [TOKENS])
    layer = module.encoder.layers[0]
    assert [[name.rpartition(".")[2] for name in block.layers] for block in found.blocks] == [
        ["self_attn", "out_proj"],
        ["linear1", "linear2"],
    ]
    smaller = without_blocks(found.script, found.blocks[:1])
    with torch.no_grad():
        for tensor in layer.self_attn.out_proj.parameters():
            tensor.zero_()
        torch.testing.assert_close(smaller(TOKENS), module(TOKENS))
    assert not any("self_attn" in name for name, _ in smaller.named_parameters())
    smaller.train()(TOKENS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.LSTM(8, 8, batch_first=True) for _ in range(2))

    def forward(self, x):
        x = self.first(x)[0]
        return x + self.second(x)[0]


def test_a_scripted_recurrent_layer_goes_and_another_still_trains():
    torch.manual_seed(0)
    module = Recurrent().eval()
    found = find_blocks(torch.jit.script(module), [TOKENS])
    assert [block.layers for block in found.blocks] == [["second"]]
    smaller = without_blocks(found.script, found.blocks)
    torch.testing.assert_close(smaller(TOKENS), module.first(TOKENS)[0])
    smaller(TOKENS).sum().backward()
    assert [name for name, _ in smaller.named_parameters()] == [
        f"first.{name}" for name, _ in module.first.named_parameters()
    ]
    assert all(parameter.grad is not None for parameter in smaller.parameters())


# -- choosing -----------------------------------------------------------------------------------


def scaled(*scales):
    """A pre-norm transformer whose blocks add more or less."""
    module, x = made(PreNorm)
    with torch.no_grad():
        for end, scale in zip(ENDS[Transformer], scales, strict=True):
            for tensor in module.get_submodule(end).parameters():
                tensor.mul_(scale)
    return torch.jit.script(module), x


@pytest.mark.parametrize("criterion", ["magnitude", "l2", "activation", "taylor", "hessian"])
def test_the_blocks_that_matter_least_go(criterion):
    script, x = scaled(1.0, 1e-3, 1.0, 1.0)
    gradients = {name: torch.ones_like(tensor) for name, tensor in script.named_parameters()}
    gone = ["norm2.weight", "norm2.bias", "mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"]
    for name in gone:
        gradients[f"blocks.0.{name}"].zero_()
    statistics = CalibrationStatistics(lambda: [gradients], dict, lambda: [(x,), (x,)])
    removal = remove_blocks(loaded(script), script, [x], amount=0.25, criterion=criterion, statistics=statistics)
    assert set(removal.removed) == {f"blocks.0.{name}" for name in gone}
    assert removal.removed["blocks.0.mlp.0.weight"] == {"0": list(range(16))}


def test_scores_are_as_by_hand():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.thin, self.other = nn.Linear(4, 1), nn.Linear(1, 4), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            x = x + self.thin(self.wide(x))
            return x + self.other(x)

    module = One().eval()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.fill_({"wide.weight": 1.0, "thin.weight": 0.5}.get(name, 0.0))
        module.other.weight.copy_(torch.eye(4))
    x = torch.ones(3, 4)
    found = find_blocks(torch.jit.script(module), [x])
    weights = dict(module.named_parameters())
    gradients = [{name: torch.full_like(tensor, scale) for name, tensor in weights.items()} for scale in (1.0, 2.0)]
    statistics = CalibrationStatistics(lambda: gradients, dict, lambda: [(x,)])

    def scores(criterion):
        return block_scores(found.blocks, criterion, weights, residual=found, statistics=statistics).tolist()

    assert scores("magnitude") == pytest.approx([(2 * 1 + 1 * 0.5) / 2, 2 * 0.25])
    assert scores("l2") == pytest.approx([(2 * 1 + 1 * 0.5) / 2, 2 * 0.5])
    assert scores("activation") == pytest.approx([2.0, 1.0])  # (1, 1, 1, 1) gets 2s, and (3, 3, 3, 3) gets 3s
    assert scores("taylor") == pytest.approx([(6**2 + 12**2) / 2, (4**2 + 8**2) / 2])
    assert scores("hessian") == pytest.approx([(4 + 4 * 0.25) * (1 + 4) / 4, 4 * (1 + 4) / 4])
    first, second = ([block] for block in found.blocks)
    without = block_scores(second, "activation", weights, residual=found, removed_before=first, statistics=statistics)
    assert without.tolist() == pytest.approx([1.0])


def test_steps_add_up_and_a_resumed_job_gets_the_same_model_back():
    script, x = scaled(0.5, 1.0, 0.1, 1.0)
    upload = loaded(script)
    first = remove_blocks(upload, script, [x], amount=0.25)
    with torch.no_grad():
        for parameter in first.loaded.module.parameters():
            parameter.mul_(1.25)
    second = remove_blocks(upload, first.loaded.module, [x], amount=0.5, removed=first.removed)
    assert (first.removed_units, second.removed_units) == (1, 1)
    assert set(first.removed) < set(second.removed)
    assert second.units == first.units
    head = dict(second.loaded.module.named_parameters())["head.weight"]
    assert torch.equal(head, 1.25 * dict(script.named_parameters())["head.weight"])
    again = apply_block_removal(upload, [x], second.removed)
    again.module.load_state_dict(second.loaded.module.state_dict())
    assert saved_bytes(again.module) == saved_bytes(second.loaded.module)


def test_patterns_keep_whole_blocks():
    script, x = scaled(1.0, 1.0, 1.0, 1.0)
    removal = remove_blocks(loaded(script), script, [x], amount=0.9, include=["blocks.*"], exclude=["*.attention.qkv"])
    assert {name.rpartition(".")[0] for name in removal.removed} == {
        f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("norm2", "mlp.0", "mlp.3")
    }
    assert removal.reasons["blocks.0.attention.qkv"] == "left out by include/exclude"
    assert removal.reasons["blocks.0.attention.out"].startswith("it is in one block with blocks.0.attention.qkv")
    assert removal.reasons["head"] == "it is in no residual block that could go"
    with pytest.raises(NothingToPrune, match=r"those of none do. The blocks are: blocks.0.attention.qkv, blocks.0"):
        remove_blocks(loaded(script), script, [x], amount=0.5, include=["head"])
    with pytest.raises(NothingToPrune, match="less than one block here: 4 residual blocks"):
        remove_blocks(loaded(script), script, [x], amount=0.1)


# -- other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "example"),
    [
        ("resnet_small", {"widths": [4, 8], "blocks": 2}, IMAGES),
        ("text_transformer", {"vocabulary": 9, "features": 8}, torch.arange(24).reshape(4, 6) % 9),
    ],
)
def test_an_architecture_loses_its_residuals(name, kwargs, example):
    torch.manual_seed(0)
    module = build({"name": name, "kwargs": kwargs}).eval()
    upload = loaded(module, format="state_dict", flavour="state_dict", architecture=module.architecture)
    found = find_blocks(module, [example])
    removal = remove_blocks(upload, module, [example], amount=0.75, criterion="random")
    assert removal.removed_units == 3
    kept = {key: tensor for key, tensor in module.state_dict().items() if key not in removal.removed}
    again = build(removal.loaded.architecture).eval()
    gone = [block for block in found.blocks if block.tensors[0] in removal.removed]
    again.load_state_dict({key: kept[key] for key in again.state_dict()})
    torch.testing.assert_close(again(example), found.runner.outputs_without([example], gone)[0])
    assert sum(p.numel() for p in again.parameters()) == sum(
        p.numel() for key, p in module.named_parameters() if key not in removal.removed
    )


def test_an_exported_program_loses_blocks(tmp_path):
    module, x = made(PreNorm)
    save_program(program_of(module, [x], [{0}]), tmp_path / "model.pt2")
    upload = load_model(ModelFile(tmp_path / "model.pt2", "model.pt2", "", None), None)
    removal = remove_blocks(upload, upload.module, [x], amount=0.5)
    assert removal.removed_units == 2
    save_program(program_of(removal.loaded.module, [x], upload.free_dims), tmp_path / "smaller.pt2")
    again = torch.export.load(tmp_path / "smaller.pt2").module()
    torch.testing.assert_close(again(x), removal.loaded.module(x))


# -- rebuilding ---------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.used.weight
        self.used.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(8))
        self.factors = [2, 3]
        self.calls = 0

    def forward(self, x, scale: float = 2.0, mask: torch.Tensor | None = None):
        self.calls += 1
        x = self.tied(self.used(x)) * self.factors[0] + self.shift * self.calls
        return x * scale if mask is None else x * mask


def test_a_rebuilt_module_is_called_as_before_and_has_no_more_than_it_reads():
    torch.manual_seed(0)
    script = torch.jit.script(Odd().eval())
    again = without_unused(torch.jit.script(Odd().eval()))
    again.load_state_dict({key: script.state_dict()[key] for key in again.state_dict()})
    for arguments in ({}, {"scale": 3.0}, {"mask": TOKENS}):
        torch.testing.assert_close(again(TOKENS, **arguments), script(TOKENS, **arguments))
    assert [name for name, _ in again.named_parameters()] == ["used.weight", "used.bias", "tied.bias"]
    assert [name for name, _ in again.named_modules()] == ["", "used", "tied"]
    assert [parameter.requires_grad for parameter in again.parameters()] == [True, False, True]
    assert again.tied.weight.data_ptr() == again.used.weight.data_ptr()
    assert again.original_name == "Odd"
    assert not again.training


def test_the_same_module_is_rebuilt_as_the_same_bytes():
    module, x = made(Resnet)
    found = find_blocks(torch.jit.script(module), [x])
    torch.jit.script(nn.Linear(2, 2))  # torch numbers the classes that a process compiles
    first, second = (saved_bytes(without_blocks(found.script, found.blocks[:2])) for _ in range(2))
    assert first == second
