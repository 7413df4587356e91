"""What torchvision says of its architectures: published parameter counts, names and shapes of tensors, and answers.

The tables were printed by this file (`python -m tests.support.torchvision_models`) beside torchvision 0.28, which the
tests do not need.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.architectures.torchvision import TORCHVISION

PUBLISHED: dict[str, tuple[int, str]] = {
    "resnet18": (11689512, "f8edbf27c33ebeb2"),
    "resnet34": (21797672, "279ae7fe01d8d885"),
    "resnet50": (25557032, "a24ee6635c5b5703"),
    "resnet101": (44549160, "220cac351d808cfc"),
    "resnet152": (60192808, "30c4a7b97847b2a9"),
    "wide_resnet50_2": (68883240, "48daaf22434e6a87"),
    "wide_resnet101_2": (126886696, "81656b76def1af50"),
    "resnext50_32x4d": (25028904, "db2fec9ee6f2365e"),
    "resnext101_32x8d": (88791336, "f08c330a7c30055a"),
    "resnext101_64x4d": (83455272, "f21293e6c2c17cc6"),
    "alexnet": (61100840, "10f4d918b13a6183"),
    "vgg11": (132863336, "fda77879f56e8ab3"),
    "vgg13": (133047848, "5dde91aed7c9f8f8"),
    "vgg16": (138357544, "d0503fffc73cd7a1"),
    "vgg19": (143667240, "b85975f376436cd9"),
    "vgg11_bn": (132868840, "fe673fca7ec18a29"),
    "vgg13_bn": (133053736, "db7784ef608ea7b1"),
    "vgg16_bn": (138365992, "97b3c77b9e0204cf"),
    "vgg19_bn": (143678248, "669aef0459f3cc51"),
    "squeezenet1_0": (1248424, "aa2821cf361ba266"),
    "squeezenet1_1": (1235496, "92807b2a1d8ad83b"),
    "mobilenet_v2": (3504872, "61ad5257e4e32259"),
    "mobilenet_v3_large": (5483032, "0f2edf1866864881"),
    "mobilenet_v3_small": (2542856, "edcc4eef8f64fafc"),
    "efficientnet_b0": (5288548, "968332a9b2224a08"),
    "efficientnet_b1": (7794184, "084991a2ee2b9c05"),
    "efficientnet_b2": (9109994, "93a4e38a22e0537f"),
    "efficientnet_b3": (12233232, "ee4f6c9d4d0718e9"),
    "efficientnet_b4": (19341616, "4f5d51c0d3b2aea7"),
    "efficientnet_b5": (30389784, "1008324886eba0a7"),
    "efficientnet_b6": (43040704, "640b2d2d73f18634"),
    "efficientnet_b7": (66347960, "a4c4c0f606652570"),
    "efficientnet_v2_s": (21458488, "e3a73b0a81742b30"),
    "efficientnet_v2_m": (54139356, "b6e2806a3d1a5a47"),
    "efficientnet_v2_l": (118515272, "4b5f3fa37efc28d0"),
    "convnext_tiny": (28589128, "3aff2ccc26245fb1"),
    "convnext_small": (50223688, "41b088ca2bca53e9"),
    "convnext_base": (88591464, "18c7548277493f92"),
    "convnext_large": (197767336, "2c370fb0527ba13d"),
    "densenet121": (7978856, "795d5bb32d995e29"),
    "densenet161": (28681000, "d5f9dab8f68be62e"),
    "densenet169": (14149480, "c0d9d10f02485c07"),
    "densenet201": (20013928, "75c3dfe90fed6d6c"),
    "vit_b_16": (86567656, "d64f5209a54163d6"),
    "vit_b_32": (88224232, "fd5f1169fb24af85"),
    "vit_l_16": (304326632, "234b32e5306a26b2"),
    "vit_l_32": (306535400, "d329266d58c6271b"),
    "vit_h_14": (632045800, "e432ace63af7f6e7"),
    "swin_t": (28288354, "87ec9e3ca87b06ed"),
    "swin_s": (49606258, "0c2be37fd32c9754"),
    "swin_b": (87768224, "0db6c9c4673b4f5e"),
    "fcn_resnet50": (35322218, "d2d9121a1376f5bf"),
    "fcn_resnet101": (54314346, "49f53ea9a5de14eb"),
    "deeplabv3_resnet50": (42004074, "51d27801a698adef"),
    "deeplabv3_resnet101": (60996202, "2048c1dcd0638ba0"),
    "lraspp_mobilenet_v3_large": (3221538, "daf55e99ab50b745"),
}
"""Name -> parameters of the published weights, and `digest` of the state dict without an auxiliary head."""

SIDES: dict[str, int] = {
    "resnext50_32x4d": 64,
    "squeezenet1_1": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "vit_b_32": 64,
    "swin_t": 75,
    "lraspp_mobilenet_v3_large": 64,
}
"""Members whose answers are compared -> the side of the images."""

ANSWERS: dict[str, list[float]] = {
    "resnext50_32x4d": [-0.911397, -4.69989, 3.27667],
    "squeezenet1_1": [0.0, 1.84622, 0.107519],
    "mobilenet_v2": [0.951236, 0.111693, 0.811815],
    "mobilenet_v3_small": [1.71714, 1.83074, -1.4104],
    "efficientnet_b0": [0.624765, 1.16642, 0.482111],
    "convnext_tiny": [0.449594, 2.20259, -0.826017],
    "densenet121": [1.7684, 0.385818, 0.417268],
    "vit_b_32": [1.15067, -0.354303, 2.54326],
    "swin_t": [3.92807, -0.445418, 2.09724],
    "lraspp_mobilenet_v3_large": [2.07091, 3.33963, 3.48079],
}
"""Three of the numbers that torchvision's modules answer with the weights of `fill`."""


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The beginning of the SHA-256 of a state dict's names and shapes, a line each, sorted."""
    lines = sorted(f"{name} {','.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def options(name: str) -> dict[str, int]:
    """What the compared members are made with."""
    return {"num_classes": 8} | ({"image_size": SIDES[name]} if name.startswith("vit") else {})


def answer(name: str, module: nn.Module) -> list[float]:
    """Three numbers of what the module answers to an image, with weights that depend on their names alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, tensor in sorted(module.state_dict().items()):
            if tensor.is_floating_point() and tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(tensor[0].numel()))
            elif tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        side = SIDES[name]
        y: Any = module.eval()(torch.randn((1, 3, side, side), generator=generator))
    flat: Tensor = (y["out"] if isinstance(y, dict) else y).flatten()
    return [float(f"{value:.6g}") for value in flat[:: len(flat) // 3][:3].tolist()]


def main() -> None:
    """Print the lines of both tables."""
    models: Any = importlib.import_module("torchvision.models")

    def theirs(name: str, **kwargs: int) -> nn.Module:
        backbone = {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
        module: nn.Module = models.get_model(name, weights=None, **backbone, **kwargs)
        return module

    for name in TORCHVISION:
        with torch.device("meta"):
            module = theirs(name)
        published = {weights.meta["num_params"] for weights in models.get_model_weights(name)}
        count = sum(parameter.numel() for parameter in module.parameters())
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        print(f'    "{name}": ({count if count in published else max(published)}, "{digest(shapes)}"),')
    for name in SIDES:
        print(f'    "{name}": {answer(name, theirs(name, **options(name)))},')


if __name__ == "__main__":
    main()
