"""Owns which jobs go layer by layer through a decoder, how much they leave of it, and what is said of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pared.compression.decoders.config import EMBEDDING, HEAD, LAYERS, PROJECTIONS, Decoder, is_decoder
from pared.compression.decoders.scoring import Kept, Widths, names_of, widths
from pared.compression.decoders.stored import StoredDecoder
from pared.compression.decoders.writing import removed_of, shapes_of, written_bytes
from pared.compression.jobs.prune_job import check_patterns
from pared.compression.loading.file_format import folder_entries, recognise
from pared.compression.loading.folders.contents import read_contents, weight_files
from pared.compression.names import layer_of
from pared.compression.pruning.schedules import Amounts
from pared.compression.report.verdict import goal_sentence
from pared.compression.work import ModelFile
from pared.errors import NothingToPrune, ParedError, ValidationError
from pared.reports import Goal, LayerReport
from pared.specs import PruneSpec
from pared.specs.streaming import GRANULARITIES, needs_whole_model

STREAMED_FROM_BYTES = 2 << 30
"""Weights above it are not built as a whole unless a job needs that: in float32, traced and pruned they are many times
as large."""
_STAYS = "the vocabulary and the hidden width stay where a decoder is pruned layer by layer"


def is_streamed(spec: PruneSpec, file: ModelFile) -> bool:
    """Whether the job goes layer by layer.

    Raises:
        ValidationError: the spec asks for it, and the model is no folder.
    """
    if spec.streamed is False or spec.granularity not in GRANULARITIES:
        return False
    if recognise(file.path) != "huggingface":
        if not spec.streamed:
            return False
        text = "is of uploaded Hugging Face model folders, which this model is not: leave it out"
        raise ValidationError(f"`streamed` {text}.", errors=[{"pointer": "/streamed", "detail": text}])
    return bool(spec.streamed) or (not needs_whole_model(spec) and is_large_decoder(file))


def is_large_decoder(file: ModelFile) -> bool:
    """Whether a folder holds a decoder that is read layer by layer, of weights too large to be built as a whole."""
    try:
        contents = read_contents(file.path, folder_entries(file.path))
        if not is_decoder(contents.config):
            return False
        shards = weight_files(contents)
    except ParedError:
        return False  # told on opening
    return all(name.endswith(".safetensors") for name in shards) and (
        sum(contents.sizes[name] for name in shards) > STREAMED_FROM_BYTES
    )


def left_of(spec: PruneSpec, stored: StoredDecoder, upload_bytes: int) -> tuple[Widths, float]:
    """How much stays, and the amount that this comes from: that of the spec, or the least that meets its target.

    Raises:
        NothingToPrune: nothing can go.
        ValidationError: a pattern matches no layer.
    """
    decoder = stored.decoder
    check_patterns(spec, [*names_of(decoder), *(f"{LAYERS}.{layer}" for layer in range(decoder.layers))])

    def at(amount: float) -> Widths:
        return widths(
            decoder,
            spec.granularity,
            Amounts(amount, spec.amounts),
            include=spec.include,
            exclude=spec.exclude,
            round_to=spec.round_to,
        )

    if spec.target is None:
        assert spec.amount is not None  # noqa: S101 - the spec asks for one of the two
        return at(spec.amount), spec.amount
    steps = decoder.inner if spec.granularity == "channel" else decoder.groups
    allowed, whole = spec.target.sizes, sizes_of(stored, first_of(decoder, every(decoder)))

    def meets(step: int) -> bool:
        try:
            parameters, weight_bytes = sizes_of(stored, first_of(decoder, at(step / steps)))
        except NothingToPrune:
            return False
        file_bytes = upload_bytes - whole[1] + weight_bytes
        reached = {"params": parameters / whole[0], "file_bytes": file_bytes / upload_bytes}
        return all(reached[name] <= share for name, share in allowed.items())

    low, high = 0, steps - 1  # `low` does not meet it; more always leaves less
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return at(high / steps), high / steps


def goal_of(spec: PruneSpec, amount: float, params: float, file_bytes: float) -> Goal | None:
    """What the report says of the spec's target. `params`, `file_bytes`: the shares that are left."""
    if spec.target is None:
        return None
    left = {"params": params, "file_bytes": file_bytes}
    reached = {name: left[name] for name in spec.target.sizes}
    return Goal(
        status="infeasible" if spec.target.missed(reached) else "met",
        target=spec.target.goals,
        reached=reached,
        amount=amount,
        round_to=spec.round_to,
        sentence=goal_sentence(spec.target, reached, None, None, None),
    )


def every(decoder: Decoder) -> Widths:
    """All of a decoder."""
    return Widths(decoder.inner, decoder.groups, decoder.layers)


def first_of(decoder: Decoder, left: Widths) -> Kept:
    """The first units and layers, as many as stay: which ones they are changes no size."""
    return Kept(
        list(range(left.layers)),
        [torch.arange(left.inner)] * decoder.layers,
        [torch.arange(left.groups)] * decoder.layers,
    )


def sizes_of(stored: StoredDecoder, kept: Kept) -> tuple[int, int]:
    """Parameters and bytes of the weights that stay; an output layer that is the embedding counts once."""
    shapes = shapes_of(stored, kept)
    counted = [shape for name, shape in shapes.items() if not (stored.decoder.tied and name == HEAD)]
    return sum(map(math.prod, counted)), written_bytes(stored, kept)


def macs_of(decoder: Decoder, tokens: int) -> int:
    """Multiply-adds of one text of so many tokens: matrix products, and those of the attention."""
    linear = sum(decoder.size(rows) * decoder.size(columns) for rows, columns in PROJECTIONS.values())
    attention = 2 * decoder.size("heads") * tokens
    return tokens * (decoder.layers * (linear + attention) + decoder.vocabulary * decoder.hidden)


def layer_reports(
    stored: StoredDecoder, kept: Kept, zeros: Mapping[str, int], granularity: str
) -> Iterator[LayerReport]:
    """Each matrix before and after. `zeros`: of what is left of each tensor of the upload."""
    shapes = shapes_of(stored, kept)
    for name, place in stored.places.items():
        before = place.entry.shape
        if len(before) < 2:
            continue
        after = shapes.get(name, (0, *before[1:]))
        removed = removed_of(stored, kept, name)
        yield LayerReport(
            name=layer_of(name),
            shape_before=list(before),
            shape_after=list(after),
            sparsity=zeros.get(name, 0) / max(math.prod(after), 1),
            removed_units=removed.get("0"),
            reason=None if removed else _why_whole(name, granularity),
        )


def _why_whole(name: str, granularity: str) -> str:
    if name in (EMBEDDING, HEAD):
        return _STAYS
    if granularity == "residual_block":
        return "its layer stays"
    if "mlp" in name and granularity == "head":
        return "heads alone go"
    return "all layers keep the same widths, and this one stays by the amount or the patterns"


def removed(stored: StoredDecoder, kept: Kept) -> dict[str, dict[str, Any]]:
    """Tensor -> dimension -> what goes of it, in the upload's numbering."""
    found = {name: removed_of(stored, kept, name) for name in stored.places}
    return {name: dims for name, dims in found.items() if dims}
