"""torchvision's families lose channels: reduced members of each, against the same channels zeroed, in every format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pared.compression.architectures import build
from pared.compression.architectures.torchvision import (
    convnext,
    densenet,
    efficientnet,
    mobilenet,
    resnet,
    swin,
    vgg,
    vit,
)
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from tests.support.campaign import in_every_run
from tests.support.models.reference import zeroed_outputs


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


REDUCED: dict[str, tuple[Callable[[], list[Any]], tuple[int, ...]]] = {
    "resnext": (lambda: resnet.layers(resnet.ResNet((1, 1, 1, 1), 4, 8), 3, 1), (1, 32, 32)),
    "squeezenet": (lambda: vgg.squeezenet((16, 3, [0, 8, 8, 0, 8]), 3, 3), (3, 32, 32)),
    "mobilenet_v3": (
        lambda: mobilenet.v3(([mobilenet.Block(3, 16, 16, True, "ReLU", 1),
                               mobilenet.Block(5, 48, 24, True, "Hardswish", 2),
                               mobilenet.Block(3, 48, 24, False, "Hardswish", 1)], 32), 3, 3),
        (3, 16, 16),
    ),
    "efficientnet": (
        lambda: efficientnet.layers(efficientnet.EfficientNet(16, [efficientnet.Stage(1, 3, 1, 16, 1),
                                                                   efficientnet.Stage(4, 3, 2, 24, 2),
                                                                   efficientnet.Stage(4, 3, 1, 24, 1, fused=True)],
                                                              64, 0.2, {}), 3, 3),
        (3, 16, 16),
    ),
    "densenet": (lambda: densenet.layers((8, (2, 2, 1, 2), 16), 3, 3), (3, 32, 32)),
    "convnext": (lambda: convnext.layers((16, (1, 1, 1, 2), 0.1), 3, 3), (3, 32, 32)),
    "swin": (lambda: swin.layers((32, (2, 1, 1, 1), 0.1), 3, 3), (3, 40, 40)),
    "vit": (lambda: vit.member("vit", vit.ViT(8, 2, 4, 32, 64, image=16))(3), (3, 16, 16)),
}  # fmt: skip


@pytest.mark.parametrize("family", in_every_run(REDUCED, {"mobilenet_v3", "vit"}))
def test_removing_channels_equals_zeroing_them_and_the_result_is_written(family):
    write, image = REDUCED[family]
    module = build({"layers": write()}).eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.add_(torch.rand_like(tensor))
        for name, tensor in module.named_parameters():
            if name.endswith("layer_scale"):
                tensor.add_(torch.rand_like(tensor))
    x = torch.randn(2, *image)
    loaded = LoadedModel(module, "state_dict", "state_dict", module.architecture)
    removal = remove_channels(loaded, (x,), amount=0.5)
    small = removal.loaded.module
    with torch.no_grad():
        expected = zeroed_outputs(module, removal.removed, x)
        torch.testing.assert_close(small(x), expected, atol=1e-4, rtol=1e-4)
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(small), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x), expected, atol=1e-4, rtol=1e-4)
        program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.testing.assert_close(program.module()(x), expected, atol=1e-4, rtol=1e-4)
    size = sum(tensor.numel() for tensor in small.parameters())
    assert size < 0.45 * sum(tensor.numel() for tensor in module.parameters())
