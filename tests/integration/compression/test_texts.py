"""Texts through the library, from file to result."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pared.compression import distill, prune
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


class Tagger(nn.Module):
    def __init__(self, answers=3, width=32):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(10, 16), nn.Linear(16, width), nn.Linear(width, answers)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.embedding(ids))))


SENTENCES = ["the cats sat", "dog", "the dog ran", "cats bark", "the cats ran", "dog bark"] * 12
TAGS = {"the": "O", "cats": "PET", "dog": "PET", "sat": "ACT", "ran": "ACT", "bark": "ACT"}
RETRAIN = {"epochs": 12, "lr": 0.05, "optimizer": "adam", "batch_size": 16}


def file_of(tmp_path, records):
    path = tmp_path / "texts.zip"
    path.write_bytes(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(records)))
    return path


@pytest.mark.parametrize("teach", [True, False])
def test_a_tagger_learns_labels_of_words(tmp_path, teach):
    torch.manual_seed(0)
    file = file_of(tmp_path, [{"text": text, "tags": [TAGS[word] for word in text.split()]} for text in SENTENCES])
    result = prune(Tagger(), file, amount=0.5, retrain={**RETRAIN, "teach": False})
    report = result.report
    assert report.reproduce.spec["task"] == "token_classification"
    assert report.after.quality.test.value > 0.95
    if teach:  # by what has just learned it; sentences differ in length from batch to batch
        student = distill(result.model, {"from_teacher": {"width": 0.5}}, file, train=RETRAIN)
        assert student.report.after.quality.test.value > 0.9


@pytest.mark.parametrize("task", ["language_modeling", "match"])
def test_texts_without_labels_teach_a_language_model_or_its_own_answers(tmp_path, task):
    torch.manual_seed(0)
    file = file_of(tmp_path, [{"text": text} for text in SENTENCES])
    report = prune(Tagger(10), file, task=task, amount=0.25, retrain=RETRAIN).report
    losses = [record.train_loss for record in report.history]
    assert losses[-1] < 0.7 * losses[0]
    if task == "language_modeling":
        assert report.after.quality.test.value > report.before.quality.test.value + 0.5
