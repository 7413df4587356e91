"""Twelve models of different families, written as their users write them: plain modules, no thought of pared."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class PlainCnn(nn.Module):
    """Convolutions, max-pool, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 3 * 3, 48)
        self.fc2 = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)  # (batch, 32 * 3 * 3)
        return self.fc2(F.relu(self.fc1(x)))


class ResidualBlock(nn.Module):
    """Two convolutions around an add; a 1×1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        else:
            self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Batch-norm CNN with residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = ResidualBlock(16, 16, 1)
        self.layer2 = ResidualBlock(16, 32, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)


class Depthwise(nn.Module):
    """MobileNet-like: depthwise then pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU6(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU6(),
            )

        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.features = nn.Sequential(block(16, 32, 2), block(32, 48, 1))
        self.classifier = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.stem(x))
        return self.classifier(x.mean([2, 3]))


class Grouped(nn.Module):
    """ResNeXt-like: a grouped convolution between two 1×1 ones, around an add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        x = F.relu(x + self.bn3(self.conv3(out)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution, and its result beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Concatenation, DenseNet-like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, padding=1)
        self.dense1 = DenseLayer(16, 12)
        self.dense2 = DenseLayer(28, 12)
        self.pool = nn.AvgPool2d(2)
        self.dense3 = DenseLayer(40, 12)
        self.norm = nn.BatchNorm2d(52)
        self.classifier = nn.Linear(52, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.dense1(self.conv0(x)))
        x = F.relu(self.norm(self.dense3(self.pool(x))))
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate computed from their means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(scale))))
        return x * scale


class SeNet(nn.Module):
    """Batch-norm CNN with squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.se1 = SqueezeExcite(24, 8)
        self.conv2 = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.se2 = SqueezeExcite(32, 8)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se1(F.relu(self.bn1(self.conv1(x))))
        x = self.se2(F.relu(self.bn2(self.conv2(x))))
        return self.fc(x.mean(dim=(2, 3)))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip beside it; a value for each pixel, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.fuse = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(self.pool(skip)))
        x = self.fuse(torch.cat([skip, x], dim=1))
        return self.head(x).flatten(1)  # (batch, 64)


class Mlp(nn.Module):
    """Tabular input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 64),
            nn.LayerNorm(64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 48),
            nn.LeakyReLU(0.1),
            nn.Linear(48, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TextPool(nn.Module):
    """Embedding, mean over the tokens, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.fc1 = nn.Linear(32, 48)
        self.fc2 = nn.Linear(48, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).mean(dim=1)  # (batch, 32)
        return self.fc2(torch.tanh(self.fc1(x)))


class Positions(nn.Module):
    """A learned vector for each position."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tokens, features) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.size(1)]


class TextTransformer(nn.Module):
    """Token and learned position embeddings, an encoder layer, mean-pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.position = Positions(12, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, dim_feedforward=96, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.position(self.embedding(tokens))
        return self.fc(self.encoder(x).mean(1))


class SignalCnn(nn.Module):
    """1-D convolutions over a two-channel signal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 24, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(24)
        self.conv2 = nn.Conv1d(24, 32, 5, padding=2)
        self.pool = nn.MaxPool1d(2)
        self.head = nn.Linear(32 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.gelu(self.conv2(x)))
        return self.head(x.reshape(x.shape[0], -1))


class Shared(nn.Module):
    """The same linear layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(16, 48)
        self.shared = nn.Linear(48, 48)
        self.outputs = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inputs(x))
        x = F.relu(self.shared(x))
        x = F.relu(self.shared(x))
        return self.outputs(x)
