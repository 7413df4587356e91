"""Small data sets of texts, and their tokenizer."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "the", "cat", "##s", "dog", "sat", "ran", "bark"]


def tokenizer(padding: bool = True) -> bytes:
    """WordPiece over a few words, which begins each text with [CLS]."""
    words = WORDS if padding else [word.replace("[PAD]", "nothing") for word in WORDS]
    made = Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return made.to_str().encode()


def lines(records: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


def parquet_of(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


PETS = [{"text": text, "label": label} for text, label in (("the cats sat", "cat"), ("dog", "dog")) * 8]
