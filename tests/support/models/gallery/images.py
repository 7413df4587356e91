"""Architectures for images and volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class AlexNet(nn.Module):
    """Convolutions with large kernels and pooling, then a flattened perceptron with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((2, 2)),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(16 * 2 * 2, 24), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(24, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Vgg(nn.Module):
    """Stacks of 3×3 convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, 8, 0, 16, 16, 0):
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(16 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_norm(inputs, outputs, stride=stride), conv_norm(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of basic blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int = 1, squeeze: int = 0) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            conv_norm(inputs, width, 1),
            conv_norm(width, width, 3, stride, groups),
            conv_norm(width, outputs, 1),
        )
        self.gate = SqueezeExcite(width, squeeze) if squeeze else nn.Identity()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(F.relu(self.b(F.relu(self.a(x)))))
        return F.relu(self.c(y) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool, self.down, self.up = (
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(channels, squeezed),
            nn.Linear(squeezed, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        y = self.pool(x).view(batch, channels)
        return x * torch.sigmoid(self.up(F.relu(self.down(y)))).view(batch, channels, 1, 1)


class BottleneckResNet(nn.Module):
    """Residual network of bottlenecks, as ResNet-50."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 8), nn.ReLU())
        self.stages = nn.Sequential(Bottleneck(8, 6, 24, 1), Bottleneck(24, 6, 24, 1), Bottleneck(24, 12, 48, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


class RegNet(nn.Module):
    """Grouped bottlenecks with squeeze-excite, as RegNetY and ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 16, stride=2), nn.ReLU())
        self.stages = nn.Sequential(Bottleneck(16, 16, 16, 1, 4, 4), Bottleneck(16, 24, 24, 2, 4, 4))
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


class PreActivation(nn.Module):
    """Norm and activation come before each convolution; the stream itself is never normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1, bias=False) for _ in range(4)])
        self.last, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs)):  # noqa: B905 - TorchScript knows no strict
            y = conv(F.relu(norm(y)))
            if index % 2:
                y = x + y
                x = y
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseNet(nn.Module):
    """Each layer reads all layers before it; a transition between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.ModuleList([DenseLayer(8 + 6 * index, 6) for index in range(3)])
        self.transition = nn.Sequential(nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 12, 1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList([DenseLayer(12 + 6 * index, 6) for index in range(2)])
        self.norm, self.fc = nn.BatchNorm2d(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.block1:
            x = torch.cat([x, layer(x)], 1)
        features = [self.transition(x)]
        for layer in self.block2:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(F.relu(self.norm(torch.cat(features, 1))).mean((2, 3)))


class Inception(nn.Module):
    """Four branches side by side, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.blocks = nn.Sequential(InceptionBlock(8), InceptionBlock(24))
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(x))), (1, 1)), 1))


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = conv_norm(inputs, 6, 1)
        self.three = nn.Sequential(conv_norm(inputs, 4, 1), nn.ReLU(), conv_norm(4, 8))
        self.five = nn.Sequential(conv_norm(inputs, 4, 1), nn.ReLU(), conv_norm(4, 4, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(inputs, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(branch) for branch in (self.one(x), self.three(x), self.five(x), self.pooled(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules: squeeze, then expand by two convolutions side by side; the last convolution classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fire1, self.fire2 = nn.Conv2d(3, 8, 3, stride=2, padding=1), Fire(8, 4, 8), Fire(16, 6, 12)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(24, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.fire2(self.fire1(F.relu(self.stem(x))))).flatten(1)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, outputs, 1), nn.Conv2d(squeezed, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class MobileNetV1(nn.Module):
    """Depthwise-separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 8), nn.ReLU()]
        for inputs, outputs, stride in ((8, 16, 1), (16, 24, 2), (24, 24, 1)):
            layers += [
                conv_norm(inputs, inputs, 3, stride, inputs),
                nn.ReLU(),
                conv_norm(inputs, outputs, 1),
                nn.ReLU(),
            ]
        self.features, self.fc = nn.Sequential(*layers), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.features(x), 4)
        return self.fc(x.reshape(x.shape[0], -1))


class InvertedResidual(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        kernel: int = 3,
        *,
        gate: bool = False,
        act: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        wide = inputs * 3
        self.expand, self.act1 = conv_norm(inputs, wide, 1), act()
        self.depthwise, self.act2 = conv_norm(wide, wide, kernel, stride, wide), act()
        self.gate = HardGate(wide) if gate else nn.Identity()
        self.project = conv_norm(wide, outputs, 1)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.act2(self.depthwise(self.act1(self.expand(x))))))
        return x + y if self.same else y


class HardGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class MobileNetV2(nn.Module):
    """Inverted residuals: wide inside, narrow between, no activation on the narrow stream."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1)]
        self.features = nn.Sequential(conv_norm(3, 8), nn.ReLU6(), *blocks, conv_norm(12, 32, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class MobileNetV3(nn.Module):
    """Inverted residuals with hard-swish and squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish
        blocks = [InvertedResidual(8, 8, 1, gate=True, act=act), InvertedResidual(8, 12, 2, 5, gate=True, act=act)]
        self.features = nn.Sequential(conv_norm(3, 8), nn.Hardswish(), *blocks, conv_norm(12, 24, 1), nn.Hardswish())
        self.classifier = nn.Sequential(nn.Linear(24, 32), nn.Hardswish(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class EfficientNet(nn.Module):
    """Inverted residuals with swish and squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1, gate=True, act=nn.SiLU), InvertedResidual(8, 16, 2, gate=True, act=nn.SiLU)]
        self.stem, self.blocks, self.head = conv_norm(3, 8), nn.Sequential(*blocks), conv_norm(16, 32, 1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.head(self.blocks(F.silu(self.stem(x))))).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half is convolved, then both are shuffled by reshaping."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1), nn.ReLU(), conv_norm(half, half, 3, 1, half), conv_norm(half, half, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """ShuffleNet v2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 16), nn.ReLU())
        self.units = nn.Sequential(ShuffleUnit(16), ShuffleUnit(16), ShuffleUnit(16))
        self.last, self.fc = conv_norm(16, 24, 1), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.last(self.units(self.stem(x)))).mean([2, 3]))


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: grouped pointwise convolutions with nn.ChannelShuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_norm(3, 36), conv_norm(36, 36, 1, groups=3)
        self.shuffle, self.depthwise = nn.ChannelShuffle(3), conv_norm(36, 36, 3, groups=36)
        self.second, self.fc = conv_norm(36, 36, 1, groups=3), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.second(self.depthwise(self.shuffle(F.relu(self.first(x)))))
        return self.fc(F.relu(x + y).mean((2, 3)))


class ChannelsFirstNorm(nn.Module):
    """Layer norm over the channels of an image, written by hand as ConvNeXt does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Patches, depthwise blocks with layer norm and layer scale, a hand-written norm before down-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block1 = nn.Conv2d(3, 8, 2, 2), ConvNextBlock(8)
        self.norm, self.down, self.block2 = ChannelsFirstNorm(8), nn.Conv2d(8, 12, 2, 2), ConvNextBlock(12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.down(self.norm(self.block1(self.stem(x)))))
        return self.head(self.last(x.mean([-2, -1])))


class UNet(nn.Module):
    """Two levels down and up, with skips beside what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_norm(3, 8), conv_norm(8, 12), conv_norm(12, 16)
        self.up2, self.fuse2 = nn.ConvTranspose2d(16, 12, 2, stride=2), conv_norm(24, 12)
        self.up1, self.fuse1 = nn.ConvTranspose2d(12, 8, 2, stride=2), conv_norm(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        x = F.relu(self.middle(F.max_pool2d(b, 2)))
        x = F.relu(self.fuse2(torch.cat([self.up2(x), b], 1)))
        return self.head(F.relu(self.fuse1(torch.cat([self.up1(x), a], 1))))


class FeaturePyramid(nn.Module):
    """A small detector: lateral connections, top-down additions, one head for all levels, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv_norm(3, 8, stride=2), conv_norm(8, 12, stride=2), conv_norm(12, 16, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(width, 10, 1) for width in (8, 12, 16)])
        self.smooth, self.head = nn.Conv2d(10, 10, 3, padding=1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        c3 = F.relu(self.c3(c2))
        p3 = self.lateral[2](c3)
        p2 = self.lateral[1](c2) + F.interpolate(p3, scale_factor=2.0, mode="nearest")
        p1 = self.lateral[0](c1) + F.interpolate(p2, scale_factor=2.0, mode="nearest")
        return self.head(self.smooth(p1)), self.head(self.smooth(p2)), self.head(self.smooth(p3))


class Segmentation(nn.Module):
    """Dilated convolutions side by side with a pooled branch, up-sampled (DeepLab)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, stride=2)
        self.rates = nn.ModuleList([nn.Conv2d(12, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 3)])
        self.pooled, self.fuse, self.head = nn.Conv2d(12, 8, 1), conv_norm(32, 12, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        branches = [F.relu(conv(y)) for conv in self.rates]
        pooled = F.relu(self.pooled(F.adaptive_avg_pool2d(y, 1)))
        branches.append(pooled.expand(-1, -1, y.size(2), y.size(3)))
        y = self.head(F.relu(self.fuse(torch.cat(branches, 1))))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class SuperResolution(nn.Module):
    """Residual blocks without norm, then pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding="same")
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 12, 3, padding=1))
        self.up, self.shuffle, self.tail = (
            nn.Conv2d(12, 32, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = x + 0.1 * self.body(x)
        return self.tail(self.shuffle(self.up(x)))


class SpaceToDepth(nn.Module):
    """Pixels become channels, in the input and inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(32, 12, 3, padding=1)
        self.norm, self.fc = nn.InstanceNorm2d(12, affine=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.pixel_unshuffle(x, 2)))
        return self.fc(F.relu(self.norm(self.second(F.pixel_unshuffle(x, 2)))).amax((2, 3)))


class Generator(nn.Module):
    """A vector becomes an image through transposed convolutions (DCGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(10, 16 * 4 * 4)
        self.net = nn.Sequential(
            nn.BatchNorm2d(16), nn.ReLU(True), nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8),
            nn.ReLU(True), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.project(z).view(-1, 16, 4, 4))


class StyleTransfer(nn.Module):
    """Instance norms and reflection padding around residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3)
        self.norm_a, self.norm_b = nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(self.pad(x))))
        x = x + F.leaky_relu(self.norm_b(self.b(self.pad(x))), 0.2)
        return torch.sigmoid(self.c(self.pad(x)))


class Autoencoder(nn.Module):
    """An image through a narrow code and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(192, 6)
        )
        self.decoder = nn.Sequential(
            nn.Linear(6, 192), nn.ELU(), nn.Unflatten(1, (12, 4, 4)), nn.ConvTranspose2d(12, 8, 2, 2), nn.ELU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class VariationalAutoencoder(nn.Module):
    """Mean and log-variance from one layer; noise only in training; three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.code = nn.Sequential(nn.Linear(16, 24), nn.Tanh()), nn.Linear(24, 12)
        self.decode = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.code(self.encode(x)).chunk(2, dim=1)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decode(z), mean, log_variance


class Volume(nn.Module):
    """3-D convolutions with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv3d(8, 12, 3, padding=1)
        self.bn, self.up, self.fc = nn.BatchNorm3d(12), nn.ConvTranspose3d(12, 8, 2, stride=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        x = F.relu(self.up(F.relu(self.bn(self.b(x)))))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.tokens = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.features = nn.Sequential(nn.Linear(features, 32), nn.GELU(), nn.Linear(32, features))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norm2(x))


class Mixer(nn.Module):
    """MLP-mixer: perceptrons over the patches, then over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.blocks, self.norm, self.fc = (
            nn.Sequential(MixerBlock(16, 12), MixerBlock(16, 12)),
            nn.LayerNorm(12),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(self.norm(self.blocks(x)).mean(1))


class Siamese(nn.Module):
    """The same network on two images; the distance of their codes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.code, self.head = nn.Linear(192, 16), nn.Linear(16, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.abs(self.code(self.net(a)) - self.code(self.net(b))))


class MultiTask(nn.Module):
    """One trunk, an answer by name for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv_norm(3, 12, stride=2), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.label, self.box, self.mask = (
            nn.Linear(16, 4),
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)),
            nn.Conv2d(16, 1, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        pooled = x.mean((2, 3))
        return self.label(pooled), self.box(pooled), self.mask(x)


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions and encoder layers of torch's own, whose feed-forward width can go."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


class SwinBlock(nn.Module):
    """Attention within windows that are cut by reshaping, and shifted."""

    def __init__(self, features: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.up, self.down, self.shift = nn.Linear(features, 2 * features), nn.Linear(2 * features, features), shift

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, features = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, side // 4, 4, side // 4, 4, features).transpose(2, 3).reshape(-1, 16, features)
        q, k, v = self.qkv(y).view(-1, 16, 3, 2, features // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1) * 0.35, -1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, 16, features))
        y = y.view(batch, side // 4, side // 4, 4, 4, features).transpose(2, 3).reshape(batch, side, side, features)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Swin(nn.Module):
    """A transformer of shifted windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 12, 2, 2), nn.Sequential(SwinBlock(12, 0), SwinBlock(12, 2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))
