"""Makes token ids of texts by the tokenizer that came with them, and labels of tokens of labels of words."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from pared.compression.data.columns import Array, Rows
from pared.compression.data.ragged import Ragged
from pared.compression.data.samples import Split
from pared.compression.data.stored import Stored
from pared.compression.tasks.labels import IGNORED
from pared.errors import InvalidData, UnsupportedDataset
from pared.specs import Preprocess
from pared.wording import shortened

TEXT_NAMES = ("text", "sentence", "content", "document", "tokens", "words", "input_ids", "ids", "x")
MAX_LENGTH = 512
"""Most tokens of a sample, unless a spec says otherwise."""
_IDS = ("tokens", "input_ids", "ids")
_DERIVED = ("attention_mask", "token_type_ids", "special_tokens_mask")
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
_AT_ONCE = 1000  # texts


class NeedsTokenizer(InvalidData):
    """Texts, or words, and nothing that makes token ids of them."""

    @classmethod
    def of(cls, name: str) -> NeedsTokenizer:
        """Of the field with this name."""
        return cls(
            f"The field {name[:60]!r} holds text. Upload a zip of this file and the tokenizer.json of the model, which "
            "makes token ids of it. A Hugging Face model folder brings its own."
        )


ANY_WORDS = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }
).encode()
"""A tokenizer to which all words are one, for a look at texts whose own is not there yet."""


@dataclass
class Text:
    """Samples of tokens: `tokens` with their padding, labels of samples or tokens, and what the tokenizer knows.

    `vocabulary`: how many token ids the tokenizer may give; None where the file holds token ids.
    """

    tokens: Ragged
    labels: Array | Ragged | None
    class_names: list[str] | None
    vocabulary: int | None
    padding: int
    notes: list[str] = field(default_factory=list)

    def stored(self, kind: str) -> Stored:
        """What belongs to all splits."""
        return Stored(
            kind,
            {},
            {},
            class_names=self.class_names,
            notes=self.notes,
            padding=self.padding,
            vocabulary=self.vocabulary,
        )


def is_sequences(name: str, values: Any) -> bool:
    """Whether each record of a field holds token ids, or words."""
    if isinstance(values, np.ndarray) or not isinstance(values[0], list):
        return False
    kinds = {type(each) for one in values for each in one}
    return kinds == {str} or (kinds == {int} and (name.lower() in _IDS or len(set(map(len, values))) > 1))


def is_text(name: str, values: Any) -> bool:
    """Whether a field holds texts rather than the words of some categories."""
    if isinstance(values, np.ndarray) or not isinstance(values[0], str):
        return False
    return name.lower() in TEXT_NAMES or (len(set(values)) > 64 and any(" " in value for value in values))


def encoded(fields: Mapping[str, Any], label: str | None, tokenizer: bytes | None) -> Text:
    """The tokens and labels of all records.

    Args:
        fields: of the records, one that holds texts, words or token ids among them.
        label: the field of the labels, if there is one.
        tokenizer: a `tokenizer.json`, for texts and words.

    Raises:
        NeedsTokenizer: there is none, and no field holds token ids.
        UnsupportedDataset: the tokenizer does not open, or the worker lacks the library.
        InvalidData: no field or several could be meant; labels that do not fit.
    """
    name = _text_field(fields, label)
    values = fields[name]
    left_out = [each for each in fields if each not in {name, label}]
    notes = [f"Fields that are neither text nor label were left out: {shortened(left_out)}."] if left_out else []
    loaded = None if tokenizer is None else _Tokenizer.of(tokenizer)
    labels, words, class_names = _labels(label, None if label is None else fields[label], values)
    of_tokens: list[list[int]] | None
    if isinstance(values[0], list) and not isinstance(values[0][:1], str) and not _holds_words(values):
        tokens, of_tokens = _whole_numbers(name, values), words
    elif loaded is None:
        raise NeedsTokenizer.of(name)
    else:
        texts = values if words is None or isinstance(values[0], list) else [value.split() for value in values]
        tokens, of_tokens = loaded.encode(texts, words)
    empty = next((row for row, each in enumerate(tokens, 1) if not len(each)), None)
    if empty is not None:
        raise InvalidData(f"Record {empty} has no tokens in the field {name[:60]!r}: leave it out.")
    return Text(
        Ragged.of(tokens, loaded.padding if loaded else 0),
        labels if of_tokens is None else Ragged.of(of_tokens, IGNORED),
        class_names,
        loaded.vocabulary if loaded else None,
        loaded.padding if loaded else 0,
        notes,
    )


def _text_field(fields: Mapping[str, Any], label: str | None) -> str:
    able = [
        name
        for name, values in fields.items()
        if name != label and name not in _DERIVED and not isinstance(values, np.ndarray)
    ]
    named = [name for wanted in TEXT_NAMES for name in able if name.lower() == wanted]
    if named:
        return named[0]
    if len(able) == 1:
        return able[0]
    if not able:
        raise InvalidData(
            f"No field holds text: the fields are {shortened(list(fields))}. Call the one with the text `text`."
        )
    raise InvalidData(
        f"Several fields could be the text: {shortened(able)}. Call the one that the model reads `text`, or leave out "
        "the others."
    )


def _holds_words(values: Sequence[Any]) -> bool:
    return any(isinstance(each, str) for one in values for each in one)


def _whole_numbers(name: str, values: Sequence[Sequence[Any]]) -> list[list[int]]:
    for row, one in enumerate(values, 1):
        odd = next((each for each in one if not isinstance(each, int) or abs(each) >= 1 << 62), None)
        if odd is not None:
            raise InvalidData(f"The field {name[:60]!r} holds {str(odd)[:40]!r} in record {row}, no whole number.")
    return [list(one) for one in values]


# -- labels -----------------------------------------------------------------------------------------


def _labels(name: str | None, values: Any, texts: Any) -> tuple[Array | None, list[list[int]] | None, list[str] | None]:
    """Labels of whole samples, or those of words (or token ids), and the names of the classes of the latter."""
    if name is None or isinstance(values, np.ndarray):
        return values, None, None
    if isinstance(values[0], str):
        return np.array(values), None, None
    words = [len(each.split()) if isinstance(each, str) else len(each) for each in texts]
    lengths = [len(each) for each in values]
    if words == lengths:
        if not _holds_words(values):
            return None, _whole_numbers(name, values), None
        class_names = sorted({str(each) for one in values for each in one})
        number = {each: index for index, each in enumerate(class_names)}
        return None, [[number[str(each)] for each in one] for one in values], class_names
    if len(set(lengths)) == 1 and not _holds_words(values):
        return np.array(values), None, None
    row = next(index for index, pair in enumerate(zip(words, lengths, strict=True)) if pair[0] != pair[1])
    raise InvalidData(
        f"Record {row + 1} has {words[row]} words and {lengths[row]} labels in the field {name[:60]!r}: each word "
        "needs one. Give the words as a list, too, where spaces do not separate them."
    )


# -- the tokenizer ----------------------------------------------------------------------------------


class _Tokenizer(NamedTuple):
    """A tokenizer that neither pads nor cuts: `vocabulary` is one more than its highest id."""

    model: Any
    vocabulary: int
    padding: int

    @classmethod
    def of(cls, content: bytes) -> _Tokenizer:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a job has the threads that it was given
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UnsupportedDataset(
                "Texts need the package tokenizers, which this worker lacks: install pared with the extra `text`."
            ) from error
        try:
            model = Tokenizer.from_buffer(content)
        except BaseException as error:
            _raise_unless_its_own(error)
            raise UnsupportedDataset(
                f"The tokenizer.json does not open: {str(error)[:200]}. Save it anew with tokenizer.save(…) of the "
                "library tokenizers, or save_pretrained(…) of a fast tokenizer of transformers."
            ) from error
        padding = (model.padding or {}).get("pad_id")
        known = [model.token_to_id(name) for name in _PADDING]
        model.no_padding()
        model.no_truncation()
        highest = max(model.get_vocab(with_added_tokens=True).values(), default=-1)
        return cls(model, highest + 1, next((each for each in [padding, *known] if each is not None), 0))

    def encode(
        self, texts: Sequence[Any], labels: Sequence[Sequence[int]] | None
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """The token ids of texts, or of lists of words; of labels of words, those of tokens.

        The first token of a word has its label; all others, and those that the tokenizer adds, have `IGNORED`.
        """
        tokens: list[list[int]] = []
        of_tokens: list[list[int]] = []
        try:
            for begin in range(0, len(texts), _AT_ONCE):
                part = texts[begin : begin + _AT_ONCE]
                for encoding in self.model.encode_batch(part, is_pretokenized=not isinstance(part[0], str)):
                    if labels is not None:
                        of_tokens.append(_first_of_words(encoding.word_ids, labels[len(tokens)]))
                    tokens.append(encoding.ids)
        except BaseException as error:
            _raise_unless_its_own(error)
            raise InvalidData(
                f"The tokenizer fails on record {len(tokens) + 1} or one soon after it: {str(error)[:200]}."
            ) from error
        return tokens, None if labels is None else of_tokens


def _raise_unless_its_own(error: BaseException) -> None:
    """What is no failure of the tokenizer goes on; the library's Rust code panics with a BaseException of its own."""
    if isinstance(error, MemoryError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        raise error


def _first_of_words(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    found, before = [], None
    for word in words:
        found.append(IGNORED if word is None or word == before else labels[word])
        before = word
    return found


# -- in a job ---------------------------------------------------------------------------------------


def cut(stored: Stored, preprocess: Preprocess | None) -> Stored:
    """The same texts with at most so many tokens, all splits in rows of one width; notes say how many were cut.

    Raises:
        InvalidData: `max_length` is given, and the data set holds no texts.
    """
    most = None if preprocess is None else preprocess.max_length
    if stored.padding is None:
        if most is not None:
            raise InvalidData("`preprocess.max_length` cuts texts, and this data set holds none: leave it out.")
        return stored
    tokens = {split: rows for split, (rows, _) in stored.inputs.items() if isinstance(rows, Ragged)}
    width = min(most or MAX_LENGTH, max(rows.longest for rows in tokens.values()))
    longer = sum(rows.longer_than(width) for rows in tokens.values())
    notes = list(stored.notes)
    if longer:
        total = sum(rows.shape[0] for rows in tokens.values())
        notes.append(
            f"{longer:,} of {total:,} texts have more than {width:,} tokens; the rest of them was left out. "
            "`preprocess.max_length` says how many are kept."
        )
    inputs: dict[Split, list[Rows]] = {
        split: [rows.cut(width), rows.cut(width).lengths] for split, rows in tokens.items()
    }
    targets: dict[Split, Rows] = {
        split: rows.cut(width) if isinstance(rows, Ragged) else rows for split, rows in stored.targets.items()
    }
    return replace(stored, inputs=inputs, targets=targets, notes=notes)


def next_tokens(stored: Stored) -> Stored:
    """Texts with the token that follows each one as its label, which is what a language model learns.

    Raises:
        InvalidData: no texts, or none of two tokens.
    """
    tokens = {split: rows[0] for split, rows in stored.inputs.items()}
    targets = {split: rows.following() for split, rows in tokens.items() if isinstance(rows, Ragged)}
    if len(targets) < len(tokens):
        raise InvalidData(
            "A language model learns from texts: upload .jsonl or .parquet with the model's tokenizer.json."
        )
    if not any(rows.longest for rows in targets.values()):
        raise InvalidData("No text of this data set has two tokens, so that there is nothing to predict.")
    return replace(stored, targets=dict(targets), class_names=None)
