"""Texts through the library, from file to result."""

from __future__ import annotations

import torch
from torch import nn

from pared.compression import prune
from tests.support.texts import PETS, lines, tokenizer, zipped


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.fc((self.embedding(ids) * mask).sum(1) / mask.sum(1))


class Traced(Masked):
    def forward(self, ids, attention_mask):
        return super().forward(ids, attention_mask)  # which cannot be scripted


def test_a_module_that_is_traced_gets_the_mask_too(tmp_path):
    path = tmp_path / "pets.zip"
    path.write_bytes(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(PETS)))
    result = prune(Traced(), path, amount=0.5, granularity="weight", retrain={"epochs": 1})
    ids = torch.tensor([[2, 3, 4, 5], [2, 6, 0, 0]])
    padded = torch.cat([ids, torch.zeros(2, 3).long()], 1)
    short, long = (result.model(each, (each != 0).long()) for each in (ids, padded))
    assert torch.allclose(short, long, atol=1e-6)  # whatever the width of a batch
