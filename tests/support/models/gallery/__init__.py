"""Small models of many families, written as their users write them, to see which of them lose channels.

Each is made fresh, in eval mode, with norms that have seen something, and has an example of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.architectures import build
from tests.support.models.gallery import images, sequences, structures, tables
from tests.support.models.gallery.lists import LISTS

Example = tuple[Tensor, ...]


@dataclass(frozen=True)
class Architecture:
    """A class of `images`, `sequences`, `structures` or `tables`, and what its instances take.

    `layers`: a layer list of the same family, where one can say it; a named architecture has only these.
    """

    kind: type[nn.Module] | None
    example: Callable[[], Example]
    layers: Any = None

    def make(self) -> nn.Module:
        """A model in eval mode, always the same."""
        assert self.kind is not None
        return settled(self.kind, self.example())

    def build(self) -> nn.Module:
        """The model of the layer list, in eval mode, always the same."""
        return settled(lambda: build(self.layers), self.example())


def settled(make: Callable[[], nn.Module], example: Example) -> nn.Module:
    """A model in eval mode whose norms have statistics and whose biases are no zeros, always the same."""
    torch.manual_seed(0)
    module = make()
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._NormBase):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        module.train()(*example)
    return module.eval()


def _normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, *shape)


def _ids(most: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, most, (3, *shape))


def _of(*makers: Callable[[], Tensor]) -> Callable[[], Example]:
    def example() -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return tuple(make() for make in makers)

    return example


_IMAGE, _SMALL, _TOKENS, _TABLE = _of(_normal(3, 16, 16)), _of(_normal(3, 8, 8)), _of(_ids(30, 6)), _of(_normal(16))
_STEPS = _of(_normal(5, 6))
_EXAMPLES: dict[type[nn.Module], Callable[[], Example]] = {
    images.AlexNet: _IMAGE,
    images.Vgg: _IMAGE,
    images.ResNet: _IMAGE,
    images.BottleneckResNet: _SMALL,
    images.RegNet: _SMALL,
    images.PreActivation: _SMALL,
    images.DenseNet: _SMALL,
    images.Inception: _SMALL,
    images.SqueezeNet: _SMALL,
    images.MobileNetV1: _SMALL,
    images.MobileNetV2: _SMALL,
    images.MobileNetV3: _SMALL,
    images.EfficientNet: _SMALL,
    images.ShuffleNet: _SMALL,
    images.GroupedShuffle: _SMALL,
    images.ConvNext: _SMALL,
    images.UNet: _SMALL,
    images.FeaturePyramid: _IMAGE,
    images.Segmentation: _IMAGE,
    images.SuperResolution: _SMALL,
    images.SpaceToDepth: _SMALL,
    images.Generator: _of(_normal(10)),
    images.StyleTransfer: _SMALL,
    images.Autoencoder: _IMAGE,
    images.VariationalAutoencoder: _TABLE,
    images.Volume: _of(_normal(1, 4, 4, 4)),
    images.Mixer: _IMAGE,
    images.Siamese: _of(_normal(3, 16, 16), _normal(3, 16, 16)),
    images.MultiTask: _SMALL,
    images.VisionTransformer: _IMAGE,
    images.Swin: _IMAGE,
    sequences.TemporalConv: _of(_normal(2, 12)),
    sequences.WaveNet: _of(_normal(1, 12)),
    sequences.Speech: _of(_normal(4, 16)),
    sequences.SpeechDecoder: _of(_normal(4, 6)),
    sequences.LstmClassifier: _TOKENS,
    sequences.GruForecaster: _of(_normal(6, 4)),
    sequences.Tagger: _TOKENS,
    sequences.Translator: _of(_ids(30, 6), _ids(20, 5)),
    sequences.LanguageModel: _TOKENS,
    sequences.ConvRecurrent: _of(_normal(1, 8, 16)),
    sequences.TextCnn: _TOKENS,
    sequences.FastText: _TOKENS,
    sequences.TextEncoder: _TOKENS,
    sequences.Llama: _TOKENS,
    sequences.Gpt: _TOKENS,
    sequences.CrossAttention: _of(_ids(30, 6), _ids(20, 5)),
    sequences.MultiheadPooling: _TOKENS,
    sequences.GatedConv: _TOKENS,
    sequences.StateSpace: _of(_normal(6, 4)),
    tables.Perceptron: _TABLE,
    tables.Highway: _TABLE,
    tables.WideAndDeep: _of(_normal(8), _ids(10, 3)),
    tables.DeepFm: _of(_ids(30, 3)),
    tables.TwoTower: _of(_ids(20), _ids(30)),
    tables.TabNet: _TABLE,
    tables.FeatureTokens: _of(_normal(6)),
    tables.SharedSteps: _of(_normal(8)),
    tables.TiedAutoencoder: _TABLE,
    tables.Experts: _of(_normal(10)),
    tables.ImageAndText: _of(_normal(3, 8, 8), _ids(30, 6)),
    tables.PointNet: _of(_normal(7, 3)),
    tables.GraphConv: _of(_normal(5, 6), _normal(5, 5)),
    tables.Capsule: _of(_normal(4, 6)),
    tables.DuelingQ: _of(_normal(8)),
    structures.IndexShuffle: _SMALL,
    structures.ViewShuffle: _SMALL,
    structures.Patches: _SMALL,
    structures.Folded: _SMALL,
    structures.Eca: _SMALL,
    structures.Cbam: _SMALL,
    structures.PlaceMean: _SMALL,
    structures.LocalNorm: _SMALL,
    structures.CellByHand: _STEPS,
    structures.GivenState: _STEPS,
    structures.LearnedState: _STEPS,
    structures.PassedState: _of(_normal(5, 6), _normal(1, 12), _normal(1, 12)),
    structures.ScaleInForward: _STEPS,
    structures.TokenVit: _SMALL,
    structures.SentenceEncoder: _TOKENS,
}

_NAMED: dict[str, tuple[dict[str, Any], Callable[[], Example]]] = {
    "lenet5": ({}, _of(_normal(1, 28, 28))),
    "lenet300": ({}, _of(_normal(784))),
    "mlp": ({"in_features": 16, "classes": 3}, _TABLE),
    "cnn_small": ({"size": 8, "widths": [8, 12], "batch_norm": True}, _of(_normal(1, 8, 8))),
    "resnet_small": ({"widths": [8, 12]}, _SMALL),
    "mobilenet_small": ({"widths": [8, 12, 16]}, _SMALL),
    "conv1d": ({"widths": [8, 12]}, _of(_normal(1, 16))),
    "text_pool": ({"vocabulary": 30, "features": 12, "hidden": 16}, _TOKENS),
    "text_transformer": ({"vocabulary": 30, "tokens": 6, "features": 16, "heads": 2, "hidden": 32}, _TOKENS),
}

GALLERY = {
    kind.__name__: Architecture(kind, example, {"layers": LISTS[kind.__name__]} if kind.__name__ in LISTS else None)
    for kind, example in _EXAMPLES.items()
} | {name: Architecture(None, example, {"name": name, "kwargs": kwargs}) for name, (kwargs, example) in _NAMED.items()}
