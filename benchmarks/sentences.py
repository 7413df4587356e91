"""Real sentences that every Python holds, and what embeddings of them are judged by.

They come from the docstrings of the standard library and from the help pages of `pydoc`, so nothing is downloaded.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import nn

LENGTH = 32
"""Tokens that a sentence is cut to."""


@cache
def sentences() -> list[str]:
    """About eleven thousand, in an order drawn by seed: of 8 to 40 words, each once."""
    found = {each for text in (*topics.values(), *_docstrings()) for each in _plain(text)}
    drawn = sorted(found)
    random.Random(0).shuffle(drawn)
    return drawn


def _docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def _plain(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        for each in re.split(r"(?<=[a-z)][.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
            sentence = each.strip(" *`")
            if re.fullmatch(r"[A-Z].*[.?!]", sentence) and 8 <= len(sentence.split()) <= 40 and ">>>" not in sentence:
                yield sentence


def text_data(path: Path, tokenizer: Path, texts: list[str]) -> Path:
    """A data set of these texts, as pared takes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tokenizer, "tokenizer.json")
        archive.writestr("train.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Embedder(nn.Module):
    """The states of a transformer's last layer, of tokens and their mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) twice to (batch, tokens, width)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def batches(tokenizer: Any, texts: list[str], size: int = 32, *, padded: bool = False) -> Iterator[dict[str, Any]]:
    """Tokens and their masks, (batch, tokens) each, as long as the longest of a batch or, `padded`, as `LENGTH`."""
    for begin in range(0, len(texts), size):
        given = tokenizer(
            texts[begin : begin + size],
            padding="max_length" if padded else True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="np",
        )
        yield {name: given[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def embeddings(run: Any, of_texts: list[dict[str, Any]]) -> torch.Tensor:
    """The mean of each text's token states. `run`: tokens and their mask to states, all NumPy arrays."""
    found = []
    for batch in of_texts:
        states = torch.as_tensor(run(batch["input_ids"], batch["attention_mask"]))
        mask = torch.from_numpy(batch["attention_mask"])
        found.append((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(found)


def agreement(answers: torch.Tensor, original: torch.Tensor) -> dict[str, float]:
    """How much embeddings agree with the original's: cosine, and whether the most alike sentences are the same."""
    cosines = torch.cosine_similarity(answers, original)
    own, its = (_nearest(each, 10) for each in (answers, original))
    shared = (own[:, :, None] == its[:, None, :]).any(2)
    return {
        "cosine": float(cosines.mean()),
        "worst": float(cosines.min()),
        "nearest": float((own[:, 0] == its[:, 0]).float().mean()),
        "of ten": float(shared.float().mean()),
    }


def _nearest(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Of each the numbers of the most alike other ones."""
    scaled = nn.functional.normalize(vectors)
    return (scaled @ scaled.T).fill_diagonal_(-1).topk(count).indices
