"""Runs a stored decoder on texts, one layer at a time for all of them: hidden states wait on disk in between."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.decoders.config import EMBEDDING, HEAD, LAYERS, NORM, Decoder, Rotary
from pared.compression.decoders.stored import StoredDecoder
from pared.errors import ModelFailed

IGNORED = -100
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True)
class Sample:
    """A text: token ids (T,), and the token that follows each one (T,), `IGNORED` where there is none."""

    tokens: Tensor
    targets: Tensor
    is_seen: bool
    """Whether importance is read off it; of others the loss is wanted."""


class Layer:
    """The tensors of one layer, in the one buffer that all layers are read into in turn."""

    def __init__(self, stored: StoredDecoder) -> None:
        """Make room for the largest layer."""
        self._stored = stored
        self._buffer = torch.empty(stored.layer_bytes() + 64 * 32, dtype=torch.uint8)
        self.block_bytes = max(_LEAST_BYTES, stored.layer_bytes() // 32)
        self.tensors: dict[str, Tensor] = {}
        self.index = -1

    def load(self, index: int) -> None:
        """Read another layer."""
        self.index, self.tensors, begin = index, {}, 0
        for name in self._stored.of_layer(index):
            whole = f"{LAYERS}.{index}.{name}"
            shape, dtype = self._stored.shape(whole), self._stored.dtype(whole)
            end = begin + math.prod(shape) * dtype.itemsize
            tensor = self._buffer[begin:end].view(dtype).view(shape)
            self._stored.read(whole, tensor)
            self.tensors[name] = tensor
            begin = -(-end // 64) * 64

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The rows of a weight in blocks, in float32."""
        return _blocks(self.tensors[name], self.block_bytes)


@dataclass
class Seen:
    """What a layer did to the texts whose importance counts.

    Attributes:
        heads, inner: Σx² of each number that the attention, and each channel that the MLP hands on.
        added: Σ of ‖f(x)‖ / ‖x‖ over tokens, x what comes into the layer and f what it adds.
        tokens: how many there were.
    """

    heads: Tensor
    inner: Tensor
    added: float = 0.0
    tokens: int = 0


@dataclass
class Running:
    """One pass of texts through a decoder. `tick` is called at least every few seconds of work."""

    stored: StoredDecoder
    samples: Sequence[Sample]
    tick: Callable[[], None] = lambda: None
    _states: _States = field(init=False)
    _chunks: list[range] = field(init=False)

    def __post_init__(self) -> None:
        decoder = self.stored.decoder
        per_token = 4 * (6 * decoder.hidden + 3 * decoder.size("heads") + 2 * decoder.size("groups"))
        room = max(8 * _LEAST_BYTES, self.stored.layer_bytes() // 5)
        self._chunks = list(_chunks(self.samples, room // per_token))
        self._states = _States([len(sample.tokens) for sample in self.samples], decoder.hidden)

    def embed(self) -> None:
        """Put the embeddings of all tokens on disk."""
        for chunk in self._chunks:
            tokens = torch.cat([self.samples[index].tokens for index in chunk])
            states = torch.empty(len(tokens), self.stored.decoder.hidden)
            for place, token in enumerate(tokens.tolist()):
                states[place] = self.stored.rows(EMBEDDING, token, token + 1)[0]
            self._states.write(chunk, states)
            self.tick()

    def through(self, layer: Layer, *, observed: bool) -> Seen:
        """Take all texts through a layer. `observed`: whether to look at what it does."""
        decoder = self.stored.decoder
        heads, inner = (torch.zeros(decoder.size(axis), dtype=torch.float64) for axis in ("heads", "inner"))
        seen = Seen(heads, inner)
        for chunk in self._chunks:
            states = self._states.read(chunk)
            lengths = [len(self.samples[index].tokens) for index in chunk]
            counts = observed and self.samples[chunk[0]].is_seen
            before = states.clone() if counts else states
            _attend(decoder, layer, states, lengths, seen.heads if counts else None)
            self.tick()
            _multiply(decoder, layer, states, seen.inner if counts else None)
            if counts:
                seen.added += float(((states - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)).sum())
                seen.tokens += len(states)
            self._states.write(chunk, states)
            self.tick()
        return seen

    def losses(self) -> Tensor:
        """Of each text that is not seen: Σ of the loss in nats, labelled tokens, right tokens: (texts, 3).

        Raises:
            ModelFailed: the decoder's answers are no finite numbers.
        """
        found = [row for chunk in self._chunks if not self.samples[chunk[0]].is_seen for row in self._losses_of(chunk)]
        return torch.tensor(found, dtype=torch.float64).reshape(-1, 3)

    def _losses_of(self, chunk: range) -> list[list[float]]:
        stored, decoder = self.stored, self.stored.decoder
        weight = stored.rows(NORM, 0, decoder.hidden).float()
        states = _normed(self._states.read(chunk), weight, decoder.epsilon)
        targets = torch.cat([self.samples[index].targets for index in chunk])
        head = HEAD if HEAD in stored.places else EMBEDDING
        best = torch.full((len(states),), -math.inf)
        answer = torch.zeros(len(states), dtype=torch.int64)
        total, wanted = torch.zeros(len(states)), torch.zeros(len(states))
        for begin, block in stored.blocks(head, max(_LEAST_BYTES, stored.layer_bytes() // 32)):
            logits = states @ block.float().T  # (tokens, rows of the block)
            if not bool(logits.isfinite().all()):
                raise ModelFailed(
                    "The decoder answers NaN or infinity to the texts, computed in float32: its weights, or its "
                    "config.json, are not those that it was trained with."
                )
            top, place = logits.max(1)
            higher = torch.maximum(best, top)
            total = total * (best - higher).exp() + (logits - higher[:, None]).exp().sum(1)
            answer = torch.where(top > best, place + begin, answer)
            best = higher
            inside = (targets >= begin) & (targets < begin + len(block))
            wanted[inside] = logits[inside, targets[inside] - begin]
            self.tick()
        labelled = targets != IGNORED
        losses = ((best + total.log()) - wanted).double().masked_fill(~labelled, 0.0)
        columns = torch.stack([losses, labelled.double(), (labelled & (answer == targets)).double()], 1)
        lengths = [len(self.samples[index].tokens) for index in chunk]
        return [part.sum(0).tolist() for part in torch.split(columns, lengths)]

    def close(self) -> None:
        """Give the disk back."""
        self._states.close()


class _States:
    """Hidden states of all texts in one file, float32, which is gone with the process."""

    def __init__(self, lengths: Sequence[int], hidden: int) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` does
        self._starts = [0]
        for length in lengths:
            self._starts.append(self._starts[-1] + length)
        self._hidden = hidden

    def read(self, chunk: range) -> Tensor:
        begin, end = self._starts[chunk.start], self._starts[chunk.stop]
        states = torch.empty(end - begin, self._hidden)
        self._file.seek(begin * self._hidden * 4)
        view = states.view(-1).view(torch.uint8).numpy().data
        while view:
            view = view[self._file.readinto(view) :]
        return states

    def write(self, chunk: range, states: Tensor) -> None:
        self._file.seek(self._starts[chunk.start] * self._hidden * 4)
        view = states.contiguous().view(-1).view(torch.uint8).numpy().data
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        self._file.close()


def _chunks(samples: Sequence[Sample], most_tokens: int) -> Iterator[range]:
    """Whole texts that are run together, alike in what is wanted of them."""
    begin, tokens = 0, 0
    for index, sample in enumerate(samples):
        apart = index > begin and (
            tokens + len(sample.tokens) > most_tokens or sample.is_seen != samples[begin].is_seen
        )
        if apart:
            yield range(begin, index)
            begin, tokens = index, 0
        tokens += len(sample.tokens)
    if samples:
        yield range(begin, len(samples))


# -- one layer --------------------------------------------------------------------------------------


def _attend(decoder: Decoder, layer: Layer, states: Tensor, lengths: Sequence[int], seen: Tensor | None) -> None:
    """Add what the attention gives, in place: (tokens, hidden). `seen`: takes Σx² of what its output layer reads."""
    normed = _normed(states, layer.tensors["input_layernorm.weight"].float(), decoder.epsilon)
    size = decoder.head_dim
    queries, keys, values = (_linear(layer, f"self_attn.{name}_proj", normed) for name in "qkv")
    del normed
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    assert decoder.rotary is not None  # noqa: S101 - whoever runs it has looked
    cosine, sine = _positions(decoder.rotary, size, max(lengths))
    for begin, end in pairwise(ends):
        length = end - begin
        query, key = (
            _turned(each[begin:end].view(length, -1, size).transpose(0, 1), cosine[:length], sine[:length])
            for each in (queries, keys)
        )  # (heads, tokens, size)
        value = values[begin:end].view(length, -1, size).transpose(0, 1)
        shared = decoder.heads_of_group
        mixed = functional.scaled_dot_product_attention(
            query[None],
            key.repeat_interleave(shared, 0)[None],
            value.repeat_interleave(shared, 0)[None],
            is_causal=True,
        )[0]
        queries[begin:end] = mixed.transpose(0, 1).reshape(length, -1)  # in the place of what is no longer needed
    if seen is not None:
        seen += queries.square().sum(0)
    _add_linear(layer, "self_attn.o_proj", queries, states)


def _multiply(decoder: Decoder, layer: Layer, states: Tensor, seen: Tensor | None) -> None:
    """Add what the MLP gives, in place, some of its inner channels at a time. `seen`: takes Σx² of each of them."""
    normed = _normed(states, layer.tensors["post_attention_layernorm.weight"].float(), decoder.epsilon)
    down = layer.tensors["mlp.down_proj.weight"]
    biases = {name: layer.tensors.get(f"mlp.{name}_proj.bias") for name in ("gate", "up")}
    for begin, gate in layer.blocks("mlp.gate_proj.weight"):
        part = slice(begin, begin + len(gate))
        gated = normed @ gate.T
        if biases["gate"] is not None:
            gated += biases["gate"][part]
        inner = functional.silu(gated, inplace=True)
        del gate
        up = normed @ layer.tensors["mlp.up_proj.weight"][part].float().T
        if biases["up"] is not None:
            up += biases["up"][part]
        inner *= up
        if seen is not None:
            seen[part] += inner.square().sum(0)
        states.addmm_(inner, down[:, part].float().T)
    if (bias := layer.tensors.get("mlp.down_proj.bias")) is not None:
        states += bias


def _linear(layer: Layer, name: str, inputs: Tensor) -> Tensor:
    outputs = torch.empty(len(inputs), len(layer.tensors[f"{name}.weight"]))
    for begin, block in layer.blocks(f"{name}.weight"):
        outputs[:, begin : begin + len(block)] = inputs @ block.T
    if (bias := layer.tensors.get(f"{name}.bias")) is not None:
        outputs += bias
    return outputs


def _add_linear(layer: Layer, name: str, inputs: Tensor, target: Tensor) -> None:
    for begin, block in layer.blocks(f"{name}.weight"):
        target[:, begin : begin + len(block)] += inputs @ block.T
    if (bias := layer.tensors.get(f"{name}.bias")) is not None:
        target += bias


def _blocks(weight: Tensor, most_bytes: int) -> Iterator[tuple[int, Tensor]]:
    step = max(1, most_bytes // (4 * max(weight[0].numel(), 1)))
    for begin in range(0, len(weight), step):
        yield begin, weight[begin : begin + step].float()


def _normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / √(mean x² + ε) · w. Zhang and Sennrich 2019, arXiv:1910.07467."""
    return states * torch.rsqrt(states.square().mean(1, keepdim=True) + epsilon) * weight


def _positions(rotary: Rotary, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each place and pair of numbers, (length, size). Su et al. 2021, arXiv:2104.09864."""
    frequencies = 1.0 / rotary.theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    if rotary.scaling is not None:
        frequencies = _scaled(frequencies, **rotary.scaling)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _scaled(
    frequencies: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> Tensor:
    """Low frequencies divided by a factor, high ones as they are, and a passage in between, as in Llama 3.1."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine
