"""Texts, token ids and tables in JSON lines and Parquet files: what becomes of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pared.compression.data import inspect_dataset, load_dataset
from pared.compression.data.ragged import Ragged
from pared.compression.data.reading import read_dataset
from pared.compression.data.text import cut, next_tokens
from pared.compression.jobs.fitting import check_fits
from pared.compression.loading import LoadedModel
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, ShapeMismatch, UnsupportedDataset
from pared.specs import Preprocess
from tests.support.texts import PETS, lines, parquet_of, tokenizer, zipped


@pytest.fixture
def dataset(tmp_path: Path):
    def write(content: bytes) -> DatasetFile:
        path = tmp_path / "data"
        path.write_bytes(content)
        return DatasetFile(path, "data")

    return write


def load(file, task="classification", **kwargs):
    return load_dataset(file, task=task, preprocess=kwargs.pop("preprocess", None), seed=0, **kwargs)


# -- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_texts_become_token_ids_that_are_cut_to_the_longest_of_a_batch(dataset, form):
    records = {name: [record[name] for record in PETS] for name in PETS[0]}
    content = lines(PETS) if form == "jsonl" else parquet_of(**records)
    data = load(dataset(zipped(tokenizer__json=tokenizer(), **{f"data__{form}": content})))
    assert (data.class_names, data.classes, data.padding, data.vocabulary) == (["cat", "dog"], 2, 0, 10)
    assert data.format == form
    train = torch.arange(data.samples("train"))
    (tokens,), targets = data.take("train", train)
    assert tokens.dtype == torch.int64
    assert tokens[targets == 0].unique(dim=0).tolist() == [[2, 3, 4, 5, 7]]
    assert tokens[targets == 1].unique(dim=0).tolist() == [[2, 6, 0, 0, 0]]
    data.masked = True
    (short, mask), _ = data.take("train", train[targets == 1])
    assert short.unique(dim=0).tolist() == [[2, 6]]  # no batch is longer than its longest sample
    assert mask.unique(dim=0).tolist() == [[1, 1]]
    (_, mask), targets = next(iter(data.batches("train", len(train))))
    assert mask[targets == 1].unique(dim=0).tolist() == [[1, 1, 0, 0, 0]]
    assert [tuple(each.shape) for each in data.example(2)] == [(2, 5)] * 2


def test_labels_of_words_go_to_their_first_token(dataset):
    records = [
        {"tokens": ["the", "cats", "bark"], "ner_tags": ["O", "PET", "O"]},
        {"tokens": ["dog"], "ner_tags": ["PET"]},
    ]
    stored = read_dataset(dataset(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(records))))
    tokens, targets = stored.inputs["train"][0], stored.targets["train"]
    assert tokens[:].tolist() == [[2, 3, 4, 5, 9], [2, 6, 0, 0, 0]]
    assert targets[:].tolist() == [[-100, 0, 1, -100, 0], [-100, 1, -100, -100, -100]]
    assert stored.class_names == ["O", "PET"]
    of_text = [{"text": "the cats bark", "labels": [0, 1, 0]}, {"text": "dog", "labels": [1]}]
    stored = read_dataset(dataset(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(of_text))))
    assert stored.targets["train"][:].tolist() == targets[:].tolist()
    assert cut(stored, Preprocess(max_length=3)).targets["train"][:].tolist() == [[-100, 0, 1], [-100, 1, -100]]


def test_texts_without_labels_are_unlabelled_and_can_be_predicted_token_by_token(dataset):
    file = dataset(zipped(tokenizer__json=tokenizer(), train__jsonl=lines([{"text": "the cats sat"}, {"text": "dog"}])))
    stored = next_tokens(cut(read_dataset(file), None))
    assert stored.targets["train"][:].tolist() == [[3, 4, 5, 7, -100], [6, -100, -100, -100, -100]]
    stored = next_tokens(cut(read_dataset(file), Preprocess(max_length=2)))
    assert stored.inputs["train"][0][:].tolist() == [[2, 3], [2, 6]]
    assert stored.targets["train"][:].tolist() == [[3, 4], [6, -100]]  # what follows is known beyond the cut
    inspected = inspect_dataset(dataset(zipped(tokenizer__json=tokenizer(), a__jsonl=lines([{"text": "cats"}] * 12))))
    assert not inspected.labelled
    assert inspected.inputs == [{"shape": [3], "dtype": "int64"}]


def test_splits_are_files_and_share_their_classes_and_width(dataset):
    members = {"train__jsonl": lines(PETS), "test__jsonl": lines([PETS[1], PETS[1], PETS[0]])}
    data = load(dataset(zipped(tokenizer__json=tokenizer(), readme__txt=b"", **members)))
    assert (data.splits, data.samples("test")) == ("given", 3)
    assert data.take("test", torch.arange(2))[1].tolist() == [1, 1]
    assert data.inputs["test"][0].shape[1] == 5
    parts = {"data/train-00000-of-00001.jsonl": lines(PETS), "data/validation.jsonl": lines(PETS[:4])}
    assert load(dataset(zipped(**{"tokenizer.json": tokenizer(), **parts}))).samples("val") == 4


def test_long_texts_are_cut_and_it_is_said(dataset):
    file = dataset(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(PETS)))
    data = load(file, preprocess=Preprocess(max_length=3))
    assert data.inputs["train"][0].shape[1] == 3
    assert any("8 of 16 texts have more than 3 tokens" in note for note in data.warnings)
    many = [{"text": "the " * 600 if i == 3 else "dog", "label": i % 2} for i in range(20)]
    data = load(dataset(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(many))))
    assert data.inputs["train"][0].shape[1] == 512
    assert any("1 of 20 texts have more than 512" in note for note in data.warnings)


@pytest.mark.parametrize("words", [False, True], ids=["texts", "lists of words"])
def test_texts_without_a_tokenizer_are_read_with_that_of_the_model(words, dataset):
    records = [each | {"text": each["text"].split()} for each in PETS] if words else PETS
    alone, whole = dataset(lines(records)), zipped(tokenizer__json=tokenizer(), data__jsonl=lines(records))
    inspected = inspect_dataset(alone)
    assert inspected.inputs == [{"shape": [], "dtype": "text"}]
    assert "a job reads them with that of a Hugging Face model folder" in inspected.warnings[0]
    with_its_own = load(dataset(whole))
    assert (inspected.task, inspected.samples["train"]) == (with_its_own.task.name, with_its_own.samples("train"))
    data = load(replace(dataset(lines(records)), tokenizer=tokenizer()))
    assert torch.equal(data.example(9)[0], with_its_own.example(9)[0])
    assert (data.vocabulary, data.padding) == (with_its_own.vocabulary, with_its_own.padding)


def test_token_ids_need_no_tokenizer_and_may_differ_in_length(dataset):
    records = [{"input_ids": list(range(1, 2 + i % 3)), "attention_mask": [1], "label": i % 2} for i in range(20)]
    data = load(dataset(lines(records)))
    assert data.padding == 0
    assert data.vocabulary is None
    assert sorted(data.take("train", torch.arange(14))[0][0].unique(dim=0).tolist()) == [
        [1, 0, 0],
        [1, 2, 0],
        [1, 2, 3],
    ]
    assert any("left out: attention_mask" in note for note in data.warnings)
    of_parquet = load(dataset(parquet_of(tokens=[r["input_ids"] for r in records], y=[r["label"] for r in records])))
    assert torch.equal(of_parquet.take("val", torch.arange(3))[0][0], data.take("val", torch.arange(3))[0][0])


def test_texts_that_do_not_fit_into_memory_are_padded_as_they_are_taken(dataset):
    file = dataset(zipped(tokenizer__json=tokenizer(), data__jsonl=lines(PETS)))
    held, read = load(file), load(DatasetFile(file.path, "data", memory_bytes=400))
    assert not isinstance(read.inputs["train"][0], torch.Tensor)
    for (x, y), (same_x, same_y) in zip(held.batches("train", 4), read.batches("train", 4), strict=True):
        assert torch.equal(x[0], same_x[0])
        assert torch.equal(y, same_y)


def test_rows_are_those_of_the_sequences():
    ragged = Ragged.of([[1, 2, 3], [], [4]], -1)
    assert ragged[:].tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    assert ragged[np.array([2, 0])].tolist() == [[4, -1, -1], [1, 2, 3]]
    assert ragged.rows(1, 3)[:].tolist() == [[-1, -1, -1], [4, -1, -1]]
    assert ragged.cut(2)[:].tolist() == [[1, 2], [-1, -1], [4, -1]]
    assert ragged.cut(2).lengths.tolist() == [2, 0, 1]
    assert ragged.following()[:].tolist() == [[2, 3, -100], [-100] * 3, [-100] * 3]
    assert Ragged.of([[], []], 0)[:].tolist() == [[0], [0]]


# -- tables -----------------------------------------------------------------------------------------


def test_records_of_numbers_and_words_are_a_table(dataset):
    records = [{"a": i, "b": i / 2, "kind": "xy"[i % 2], "v": [i, 0.5], "label": i % 2} for i in range(20)]
    columns = {name: [record[name] for record in records] for name in records[0]}
    expected = [3.0, 1.5, 0.0, 1.0, 3.0, 0.5]
    for content in (lines(records), parquet_of(**columns), zipped(data__parquet=parquet_of(**columns))):
        stored = read_dataset(dataset(content))
        assert stored.inputs["train"][0][3].tolist() == expected
        assert stored.targets["train"][3] == 1
        assert load(dataset(content)).inputs["train"][0].dtype == torch.float32
    numbers = [{"x": i, "size": 0.5 * i} for i in range(20)]
    data = load(dataset(lines(numbers)), task="regression")
    assert any("the last one, 'size', is the target" in note for note in data.warnings)


# -- the model --------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self, rows=10, positions=512):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(rows, 8), nn.Linear(8, 2)
        self.positions = nn.Embedding(positions, 8)

    def forward(self, ids):
        return self.fc((self.embedding(ids) + self.positions(torch.arange(ids.size(1)))).mean(1))


class Masked(Reader):
    def forward(self, ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.fc((self.embedding(ids) * mask).sum(1) / mask.sum(1))


class Typed(Reader):
    def forward(self, ids, token_type_ids):
        return self.fc((self.embedding(ids) + token_type_ids.unsqueeze(-1)).mean(1))


def fitted(dataset, module, **kwargs):
    data = load(dataset(zipped(tokenizer__json=tokenizer(**kwargs), data__jsonl=lines(PETS))))
    check_fits(LoadedModel(torch.jit.script(module).eval(), "torchscript", "torchscript"), data)
    return data


def test_a_model_of_two_inputs_is_given_the_mask(dataset):
    data = fitted(dataset, Masked())
    (tokens, mask), _ = data.take("train", torch.arange(5))
    assert mask.shape == tokens.shape
    assert not any("padded by the id" in note for note in data.warnings)
    data = fitted(dataset, Reader())
    assert len(data.take("train", torch.arange(5))[0]) == 1
    assert any("padded by the id 0" in note and "takes no attention mask" in note for note in data.warnings)


def test_a_vocabulary_that_the_embedding_does_not_hold_is_refused(dataset):
    with pytest.raises(InvalidData, match=r"tokenizer has 10 tokens, and the model's embedding embedding holds 7"):
        fitted(dataset, Masked(rows=7))
    data = fitted(dataset, Masked(rows=30_000))
    assert any("has 10 tokens, and the model's embedding embedding holds 30,000" in note for note in data.warnings)


def test_inputs_and_lengths_that_the_model_does_not_take_are_refused(dataset):
    with pytest.raises(ShapeMismatch, match="takes ids, token_type_ids"):
        fitted(dataset, Typed())
    with pytest.raises(InvalidData, match=r"up to 5 tokens.*preprocess.max_length"):
        fitted(dataset, Reader(positions=4))


# -- what is refused --------------------------------------------------------------------------------

BOTH = {"text": "the cat", "title": "cats", "label": 0}


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (lines([{"text": "a b", "label": 0}] * 12), InvalidData, "Upload a zip of this file and the tokenizer.json"),
        (lines([{"words": ["a"], "label": 0}] * 12), InvalidData, "holds text. Upload a zip"),
        (zipped(tokenizer__json=b"{}", a__jsonl=lines(PETS)), UnsupportedDataset, "tokenizer.json does not open"),
        (zipped(tokenizer__json=tokenizer(), a__jsonl=b"{no"), UnsupportedDataset, "Line 1 is no JSON by itself"),
        (b'{"a": 1,\n "y": 2}', UnsupportedDataset, "Save one object a line"),
        (b'[{"a": 1}]', UnsupportedDataset, "a JSON array: save it as JSON lines"),
        (b'{"y": [0, 0.5]}', InvalidData, "The only field, 'y', is the target"),
        (b'{"a": 1, "y": 0}\n{"a": 1}', InvalidData, "Line 2: the field 'y' is missing"),
        (b'{"a": 1, "y": 0}\n{"a": 1, "y": 0, "z": 1}', InvalidData, "'z' is not in the lines before it"),
        (b'{"a": 1, "y": 0}\n{"a": "x", "y": 0}', InvalidData, "holds a number in record 1 and text in record 2"),
        (b'{"a": null, "y": 0}', InvalidData, "'a' is empty in 1 records"),
        (b'{"a": {"b": 1}, "y": 0}', InvalidData, "holds an object"),
        (b'{"a": [1.5, 2.5], "y": 0}\n{"a": [1.5], "y": 0}', InvalidData, "lists that are no vectors"),
        (b'{"a": 99999999999999999999, "y": 0}', InvalidData, "integers beyond int64"),
        (b"PAR1" + bytes(40), UnsupportedDataset, "Parquet file does not open"),
        (parquet_of(a=[1, None], y=[0, 1]), InvalidData, "'a' is empty in 1 records, the first of them number 2"),
        (parquet_of(a=pa.array([], pa.int64())), UnsupportedDataset, "holds no records"),
        (zipped(test__jsonl=lines(PETS), other__jsonl=lines(PETS)), InvalidData, "name one file of each split"),
        (zipped(val__jsonl=lines(PETS), test__jsonl=lines(PETS)), InvalidData, "but no train file"),
        (
            zipped(train__jsonl=lines(PETS), test__jsonl=b'{"text": "a"}', tokenizer__json=tokenizer()),
            InvalidData,
            "'label' is not in both train and test",
        ),
        (zipped(tokenizer__json=tokenizer(), a__jsonl=lines([{"a": 1}])), InvalidData, "No field holds text"),
        (
            zipped(tokenizer__json=tokenizer(), a__jsonl=lines([{"title": "a", "body": "b"}])),
            InvalidData,
            "Several fields could be the text: title, body",
        ),
        (
            zipped(
                tokenizer__json=tokenizer(),
                a__jsonl=lines([{"text": "the cat", "labels": [0]}, {"text": "a", "labels": [0, 1]}]),
            ),
            InvalidData,
            "Record 1 has 2 words and 1 labels",
        ),
        (lines([{"input_ids": [1], "label": 0}, {"input_ids": [], "label": 0}]), InvalidData, "Record 2 has no tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_and_says_what_to_do(dataset, content, error, says):
    with pytest.raises(error, match=says.replace("[", r"\[")):
        read_dataset(dataset(content))


def test_a_length_is_for_texts_alone(dataset):
    table = dataset(lines([{"a": i, "y": i % 2} for i in range(20)]))
    with pytest.raises(InvalidData, match="cuts texts, and this data set holds none"):
        load(table, preprocess=Preprocess(max_length=8))
