"""Texts with their tokenizer through the whole service: read in the sandbox, trained on, and the result loads."""

from __future__ import annotations

import io
import random
import zipfile

import pyarrow as pa
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from tests.support.stack import Stack

GOOD, BAD = ["fine", "great", "lovely"], ["awful", "poor", "sad"]
OTHER = ["the", "film", "was", "a", "story", "of", "two"]


class Reviews(nn.Module):
    """Word vectors, their masked mean, and two layers."""

    def __init__(self, rows: int):
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(rows, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        mean = (self.embedding(ids) * mask).sum(1) / mask.sum(1)
        return self.out(torch.relu(self.hidden(mean)))


def upload(rows: int) -> bytes:
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Reviews(rows)), content)
    return content.getvalue()


def reviews() -> bytes:
    chance = random.Random(0)
    texts, labels = [], []
    for _ in range(300):
        good = chance.random() < 0.5
        words = [*chance.choices(OTHER, k=chance.randint(1, 9)), chance.choice(GOOD if good else BAD)]
        texts.append(" ".join(chance.sample(words, len(words))))
        labels.append("good" if good else "bad")
    words = ["[PAD]", "[UNK]", *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows, content = io.BytesIO(), io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "label": labels}), rows)
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("reviews.parquet", rows.getvalue())
        archive.writestr("tokenizer.json", tokenizer.to_str())
    return content.getvalue()


def test_a_reader_of_texts_is_pruned_and_learns(embedded: Stack) -> None:
    data = embedded.upload_dataset(reviews(), "reviews.zip")
    told = embedded.inspected(data)["inspection"]
    assert (told["format"], told["target"]["class_names"], told["inputs"][0]["shape"]) == (
        "parquet",
        ["bad", "good"],
        [10],
    )
    spec = {
        "type": "prune",
        "model": embedded.upload_model(upload(15), "reviews.pt"),
        "dataset": data,
        "amount": 0.5,
        "retrain": {
            "epochs": 10,
            "lr": 0.02,
            "optimizer": "adam",
            "batch_size": 16,
            "augment": {"token_dropout": {"p": 0.05, "id": 1}},
        },
    }
    job = embedded.submit(spec)
    report = embedded.succeeded(job)
    assert report["after"]["quality"]["test"]["value"] > 0.9
    small = torch.jit.load(io.BytesIO(embedded.download(job)))
    ids = torch.tensor([[8, 2, 0, 0], [8, 9, 10, 5]])
    assert small(ids, (ids != 0).long()).argmax(1).tolist() == [1, 0]
    failed = embedded.ended(embedded.submit({**spec, "model": embedded.upload_model(upload(9), "other.pt")}))
    assert failed["error"]["code"] == "invalid-data"
    assert "The tokenizer has 15 tokens, and the model's embedding embedding holds 9" in failed["error"]["detail"]
