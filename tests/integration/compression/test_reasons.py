"""Reasons for which channels stay are sentences: they name operators as their users do, and say what these do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression import prune
from pared.compression.coupling import find_groups
from pared.compression.loading import LoadedModel, inspect_model
from tests.support.models.gallery import GALLERY
from tests.unit.compression.test_coupling import as_file

KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: torch.sort(x, 1)[0],
    "cumsum": lambda x: torch.cumsum(x, 1),
    "roll": lambda x: torch.roll(x, 1, 1),
    "select": lambda x: x * x[:, 3:4].clone() if x.shape[1] < 4 else x[:, 3].unsqueeze(1) + x[:, 5].unsqueeze(1),
    "stride": lambda x: x[:, ::2],
    "end": lambda x: x[:, :-3],
    "fft": lambda x: torch.fft.rfft(x, dim=1).real,
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 1),
    "topk": lambda x: torch.topk(x, 3, 1)[0],
    "var": lambda x: x.var(1, keepdim=True),
    "median": lambda x: x.median(1, keepdim=True)[0],
    "cdist": lambda x: torch.cdist(x, x),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(2, x.shape[1], x.shape[1])),
    "reflect": lambda x: F.pad(x.unsqueeze(1), (1, 1), mode="reflect").squeeze(1),
    "pooled in steps": lambda x: F.max_pool1d(x.unsqueeze(1), 2).squeeze(1),
    "resized": lambda x: F.interpolate(x.unsqueeze(1), scale_factor=2.0).squeeze(1),
    "output": lambda x: x,
}


class Kept(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.then = nn.Linear(6, 8), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.a(x))


def is_said_in_words(reason: str) -> bool:
    return re.search(r"aten::|prim::|_convolution|Tracked|Error", reason) is None and len(reason.split()) >= 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_channels_is_said_in_words(name: str) -> None:
    torch.manual_seed(0)
    example = (torch.randn(4, 6),)
    coupling = find_groups(as_file(Kept(KEPT[name]).eval(), "traced", example), example)
    assert coupling.groups == []
    assert is_said_in_words(coupling.reasons["a"]), coupling.reasons["a"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Eca", "Cbam", "PassedState", "SentenceEncoder", "Capsule", "StateSpace", "Mixer"])
def test_layers_of_architectures_that_keep_all_say_why_in_words(name: str) -> None:
    family = GALLERY[name]
    coupling = find_groups(as_file(family.make(), "traced", family.example()), family.example())
    assert coupling.reasons
    assert all(map(is_said_in_words, coupling.reasons.values())), coupling.reasons


def test_a_construct_that_is_not_followed_is_named_without_its_namespace() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.jit.wait(torch.jit.fork(self.a, x))

    example = (torch.randn(4, 6),)
    coupling = find_groups(as_file(Forked().eval(), "scripted", example), example)
    assert coupling.reasons == {"a": "TorchScript's fork: this operator of the graph cannot be followed"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_parameters_that_shrink_with_others_are_shown_as_shrunk(form: str) -> None:
    family = GALLERY["TokenVit"]
    file = as_file(family.make(), form, family.example())
    inspected = {
        layer.name: layer for layer in inspect_model(LoadedModel(file, "torchscript", form), family.example()).layers
    }  # type: ignore[arg-type]
    assert inspected["cls"].reason == inspected["positions"].reason == "loses channels with embed, down"
    report = prune(file, None, amount=0.5, example_inputs=[{"shape": [3, 3, 8, 8]}]).report
    layers = {layer.name: layer for layer in report.layers}
    for name in ("cls", "positions"):
        assert layers[name].reason is None
        assert layers[name].shape_after[-1] == 8
        assert layers[name].removed_units == layers["embed"].removed_units
