"""Hugging Face model folders as people have them on disk, and such as must be refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.files.base import HeldFile

_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "initializer_range": 0.4,
}
_TEXT = {"vocab_size": 40, "max_position_embeddings": 24}
_LLAMA = {**_SMALL, **_TEXT, "num_key_value_heads": 2, "head_dim": 6, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": 40, "initializer_range": 0.4}
_WAV2VEC2 = {
    **_SMALL,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
ARCHITECTURES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _SMALL | _TEXT),
    "bert_base": ("BertModel", "BertConfig", _SMALL | _TEXT),
    "roberta": ("RobertaForTokenClassification", "RobertaConfig", _SMALL | _TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "initializer_range": 0.4, **_TEXT},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _LLAMA),
    "vit": ("ViTForImageClassification", "ViTConfig", _SMALL | {"image_size": 16, "patch_size": 8}),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", _WAV2VEC2),
}
"""Name -> class of transformers, class of its config, and settings."""


def saved(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shards: bool = False) -> Path:
    """Save a small model of random weights as `save_pretrained` does, with a tokenizer if it reads texts."""
    import transformers

    transformers.logging.disable_progress_bar()
    class_name, config, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, config)(**settings)).to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": "6KB"} if shards else {}))
    if "vocab_size" in settings:
        write_tokenizer(folder, 40)
    else:
        (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    (folder / "README.md").write_text("# A model\n")
    return folder


def write_tokenizer(folder: Path, words: int) -> None:
    """A tokenizer.json of so many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{index}": index for index in range(1, words)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 24}')


def zipped(folder: Path, inside: str = "") -> Path:
    """A zip of everything in a folder, beside it. `inside`: the name of a folder in the zip."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(folder)}")
    return path


def config_in(results: Mapping[str, Path]) -> dict[str, Any]:
    """The config.json of a result."""
    with zipfile.ZipFile(results["model.zip"]) as archive:
        config: dict[str, Any] = json.loads(archive.read("config.json"))
        return config


def _smaller(**expected: int) -> Callable[[Mapping[str, Path]], None]:
    """A check that the result's config has these numbers."""

    def check(results: Mapping[str, Path]) -> None:
        config = config_in(results)
        assert {name: config[name] for name in expected} == expected

    return check


def _writer(name: str, **how: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(name, folder, **how)


def _as_bin(folder: Path) -> Path:
    saved("distilbert", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _sentence_transformer(folder: Path) -> Path:
    """Without a pooler in the weights, and with the pooling that comes after the model."""
    saved("bert_base", folder)
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors")
    modules = [{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "name": "1", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}')
    return folder


def _keeps_pooling(results: Mapping[str, Path]) -> None:
    _smaller(hidden_size=16, intermediate_size=12)(results)
    with zipfile.ZipFile(results["model.zip"]) as archive:
        assert {"1_Pooling/config.json", "modules.json", "tokenizer.json"} <= set(archive.namelist())


_GOOD = [
    HeldFile(
        "BERT classifier, folder",
        _writer("bert"),
        check=_smaller(hidden_size=8, num_attention_heads=2, intermediate_size=12),
    ),
    HeldFile(
        "RoBERTa tagger, zip with the folder's name inside",
        lambda folder: zipped(saved("roberta", folder), "roberta/"),
        check=_smaller(intermediate_size=12),
    ),
    HeldFile("DistilBERT, pytorch_model.bin", _as_bin, check=_smaller(dim=8, n_heads=2, hidden_dim=12)),
    HeldFile(
        "GPT-2, float16, in shards, tied",
        _writer("gpt2", dtype=torch.float16, shards=True),
        check=_smaller(n_embd=8, n_head=2),
    ),
    HeldFile(
        "Llama, bfloat16, grouped heads",
        _writer("llama", dtype=torch.bfloat16),
        check=_smaller(num_attention_heads=2, num_key_value_heads=1, head_dim=6, intermediate_size=12),
    ),
    HeldFile(
        "Qwen3, whole layers",
        _writer("qwen3"),
        spec={"granularity": "residual_block", "amount": 0.5},
        check=_smaller(num_hidden_layers=1),
    ),
    HeldFile("ViT classifier", _writer("vit"), check=_smaller(hidden_size=8, intermediate_size=12)),
    HeldFile("wav2vec2 encoder", _writer("wav2vec2"), check=_smaller(hidden_size=16, intermediate_size=12)),
    HeldFile("sentence-transformers folder, without pooler", _sentence_transformer, check=_keeps_pooling),
]


# -- what must be refused -------------------------------------------------------------------------


def _changed(name: str, **settings: Any) -> Callable[[Path], Path]:
    """A folder with other settings in its config.json; None takes one out."""

    def write(folder: Path) -> Path:
        saved(name, folder)
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return folder

    return write


def _remote_code(folder: Path) -> Path:
    _changed("bert", auto_map={"AutoModel": "modeling_mine.Mine"})(folder)
    (folder / "modeling_mine.py").write_text("raise SystemExit('this ran')\n")
    return folder


def _shard_missing(folder: Path) -> Path:
    saved("gpt2", folder, shards=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return folder


def _index_outside(folder: Path) -> Path:
    saved("gpt2", folder, shards=True)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../../etc/weights.safetensors"
    path.write_text(json.dumps(index))
    return folder


def _index_missing(folder: Path) -> Path:
    saved("gpt2", folder, shards=True)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def _tied_unequal(folder: Path) -> Path:
    saved("gpt2", folder)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["transformer.wte.weight"] + 1}, folder / "model.safetensors")
    return folder


def _other_tokenizer(folder: Path) -> Path:
    saved("bert", folder)
    write_tokenizer(folder, 60)
    return folder


def _only_tensorflow(folder: Path) -> Path:
    saved("bert", folder)
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    return zipped(folder)


def _adapter(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    return zipped(folder)


def _unsafe_name(folder: Path) -> Path:
    path = zipped(saved("bert", folder))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside.json", "{}")
    return path


def _bomb(folder: Path) -> Path:
    path = zipped(saved("bert", folder))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vocab.txt", b"\n" * (320 << 20))
    return path


def _lfs_pointer(folder: Path) -> Path:
    saved("bert", folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    return folder


def _weights_missing(folder: Path) -> Path:
    saved("bert", folder)
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "layer.1.output" not in key}
    save_file(kept, folder / "model.safetensors")
    return folder


_FIRST_REFUSED = [
    HeldFile("folder with code of its own", _remote_code, refused="runs no code of an upload"),
    HeldFile("shard missing", _shard_missing, refused="are missing: model-00002-of-"),
    HeldFile("tied weights stored twice, unequal", _tied_unequal, refused="are one weight by config.json"),
]
REFUSED = [
    *_FIRST_REFUSED,
    HeldFile("index that names a file outside", _index_outside, refused="outside of the folder"),
    HeldFile("shards without index", _index_missing, refused="add model.safetensors.index.json"),
    HeldFile("tokenizer of another model", _other_tokenizer, refused="the tokenizer of another model"),
    HeldFile("config of a wider model", _changed("bert", intermediate_size=48), refused="does not fit the weights"),
    HeldFile("config of a deeper model", _changed("bert", num_hidden_layers=3), refused="are not in the folder"),
    HeldFile("config with a million layers", _changed("bert", num_hidden_layers=10**6), refused="claims num_hidden"),
    HeldFile("config that contradicts itself", _changed("bert", num_attention_heads=3), refused="does not build"),
    HeldFile("unknown model_type", _changed("bert", model_type="zyx"), refused="has the model_type 'zyx'"),
    HeldFile("no model_type", _changed("bert", model_type=None), refused="names no `model_type`"),
    HeldFile(
        "quantized already",
        _changed("bert", quantization_config={"quant_method": "gptq"}),
        refused="quantized already (gptq)",
    ),
    HeldFile("weights of TensorFlow", _only_tensorflow, refused="tf_model.h5, of TensorFlow"),
    HeldFile("adapter alone", _adapter, refused="Merge them first"),
    HeldFile("unsafe name in the zip", _unsafe_name, refused="is unsafe"),
    HeldFile("zip bomb", _bomb, refused="more than the"),
    HeldFile("Git LFS pointer inside", _lfs_pointer, refused="git lfs pull"),
    HeldFile("weights left out", _weights_missing, refused="are not in the folder"),
]
"""All that must be refused; the first of them are rows of the table."""

ROWS: list[HeldFile] = [*_GOOD, *_FIRST_REFUSED]
