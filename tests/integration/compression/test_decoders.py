"""Decoders in model folders, pruned layer by layer: what is left answers as the whole with the rest masked does."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pared.compression import Result, prune
from pared.errors import InvalidData, NothingToPrune, ParedError, ShapeMismatch, UnsupportedModel, ValidationError
from tests.support.files.folders import write_tokenizer, zipped

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 6, "rope_parameters": LLAMA3}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
}


def decoder(family: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "6KB", **more: Any) -> Path:
    """A small decoder of random weights, as transformers saves it, with a tokenizer."""
    import transformers

    transformers.logging.disable_progress_bar()
    name, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | settings | more)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms of ones and biases of zeros would hide what is forgotten
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder, 40)
    return folder


def texts(path: Path, count: int = 24) -> Path:
    """Texts of 4 to 20 words."""
    lines = (" ".join(f"w{(7 * i + j * j + i * j) % 39 + 1}" for j in range(4 + 5 * i % 17)) for i in range(count))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def opened(path: Path, folder: Path) -> Any:
    """What transformers loads from a result."""
    import transformers

    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def streamed(folder: Path, directory: Path, data: Path | None = None, **fields: Any) -> Result:
    """A job that goes layer by layer."""
    return prune(folder, data, streamed=True, directory=directory, **{"amount": 0.5, **fields})


def log_likelihood(model: Any, rows: list[list[int]]) -> float:
    """Of a transformers model, in nats a token."""
    total, count = 0.0, 0
    for row in rows:
        tokens = torch.tensor([row])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(row) - 1
    return -total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_answers_as_the_upload_does_with_the_rest_masked(family, tmp_path):
    dtype = torch.bfloat16 if family == "qwen2" else torch.float32
    folder = decoder(family, tmp_path / "model", dtype)
    rows = [json.loads(line)["text"] for line in texts(tmp_path / "texts.jsonl").read_text().splitlines()]
    split = tmp_path / "split.zip"
    with zipfile.ZipFile(split, "w") as archive:
        for name, part in (("train", rows[:12]), ("val", rows[12:16]), ("test", rows[16:])):
            archive.writestr(f"{name}.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in part))
        archive.write(folder / "tokenizer.json", "tokenizer.json")
    report = streamed(folder, tmp_path / "out", split, criterion="activation").report
    import transformers

    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    small = opened(tmp_path / "out" / "model.zip", tmp_path / "small")
    assert small.config.intermediate_size == 12
    assert small.config.num_attention_heads == 2
    assert small.config.num_key_value_heads == whole.config.num_key_value_heads // 2
    ids = [[int(word[1:]) for word in line.split()] for line in rows[16:]]
    assert report.before.quality is not None
    assert report.after.quality is not None
    assert report.before.quality.test.value == pytest.approx(log_likelihood(whole, ids), abs=1e-4)
    assert report.after.quality.test.value == pytest.approx(log_likelihood(small, ids), abs=1e-4)
    # Without what reads them, removed channels and heads have no effect.
    for name, weight in whole.named_parameters():
        gone = report.removed.get(name, {}).get("1")
        if gone is not None:
            weight.data[:, gone] = 0
    assert log_likelihood(whole, ids) == pytest.approx(log_likelihood(small, ids), abs=1e-4)
    stored = load_file(next((tmp_path / "small").glob("*.safetensors")))
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert report.after.parameters == sum(parameter.numel() for parameter in small.parameters())
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
