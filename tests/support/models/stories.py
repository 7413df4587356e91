"""Models and data of every task, each as somebody might bring them: a net of a few thousand weights and 260 samples."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

Array = NDArray[Any]
Score = Callable[[Any, Array], float]

SAMPLES, TEST = 200, 60
LETTERS = 12
STEPS = 6


@dataclass(frozen=True)
class Story:
    """A model and data of one kind.

    Attributes:
        make: the net.
        inputs: x of so many samples, by seed.
        labels: y of x, or None where there are no labels.
        score: of what a net returns for the test samples, and of y (or of what the original returns): as the report's.
        metric: the score's name in the report.
        fields: what the spec says of the task.
        file: (content, name) of the data set; None: an `.npz` of all arrays.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Array]
    labels: Callable[[Array], Array] | None
    score: Score
    metric: str
    fields: dict[str, Any]
    file: Callable[[Story], tuple[bytes, str]] | None = None
    by_original: bool = False

    @functools.cached_property
    def test(self) -> Array:
        """The test inputs."""
        return self.inputs(TEST, 1)


# -- data ---------------------------------------------------------------------------------------


def images(count: int, seed: int) -> Array:
    """Noise with one bright square, (count, 3, 8, 8)."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 0.3, (count, 3, 8, 8))
    for image, row, column, channel in zip(x, *random.integers(0, (5, 5, 3), (count, 3)).T, strict=True):
        image[channel, row : row + 4, column : column + 4] += 2
    return x.astype(np.float32)


def table(count: int, seed: int) -> Array:
    """Numbers, (count, 6)."""
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def tokens(count: int, seed: int) -> Array:
    """Letters, each a step of 1 or 2 behind the one before it: (count, STEPS)."""
    steps = np.random.default_rng(seed).integers(1, 3, (count, STEPS))
    return steps.cumsum(1).astype(np.int64) % LETTERS


def brightest(x: Array) -> Array:
    """The channel that is brightest."""
    return x.mean((2, 3)).argmax(1).astype(np.int64)


def mask(x: Array) -> Array:
    """1 + channel where a pixel is bright, 0 elsewhere; the first row has no label."""
    found = np.where(x.max(1) > 1, 1 + x.argmax(1), 0).astype(np.int64)
    found[:, 0] = 255
    return found


def above(x: Array) -> Array:
    """Which of the first three numbers are above 0."""
    return (x[:, :3] > 0).astype(np.float32)


def following(x: Array) -> Array:
    """The next token of each, none behind the last."""
    return np.concatenate([x[:, 1:], np.full_like(x[:, :1], -100)], 1)


def npz(story: Story) -> tuple[bytes, str]:
    """Training and test samples, with labels where there are any."""
    x = story.inputs(SAMPLES, 0)
    arrays = {"x": x, "x_test": story.test}
    if story.labels is not None:
        arrays |= {"y": story.labels(x), "y_test": story.labels(story.test)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue(), "data.npz"


def csv(story: Story) -> tuple[bytes, str]:
    """One table; the test split is drawn by seed."""
    assert story.labels is not None
    x = story.inputs(SAMPLES, 0)
    rows = np.column_stack([x, story.labels(x)])
    header = ",".join([*(f"f{index}" for index in range(x.shape[1])), "label"])
    return "\n".join([header, *(",".join(f"{cell:g}" for cell in row) for row in rows)]).encode(), "data.csv"


def pictures(story: Story) -> tuple[bytes, str]:
    """A zip of images and masks with splits of its own."""
    assert story.labels is not None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, x in (("train", story.inputs(SAMPLES, 0)), ("test", story.test)):
            for index, (image, label) in enumerate(zip(x, story.labels(x), strict=True)):
                for folder, pixels in (("images", image.transpose(1, 2, 0)), ("masks", label)):
                    file = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
                    archive.writestr(f"{split}/{folder}/{index:04d}.png", file.getvalue())
    return buffer.getvalue(), "pictures.zip"


def as_bytes(x: Array) -> Array:
    """Images in 0 to 255."""
    return (x * 40 + 64).clip(0, 255).astype(np.uint8)


# -- nets ---------------------------------------------------------------------------------------


def body(outputs: int) -> nn.Sequential:
    """Images to (N, outputs)."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(256, outputs),
    )  # fmt: skip


def dense(outputs: int, *last: nn.Module) -> nn.Sequential:
    """A table to (N, outputs)."""
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


class UNet(nn.Module):
    """One halving and one doubling, with the first features beside."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(16, 12, 2, 2), nn.Conv2d(24, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, outputs, H, W)."""
        first = torch.relu(self.down(x))
        up = torch.relu(self.up(torch.relu(self.deep(first))))
        return self.head(torch.cat([first, up], 1))


class Bytes(nn.Module):
    """A net of images of 0 to 255."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Scaled, then as the net answers."""
        return self.net((x - 64.0) / 40.0)


class Reader(nn.Module):
    """Tokens (N, T) to (N, T, outputs): each by itself and the one before it."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(LETTERS, 12), nn.Linear(24, 32)
        self.head = nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each token."""
        embedded = self.embed(x)
        before = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], 1)
        return self.head(torch.relu(self.mix(torch.cat([embedded, before], 2))))


class TwoHeads(nn.Module):
    """A class and a place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.place = body(20), nn.Linear(20, 3), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, 3) and places (N, 2)."""
        features = torch.relu(self.body(x))
        return {"logits": self.kind(features), "place": self.place(features)}


class Nested(nn.Module):
    """Features of two layers, in a tuple with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, 4, H, W) and (N, 4)."""
        last = self.third(torch.relu(self.second(torch.relu(self.first(x)))))
        return last, {"mean": last.mean(dim=[2, 3])}


# -- scores, as the report gives them, in plain numpy -------------------------------------------


def accuracy(output: Any, y: Array) -> float:
    """Share of right classes, along the last dimension; −100 is none."""
    return float((np.argmax(output, -1) == y)[y != -100].mean())


def accuracy_of_one_logit(output: Any, y: Array) -> float:
    """Of two classes."""
    return float(((np.asarray(output).reshape(-1) > 0) == y).mean())


def class_accuracy(output: Any, y: Array) -> float:
    """Of one output among others."""
    return accuracy(output["logits"], y)


def f1(output: Any, y: Array) -> float:
    """Over all labels together."""
    said, holds = np.asarray(output) > 0, y > 0
    return float(2 * (said & holds).sum() / (said.sum() + holds.sum()))


def r2(output: Any, y: Array) -> float:
    """One minus the squared errors over the squared distances to the mean of each output."""
    output = np.asarray(output).reshape(y.shape)
    return float(1 - ((output - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


def mean_iou(output: Any, y: Array) -> float:
    """Of the classes that occur."""
    answer, labelled = np.argmax(output, 1), y != 255
    shares = [
        ((answer == k) & (y == k))[labelled].sum() / ((answer == k) | (y == k))[labelled].sum()
        for k in np.unique(y[labelled])
    ]
    return float(np.mean(shares))


def log_likelihood(output: Any, y: Array) -> float:
    """Mean over tokens with a label, in nats."""
    logits = np.asarray(output)
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.take_along_axis(logits, np.maximum(y, 0)[..., None], -1)[..., 0][y != -100].mean())


def cosine(output: Any, original: Any) -> float:
    """The mean over samples."""
    a, b = np.asarray(output), np.asarray(original)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def match(output: Any, original: Any) -> float:
    """One minus the mean over outputs of the relative error."""
    errors = [
        np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b))
        for a, b in zip(flat(output), flat(original), strict=True)
    ]
    return float(1 - np.mean(errors))


def flat(output: Any) -> list[Any]:
    """The tensors of a nested answer, each as nested lists of numbers."""
    if isinstance(output, dict):
        return [each for part in output.values() for each in flat(part)]
    return [each for part in output for each in flat(part)] if isinstance(output[-1], dict) else [output]


STORIES: dict[str, Story] = {
    "classes of images": Story(lambda: body(3), images, brightest, accuracy, "accuracy", {"task": "classification"}),
    "two classes, one logit": Story(
        lambda: dense(1), table, lambda x: (x[:, 0] > 0).astype(np.int64), accuracy_of_one_logit, "accuracy",
        {"task": "binary"},
    ),
    "several labels": Story(lambda: dense(3), table, above, f1, "f1", {"task": "multilabel"}),
    "numbers of a table": Story(lambda: dense(2), table, lambda x: x[:, :2] ** 2, r2, "r2", {"task": "regression"}),
    "images of images": Story(lambda: UNet(3), images, lambda x: x[:, ::-1].copy(), r2, "r2", {"task": "regression"}),
    "masks of images": Story(lambda: UNet(4), images, mask, mean_iou, "mean_iou", {"task": "segmentation"}),
    "tags of tokens": Story(
        lambda: Reader(3), tokens, lambda x: x % 3, accuracy, "accuracy", {"task": "token_classification"}
    ),
    "the next token": Story(
        lambda: Reader(LETTERS), tokens, following, log_likelihood, "log_likelihood", {"task": "language_modeling"}
    ),
    "embeddings": Story(
        lambda: body(10), images, None, cosine, "cosine", {"task": "embedding"}, by_original=True
    ),
    "nested outputs without labels": Story(Nested, images, None, match, "match", {"task": "match"}, by_original=True),
}  # fmt: skip
"""Each of these is pruned, pruned for a goal, and distilled."""

FURTHER: dict[str, Story] = {
    "two heads, labels of one": Story(
        TwoHeads, images, brightest, class_accuracy, "accuracy", {"output": "logits"}
    ),
    "a head that ends in softmax": Story(
        lambda: dense(3, nn.Softmax(1)), table, lambda x: x[:, :3].argmax(1), accuracy, "accuracy", {}
    ),
    "a zip of images and masks": Story(
        lambda: Bytes(UNet(4)), lambda count, seed: as_bytes(images(count, seed)).astype(np.float32),
        lambda x: mask((x - 64) / 40), mean_iou, "mean_iou", {}, file=pictures,
    ),
    "a table as text": Story(
        lambda: dense(3), table, lambda x: x[:, :3].argmax(1), accuracy, "accuracy", {}, file=csv
    ),
    "no labels and no task": Story(lambda: dense(4), table, None, match, "match", {}, by_original=True),
}  # fmt: skip
"""These are pruned."""


@functools.cache
def trained(name: str) -> nn.Module:
    """The story's net after 60 steps on its own data (of a net without labels: on nothing), in eval mode."""
    story = (STORIES | FURTHER)[name]
    torch.manual_seed(0)
    net = story.make()
    if story.labels is None:
        return net.eval()
    x = torch.from_numpy(story.inputs(SAMPLES, 0))
    y = torch.from_numpy(np.ascontiguousarray(story.labels(x.numpy())))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        learn(story.metric, net(x), y).backward()
        optimizer.step()
    return net.eval()


def learn(metric: str, output: Any, y: Tensor) -> Tensor:
    """The usual loss of a story's task."""
    output = output["logits"] if isinstance(output, dict) else output
    if metric == "r2":
        return nn.functional.mse_loss(output, y)
    if metric == "f1":
        return nn.functional.binary_cross_entropy_with_logits(output, y)
    if output.shape[-1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(output[:, 0], y.float())
    if metric == "mean_iou":
        return nn.functional.cross_entropy(output, y, ignore_index=255)
    return nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), y.reshape(-1))


def upload(name: str) -> bytes:
    """The net as a TorchScript file."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(trained(name)), buffer)
    return buffer.getvalue()


def dataset(name: str) -> tuple[bytes, str]:
    """The data set's file, and its name."""
    story = (STORIES | FURTHER)[name]
    return (story.file or npz)(story)
