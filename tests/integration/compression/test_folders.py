"""Hugging Face model folders: opened, made smaller in width and depth, and written as such folders again."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pared.compression import pipeline, prune
from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel, inspect_model, load_model
from pared.compression.pruning.channels import RemovableChannels
from pared.compression.pruning.residual_blocks import remove_blocks
from pared.compression.work import ModelFile
from pared.errors import ExportFailed, NothingToPrune, ParedError
from pared.folders import pack
from tests.support.campaign import each_nth
from tests.support.files.base import HeldFile
from tests.support.files.folders import ARCHITECTURES, REFUSED, config_in, saved

NARROW = {
    "bert": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12},
    "bert_base": {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 12},
    "roberta": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12},
    "distilbert": {"dim": 8, "n_heads": 2, "hidden_dim": 12},
    "gpt2": {"n_embd": 8, "n_head": 2, "n_inner": 32},
    "llama": {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12},
    "qwen3": {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12},
    "vit": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12},
    "wav2vec2": {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 12},
}
"""What half of the width is, as the config says it. Where the hidden state is the answer it stays, and its heads do."""


def opened(folder: Path) -> LoadedModel:
    """A folder, or a zip of one, as a job opens it."""
    path = folder
    if folder.is_dir():
        path = folder.parent / "packed.zip"
        pack(folder, path)
    return load_model(ModelFile(path, path.name, ""))


def written(loaded: LoadedModel, directory: Path) -> tuple[dict[str, Any], Any]:
    """The config and the transformers model of the folder that is written."""
    import transformers

    (path,) = export(loaded, example_of(loaded), ["huggingface"], directory)
    folder = directory / "again"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    assert loaded.folder is not None
    model = getattr(transformers, loaded.folder.class_name).from_pretrained(folder)
    return config_in({"model.zip": path}), model.eval()


def example_of(loaded: LoadedModel) -> tuple[torch.Tensor, ...]:
    """The inputs that a folder describes."""
    assert loaded.example is not None
    return loaded.example


def difference(loaded: LoadedModel, model: Any) -> float:
    """Between a module and a transformers model, on texts of another length, or on the example."""
    assert loaded.folder is not None
    example = example_of(loaded)
    if loaded.folder.inputs[0] == "input_ids":
        example = tuple(tensor.repeat(1, 2)[:, :19] for tensor in example)
    with torch.no_grad():
        answer = model.float()(**dict(zip(loaded.folder.inputs, example, strict=True)), return_dict=True)
        one = flat_tensors(loaded.module(*example))[0]
    other = answer.logits if "logits" in answer else answer.last_hidden_state
    return relative_difference(one, other)


@pytest.mark.parametrize("name", each_nth(ARCHITECTURES, 4))
def test_half_of_the_width_goes_and_the_result_is_such_a_folder(name, tmp_path):
    loaded = opened(saved(name, tmp_path / "model"))
    removal = RemovableChannels(loaded, example_of(loaded), uniform=True).removal(0.5)
    config, model = written(removal.loaded, tmp_path)
    assert {field: config[field] for field in NARROW[name]} == NARROW[name]
    assert difference(removal.loaded, model) < 1e-4
    kept = {path.name for path in (tmp_path / "again").iterdir()}
    assert kept >= {"config.json", "model.safetensors", "README.md"}
    assert kept & {"tokenizer.json", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("name", "choice"),
    each_nth(
        [("bert", {"amount": 0.9, "include": ["*.layer.0.*"]}), ("qwen3", {"amount": 0.5}), ("vit", {"amount": 0.5})], 2
    ),
)
def test_whole_layers_go_by_the_number_that_counts_them(name, choice, tmp_path):
    loaded = opened(saved(name, tmp_path / "model"))
    removal = remove_blocks(loaded, loaded.module, example_of(loaded), uniform=True, **choice)
    assert removal.removed_units == 1
    if name == "bert":  # what is left keeps its name, in the report as in the module
        assert all("layer.0." not in tensor for tensor, _ in removal.loaded.module.named_parameters())
    config, model = written(removal.loaded, tmp_path)
    assert config["num_hidden_layers"] == 1
    assert difference(removal.loaded, model) < 1e-4


def test_a_stack_keeps_a_layer(tmp_path):
    loaded = opened(saved("bert", tmp_path / "model"))
    removal = remove_blocks(loaded, loaded.module, example_of(loaded), amount=0.99, uniform=True)
    assert removal.removed_units == 1


def test_width_goes_in_steps_and_after_whole_layers(tmp_path):
    loaded = opened(saved("llama", tmp_path / "model"))
    first = RemovableChannels(loaded, example_of(loaded), uniform=True).removal(0.25)
    again = RemovableChannels(first.loaded, example_of(loaded), uniform=True, upload_units=first.units)
    second = again.removal(0.5)
    config, _ = written(second.loaded, tmp_path)
    assert {field: config[field] for field in NARROW["llama"]} == NARROW["llama"]


@pytest.mark.parametrize(("name", "dtype"), each_nth([("gpt2", torch.float16), ("llama", torch.bfloat16)], 2))
def test_half_precision_stays_and_what_is_tied_stays_tied(name, dtype, tmp_path):
    loaded = opened(saved(name, tmp_path / "model", dtype=dtype, shards=name == "gpt2"))
    assert {tensor.dtype for tensor in loaded.module.parameters()} == {torch.float32}
    removal = RemovableChannels(loaded, example_of(loaded), uniform=True).removal(0.5)
    config, model = written(removal.loaded, tmp_path)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    (weights,) = export(removal.loaded, example_of(loaded), ["state_dict"], tmp_path)
    held, trained = load_file(weights), dict(removal.loaded.module.named_parameters())
    assert {tensor.dtype for name, tensor in held.items() if name in trained} == {dtype}
    if name == "gpt2":
        assert model.lm_head.weight is model.transformer.wte.weight


def test_without_uniform_heads_go_too_and_the_folder_is_refused_with_the_setting_that_keeps_it(tmp_path):
    loaded = opened(saved("bert_base", tmp_path / "model"))
    removal = RemovableChannels(loaded, example_of(loaded)).removal(0.5)
    assert len(removal.loaded.module.state_dict()["encoder.layer.0.attention.self.query.weight"]) == 8
    with pytest.raises(ExportFailed, match="With `uniform` true"):
        export(removal.loaded, example_of(loaded), ["huggingface"], tmp_path)
    export(removal.loaded, example_of(loaded), ["torchscript"], tmp_path)


def test_what_the_config_cannot_say_stays_and_says_why(tmp_path):
    loaded = opened(saved("bert_base", tmp_path / "model"))
    removal = RemovableChannels(loaded, example_of(loaded), uniform=True).removal(0.5)
    assert "`uniform` false" in removal.reasons["encoder.layer.0.attention.self.query"]
    with pytest.raises(NothingToPrune, match="`uniform` false"):
        RemovableChannels(loaded, example_of(loaded), uniform=True, heads_alone=True)


def test_a_layer_that_must_stay_keeps_all_of_its_width(tmp_path):
    loaded = opened(saved("bert_base", tmp_path / "model"))
    with pytest.raises(NothingToPrune):
        RemovableChannels(
            loaded, example_of(loaded), uniform=True, include=["*intermediate*"], exclude=["*.1.intermediate*"]
        )


def test_a_folder_is_inspected_with_the_names_that_its_weights_have(tmp_path):
    loaded = opened(saved("bert", tmp_path / "model"))
    inspection = inspect_model(loaded, loaded.example)
    assert inspection.format == "huggingface"
    prunable = {layer.name for layer in inspection.layers if layer.prunable_channels}
    assert "bert.encoder.layer.1.intermediate.dense" in prunable


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_is_no_such_folder_is_refused_with_the_reason(row: HeldFile, tmp_path):
    with pytest.raises(ParedError) as refusal:
        opened(row.write(tmp_path / "model"))
    assert row.refused is not None
    assert row.refused in refusal.value.detail
    assert refusal.value.detail.endswith(".")


def test_a_job_takes_a_folder_and_texts_and_gives_a_folder(tmp_path):
    folder = saved("bert", tmp_path / "model")
    texts = "".join(json.dumps({"text": f"w{i % 7} w{i % 5} " * (1 + i % 3)}) + "\n" for i in range(60))
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.write(folder / "tokenizer.json", "tokenizer.json")
        archive.writestr("train.jsonl", texts)
    fields: dict[str, Any] = {"retrain": {"epochs": 1, "optimizer": "adam"}, "task": "match"}
    result = prune(folder, tmp_path / "texts.zip", amount=0.5, directory=tmp_path / "out", **fields)
    assert result.report.after.macs is not None
    assert list(result.report.reproduce.outputs) == ["model.zip"]
    assert config_in({"model.zip": tmp_path / "out" / "model.zip"})["intermediate_size"] == 12


ZEROS: Any = {"prune": {"amount": 0.5, "granularity": "weight", "retrain": None}}


@pytest.mark.parametrize("steps", each_nth([[ZEROS, ZEROS], [ZEROS, {"quantize": {}}]], 2), ids=["zeros", "int8"])
def test_labels_in_words_are_the_classes_that_the_config_names_so(steps, tmp_path):
    folder = saved("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "up", "1": "down"}, "label2id": {"up": 0, "down": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    numbers = [int(i % 3 == 0) for i in range(60)]
    before = []
    for name, labels in (("words", [["up", "down"][number] for number in numbers]), ("numbers", numbers)):
        rows = ({"text": f"w{i % 7} w{i % 5}", "label": label} for i, label in enumerate(labels))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = prune(folder, tmp_path / f"{name}.jsonl", amount=0.5, granularity="weight", retrain=None).report
        assert not any("alphabetical" in note for note in report.warnings)
        before.append(report.before.quality)
    assert before[0] == before[1]
    report = pipeline(folder, tmp_path / "words.jsonl", steps=steps, outputs=["torchscript"]).report
    assert report.before.quality == before[0]
    assert not any("alphabetical" in note for note in report.warnings)


def test_uniform_is_of_folders(tmp_path):
    script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
    with pytest.raises(ParedError, match="which this model is not"):
        prune(script, amount=0.5, uniform=True)
    with pytest.raises(ParedError, match="Only an upload that is a Hugging Face model folder"):
        prune(script, amount=0.5, outputs=["huggingface"])


def test_a_goal_is_met_by_a_folder_that_learned_texts_without_a_tokenizer_of_their_own(tmp_path):
    folder = saved("bert", tmp_path / "model")
    lines = [json.dumps({"text": f"w{index % 30 + 1} w{index % 2 + 31}", "label": index % 2}) for index in range(60)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(lines))
    fields: dict[str, Any] = {"target": {"params": 0.6}, "retrain": {"epochs": 1}, "directory": tmp_path / "out"}
    report = prune(folder, texts, **fields).report
    assert report.goal is not None
    assert report.goal.status == "met"
    assert report.after.parameters <= 0.6 * report.before.parameters
    assert report.after.quality is not None
    config = config_in({"model.zip": tmp_path / "out" / "model.zip"})
    assert config["hidden_size"] < 16
    assert load_model(ModelFile(tmp_path / "out" / "model.zip", "model.zip", "")).folder is not None
