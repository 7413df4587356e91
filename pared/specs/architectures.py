"""How a spec says which architecture a state dict has, or a student is to have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pared.specs.base import Spec
from pared.specs.uploads import Json, Text


def tag_of(value: Any) -> str | None:
    """The tag of the alternative that a value is meant for, by its keys, so that only that one complains."""
    tags = {
        "from_teacher": "FromTeacher",
        "layers": "LayeredArchitecture",
        "name": "NamedArchitecture",
        "kwargs": "NamedArchitecture",
    }
    if isinstance(value, dict):
        return next((tag for key, tag in tags.items() if key in value), None)
    return type(value).__name__


OWN_NAMES = "lenet5, lenet300, mlp, cnn_small, resnet_small, mobilenet_small, conv1d, text_pool, text_transformer"
"""The small architectures known by name."""

TORCHVISION_NAMES = (
    "resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2, wide_resnet101_2, resnext50_32x4d, "
    "resnext101_32x8d, resnext101_64x4d, alexnet, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn, "
    "squeezenet1_0, squeezenet1_1, mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large, efficientnet_b0, "
    "efficientnet_b1, efficientnet_b2, efficientnet_b3, efficientnet_b4, efficientnet_b5, efficientnet_b6, "
    "efficientnet_b7, efficientnet_v2_s, efficientnet_v2_m, efficientnet_v2_l, convnext_tiny, convnext_small, "
    "convnext_base, convnext_large, densenet121, densenet161, densenet169, densenet201, vit_b_16, vit_b_32, vit_l_16, "
    "vit_l_32, vit_h_14, swin_t, swin_s, swin_b, fcn_resnet50, fcn_resnet101, deeplabv3_resnet50, deeplabv3_resnet101, "
    "lraspp_mobilenet_v3_large"
)
"""torchvision's architectures, which its published weights fit."""

NAMES_HELP = (
    f"Known names: {OWN_NAMES}; and torchvision's {TORCHVISION_NAMES}. The latter take `num_classes` and `in_channels` "
    "(ViT also `image_size`), and need not be named where the file's tensors fit exactly one of them."
)
"""What the documentation of the API and of the commands says of names."""


class NamedArchitecture(Spec):
    """An architecture pared knows by name (`pared.compression.architectures.ARCHITECTURES`)."""

    name: Text = Field(min_length=1, max_length=64, description=NAMES_HELP, examples=["resnet50"])
    kwargs: dict[str, Json] = Field(
        default_factory=dict, description='Its options, such as {"num_classes": 10}.', examples=[{"num_classes": 10}]
    )


class LayeredArchitecture(Spec):
    """Layers in order: `["Conv2d", {kwargs}]`, or with the name its weights have, `["Conv2d", {kwargs}, "conv1"]`.

    A short form for networks that are a chain of layers, residual blocks included. What it cannot say (recurrent
    layers, sums of embeddings, several inputs or outputs) is uploaded as a torch.export program (`.pt2`) instead.
    """

    layers: list[Json] = Field(
        min_length=1,
        max_length=1000,
        description="One input goes through all of them in order, and comes out as one output. For anything else "
        "upload a `.pt2`: torch.export.save(torch.export.export(model, args), path).",
    )


Named = Annotated[NamedArchitecture, Tag("NamedArchitecture")]
Layered = Annotated[LayeredArchitecture, Tag("LayeredArchitecture")]
Architecture = Annotated[
    Annotated[Text, Tag("str")] | Named | Layered,
    Discriminator(
        tag_of,
        custom_error_type="alternatives",
        custom_error_message='must be a name, {"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]
