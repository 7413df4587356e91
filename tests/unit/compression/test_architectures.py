from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from pared.compression.architectures import ARCHITECTURES, LayeredModule, build, resize
from pared.compression.architectures.torchvision import TORCHVISION
from pared.errors import InvalidArchitecture
from pared.specs import LayeredArchitecture, NamedArchitecture

IMAGES = torch.randn(2, 1, 28, 28)
COLOUR = torch.randn(2, 3, 16, 16)
TOKENS = torch.randint(0, 50, (2, 12))
SERIES = torch.randn(2, 1, 40)

NAMED = {
    "lenet5": ({}, IMAGES),
    "lenet300": ({}, IMAGES),
    "mlp": ({"in_features": 20, "classes": 3, "widths": [8]}, torch.randn(2, 20)),
    "cnn_small": ({"batch_norm": True}, IMAGES),
    "resnet_small": ({"widths": [4, 8], "blocks": 2}, COLOUR),
    "mobilenet_small": ({"widths": [4, 8, 8]}, COLOUR),
    "conv1d": ({"widths": [4, 8]}, SERIES),
    "text_pool": ({"vocabulary": 50, "features": 8}, TOKENS),
    "text_transformer": ({"vocabulary": 50, "features": 8, "heads": 2, "hidden": 16, "tokens": 16}, TOKENS),
}

CONV = {"kernel_size": 3, "padding": 1}
STRUCTURED = {
    "squeeze_excite": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, **CONV}, "conv"],
        ["Gate", {"layers": [
            ["AdaptiveAvgPool2d", {"output_size": 1}],
            ["Conv2d", {"in_channels": 8, "out_channels": 2, "kernel_size": 1}, "fc1"],
            ["ReLU", {}],
            ["Conv2d", {"in_channels": 2, "out_channels": 8, "kernel_size": 1}, "fc2"],
            ["Sigmoid", {}],
        ]}, "se"],
    ],
    "two_scales": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, **CONV}, "conv"],
        ["Resized", {"layers": [
            ["AvgPool2d", {"kernel_size": 2}],
            ["Gate", {"layers": [
                ["AdaptiveAvgPool2d", {"output_size": 1}],
                ["Conv2d", {"in_channels": 8, "out_channels": 6, "kernel_size": 1}, "weigh"],
                ["Sigmoid", {}],
            ], "shortcut": [["Conv2d", {"in_channels": 8, "out_channels": 6, **CONV}, "coarse"]]}],
            ["Scale", {"shape": [6, 1, 1], "value": 0.5}, "factors.coarse"],
        ]}],
        ["Conv2d", {"in_channels": 6, "out_channels": 2, "kernel_size": 1}, "leave"],
    ],
    "patches": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": 4, "stride": 4}, "patch"],
        ["Permute", {"dims": [0, 2, 3, 1]}],
        ["WindowAttention", {"features": 8, "heads": 2, "window": 3, "shift": 1}, "window"],
        ["PatchMerge", {}],
        ["Flatten", {"start_dim": 1, "end_dim": 2}],
        ["Prepend", {"shape": [1, 1, 32]}, "token"],
        ["Shift", {"shape": [1, 5, 32]}, "encoder.position"],
        ["Residual", {"layers": [["MultiheadAttention", {"embed_dim": 32, "num_heads": 4}, "attention"],
                                 ["StochasticDepth", {"p": 0.1}]]}],
        ["Select", {"dim": 1, "index": 0}],
    ],
    "unet": [
        ["Conv2d", {"in_channels": 3, "out_channels": 4, **CONV}, "enter"],
        ["Concat", {"branches": [[], [
            ["MaxPool2d", {"kernel_size": 2}],
            ["Conv2d", {"in_channels": 4, "out_channels": 6, **CONV}, "low"],
            ["Upsample", {"scale_factor": 2}],
        ]]}],
        ["Conv2d", {"in_channels": 10, "out_channels": 1, **CONV}, "leave"],
    ],
    "grouped_and_shuffled": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, **CONV}],
        ["Conv2d", {"in_channels": 8, "out_channels": 8, "groups": 4, **CONV}],
        ["ChannelShuffle", {"groups": 4}],
        ["GroupNorm", {"num_groups": 4, "num_channels": 8}],
        ["PixelShuffle", {"upscale_factor": 2}],
    ],
    "shared": [
        ["Conv2d", {"in_channels": 3, "out_channels": 4, **CONV}, "first"],
        ["Repeat", {"times": 3, "layers": [["Conv2d", {"in_channels": 4, "out_channels": 4, **CONV}], ["ReLU", {}]]},
         "again"],
    ],
    "decoder": [
        ["Flatten", {}],
        ["Linear", {"in_features": 768, "out_features": 64}],
        ["Reshape", {"shape": [4, 4, 4]}],
        ["ConvTranspose2d", {"in_channels": 4, "out_channels": 2, "kernel_size": 2, "stride": 2}],
        ["Permute", {"dims": [0, 2, 3, 1]}],
        ["Transpose", {"dim0": 1, "dim1": 2}],
        ["Mean", {"dim": [1, 2]}],
    ],
    "encoder": [
        ["Flatten", {"start_dim": 2}],
        ["Linear", {"in_features": 256, "out_features": 8}],
        ["TransformerEncoderLayer", {"d_model": 8, "nhead": 2, "dim_feedforward": 16}],
    ],
}  # fmt: skip


def _cases():
    for name, (kwargs, example) in NAMED.items():
        yield pytest.param({"name": name, "kwargs": kwargs}, example, id=name)
    for name, layers in STRUCTURED.items():
        yield pytest.param({"layers": layers}, COLOUR, id=name)


def test_every_named_architecture_is_tried_here():
    assert NAMED.keys() | TORCHVISION.keys() == ARCHITECTURES.keys()  # the latter in test_torchvision


@pytest.mark.parametrize(("architecture", "example"), list(_cases()))
def test_an_architecture_runs_alike_eager_traced_scripted_and_rebuilt(architecture, example):
    module = build(architecture).eval()
    with torch.no_grad():
        expected = module(example)
    scripted = torch.jit.script(module)
    with torch.no_grad():  # torch checks a trace by tracing again, and an encoder layer then takes its other path
        traced = torch.jit.trace(module, (example,), check_trace=False)
    assert scripted.state_dict().keys() == module.state_dict().keys() == traced.state_dict().keys()
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    rebuilt = build(module.architecture).eval()
    rebuilt.load_state_dict(module.state_dict())
    for other in (scripted, traced, torch.jit.load(file), rebuilt, copy.deepcopy(module)):
        torch.testing.assert_close(other(example), expected)
    seven = example[:1].expand(7, *example.shape[1:])
    assert len(scripted(seven)) == len(traced(seven)) == 7


@pytest.mark.parametrize(("architecture", "example"), list(_cases()))
def test_resizing_to_its_own_weights_changes_no_shape(architecture, example):
    module = build(architecture)
    again = build(resize(module.architecture, module.state_dict()))
    assert _shapes(again) == _shapes(module)


def test_all_forms_of_the_same_architecture_give_the_same_layers():
    kwargs = {"in_features": 4, "classes": 2, "widths": [3]}
    forms = [
        {"name": "mlp", "kwargs": kwargs},
        NamedArchitecture(name="mlp", kwargs=kwargs),
        build({"name": "mlp", "kwargs": kwargs}).architecture,
        LayeredArchitecture(layers=build({"name": "mlp", "kwargs": kwargs}).architecture["layers"]),
    ]
    assert all(build(form).architecture == build(forms[0]).architecture for form in forms)
    assert build("lenet5").architecture == build({"name": "lenet5"}).architecture


def test_lenet5_has_the_papers_number_of_weights():
    module = build("lenet5")
    assert sum(p.numel() for p in module.parameters()) == 431_080
    assert sum(p.numel() for p in build("lenet300").parameters()) == 266_610


def test_names_follow_indices_labels_and_structures():
    layers = [
        ["Linear", {"in_features": 2, "out_features": 2}],
        ["Linear", {"in_features": 2, "out_features": 2}, "fc"],
        ["Residual", {"layers": [["Linear", {"in_features": 2, "out_features": 2}, "flat"]]}],
        ["Residual", {"layers": [["Linear", {"in_features": 2, "out_features": 2}]],
                      "shortcut": [["Linear", {"in_features": 2, "out_features": 2}]]}],
        ["Residual", {"layers": [["Linear", {"in_features": 2, "out_features": 2}, "conv1"]],
                      "shortcut": [["Linear", {"in_features": 2, "out_features": 2}, "downsample.0"]]}, "layer1.0"],
        ["Concat", {"branches": [[["Linear", {"in_features": 2, "out_features": 2}]], []]}, "cat"],
    ]  # fmt: skip
    names = {key.removesuffix(".weight") for key in build({"layers": layers}).state_dict() if key.endswith(".weight")}
    assert names == {"0", "fc", "flat", "3.0", "3.shortcut.0", "layer1.0.conv1", "layer1.0.downsample.0", "cat.0.0"}


def test_a_plain_sequential_loads_into_an_unnamed_list():
    theirs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ours = build({"layers": [["Linear", {"in_features": 3, "out_features": 4}], ["ReLU"],
                             ["Linear", {"in_features": 4, "out_features": 2}]]})  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_resize_follows_removed_channels_through_depthwise_groups_and_norms():
    module = build({"layers": [
        ["Conv2d", {"in_channels": 3, "out_channels": 8, **CONV}, "a"],
        ["InstanceNorm2d", {"num_features": 8}, "plain"],
        ["Conv2d", {"in_channels": 8, "out_channels": 16, "groups": 8, **CONV}, "depthwise"],
        ["BatchNorm2d", {"num_features": 16}, "bn"],
        ["Conv2d", {"in_channels": 16, "out_channels": 8, "groups": 4, **CONV}, "grouped"],
        ["GroupNorm", {"num_groups": 2, "num_channels": 8}, "gn"],
        ["AdaptiveAvgPool2d", {"output_size": 1}], ["Flatten", {}],
        ["Linear", {"in_features": 8, "out_features": 5}, "fc"],
        ["LayerNorm", {"normalized_shape": 5}, "ln"],
    ]})  # fmt: skip
    shrunk = dict(module.state_dict())
    for key, size in {"a": 6, "depthwise": 12, "bn": 12, "grouped": 4, "gn": 4}.items():
        for tensor in [name for name in shrunk if name.startswith(f"{key}.") and shrunk[name].dim()]:
            shrunk[tensor] = shrunk[tensor][:size]
    shrunk["grouped.weight"] = shrunk["grouped.weight"][:, :3]
    shrunk["fc.weight"] = shrunk["fc.weight"][:, :4]
    small = build(resize(module.architecture, shrunk))
    small.load_state_dict(shrunk)
    assert (small.depthwise.groups, small.grouped.groups, small.plain.num_features) == (6, 4, 6)
    assert small(COLOUR).shape == (2, 5)


@pytest.mark.parametrize(
    ("between", "kept", "channels"),
    [
        ([["Flatten", {}], ["Reshape", {"shape": [8, 4, 64]}]], 6, 6),
        ([["Reshape", {"shape": [8, -1]}], ["Reshape", {"shape": [8, 16, 16]}]], 6, 6),
        ([["LayerNorm", {"normalized_shape": [8, 16, 16], "elementwise_affine": False}]], 6, 6),
        ([["Flatten", {}], ["LayerNorm", {"normalized_shape": 2048, "elementwise_affine": False}],
          ["Reshape", {"shape": [8, 16, 16]}]], 6, 6),
        ([["Concat", {"branches": [[], [["ReLU"]]]}], ["Reshape", {"shape": [16, 256]}]], 6, 12),
        ([["PixelShuffle", {"upscale_factor": 2}], ["Reshape", {"shape": [2, -1]}]], 4, 1),
    ],
)  # fmt: skip
def test_resize_follows_channels_through_layers_without_weights(between, kept, channels):
    module = build({"layers": [["Conv2d", {"in_channels": 3, "out_channels": 8, **CONV}, "a"], *between]})
    shrunk = {name: tensor[:kept] for name, tensor in module.state_dict().items()}
    small = build(resize(module.architecture, shrunk))
    small.load_state_dict(shrunk)
    assert small(COLOUR).shape[1] == channels


def test_a_call_that_fails_prints_nothing(capsys):
    module = build("lenet300")
    for one in (module, copy.deepcopy(module)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            one(torch.randn(2, 5))
    assert capsys.readouterr() == ("", "")


def test_resize_keeps_the_scale_that_attention_was_trained_with():
    layers = [["SelfAttention", {"features": 8, "heads": 2}, "attention"]]
    module = build({"layers": layers})
    shrunk = dict(module.state_dict())
    for name in ("q", "k"):
        shrunk[f"attention.{name}.weight"] = shrunk[f"attention.{name}.weight"][[0, 1, 4, 5]]
        shrunk[f"attention.{name}.bias"] = shrunk[f"attention.{name}.bias"][[0, 1, 4, 5]]
    small = build(resize(module.architecture, shrunk))
    small.load_state_dict(shrunk)
    zeroed = build({"layers": layers})
    full = dict(module.state_dict())
    for name in ("q", "k"):
        for kind in ("weight", "bias"):
            full[f"attention.{name}.{kind}"] = full[f"attention.{name}.{kind}"].clone()
            full[f"attention.{name}.{kind}"][[2, 3, 6, 7]] = 0
    zeroed.load_state_dict(full)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(small(x), zeroed(x))


def test_resize_names_the_missing_tensor():
    module = build("lenet300")
    state = dict(module.state_dict())
    del state["fc2.weight"]
    with pytest.raises(InvalidArchitecture, match=r"no fc2\.weight"):
        resize(module.architecture, state)


LINEAR = {"in_features": 2, "out_features": 2}


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("resnet5000", "Known names: lenet5"),
        (7, "An architecture is a name"),
        ({"layers": []}, "has no layers"),
        ({"layers": "Linear"}, "An architecture is"),
        ({"name": "mlp"}, "mlp needs in_features, classes"),
        ({"name": "mlp", "kwargs": {"in_features": 3, "classes": 2, "depth": 3}}, "has no argument depth"),
        ({"name": "mlp", "kwargs": {"in_features": "3", "classes": 2}}, "in_features must be an integer"),
        ({"name": "mlp", "kwargs": {"in_features": 3, "classes": 2, "widths": 5}}, "widths must be a list"),
        ({"name": "resnet_small", "kwargs": {"blocks": 10**9}}, "from 1 to 100"),
        ({"name": "lenet5", "kwargs": {"size": 8}}, "at least 16×16"),
        ({"layers": [["ReLU", {}], ["os.system", {"command": "id"}]]}, r"layers\[1\]: there is no layer kind"),
        ({"layers": [["Linear", {"in_features": 2}]]}, r"layers\[0\] \(Linear\) needs the argument `out_features`"),
        ({"layers": [["Linear", LINEAR | {"device": "cuda"}]]}, "has no argument device"),
        ({"layers": [["Linear", {"in_features": -1, "out_features": 2}]]}, r"layers\[0\] \(Linear\) does not build"),
        ({"layers": [["Linear", {"in_features": {}, "out_features": 2}]]}, "must be a number"),
        ({"layers": [["Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "groups": 2}]]}, "divisible"),
        ({"layers": [["Linear", {"in_features": 10**9, "out_features": 10**9}]]}, "most allowed"),
        ({"layers": [["Linear", {"in_features": 2**39, "out_features": 2**39}]]}, r"layers\[0\]"),
        ({"layers": [["Linear", LINEAR, "a"], ["Linear", LINEAR, "a"]]}, "is called 'a'"),
        ({"layers": [["Linear", LINEAR, "a.b"], ["Linear", LINEAR, "a"]]}, "lies within"),
        ({"layers": [["Linear", LINEAR, "forward"]]}, "torch keeps for itself"),
        ({"layers": [["Linear", LINEAR, "class"]]}, "torch keeps for itself"),
        ({"layers": [["Linear", LINEAR, "a b"]]}, "the name must be like"),
        ({"layers": [["Linear", LINEAR, "__dict__"]]}, "torch keeps for itself"),
        ({"layers": [["Residual", {}]]}, "needs `layers`"),
        ({"layers": [["Residual", {"layers": [["ReLU"], ["Nope"]]}]]}, r"layers\[0\]\.layers\[1\]"),
        ({"layers": [["Concat", {"branches": [[]]}]]}, "at least two"),
        ({"layers": [["Repeat", {"times": 0, "layers": [["ReLU"]]}]]}, "times must be an integer"),
        ({"layers": [["TransformerEncoderLayer", {"d_model": 4, "nhead": 2, "activation": "exec"}]]}, "activation"),
        ({"layers": [["TransformerEncoderLayer", {"d_model": 4, "nhead": 2, "batch_first": False}]]}, "batch_first"),
        ({"layers": [["SelfAttention", {"features": 4, "heads": 3}]]}, "divided among 3 heads"),
        ({"layers": [["Mean", {}]]}, "needs the argument `dim`"),
        ({"layers": [["Reshape", {"shape": "all"}]]}, "list of one to eight integers"),
    ],
)
def test_a_bad_architecture_is_refused_with_advice(architecture, says):
    with pytest.raises(InvalidArchitecture, match=says):
        build(architecture)


def test_nesting_and_repetition_are_bounded():
    deep = [["ReLU", {}]]
    for _ in range(40):
        deep = [["Sequential", {"layers": deep}]]
    with pytest.raises(InvalidArchitecture, match="nested"):
        build({"layers": deep})
    many = [["ReLU", {}]]
    for _ in range(4):
        many = [["Repeat", {"times": 1000, "layers": many}]]
    with pytest.raises(InvalidArchitecture, match="repetitions"):
        build({"layers": many})


def test_a_module_trains_and_keeps_its_layer_list_when_copied():
    module = build({"name": "text_transformer", "kwargs": NAMED["text_transformer"][0]})
    loss = nn.functional.cross_entropy(module(TOKENS), torch.tensor([0, 1]))
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    copied = copy.deepcopy(module)
    assert isinstance(copied, LayeredModule)
    assert copied.architecture == module.architecture


def _shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
