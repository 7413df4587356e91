"""Hidden units of LSTM, GRU and RNN: all gates, layers and directions lose the same, and so do the first states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pared.compression.coupling import find_groups
from pared.compression.coupling.reloading import reloaded
from tests.unit.compression.test_coupling import as_file, assert_removing_equals_zeroing, every_other, remove

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [1, 1, 2, 3, 5]])
STACKED = {"num_layers": 2, "bidirectional": True, "batch_first": True}
KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, STACKED),
    (nn.LSTM, STACKED | {"proj_size": 4}),
    (nn.GRU, STACKED | {"bias": False}),
    (nn.GRU, {"num_layers": 2}),
    (nn.RNN, STACKED | {"nonlinearity": "relu"}),
    (nn.RNN, {}),
]


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], options: dict[str, object]) -> None:
        super().__init__()
        self.words, self.memory = nn.Embedding(10, 6), kind(6, 8, **options)
        width = int(options.get("proj_size", 8)) * (2 if options.get("bidirectional") else 1)  # type: ignore[call-overload]
        self.out = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.memory(self.words(tokens))[0]))


class Cell(nn.Module):
    """One step after the other, the first state written into the code."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(10, 6), kind(6, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, state = self.words(tokens), torch.zeros(tokens.size(0), 8)
        for step in range(5):
            state = self.cell(x[:, step], state)
        return self.out(state)


class LstmCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(10, 6), nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, state = self.words(tokens), torch.zeros([tokens.size(0), 8])
        memory = torch.zeros_like(state)
        for step in range(5):
            state, memory = self.cell(x[:, step], (state, memory))
        return self.out(state)


class Translator(nn.Module):
    """The last states of the encoder are the first of the decoder; a learned one begins."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.start = nn.Embedding(10, 6), nn.Parameter(torch.randn(1, 1, 8))
        self.encoder, self.decoder = nn.GRU(6, 8, batch_first=True), nn.GRU(6, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.words(source), self.start.expand(1, source.size(0), 8).contiguous())
        return self.out(self.decoder(self.words(target), state)[0])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.memory = nn.Embedding(10, 6), nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(tokens), lengths, batch_first=True, enforce_sorted=False)
        output = pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0]
        return self.out(output[torch.arange(tokens.size(0)), lengths - 1])


@pytest.mark.parametrize("form", ["scripted", "traced"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_same_units_go_from_all_gates_layers_and_directions(
    form: str, kind: type[nn.RNNBase], options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    coupling = assert_removing_equals_zeroing(Tagger(kind, options), (TOKENS,), form)
    widths = {("words", 6), ("memory", 8), *([("memory", 4)] if "proj_size" in options else [])}
    assert {(*group.layers, group.units) for group in coupling.groups} == widths


@pytest.mark.parametrize("form", ["scripted", "traced"])
@pytest.mark.parametrize(
    ("make", "example", "groups"),
    [
        (lambda: Cell(nn.GRUCell), (TOKENS,), [["words"], ["cell"]]),
        (lambda: Cell(nn.RNNCell), (TOKENS,), [["words"], ["cell"]]),
        (LstmCell, (TOKENS,), [["words"], ["cell"]]),
        (Translator, (TOKENS, TOKENS.flip(1)), [["words"], ["encoder", "decoder"]]),
    ],
)
def test_first_states_follow(form: str, make, example: tuple[Tensor, ...], groups: list[list[str]]) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    coupling = assert_removing_equals_zeroing(make(), example, form)
    assert sorted(group.layers for group in coupling.groups) == sorted(groups)


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_packed_sequences_of_unequal_length_lose_units(form: str) -> None:
    torch.manual_seed(0)
    coupling = assert_removing_equals_zeroing(Packed(), (TOKENS, torch.tensor([2, 5, 3])), form)
    assert [group.layers for group in coupling.groups] == [["words"], ["memory"]]


def test_a_given_first_state_keeps_its_units() -> None:
    module = nn.GRU(6, 8)
    example = (torch.randn(5, 3, 6), torch.randn(1, 3, 8))
    coupling = find_groups(as_file(module.eval(), "traced", example), example)
    assert coupling.groups == []
    assert (
        coupling.reasons["weight_ih_l0"]
        == "torch.gru: its first state is given from outside, with as many units as it has now"
    )


def test_a_scripted_layer_that_lost_units_trains() -> None:
    file = as_file(Tagger(nn.LSTM, STACKED).eval(), "scripted", (TOKENS,))
    coupling = find_groups(file, (TOKENS,))
    small = reloaded(remove(coupling.script, every_other(coupling), coupling.patches)).train()
    before = small(TOKENS)
    before.sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert not torch.equal(small(TOKENS), before)
