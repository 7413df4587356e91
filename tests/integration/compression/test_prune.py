"""Scores equal hand arithmetic, masks are exact, and removal removes what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pared.compression.architectures import build
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import RemovableChannels, apply_removal, remove_channels
from pared.compression.pruning.schedules import Amounts, step_amounts
from pared.compression.pruning.weights import Masks, n_m_masks, weight_masks
from pared.errors import NothingToPrune
from pared.specs import PruneSpec

MODEL = "mdl_" + "0" * 26


def two_layers() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.25], [-3.0, 0.0], [0.1, -0.2]]))
        module[2].weight.copy_(torch.tensor([[9.0, 9.0, 0.01, 9.0], [9.0, 9.0, 0.02, 9.0]]))
    return module


def layered(layers: list[object]) -> LoadedModel:
    module = build({"layers": layers}).eval()
    return LoadedModel(
        module=module,
        format="state_dict",
        flavour="state_dict",
        architecture={"layers": layers},
        sha256="",
        file_bytes=0,
        warnings=[],
    )


class Halves(nn.Module):
    """One layer whose halves go different ways, so that its units make two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.split(self.a(x), [8, 8], dim=1)
        return self.b(left) + self.c(torch.relu(right))


def test_units_of_one_layer_may_make_several_groups() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    loaded = LoadedModel(torch.jit.script(Halves().eval()), "torchscript", "scripted")
    first = remove_channels(loaded, (x,), amount=0.25)
    assert list(first.units.values()) == [8, 8]
    second = remove_channels(first.loaded, (x,), amount=0.5, upload_units=first.units)
    shapes = {name: tuple(tensor.shape) for name, tensor in second.loaded.module.named_parameters()}
    assert shapes["a.weight"] == (8, 6)
    assert shapes["b.weight"] == shapes["c.weight"] == (3, 4)


def test_weight_score_is_the_absolute_value() -> None:
    masks = weight_masks(two_layers(), amount=5 / 16, scope="global")
    pruned = {name: (~kept).nonzero().tolist() for name, kept in masks.kept.items()}
    # |w| sorted: 0, 0.01, 0.02, 0.1, 0.2 | 0.25, ...
    assert pruned == {"0.weight": [[2, 1], [3, 0], [3, 1]], "2.weight": [[0, 2], [1, 2]]}


def test_layer_scope_prunes_each_layer_by_the_amount() -> None:
    masks = weight_masks(two_layers(), amount=0.25, scope="layer")
    assert [int((~kept).sum()) for kept in masks.kept.values()] == [2, 2]


@pytest.mark.parametrize("amount", [0.001, 0.1, 1 / 3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_removed_share_is_within_one_weight_of_amount(amount: float, scope: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(17, 23), nn.Linear(23, 5))
    masks = weight_masks(module, amount=amount, scope=scope)  # type: ignore[arg-type]
    total = sum(kept.numel() for kept in masks.kept.values())
    removed = sum(int((~kept).sum()) for kept in masks.kept.values())
    layers = 1 if scope == "global" else len(masks.kept)
    assert abs(removed - amount * total) <= layers


def test_ties_do_not_remove_more_than_asked() -> None:
    module = nn.Linear(10, 10)
    nn.init.ones_(module.weight)
    masks = weight_masks(module, amount=0.5)
    assert int((~masks.kept["weight"]).sum()) == 50


def test_biases_and_norms_are_never_pruned() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert set(weight_masks(module, amount=0.5).kept) == {"0.weight", "2.weight"}


def test_patterns_choose_layers_and_a_miss_names_them() -> None:
    module = two_layers()
    assert set(weight_masks(module, amount=0.5, include=["0"]).kept) == {"0.weight"}
    assert set(weight_masks(module, amount=0.5, exclude=["0"]).kept) == {"2.weight"}
    with pytest.raises(NothingToPrune, match=r"The layers are: 0, 2"):
        weight_masks(module, amount=0.5, include=["conv*"])


def test_a_larger_amount_keeps_what_a_smaller_one_removed() -> None:
    torch.manual_seed(0)
    module = nn.Linear(20, 20)
    for criterion in ("magnitude", "random"):
        generator = torch.Generator().manual_seed(0)
        first = weight_masks(module, amount=0.3, criterion=criterion, generator=generator)  # type: ignore[arg-type]
        first.apply(module)
        second = weight_masks(module, amount=0.6, criterion=criterion, generator=generator)  # type: ignore[arg-type]
        assert not (second.kept["weight"] & ~first.kept["weight"]).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_stay_zero_through_momentum_and_weight_decay(optimizer: str) -> None:
    torch.manual_seed(0)
    module = two_layers()
    x, y = torch.randn(64, 2), torch.randint(0, 2, (64,))
    make = {
        "sgd": lambda: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "adam": lambda: torch.optim.Adam(module.parameters(), lr=0.1, weight_decay=0.01),
    }[optimizer]
    steps = make()
    for _ in range(3):  # momentum exists before the masks do
        nn.functional.cross_entropy(module(x), y).backward()
        steps.step()
    masks = weight_masks(module, amount=0.5)
    masks.apply(module)
    for _ in range(50):
        steps.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        masks.mask_gradients(module)
        steps.step()
        masks.apply(module)
    for name, kept in masks.kept.items():
        weight = module.get_parameter(name)
        assert (weight[~kept] == 0).all()
        assert (weight[kept] != 0).all()
    assert masks.sparsity() == 0.5


def test_masks_survive_a_checkpoint() -> None:
    masks = weight_masks(two_layers(), amount=0.5)
    again = Masks.from_state(masks.state())
    assert all(torch.equal(again.kept[name], kept) for name, kept in masks.kept.items())


def test_channel_score_is_the_sum_of_absolute_incoming_weights() -> None:
    loaded = layered(
        [
            ["Linear", {"in_features": 2, "out_features": 4}],
            ["ReLU", {}],
            ["Linear", {"in_features": 4, "out_features": 2}],
        ]
    )
    loaded.module.load_state_dict(two_layers().state_dict())
    # Σ|w| of the four neurons: 3, 0.75, 3, 0.3; the weights that read them do not count.
    removal = remove_channels(loaded, (torch.randn(3, 2),), amount=0.5)
    assert removal.removed == {"0.weight": {"0": [1, 3]}, "0.bias": {"0": [1, 3]}, "2.weight": {"1": [1, 3]}}
    assert removal.loaded.architecture == {
        "layers": [
            ["Linear", {"in_features": 2, "out_features": 2}],
            ["ReLU", {}],
            ["Linear", {"in_features": 2, "out_features": 2}],
        ]
    }
    assert (removal.units, removal.removed_units) == ({"channels of 0.bias/0, 0.weight/0, 2.weight/1": 4}, 2)


def test_residual_channels_are_scored_in_every_layer_that_makes_them() -> None:
    loaded = layered(
        [
            ["Linear", {"in_features": 1, "out_features": 3}],
            ["Residual", {"layers": [["Linear", {"in_features": 3, "out_features": 3}]]}],
            ["Linear", {"in_features": 3, "out_features": 2}],
        ]
    )
    state = loaded.module.state_dict()
    first, inner = (
        next(k for k in state if k.startswith("0.w")),
        next(k for k in state if k.startswith("1.") and "w" in k),
    )
    with torch.no_grad():
        state[first].copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        state[inner].copy_(torch.tensor([[9.0, 0, 0], [0, 1.0, 0], [0, 0, 0.5]]))  # sums: 10, 3, 3.5
    removal = remove_channels(loaded, (torch.randn(2, 1),), amount=0.34)
    assert removal.removed[first] == {"0": [1]}
    assert removal.removed[inner] == {"0": [1], "1": [1]}


def test_every_group_keeps_a_channel() -> None:
    loaded = layered(
        [
            ["Linear", {"in_features": 2, "out_features": 4}],
            ["ReLU", {}],
            ["Linear", {"in_features": 4, "out_features": 8}],
            ["ReLU", {}],
            ["Linear", {"in_features": 8, "out_features": 2}],
        ]
    )
    removal = remove_channels(loaded, (torch.randn(2, 2),), amount=0.99)
    assert [tuple(t.shape) for n, t in removal.loaded.module.state_dict().items() if n.endswith("weight")] == [
        (1, 2),
        (1, 1),
        (2, 1),
    ]


def test_a_recorded_removal_replays() -> None:
    torch.manual_seed(0)
    loaded = layered(
        [
            ["Conv2d", {"in_channels": 1, "out_channels": 6, "kernel_size": 3}],
            ["ReLU", {}],
            ["Flatten", {}],
            ["Linear", {"in_features": 24, "out_features": 2}],
        ]
    )
    example = (torch.randn(2, 1, 4, 4),)
    removal = remove_channels(
        loaded, example, amount=0.5, criterion="random", generator=torch.Generator().manual_seed(1)
    )
    again = apply_removal(loaded, example, removal.removed)
    assert again.architecture == removal.loaded.architecture
    torch.testing.assert_close(again.module(*example), removal.loaded.module(*example))


def test_what_was_checked_is_built_once_and_given_once() -> None:
    x = torch.randn(3, 6)
    channels = RemovableChannels(LoadedModel(torch.jit.script(Halves().eval()), "torchscript", "scripted"), (x,))
    assert channels.hold(0.25)
    first = channels.removal(0.25)
    with torch.no_grad():
        first.loaded.module.a.bias.zero_()  # as training might
    again = channels.removal(0.25)
    assert again.removed == first.removed
    assert again.loaded.module.a.bias.any()
    assert channels.hold(0.25)
    assert channels.removal(0.5).removed != first.removed


def test_excluded_layers_hold_what_is_tied_to_them() -> None:
    loaded = layered(
        [
            ["Linear", {"in_features": 2, "out_features": 4}],
            ["Residual", {"layers": [["Linear", {"in_features": 4, "out_features": 4}]]}],
            ["Linear", {"in_features": 4, "out_features": 2}],
        ]
    )
    with pytest.raises(NothingToPrune, match="The layers are: 0, 1"):
        remove_channels(loaded, (torch.randn(2, 2),), amount=0.5, exclude=["0"])


def test_nothing_removable_names_layer_and_operator() -> None:
    loaded = layered([["Linear", {"in_features": 2, "out_features": 4}], ["Softmax", {"dim": 1}]])
    with pytest.raises(NothingToPrune, match="0: "):
        remove_channels(loaded, (torch.randn(2, 2),), amount=0.5)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_steps_remove_in_all_what_one_shot_removes(scope: str) -> None:
    torch.manual_seed(0)
    sizes = [4, 16, 64]
    layers: list[object] = [["Flatten"]]
    for inputs, outputs in zip([8, *sizes], [*sizes, 3], strict=True):
        layers += [["Linear", {"in_features": inputs, "out_features": outputs}], ["ReLU"]]
    model, example = layered(layers[:-1]), (torch.rand(2, 8),)
    spec = PruneSpec(type="prune", model=MODEL, amount=0.5, scope=scope, schedule="iterative", steps=10)
    left, units, gone = model, None, 0
    for amount in step_amounts(spec):
        try:
            removal = remove_channels(left, example, amount=amount, scope=scope, upload_units=units, removed_units=gone)
        except NothingToPrune:
            continue
        left, units, gone = removal.loaded, units or removal.units, gone + removal.removed_units
    assert gone == 42
    if scope == "layer":
        widths = [len(weight) for name, weight in left.module.named_parameters() if name.endswith("bias")]
        assert widths == [2, 8, 32, 3]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.b(torch.relu(self.a(self.first(x))))))


@pytest.mark.parametrize("excluded", ["a", "b"])
def test_a_tied_weight_is_excluded_under_each_of_its_names(excluded: str) -> None:
    module = torch.jit.script(Tied().eval())
    assert set(weight_masks(module, amount=0.5, exclude=[excluded]).kept) == {"first.weight", "out.weight"}
    loaded = LoadedModel(module, "torchscript", "scripted")
    with pytest.raises(NothingToPrune, match="exclude"):
        remove_channels(loaded, (torch.rand(2, 6),), amount=0.5, exclude=[excluded])
    assert remove_channels(loaded, (torch.rand(2, 6),), amount=0.5).removed["a.weight"].keys() == {"0", "1"}


def shares(**fields) -> list[float]:
    return [each.default for each in step_amounts(PruneSpec(type="prune", model=MODEL, **fields))]


def test_step_amounts_end_at_the_amount() -> None:
    amounts = shares(amount=0.9, schedule="iterative", steps=4)
    assert amounts[-1] == 0.9
    of_the_rest = [1 - (1 - b) / (1 - a) for a, b in zip([0.0, *amounts], amounts, strict=False)]
    assert of_the_rest == pytest.approx([of_the_rest[0]] * 4)
    assert shares(amount=0.3) == [0.3]
    assert shares(amount=0.9, stages=[0.5, 0.8]) == [0.5, 0.8, 0.9]
    # 0.8 · (1 − (1 − t)³) at t = ¼, ½, ¾, 1, and the same between two stages.
    assert shares(amount=0.8, schedule="cubic", steps=4) == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    assert shares(amount=0.8, schedule="cubic", steps=2, stages=[0.4]) == pytest.approx([0.35, 0.4, 0.75, 0.8])


def test_the_first_pattern_that_matches_says_the_amount() -> None:
    amounts = Amounts(0.5, {"conv1": 0.0, "conv*": 0.25})
    assert [amounts.of([name]) for name in ("conv1", "conv2", "fc")] == [0.0, 0.25, 0.5]
    module = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    masks = weight_masks(module, amount=Amounts(0.5, {"0": 0.2}), scope="layer")
    assert [int((~kept).sum()) for kept in masks.kept.values()] == [20, 50]
    net = layered(
        [
            ["Linear", {"in_features": 8, "out_features": 10}],
            ["ReLU", {}],
            ["Linear", {"in_features": 10, "out_features": 10}],
            ["ReLU", {}],
            ["Linear", {"in_features": 10, "out_features": 2}],
        ]
    )
    removal = remove_channels(net, (torch.rand(2, 8),), amount=Amounts(0.5, {"0": 0.1}))
    assert [len(removal.removed[f"{layer}.weight"]["0"]) for layer in (0, 2)] == [1, 5]


def test_n_of_m_keeps_the_largest_of_neighbours_along_the_inputs() -> None:
    module = nn.Sequential(nn.Linear(8, 1), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.5, 0.5, 0.5]]))
        module[1].weight.copy_(torch.tensor([0.1, -0.4, 0.2, 0.3]).reshape(1, 4, 1, 1))
    kept = n_m_masks(module, 2, 4).kept
    assert kept["0.weight"].tolist() == [[False, True, True, False, False, False, True, True]]
    assert kept["1.weight"].flatten().tolist() == [False, True, False, True]


def test_n_of_m_names_the_layers_whose_inputs_do_not_divide() -> None:
    with pytest.raises(NothingToPrune, match=r"a multiple of 4. These are not: 0 \(6\). Exclude"):
        n_m_masks(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), 2, 4)


def test_blocks_go_by_the_mean_of_their_weights() -> None:
    module = nn.Sequential(nn.Linear(5, 4))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[9.0, 9, 1, 1, 3], [9, 9, 1, 1, 3], [2, 2, 8, 8, 7], [2, 2, 8, 8, 7]]))
    kept = weight_masks(module, amount=0.5, block=(2, 2)).kept["0.weight"]
    # Blocks of mean 1, 2 and 3 go, the last of which is one column wide.
    assert kept.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_of_equal_scores_the_first_go() -> None:
    module = nn.Sequential(nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[2.0, 1.0, 1.0, -1.0, 1.0, 0.5]]))
    kept = weight_masks(module, amount=0.5).kept["0.weight"]
    assert kept.tolist() == [[True, False, False, True, True, False]]


def test_what_regrows_has_the_steepest_gradient() -> None:
    module = nn.Sequential(nn.Linear(8, 1, bias=False))
    weight = module[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]]))
    weight.grad = torch.tensor([[0.1, 5.0, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0]])
    kept = weight_masks(module, amount=0.5, regrow=0.25).kept["0.weight"]
    # The smallest of the four living gives way to the removed one of slope 5.
    assert kept.tolist() == [[False, True, False, False, False, True, True, True]]
