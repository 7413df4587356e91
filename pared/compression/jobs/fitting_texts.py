"""Holds a model that reads texts against them: the tokenizer's vocabulary, the attention mask, the lengths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pared.compression.data.columns import token_range
from pared.compression.data.first_layer import embedding_of
from pared.compression.data.samples import Data
from pared.compression.loading import LoadedModel, arguments_of
from pared.errors import InvalidData, ShapeMismatch

_OTHER_INPUTS = ("type", "segment", "position", "padding_mask", "target", "label")


def fit_texts(loaded: LoadedModel, data: Data) -> None:
    """Decide whether the model gets a mask of its tokens, and hold its embedding against the tokenizer.

    Raises:
        InvalidData: the tokenizer gives ids that the model's embedding does not hold.
        ShapeMismatch: the model takes inputs that texts do not have, or not those of another model of the job.
    """
    _check_vocabulary(loaded.module, data)
    masked = takes_mask(arguments_of(loaded))
    if data.masked and not masked:
        raise ShapeMismatch("The student takes no mask of the tokens, and its teacher does: let both take the same.")
    data.masked = masked
    note = (
        f"Texts are padded by the id {data.padding} up to the longest of each batch, and the model takes no attention "
        "mask as a second input: it must know this padding by itself."
    )
    if not masked and note not in data.warnings and _differ_in_length(data):
        data.warnings.append(note)


def takes_mask(arguments: Sequence[tuple[str, bool]] | None) -> bool:
    """Whether a model of these arguments, and whether each must be given, gets a mask beside token ids.

    Raises:
        ShapeMismatch: it takes something else.
    """
    names = _inputs(arguments)
    masked = len(names) == 2
    if len(names) > 2 or (masked and any(word in names[1].lower() for word in _OTHER_INPUTS)):
        raise ShapeMismatch(
            f"The model takes {', '.join(names)}. Of texts pared gives token ids, and a mask with 1 for tokens and 0 "
            "for padding where the model takes two inputs. Wrap the model so that it makes all else itself."
        )
    return masked


def too_long(loaded: LoadedModel, data: Data) -> InvalidData | None:
    """What to say where a model fails with an index out of range though its embedding holds all tokens."""
    embedding = embedding_of(loaded.module)
    if data.padding is None or embedding is None:
        return None
    highest = max(token_range(columns[0]).high for columns in data.inputs.values())
    if highest >= embedding[1]:
        return None
    width = data.inputs["train"][0].shape[1]
    return InvalidData(
        f"The texts have up to {width:,} tokens, and the model fails on as many: an index is out of range, though its "
        "embedding holds every token. If it knows fewer positions, say how many tokens to keep: preprocess.max_length."
    )


def _check_vocabulary(module: nn.Module, data: Data) -> None:
    embedding = embedding_of(module)
    if data.vocabulary is None or embedding is None:
        return
    name, rows = embedding
    says = f"The tokenizer has {data.vocabulary:,} tokens, and the model's embedding {name} holds {rows:,}"
    if data.vocabulary > rows:
        raise InvalidData(f"{says}. Upload the tokenizer.json that the model was trained with.")
    # Embeddings are often rounded up, for the sake of speed.
    note = f"{says}. If they do not belong together, token ids mean something else to the model."
    if rows - data.vocabulary > max(1024, data.vocabulary // 10) and note not in data.warnings:
        data.warnings.append(note)


def _inputs(arguments: Sequence[tuple[str, bool]] | None) -> list[str]:
    """The names of the inputs that a model needs, and of a mask that it may be given."""
    arguments = arguments or [("tokens", True)]
    needed = [name for name, must in arguments if must]
    if len(needed) == 1 and len(arguments) > 1 and "attention_mask" in arguments[1][0]:
        needed.append(arguments[1][0])
    return needed


def _differ_in_length(data: Data) -> bool:
    ranges = [token_range(columns[1]) for columns in data.inputs.values()]
    return min(each.low for each in ranges) < max(each.high for each in ranges)
