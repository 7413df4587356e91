"""A decoder pruned layer by layer through the whole service: planned, run in the sandbox, and a folder again."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import torch
from safetensors.torch import load, save

from tests.support.processes import wait_for
from tests.support.stack import Stack

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}


def folder() -> bytes:
    """A zip of the folder, written without transformers, which takes seconds to load."""
    torch.manual_seed(0)
    shapes = {"model.embed_tokens": (40, 16), "lm_head": (40, 16), "model.norm": (16,)}
    for layer in range(2):
        before = f"model.layers.{layer}"
        shapes |= {f"{before}.input_layernorm": (16,), f"{before}.post_attention_layernorm": (16,)}
        shapes |= {
            f"{before}.self_attn.{name}_proj": (rows, 16) for name, rows in zip("qkvo", (16, 8, 8, 16), strict=True)
        }
        shapes |= {f"{before}.mlp.{name}_proj": (24, 16) for name in ("gate", "up")}
        shapes |= {f"{before}.mlp.down_proj": (16, 24)}
    weights = {f"{name}.weight": torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.safetensors", save(weights))
    return content.getvalue()


def test_a_decoder_is_planned_and_pruned_layer_by_layer(embedded: Stack) -> None:
    lines = "".join(
        json.dumps({"input_ids": [(i * j + i) % 40 for j in range(2, 9 + i % 3)]}) + "\n" for i in range(30)
    )
    spec = {
        "type": "prune",
        "model": embedded.upload_model(folder(), "llama.zip"),
        "dataset": embedded.upload_dataset(lines.encode(), "ids.jsonl"),
        "criterion": "activation",
        "amount": 0.5,
        "streamed": True,
    }
    job = embedded.submit(spec)
    report = embedded.succeeded(job)

    def made() -> Any:  # a busy machine answers first that it is being made
        answer = embedded.http.post("/v1/jobs:plan", json=spec)
        assert answer.status_code in (200, 202), answer.text
        return answer.json() if answer.status_code == 200 else None

    plan = wait_for(made, "the plan is made")
    assert plan["after"]["parameters"] == report["after"]["parameters"]
    assert [layer["shape_after"] for layer in plan["layers"]] == [layer["shape_after"] for layer in report["layers"]]
    assert report["after"]["quality"]["metric"] == "log_likelihood"
    with zipfile.ZipFile(io.BytesIO(embedded.download(job, "model.zip"))) as archive:
        assert json.loads(archive.read("config.json"))["intermediate_size"] == 12
        assert load(archive.read("model.safetensors"))["model.layers.1.mlp.down_proj.weight"].shape == (16, 12)
    refused = embedded.http.post("/v1/jobs", json=spec | {"retrain": {"epochs": 1}})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/retrain"
