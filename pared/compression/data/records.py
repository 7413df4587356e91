"""Reads JSON lines and Parquet files: tables of numbers and words, token ids, and texts with their tokenizer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pared.compression.data.columns import Array
from pared.compression.data.samples import SPLIT_NAMES, SPLITS, Split
from pared.compression.data.stored import FORMATS, MAX_ELEMENTS, Stored
from pared.compression.data.tables import MAX_BYTES, TARGET_NAMES, feature
from pared.compression.data.text import NeedsTokenizer, encoded, is_sequences, is_text
from pared.compression.data.zip_members import Member, Zip
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, UnsupportedDataset
from pared.wording import shortened

Fields = dict[str, Any]
"""Of all samples, by name: an array of numbers (samples, …), or a list of words, texts or lists."""

LABEL_NAMES = (*TARGET_NAMES, "labels", "tags", "ner_tags")
TOKENIZER = "tokenizer.json"
SUFFIXES = (".jsonl", ".ndjson", ".parquet")
_MAX_UNPACKED = 8 << 30  # bytes that a Parquet file may claim to unpack to


def is_parquet(head: bytes, size: int) -> bool:
    """Whether a file that begins so is a Parquet file."""
    return head.startswith(b"PAR1")


def is_json_lines(head: bytes, size: int) -> bool:
    """Whether a file that begins so holds JSON objects."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \r\n\t").startswith(b"{")


def read_file(file: DatasetFile) -> Stored:
    """One file of records.

    Raises:
        UnsupportedDataset: damaged, or no records.
        InvalidData: fields are missing, mixed or empty; texts, for which a tokenizer is needed.
    """
    assert file.path is not None  # noqa: S101 - its content was looked at
    if file.path.stat().st_size > MAX_BYTES:
        raise InvalidData("A file of records may have at most 1 GiB. Save numbers as .npz, which is also smaller.")
    content = file.path.read_bytes()
    return _stored({"train": _fields(content)}, _kind(content), None, file.tokenizer)


def is_archive(names: list[str]) -> bool:
    """Whether a zip with members of these names holds records."""
    return any(name.lower().endswith(SUFFIXES) for name in names)


def read_archive(archive: Zip, file: DatasetFile) -> Stored:
    """A zip with one file of records, or one for each split (train, val, test), and perhaps a `tokenizer.json`.

    Raises:
        UnsupportedDataset, InvalidData: as `read_file`; several files of one split.
    """
    members: dict[Split, Member] = {}
    tokenizer: Member | None = None
    records = []
    for member in archive.members:
        path = PurePosixPath(member.name)
        if path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        if path.name == TOKENIZER:
            tokenizer = member
        elif path.suffix.lower() in SUFFIXES:
            records.append((path, member))
    for path, member in records:
        # As data sets on hubs are named: train.jsonl, and train-00000-of-00001.parquet.
        split = SPLIT_NAMES.get(path.stem.lower().split("-")[0]) or ("train" if len(records) == 1 else None)
        if split is None or split in members:
            raise InvalidData(
                f"The zip holds {shortened([str(each) for each, _ in records])}: name one file of each split train, "
                "val or test, with the ending of its format, such as train.jsonl and test.jsonl."
            )
        members[split] = member
    if "train" not in members:
        raise InvalidData("The zip has a val or test file but no train file.")
    if sum(member.size for member in members.values()) > MAX_BYTES:
        raise InvalidData("Files of records may have at most 1 GiB together.")
    contents = {split: _unpacked(archive, members[split]) for split in SPLITS if split in members}
    fields = {split: _fields(content) for split, content in contents.items()}
    own = None if tokenizer is None else _unpacked(archive, tokenizer)
    return _stored(fields, _kind(contents["train"]), own, file.tokenizer)


def _unpacked(archive: Zip, member: Member) -> bytes:
    try:
        return archive.read(member)
    except ValueError as error:
        raise UnsupportedDataset(f"This zip is damaged: {error}. Save and upload it again.") from error


# -- fields -----------------------------------------------------------------------------------------


def _kind(content: bytes) -> str:
    return "parquet" if is_parquet(content[:4], len(content)) else "jsonl"


def _fields(content: bytes) -> Fields:
    columns = _parquet(content) if is_parquet(content[:4], len(content)) else _json_lines(content)
    if not columns or not len(next(iter(columns.values()))):
        raise UnsupportedDataset(f"This file holds no records. {FORMATS}")
    return {name: _checked(name, values) for name, values in columns.items()}


def _json_lines(content: bytes) -> Fields:
    columns: dict[str, list[Any]] = {}
    count = 0
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UnsupportedDataset(f"This is not UTF-8 text: {error}. {FORMATS}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnsupportedDataset(
                f"Line {number} is no JSON by itself ({str(error)[:100]}). Save one object a line (JSON lines)."
            ) from error
        if not isinstance(record, dict) or not record:
            raise InvalidData(f'Line {number} holds no fields: each line is an object such as {{"text": "…"}}.')
        if count and record.keys() != columns.keys():
            name = next(iter(record.keys() ^ columns.keys()))
            where = "is not in the lines before it" if name in record else "is missing"
            raise InvalidData(f"Line {number}: the field {name[:60]!r} {where}. All lines have the same fields.")
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
        count += 1
    return dict(columns)


def _parquet(content: bytes) -> Fields:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedDataset(
            "Parquet files need the package pyarrow, which this worker lacks: install pared with the extra `text`."
        ) from error
    columns: Fields = {}
    try:
        opened = parquet.ParquetFile(pa.BufferReader(content))
        groups = opened.metadata.num_row_groups
        claimed = sum(opened.metadata.row_group(index).total_byte_size for index in range(groups))
        _check_size(claimed)
        table = opened.read(use_threads=False)
        for name in dict.fromkeys(table.column_names):
            column = table.column(name)
            number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            columns[name] = column.to_numpy() if number and not column.null_count else column.to_pylist()
    except InvalidData:
        raise
    except Exception as error:
        raise UnsupportedDataset(
            f"This Parquet file does not open: {str(error)[:200]}. Save and upload it again."
        ) from error
    return columns


def _check_size(claimed: int) -> None:
    if claimed > _MAX_UNPACKED:
        raise InvalidData(f"The Parquet file unpacks to {claimed:,} bytes; the most we take is {_MAX_UNPACKED:,}.")


def _checked(name: str, values: Any) -> Any:
    """Numbers as an array, words and lists as they are."""
    if isinstance(values, np.ndarray):
        return values
    missing = [row for row, value in enumerate(values, 1) if value is None or value == ""]
    if missing:
        raise InvalidData(
            f"The field {name[:60]!r} is empty in {len(missing)} records, the first of them number {missing[0]}. Fill "
            "it in, or leave those records out."
        )
    kinds = [int if isinstance(value, (bool, int)) else type(value) for value in values]
    kind = float if set(kinds) == {int, float} else kinds[0]
    odd = next(
        (row for row, each in enumerate(kinds) if each is not kind and not (kind is float and each is int)), None
    )
    if odd is not None:
        raise InvalidData(
            f"The field {name[:60]!r} holds {_words(kinds[0])} in record 1 and {_words(kinds[odd])} in record "
            f"{odd + 1}."
        )
    if kind in (int, float):
        return _numbers(name, values, kind)
    if kind not in (str, list):
        raise InvalidData(f"The field {name[:60]!r} holds {_words(kind)}: numbers, words, texts and lists are taken.")
    return values


def _numbers(name: str, values: list[Any], kind: type) -> Array:
    try:
        return np.array(values, dtype=np.int64 if kind is int else np.float64)
    except OverflowError as error:
        raise InvalidData(f"The field {name[:60]!r} holds integers beyond int64.") from error


def _words(kind: type) -> str:
    return {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(kind, kind.__name__)


# -- what they are ------------------------------------------------------------------------------------


def _stored(by_split: dict[Split, Fields], kind: str, own: bytes | None, others: bytes | None) -> Stored:
    """What the fields of all splits hold, with the same names and types in each.

    Args:
        own: the tokenizer that came with them.
        others: one for texts that came without.
    """
    train = by_split["train"]
    for split, fields in by_split.items():
        if fields.keys() != train.keys():
            name = next(iter(fields.keys() ^ train.keys()))
            raise InvalidData(
                f"The field {name[:60]!r} is not in both train and {split}: all splits have the same ones."
            )
        for name, values in fields.items():
            if isinstance(values, np.ndarray) != isinstance(train[name], np.ndarray):
                raise InvalidData(f"The field {name[:60]!r} holds numbers and no numbers, in train and in {split}.")
    counts = [len(next(iter(fields.values()))) for fields in by_split.values()]
    ends = [0, *np.cumsum(counts).tolist()]
    joined = {name: _joined([fields[name] for fields in by_split.values()]) for name in train}
    label = next((name for name in joined if name.lower() in LABEL_NAMES), None)
    try:
        inputs, targets, stored = _content(joined, label, kind, own)
    except NeedsTokenizer:
        if others is None:
            raise
        inputs, targets, stored = _content(joined, label, kind, others)
    for split, (begin, end) in zip(by_split, pairwise(ends), strict=True):
        stored.inputs[split] = [_part(rows, begin, end) for rows in inputs]
        if targets is not None:
            stored.targets[split] = _part(targets, begin, end)
    return stored


def _content(
    fields: Fields, label: str | None, kind: str, tokenizer: bytes | None
) -> tuple[list[Any], Any | None, Stored]:
    """Inputs and targets of all records, and what belongs to all splits."""
    if tokenizer is None and not any(is_sequences(name, values) for name, values in fields.items() if name != label):
        features, targets, notes = _table(fields)
        return [features], targets, Stored(kind, {}, {}, notes=notes)
    text = encoded(fields, label, tokenizer)
    return [text.tokens, text.tokens.lengths], text.labels, text.stored(kind)


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [each for part in parts for each in part]


def _part(rows: Any, begin: int, end: int) -> Any:
    return rows[begin:end] if isinstance(rows, np.ndarray) else rows.rows(begin, end)


def _table(fields: Fields) -> tuple[Array, Array | None, list[str]]:
    """Features (samples, …), targets where there are several fields, and notes."""
    notes: list[str] = []
    target = next((name for name in fields if name.lower() in TARGET_NAMES), None)
    if target is None and len(fields) > 1:
        target = list(fields)[-1]
        notes.append(f"No field is called {', '.join(TARGET_NAMES)}, so the last one, {target[:60]!r}, is the target.")
    parts = []
    for name, values in fields.items():
        if name == target:
            continue
        if is_text(name, values):
            raise NeedsTokenizer.of(name)
        parts.append(_feature(name, values, notes))
    if not parts:
        raise InvalidData(
            f"The only field, {str(target)[:60]!r}, is the target, so there are no inputs. Add their fields."
        )
    features = np.concatenate(parts, axis=1)
    if features.size > MAX_ELEMENTS:
        raise InvalidData(f"The table becomes over {MAX_ELEMENTS:,} numbers, the most we take.")
    return features, None if target is None else _target(target, fields[target]), notes


def _feature(name: str, values: Any, notes: list[str]) -> Array:
    if isinstance(values, np.ndarray):
        return values.astype(np.float64)[:, None]
    if isinstance(values[0], str):
        return feature(name, values, notes)
    return _vectors(name, values)


def _target(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray):
        return values
    return np.array(values) if isinstance(values[0], str) else _vectors(name, values)


def _vectors(name: str, values: list[list[Any]]) -> Array:
    """Lists of as many numbers in each record: (samples, numbers)."""
    sizes = {len(each) for each in values}
    try:
        if len(sizes) == 1 and sizes != {0}:
            vectors = np.array(values)
            if vectors.dtype.kind in "biuf" and vectors.ndim == 2:
                return vectors.astype(np.float64) if vectors.dtype.kind == "f" else vectors
    except ValueError:
        pass
    raise InvalidData(
        f"The field {name[:60]!r} holds lists that are no vectors: each record needs a list of as many numbers. Lists "
        "of whole numbers, in a field called tokens or input_ids, may differ in length: they are token ids."
    )
