"""Structures that read channels by their position, over all of them, or through literals: removing equals zeroing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression.coupling import find_groups
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from tests.support.models.gallery import GALLERY, settled
from tests.support.models.gallery.structures import IndexShuffle, ScaleInForward, ViewShuffle
from tests.support.models.reference import zeroed_outputs
from tests.unit.compression.test_coupling import as_file, assert_removing_equals_zeroing

IMAGE = (torch.randn(3, 3, 8, 8),)
FORMS = pytest.mark.parametrize("form", ["scripted", "traced"])


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@FORMS
@pytest.mark.parametrize("kind", [IndexShuffle, ViewShuffle])
@pytest.mark.parametrize(("width", "groups"), [(12, 3), (32, 4), (20, 4), (60, 3)])
def test_a_shuffle_between_grouped_layers_leaves_channels_that_can_go(
    kind: type[nn.Module], width: int, groups: int, form: str
) -> None:
    module = settled(lambda: kind(width, groups), IMAGE)
    coupling = assert_removing_equals_zeroing(module, IMAGE, form)
    squeezed = [group for group in coupling.groups if "squeeze" in group.layers]
    assert sum(group.units for group in squeezed) >= 2


@FORMS
def test_shuffles_that_tie_nothing_are_left_as_they_are_written(form: str) -> None:
    """Only where views would tie all channels to each other are they written as positions: other files keep theirs."""
    family = GALLERY["ShuffleNet"]
    coupling = find_groups(as_file(family.make(), form, family.example()), family.example())
    assert {each.patch.edit for each in coupling.patches} == {"number"}


@FORMS
@pytest.mark.parametrize("name", ["Cbam", "Eca", "LocalNorm", "PlaceMean", "IndexShuffle", "ViewShuffle"])
def test_two_removals_one_after_the_other_equal_zeroing(name: str, form: str) -> None:
    module, example = GALLERY[name].make(), GALLERY[name].example()
    first = remove_channels(LoadedModel(as_file(module, form, example), "torchscript", form), example, amount=0.3)  # type: ignore[arg-type]
    second = remove_channels(first.loaded, example, amount=0.3)
    expected = _zeroed_as(module, second.loaded.module, example)
    answers = second.loaded.module(*example)
    for want, got in zip(*(each if isinstance(each, tuple) else (each,) for each in (expected, answers)), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def _zeroed_as(module: nn.Module, small: nn.Module, example: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """The original with all zero that is missing in `small`, whose rows and columns are known by their values."""
    removed: dict[str, dict[str, list[int]]] = {}
    state = small.state_dict()
    for name, tensor in module.named_parameters():
        left = state[name]
        for dim in range(tensor.dim()):
            if left.shape[dim] == tensor.shape[dim]:
                continue
            known = set(left.flatten().tolist())
            parts = [set(part.flatten().tolist()) for part in tensor.detach().unbind(dim)]
            gone = [index for index, part in enumerate(parts) if not part & known]
            removed.setdefault(name, {})[str(dim)] = gone
    with torch.no_grad():
        return zeroed_outputs(module, removed, *example)


class Reduced(nn.Module):
    """A gate by what a reduction over the channels gives, of values below and above zero."""

    def __init__(self, reduction: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.reduction = nn.Linear(6, 8), nn.Linear(8, 3), reduction

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * torch.sigmoid(self.reduction(x)))


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "amax", "amin", "max", "min", "sum"])
def test_what_is_taken_over_all_channels_counts_removed_ones_as_zeros(reduction: str, shift: float) -> None:
    def over(x: Tensor) -> Tensor:
        taken = getattr(x, reduction)(-1, keepdim=True)
        return taken if isinstance(taken, Tensor) else taken[0]

    module = Reduced(over)
    nn.init.constant_(module.a.bias, shift)
    example = (torch.randn(4, 6),)
    coupling = assert_removing_equals_zeroing(module, example, "traced")
    assert [group.layers for group in coupling.groups] == [["a"]]


@pytest.mark.parametrize("reduction", ["var", "std", "prod", "argmax", "median", "logsumexp"])
def test_what_cannot_count_zeros_keeps_its_channels_and_says_why(reduction: str) -> None:
    def over(x: Tensor) -> Tensor:
        taken = getattr(x, reduction)(-1, keepdim=True)
        return (taken if isinstance(taken, Tensor) else taken[0]).float()

    example = (torch.randn(4, 6),)
    coupling = find_groups(as_file(Reduced(over).eval(), "traced", example), example)
    assert coupling.groups == []
    assert "over the channels" in coupling.reasons["a"] or "differ" in coupling.reasons["a"]


class Slid(nn.Module):
    """Something slides over the channels of a vector, or pads them, in front of a gate."""

    def __init__(self, slide: nn.Module) -> None:
        super().__init__()
        self.a, self.slide, self.b = nn.Linear(6, 12), slide, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x * torch.sigmoid(self.slide(x.unsqueeze(1)).squeeze(1)))


@FORMS
@pytest.mark.parametrize(
    "slide",
    [
        nn.Conv1d(1, 1, 5, padding=2),
        nn.Conv1d(1, 1, 3, padding="same"),
        nn.Conv1d(1, 1, 3, padding=2, dilation=2),
        nn.Sequential(nn.ConstantPad1d((1, 2), 0.5), nn.Conv1d(1, 1, 4)),
        nn.AvgPool1d(3, 1, 1),
        nn.MaxPool1d(3, 1, 1),
    ],
)
def test_what_slides_over_channels_sees_each_at_its_place(slide: nn.Module, form: str) -> None:
    coupling = assert_removing_equals_zeroing(Slid(slide), (torch.randn(4, 6),), form)
    assert ["a"] in [group.layers for group in coupling.groups]


@pytest.mark.parametrize(
    ("slide", "words"),
    [
        (nn.Sequential(nn.Conv1d(1, 1, 2, stride=2), nn.Upsample(scale_factor=2.0)), "slides over the channels"),
        (nn.Sequential(nn.ReflectionPad1d(1), nn.Conv1d(1, 1, 3)), "pads the channels with some of themselves"),
        (nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 1, 3, padding=1)), "the output would differ"),
    ],
)
def test_what_slides_in_steps_or_twice_keeps_the_channels_and_says_why(slide: nn.Module, words: str) -> None:
    example = (torch.randn(4, 6),)
    coupling = find_groups(as_file(Slid(slide).eval(), "traced", example), example)
    assert ["a"] not in [group.layers for group in coupling.groups]
    assert words in coupling.reasons["a"]


class ScaledBy(nn.Module):
    """A scale computed from a width in a traced `forward`, times one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.temperature = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        width = torch.tensor(4) * 0 + x.shape[1]
        return self.b(torch.relu(x / width**0.5 * (self.temperature * width**0.25)))


def test_numbers_in_tensors_that_count_channels_keep_their_value_and_trained_ones_stay_trained() -> None:
    coupling = assert_removing_equals_zeroing(ScaledBy(), (torch.randn(4, 6),), "traced")
    assert [group.layers for group in coupling.groups] == [["a"]]


@FORMS
def test_a_scale_computed_in_forward_lets_the_residual_width_go(form: str) -> None:
    example = (torch.randn(2, 7, 6),)
    module = settled(ScaleInForward, example)
    removal = remove_channels(LoadedModel(as_file(module, form, example), "torchscript", form), example, amount=0.5)  # type: ignore[arg-type]
    assert removal.loaded.module.state_dict()["enter.weight"].shape == (16, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            removal.loaded.module(*example), zeroed_outputs(module, removal.removed, *example), atol=1e-5, rtol=1e-5
        )


class Listed(nn.Module):
    """Numbers of a list made a tensor in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([0.5, 1.0, 2.0], device=x.device)
        order = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0], dtype=torch.int32, device=x.device)
        return self.b(F.relu(self.a(x)).index_select(1, order)) * scale


@FORMS
def test_lists_made_tensors_are_followed(form: str) -> None:
    coupling = assert_removing_equals_zeroing(Listed(), (torch.randn(4, 6),), form)
    assert [group.layers for group in coupling.groups] == [["a"]]


def test_positions_that_come_with_the_inputs_keep_the_channels() -> None:
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, order: Tensor) -> Tensor:
            return self.b(self.a(x)[:, order])

    example = (torch.randn(8, 6), torch.randperm(8))
    coupling = find_groups(as_file(Picked().eval(), "scripted", example), example)
    assert coupling.groups == []
    assert coupling.reasons["a"] == "torch.index: picks single channels"
