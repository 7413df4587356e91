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
from pared.compression.jobs import streamed_sizes
from pared.compression.jobs.plan_streamed import inspect_large
from pared.compression.jobs.streamed_sizes import is_streamed
from pared.compression.work import ModelFile
from pared.errors import InvalidData, NothingToPrune, ParedError, ShapeMismatch, UnsupportedModel, ValidationError
from pared.specs import PipelineSpec, PruneSpec
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tests copy before they change it."""
    return decoder("llama", tmp_path_factory.mktemp("llama") / "model")


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_whole_layers_go_that_add_the_least_to_the_texts(llama, tmp_path):
    folder = copied(llama, tmp_path / "model")
    for shard in folder.glob("*.safetensors"):  # the layer in the middle adds next to nothing
        faint = ("layers.1.self_attn.o_proj", "layers.1.mlp.down_proj")
        weights = {
            name: each * 1e-4 if any(f in name for f in faint) else each for name, each in load_file(shard).items()
        }
        save_file(weights, shard)
    report = streamed(
        folder, tmp_path / "out", texts(tmp_path / "texts.jsonl"), granularity="residual_block", criterion="activation",
        amount=0.3,
    ).report  # fmt: skip
    gone = {layer.name.split(".")[2] for layer in report.layers if layer.shape_after[0] == 0}
    assert gone == {"1"}
    small = opened(tmp_path / "out" / "model.zip", tmp_path / "small")
    assert small.config.num_hidden_layers == 2
    assert report.comparison is not None
    assert abs(report.comparison.quality_difference.value) < 1e-2


def test_weights_alone_choose_where_there_are_no_texts(llama, tmp_path):
    result = streamed(llama, tmp_path / "out", exclude=["*self_attn*"])
    weights: dict[str, Any] = {}
    for shard in llama.glob("*.safetensors"):
        weights |= load_file(shard)
    layer = "model.layers.1.mlp"
    score = sum(weights[f"{layer}.{name}_proj.weight"].abs().double().sum(1) for name in ("gate", "up"))
    gone = sorted(score.argsort()[:12].tolist())
    assert result.report.removed[f"{layer}.down_proj.weight"] == {"1": gone}
    assert result.report.after.quality is None
    assert not any("self_attn" in name for name in result.report.removed)
    assert dict(result.model.named_parameters())[f"{layer}.gate_proj.weight"].shape == (12, 16)


@pytest.mark.parametrize("target", [{"params": 0.7}, {"file_bytes": 0.8}], ids=str)
def test_a_goal_of_size_is_met_by_the_least_that_meets_it(llama, target, tmp_path):
    report = streamed(llama, tmp_path / "out", target=target, amount=None, exclude=["*self_attn*"]).report
    assert report.goal is not None
    assert report.goal.status == "met"
    ((name, share),) = target.items()
    assert share - 0.08 < report.goal.reached[name] <= share


def test_a_compressed_zip_with_the_folders_name_gives_the_same(llama, tmp_path):
    folder = copied(llama, tmp_path / "model")
    plain, packed = zipped(folder), tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"mine/{file.name}")
    one, other = (streamed(path, tmp_path / path.stem, amount=0.25).report for path in (plain, packed))
    assert one.reproduce.outputs == other.reproduce.outputs


# -- what is refused --------------------------------------------------------------------------------


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def tensor(folder: Path, name: str, change: Any) -> None:
    for shard in folder.glob("*.safetensors"):
        weights = load_file(shard)
        if name in weights:
            weights[name] = change(weights[name])
            save_file(weights, shard)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def outside(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../weights.safetensors"
    path.write_text(json.dumps(index))


def cut_off(folder: Path) -> None:
    shards(folder)[1].write_bytes(shards(folder)[1].read_bytes()[:-10])


BROKEN: dict[str, tuple[Any, type[ParedError], str]] = {
    "a shard is missing": (lambda f: shards(f)[1].unlink(), UnsupportedModel, "are missing"),
    "the index leaves the folder": (outside, UnsupportedModel, "outside of the folder"),
    "a shard is cut off": (cut_off, UnsupportedModel, "cut off"),
    "a weight has another shape": (
        lambda f: tensor(f, "model.layers.0.mlp.up_proj.weight", lambda w: w[:20].clone()),
        ShapeMismatch,
        "(20, 16) in the file, (24, 16) by config.json",
    ),
    "a weight is NaN": (
        lambda f: tensor(f, "model.layers.2.mlp.up_proj.weight", lambda w: w.index_fill(0, torch.tensor(3), math.nan)),
        UnsupportedModel,
        "NaN",
    ),
    "a weight is in integers": (
        lambda f: tensor(f, "model.norm.weight", lambda w: w.to(torch.int8)),
        UnsupportedModel,
        "I8",
    ),
    "heads do not divide": (lambda f: settings(f, num_key_value_heads=3), UnsupportedModel, "do not divide"),
    "fewer layers than tensors": (lambda f: settings(f, num_hidden_layers=2), UnsupportedModel, "does not say"),
    "a claim of many layers": (lambda f: settings(f, num_hidden_layers=1 << 30), UnsupportedModel, "1,073,741,824"),
    "another activation": (lambda f: settings(f, hidden_act="gelu"), UnsupportedModel, "hidden_act"),
    "another family": (
        lambda f: settings(f, architectures=["GemmaForCausalLM"], model_type="gemma"),
        UnsupportedModel,
        "Leave `streamed`",
    ),
    "code of its own": (lambda f: settings(f, auto_map={"AutoModel": "mine.Mine"}), UnsupportedModel, "auto_map"),
    "tied and different": (lambda f: settings(f, tie_word_embeddings=True), UnsupportedModel, "two that differ"),
    "sizes of zero": (lambda f: settings(f, num_attention_heads=0), UnsupportedModel, "num_attention_heads"),
    "a tokenizer of more words": (lambda f: write_tokenizer(f, 60), InvalidData, "another model's tokenizer"),
    "unknown positions": (
        lambda f: settings(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        UnsupportedModel,
        "Leave the data set out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_cannot_be_pruned_is_refused_with_the_reason(case, llama, tmp_path):
    change, kind, says = BROKEN[case]
    folder = copied(llama, tmp_path / "model")
    change(folder)
    words = tmp_path / "texts.jsonl"
    words.write_text("".join(json.dumps({"text": f"w{i} w55 w3 w{i + 1}"}) + "\n" for i in range(1, 13)))
    with pytest.raises(kind) as refusal:
        streamed(folder, tmp_path / "out", words)
    assert says in refusal.value.detail
    assert not (tmp_path / "out" / "model.zip").exists()


def test_bytes_that_changed_on_the_way_are_found_by_the_zips_own_checksum(llama, tmp_path):
    path = zipped(copied(llama, tmp_path / "model"))
    whole = bytearray(path.read_bytes())
    inside = whole.index(load_file(shards(llama)[1])["model.layers.0.mlp.up_proj.weight"].numpy().tobytes())
    whole[inside] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UnsupportedModel, match="damaged"):
        streamed(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"retrain": {"epochs": 1}}, "/retrain"),
        ({"criterion": "taylor"}, "/criterion"),
        ({"outputs": ["torchscript"]}, "/outputs"),
        ({"granularity": "weight"}, "/streamed"),
        ({"amount": None, "target": {"macs": 0.5}}, "/target/macs"),
        ({"scope": "global"}, "/scope"),
        ({"task": "match"}, "/task"),
    ],
    ids=str,
)
def test_what_needs_the_whole_model_is_refused_with_its_field(fields, pointer, llama, tmp_path):
    with pytest.raises(ValidationError) as refusal:
        streamed(llama, tmp_path / "out", texts(tmp_path / "texts.jsonl"), **fields)
    assert [each["pointer"] for each in refusal.value.errors] == [pointer]


def test_an_amount_of_less_than_one_says_so(llama, tmp_path):
    with pytest.raises(NothingToPrune, match="less than one"):
        streamed(llama, tmp_path / "out", granularity="head", amount=0.1)


# -- when ---------------------------------------------------------------------------------------------


def test_large_folders_go_layer_by_layer_unless_something_needs_the_whole(llama, tmp_path, monkeypatch):
    path = zipped(copied(llama, tmp_path / "model"))
    file = ModelFile(path, path.name, "")
    given = {"type": "prune", "model": f"mdl_{'m' * 26}", "amount": 0.5}
    data = {"dataset": f"dst_{'d' * 26}"}
    assert not is_streamed(PruneSpec.model_validate(given), file)
    monkeypatch.setattr(streamed_sizes, "STREAMED_FROM_BYTES", 1)
    assert is_streamed(PruneSpec.model_validate(given), file)
    assert is_streamed(PruneSpec.model_validate(given | data | {"retrain": None}), file)
    assert not is_streamed(PruneSpec.model_validate(given | data), file)  # it retrains
    assert not is_streamed(PruneSpec.model_validate(given | {"streamed": False}), file)
    assert not is_streamed(PruneSpec.model_validate(given | {"outputs": ["onnx"]}), file)
    assert not is_streamed(PruneSpec.model_validate(given | {"granularity": "weight"}), file)
    steps = {"type": "pipeline", "model": given["model"], "steps": [{"prune": {"amount": 0.5}}]}
    assert not is_streamed(PipelineSpec.model_validate(steps).job(0), file)


def test_a_large_folder_is_described_by_its_headers(llama, tmp_path):
    path = zipped(copied(llama, tmp_path / "model"))
    inspection = inspect_large(ModelFile(path, path.name, ""))
    layers = {layer.name: layer for layer in inspection.layers}
    assert inspection.parameters == sum(layer.parameters for layer in inspection.layers)
    assert layers["model.layers.1.mlp.up_proj"].prunable_channels
    assert "hidden width" in (layers["model.layers.1.mlp.down_proj"].reason or "")
