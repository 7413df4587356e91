"""torchvision's families by name: as published, told by their tensors, and right after channels were removed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pared.compression.architectures import ARCHITECTURES, build, candidates, tensor_shapes
from pared.compression.architectures.torchvision import (
    FAMILIES,
    TORCHVISION,
)
from pared.compression.jobs.inspect import inspect
from pared.compression.loading import load_model
from pared.compression.loading.state_dicts import fits
from pared.compression.work import ModelFile, Work
from pared.errors import InvalidArchitecture
from pared.specs import InspectSpec
from pared.specs.architectures import OWN_NAMES, TORCHVISION_NAMES
from pared.specs.uploads import EXAMPLE_MODEL_ID
from tests.support.torchvision_models import ANSWERS, PUBLISHED, answer, digest, options


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def test_names_shapes_and_parameter_counts_are_the_published_ones():
    assert TORCHVISION.keys() == PUBLISHED.keys()
    for name, (count, published) in PUBLISHED.items():
        shapes = tensor_shapes(name)
        assert digest(shapes) == published, name
        counted = [name for name in shapes if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
        parameters = sum(torch.Size(shapes[each]).numel() for each in counted if not each.endswith("position_index"))
        auxiliary = 0 if not name.startswith(("fcn", "deeplab")) else 256 * 1024 * 9 + 2 * 256 + 21 * 256 + 21
        assert parameters + auxiliary == count, name


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answers_are_those_of_torchvision(name):
    module = build({"name": name, "kwargs": options(name)})
    assert {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()} == tensor_shapes(
        {"name": name, "kwargs": options(name)}
    )
    assert answer(name, module) == pytest.approx(ANSWERS[name], rel=1e-4, abs=1e-4)


def test_the_names_in_the_documentation_are_those_that_are_known():
    page = (Path(__file__).parents[3] / "docs/models.md").read_text()
    documented = set(re.findall(r"`(\w+)`", page.split("| family |")[1].split("torchvision's take")[0]))
    assert documented == ARCHITECTURES.keys()
    assert set(f"{OWN_NAMES}, {TORCHVISION_NAMES}".split(", ")) == ARCHITECTURES.keys()


def test_stochastic_depth_leaves_out_samples_in_training_alone():
    layers = [["Residual", {"layers": [["Linear", {"in_features": 2, "out_features": 2}, "fc"],
                                       ["StochasticDepth", {"p": 0.5}]]}]]  # fmt: skip
    module = build({"layers": layers})
    x = torch.ones(1000, 2)
    full = module.eval()(x) - x
    drawn = module.train()(x) - x
    left_out = (drawn == 0).all(1)
    torch.testing.assert_close(drawn[~left_out], 2 * full[~left_out])
    assert 400 < int(left_out.sum()) < 600


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        (
            {"name": "resnet18", "kwargs": {"classes": 3}},
            "resnet18 has no argument classes. It takes: num_classes, in_",
        ),
        ({"name": "vit_b_16", "kwargs": {"image_size": 100}}, "vit_b_16: image_size must be a multiple of 16"),
        ("ResNet-50", "Did you mean resnet50"),
        ({"layers": [["Prepend", {"shape": 3}, "token"]]}, "needs the argument `shape`: a list of integers"),
        ({"layers": [["Scale", {"shape": [3]}]]}, "needs a name, which is that of its tensor"),
        ({"layers": [["WindowAttention", {"features": 8, "heads": 3, "window": 2}]]}, "divided among 3 heads"),
        ({"layers": [["WindowAttention", {"features": 8, "heads": 2, "window": 2, "shift": 2}]]}, "within a window"),
        ({"layers": [["StochasticDepth", {"p": 1}]]}, "from 0 to below 1"),
        ({"layers": [["Select", {"dim": 1}]]}, "needs the argument `index`"),
    ],
)
def test_a_bad_option_is_refused_with_advice(architecture, says):
    with pytest.raises(InvalidArchitecture, match=says):
        build(architecture)


@pytest.mark.parametrize("name", [list(members)[-1] for _, members in FAMILIES])
def test_every_state_dict_tells_its_architecture(name):
    expected = tensor_shapes(name)
    found = [architecture for architecture, shapes in candidates(expected) if shapes == expected]
    assert found == [{"name": name}]


@pytest.mark.parametrize("architecture", [{"name": "densenet121"}, {"name": "vit_b_16", "kwargs": {"image_size": 64}}])
def test_the_names_of_older_files_tell_it_too(architecture):
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)
        .replace("mlp.0.", "mlp.linear_1.")
        .replace("mlp.3.", "mlp.linear_2."): shape
        for name, shape in tensor_shapes(architecture).items()
        if not name.endswith("num_batches_tracked")
    }
    found = [each for each, expected in candidates(older) if fits(older, expected)]
    assert found == [architecture]


def _with_auxiliary_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"aux_classifier.0.weight": torch.zeros(2, 2, 3, 3), "aux_classifier.1.weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("architecture", "saved", "note"),
    [
        ({"name": "resnet18", "kwargs": {"in_channels": 1, "num_classes": 4}},
         lambda state: {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
         "torchvision's resnet18 with in_channels=1, num_classes=4"),
        ({"name": "lraspp_mobilenet_v3_large"}, _with_auxiliary_head, "left out: aux_classifier.0.weight"),
        ({"name": "mobilenet_v3_small"}, lambda state: {name: tensor.half() for name, tensor in state.items()},
         "torchvision's mobilenet_v3_small, so"),
    ],
)  # fmt: skip
def test_a_state_dict_without_an_architecture_is_opened_as_the_one_that_fits(tmp_path, architecture, saved, note):
    module = build(architecture).eval()
    loaded = load_model(_file(tmp_path, saved(module.state_dict())))
    assert loaded.architecture == module.architecture
    assert any(note in each for each in loaded.warnings), loaded.warnings
    assert any("the file was opened as that" in each for each in loaded.warnings)
    for name, tensor in loaded.module.state_dict().items():
        torch.testing.assert_close(tensor, module.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_what_fits_nearly_is_not_opened_as_it(tmp_path):
    state = build({"name": "squeezenet1_1", "kwargs": {"num_classes": 3}}).state_dict()
    state["features.4.squeeze.weight"] = state["features.4.squeeze.weight"][:8].clone()
    with pytest.raises(InvalidArchitecture, match="architecture is required"):
        load_model(_file(tmp_path, state))


def test_an_inspection_shows_the_layers_of_the_one_that_fits(tmp_path):
    module = build({"name": "squeezenet1_1", "kwargs": {"num_classes": 3}})
    work = Work({"model": _file(tmp_path, module.state_dict())}, None, tmp_path)
    inspection = inspect(InspectSpec(type="inspect", subject=EXAMPLE_MODEL_ID), work)
    assert inspection.architecture == module.architecture
    assert "torchvision's squeezenet1_1 with num_classes=3" in inspection.warnings[0]
    assert all(layer.reason is None for layer in inspection.layers if layer.name != "classifier.1")


def _file(folder: Path, content: Any) -> ModelFile:
    path = folder / "model.pt"
    torch.save(content, path)
    return ModelFile(path, "model.pt", "")
