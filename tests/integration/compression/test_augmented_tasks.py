"""Training on changed samples in tasks whose labels lie over images, have several outputs, or are answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import prune

CHANGES = {"horizontal_flip": {}, "vertical_flip": {}, "crop": {"padding": 2}, "mixup": {"p": 0.5}, "cutmix": {}}


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        return self.out(torch.relu(self.inner(x)))


class TwoHeads(Segmenter):
    def __init__(self):
        super().__init__()
        self.size = nn.Linear(8, 1)
        nn.init.constant_(self.size.bias, 3.0)  # relative errors of numbers near 0 are large

    def forward(self, x):
        inner = torch.relu(self.inner(x))
        return {"masks": self.out(inner), "size": self.size(inner.mean(dim=[2, 3]))}


def shapes(count=64):
    """Bright rectangles, (count, 1, 12, 12), and where they are."""
    chance = np.random.default_rng(0)
    masks = np.zeros((count, 12, 12), np.int64)
    for mask in masks:
        top, left = chance.integers(0, 7, 2)
        mask[top : top + 5, left : left + 4] = 1
    images = masks[:, None] + chance.normal(0, 0.3, (count, 1, 12, 12))
    return images.astype(np.float32), masks


@pytest.mark.parametrize("net", [Segmenter, TwoHeads])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "match"])
@pytest.mark.parametrize("teach", [True, False], ids=["taught", "alone"])
def test_dense_tasks_learn_from_changed_samples(net, labels, teach):
    torch.manual_seed(0)
    images, masks = shapes()
    retrain = {"epochs": 6, "lr": 0.05, "batch_size": 16, "augment": CHANGES}
    if not teach:
        retrain["teach"] = False
    result = prune(net(), (images, masks if labels else None), amount=0.25, retrain=retrain)
    history = result.report.history
    assert len(history) == 6
    assert history[-1].validation > (0.4 if labels else 0.0)
    assert history[-1].train_loss < history[0].train_loss * 1.1
