"""Reads a table from text: finds delimiter, header and target column, and makes numbers of words."""

from __future__ import annotations

import csv
import warnings

import numpy as np

from pared.compression.data.columns import Array
from pared.compression.data.stored import FORMATS, MAX_ELEMENTS, Stored
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, UnsupportedDataset

MAX_BYTES = 1 << 30
MAX_CATEGORIES = 64
TARGET_NAMES = ("y", "target", "label", "class")


def read_csv(file: DatasetFile) -> Stored:
    """A table with one sample a row: the column called y, target, label or class is the target, else the last.

    Columns of words become one column of 0 and 1 for each of their values; a target of words becomes classes in
    alphabetical order.

    Raises:
        UnsupportedDataset: not text, or no table.
        InvalidData: empty cells, rows of unequal length, too many different words.
    """
    path = file.path
    assert path is not None  # noqa: S101 - its content was looked at
    if path.stat().st_size > MAX_BYTES:
        raise InvalidData("A table may have at most 1 GiB of text. Save it as .npz, which is also smaller.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedDataset(f"This is neither UTF-8 text nor any other data set we know. {FORMATS}") from error
    delimiter = _delimiter(text)
    first_rows = _rows(text[: 1 << 20].splitlines()[:200], delimiter)
    header = first_rows[0] if _has_header(first_rows) else None
    width = len(first_rows[0])
    if width < 2:
        raise UnsupportedDataset(f"This text has a single column, so it is no table of inputs and targets. {FORMATS}")
    names = [name.strip() for name in header] if header else [f"column {number}" for number in range(1, width + 1)]
    target = next((i for i, name in enumerate(names) if header and name.lower() in TARGET_NAMES), width - 1)
    notes = [] if header else ["No header was found, so the first row is a sample and the last column is the target."]

    numbers = _all_numbers(text, delimiter, width, skip=1 if header else 0)
    if numbers is not None:
        features = np.delete(numbers, target, axis=1)
        return Stored("csv", {"train": [features]}, {"train": numbers[:, target]}, notes=notes)

    columns = _columns(text, delimiter, names, skip=1 if header else 0)
    parts = [
        feature(name, cells, notes) for i, (name, cells) in enumerate(zip(names, columns, strict=True)) if i != target
    ]
    features = np.concatenate(parts, axis=1)
    if features.size > MAX_ELEMENTS:
        raise InvalidData(f"The table becomes over {MAX_ELEMENTS:,} numbers, the most we take.")
    return Stored("csv", {"train": [features]}, {"train": _target(columns[target])}, notes=notes)


def _delimiter(text: str) -> str:
    """The separator that occurs most often in the first line that holds anything."""
    first = next((line for line in text[: 1 << 20].splitlines() if line.strip()), "")
    return max(",;\t|", key=first.count)


def _rows(lines: list[str], delimiter: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row] or [[]]
    except csv.Error as error:
        raise UnsupportedDataset(f"This text is no table: {error}. {FORMATS}") from error


def _has_header(rows: list[list[str]]) -> bool:
    """A first row without any number, or with a word over a column of numbers."""
    first, rest = rows[0], rows[1:]
    if not rest or not any(_is_number(cell) for cell in first):
        return bool(rest)
    return any(
        not _is_number(cell) and all(len(row) > i and _is_number(row[i]) for row in rest)
        for i, cell in enumerate(first)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _all_numbers(text: str, delimiter: str, width: int, *, skip: int) -> Array | None:
    """The whole table, where every cell is a number: the quick way."""
    lines = [line for line in text.splitlines() if line.strip()][skip:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = np.loadtxt(lines, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
    except ValueError:
        return None
    return table if table.shape[1:] == (width,) else None


def _columns(text: str, delimiter: str, names: list[str], *, skip: int) -> list[list[str]]:
    rows = _rows(text.splitlines(), delimiter)[skip:]
    for number, row in enumerate(rows, start=skip + 1):
        if len(row) != len(names):
            raise InvalidData(f"Row {number} has {len(row)} cells, the first has {len(names)}. Is a quote missing?")
    columns = [[row[i].strip() for row in rows] for i in range(len(names))]
    for name, cells in zip(names, columns, strict=True):
        empty = [i for i, cell in enumerate(cells) if not cell]
        if empty:
            raise InvalidData(
                f"The column {name[:60]!r} has {len(empty)} empty cells, the first in row {empty[0] + skip + 1}. Fill "
                "them in, or leave those rows out."
            )
    return columns


def feature(name: str, cells: list[str], notes: list[str]) -> Array:
    """One column of numbers, or one of 0 and 1 for each word: (rows, 1 or number of words)."""
    try:
        return np.array([float(cell) for cell in cells])[:, None]
    except ValueError:
        words, index = np.unique(np.array(cells), return_inverse=True)
    if len(words) > MAX_CATEGORIES:
        example = next(cell for cell in cells if not _is_number(cell))
        raise InvalidData(
            f"The column {name[:60]!r} has {len(words)} different words (such as {example[:40]!r}), too many to make a "
            f"column of each (at most {MAX_CATEGORIES}). Leave it out, or turn it into numbers first."
        )
    notes.append(f"The column {name[:60]!r} became {len(words)} columns of 0 and 1: {', '.join(words)[:200]}.")
    return np.eye(len(words))[index]


def _target(cells: list[str]) -> Array:
    """Numbers, or the words of classes."""
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(cells)
