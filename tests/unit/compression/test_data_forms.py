"""Data sets without labels, with masks, and with inputs by name."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from pared.compression.data import inspect_dataset, load_dataset
from pared.compression.jobs.fitting import check_fits
from pared.compression.loading import LoadedModel, forward_arguments, load_model
from pared.compression.work import DatasetFile, ModelFile
from pared.errors import InvalidData, ShapeMismatch
from tests.unit.compression.test_data import RNG, X, Y, dataset, image, load, npz, zipped

__all__ = ["dataset"]


def forms(file: DatasetFile, seed: int = 0):
    """What is loaded where no task says what the labels are."""
    return load_dataset(file, task=None, preprocess=None, seed=seed)


def png(array, mode="L", palette=None) -> bytes:
    buffer = io.BytesIO()
    made = Image.fromarray(np.asarray(array, np.uint8), mode)
    if palette is not None:
        made.putpalette(palette)
    made.save(buffer, "PNG")
    return buffer.getvalue()


# -- without labels -----------------------------------------------------------------------------

UNLABELLED = {
    "npz": lambda: npz(x=X),
    "safetensors": lambda: safetensors_bytes({"x": X}),
    "named": lambda: npz(features=X),
    "loose images": lambda: zipped({f"{i}.png": image(fill=i) for i in range(12)}),
    "one folder": lambda: zipped({f"photos/{i}.png": image(fill=i) for i in range(12)}),
}


@pytest.mark.parametrize("form", UNLABELLED)
def test_inputs_alone_are_data_without_labels(form, dataset):
    file = dataset(UNLABELLED[form]())
    data = forms(file)
    assert not data.labelled
    assert data.splits == "by_seed"
    for inputs, targets in data.batches("train", 5):
        assert targets.shape == (len(inputs[0]), 0)
    shown = inspect_dataset(file)
    assert (shown.labelled, shown.target) == (False, None)
    assert "has no labels. A job on it has the task match" in shown.warnings[0]
    with pytest.raises(InvalidData, match=r"no labels .y., which task=classification learns from"):
        load(file)


def test_inputs_of_other_lengths_are_refused_without_labels_too(dataset):
    with pytest.raises(InvalidData, match=r"a has 40 samples but b has 9 \(train split\)"):
        inspect_dataset(dataset(npz(a=X, b=X[:9])))


def test_data_without_labels_are_split_by_seed_alone(dataset):
    file = dataset(npz(x=np.arange(100.0)))
    first, again, other = (forms(file, seed).inputs["test"][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_without_labels_may_bring_splits(dataset):
    entries = {f"{split}/{i}.png": image(fill=i) for split in ("train", "val", "test") for i in range(4)}
    data = forms(dataset(zipped(entries)))
    assert (data.labelled, data.splits, data.samples("test")) == (False, "given", 4)


# -- masks --------------------------------------------------------------------------------------


def pairs(masks: dict[str, bytes] | None = None, count: int = 12, under: str = "") -> dict[str, bytes]:
    drawn = {f"{under}masks/{i}.png": png(np.full((5, 6), i % 3)) for i in range(count)} | (masks or {})
    return {f"{under}images/{i}.jpg": image("RGB", fill=(9 * i, 0, 0), kind="JPEG") for i in range(count)} | drawn


def test_a_mask_belongs_to_the_image_of_its_name(dataset):
    data = forms(dataset(zipped(pairs())))
    assert (data.classes, data.format, data.labelled) == (3, "image_masks", True)
    for (inputs,), masks in data.batches("train", 4):
        assert (inputs.shape[1:], masks.shape[1:], masks.dtype) == ((3, 5, 6), (5, 6), torch.int64)
        number = (inputs[:, 0, 0, 0] / 9).round().long()
        assert torch.equal(masks[:, 0, 0], number % 3)


def test_masks_may_bring_splits_palettes_and_pixels_to_be_ignored(dataset):
    mask = np.array([[0, 1, 255, 2, 0, 0]] * 5)
    palette = png(mask, "P", palette=[0, 0, 0, 200, 0, 0] * 128)
    entries = {name: content for split in ("train", "test") for name, content in pairs(under=f"{split}/").items()}
    data = forms(dataset(zipped(entries | {"test/masks/3.png": palette})))
    assert data.splits == "given"
    masks = torch.cat([targets for _, targets in data.batches("test", 5)])
    assert masks[3 + 2, 0].tolist() == [0, 1, -100, 2, 0, 0]  # after 0, 1, 10, 11 and 2


def test_masks_of_0_and_255_alone_hold_two_classes(dataset):
    binary = {f"masks/{i}.png": png(np.full((5, 6), 255 * (i % 2))) for i in range(12)}
    data = forms(dataset(zipped(pairs(binary))))
    assert (data.classes, data.warnings[:1]) == (2, ["The masks hold 0 and 255 alone: 255 is the class 1."])
    assert sorted(torch.cat([masks for _, masks in data.batches("train", 4)]).unique().tolist()) == [0, 1]


def test_a_further_value_of_masks_may_be_ignored(dataset):
    data = load_dataset(dataset(zipped(pairs())), task=None, preprocess=None, seed=0, ignored=2)
    assert (data.classes, data.warnings) == (2, ["Pixels with the label 2 are ignored."])
    assert torch.cat([masks for _, masks in data.batches("train", 4)]).unique().tolist() == [-100, 0, 1]


def test_inspection_describes_masks(dataset):
    shown = inspect_dataset(dataset(zipped(pairs())))
    assert shown.target == {"dtype": "int64", "shape": [5, 6], "classes": 3}


BAD_MASKS = {
    "missing": (lambda: pairs() | {"images/99.jpg": image("RGB")}, "1 file in images without a mask .* images/99.jpg"),
    "no image": (lambda: pairs() | {"masks/99.png": png(np.zeros((5, 6)))}, "1 file in masks without an image"),
    "size": (lambda: pairs({"masks/3.png": png(np.zeros((6, 6)))}), r"masks/3.png is 6×6, its image 6×5"),
    "colour": (lambda: pairs({"masks/3.png": image("RGB", fill=(1, 0, 0))}), "has the mode RGB.*class numbers"),
    "16 bits": (lambda: pairs({"masks/3.png": image("I;16")}), "has the mode I;16"),
    "lossy": (lambda: {n: c for n, c in pairs().items() if n != "masks/3.png"} | {"masks/3.jpg": image(kind="JPEG")},
              "masks/3.jpg is a JPEG"),
    "elsewhere": (lambda: pairs() | {"extra/1.png": image()}, "extra/1.png lies neither in images nor in masks"),
    "double": (lambda: pairs() | {"images/1.png": image("RGB")}, "the name of images/1.png without its suffix"),
    "half a mask": (
        lambda: pairs({"masks/3.png": png(RNG.integers(0, 3, (5, 6)))[:60]}), "masks/3.png (does not decode|is not)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_refused_with_advice(case, dataset):
    make, says = BAD_MASKS[case]
    with pytest.raises(InvalidData, match=says):
        inspect_dataset(dataset(zipped(make())))


USELESS = {
    "ignored": (lambda: zipped(pairs({f"masks/{i}.png": png(np.full((5, 6), 255)) for i in range(12)})), "are ignored"),
    "a class": (lambda: zipped(pairs({f"masks/{i}.png": png(np.full((5, 6), 4)) for i in range(12)})), "the class 4"),
    "one class": (lambda: npz(x=X, y=Y * 0), "All samples have the label 0.*or task=regression"),
    "far classes": (lambda: npz(x=X, y=Y + 70_000), "too many classes.*use task=regression"),
    "no label holds": (lambda: npz(x=X, y=np.zeros((40, 3), int)), "All samples have the same labels"),
}


@pytest.mark.parametrize("case", USELESS)
def test_labels_that_serve_no_task_leave_data_for_the_tasks_that_are_advised(case, dataset):
    make, says = USELESS[case]
    file = dataset(make())
    with pytest.raises(InvalidData, match=says):
        forms(file)
    shown = inspect_dataset(file)
    assert (shown.task, shown.labelled) == ("match", False)
    assert re.search(f"labels are of no use.*{says}", shown.warnings[0])
    assert not load_dataset(file, task="match", preprocess=None, seed=0).labelled


# -- inputs by name -----------------------------------------------------------------------------


def test_inputs_keep_their_own_names(dataset):
    ids, mask = RNG.integers(0, 9, (40, 5)), np.ones((40, 5), np.int64)
    data = load(dataset(npz(input_ids=ids, attention_mask=mask, labels=Y)))
    assert data.names == ["input_ids", "attention_mask"]
    assert data.classes == 4
    shown = inspect_dataset(dataset(npz(input_ids=ids, attention_mask=mask, labels=Y)))
    assert [each["name"] for each in shown.inputs] == ["input_ids", "attention_mask"]


def test_named_inputs_may_bring_splits(dataset):
    arrays = {f"{name}_{split}": X for name in ("left", "right") for split in ("train", "test")}
    data = load(dataset(npz(**arrays, y_train=Y, y_test=Y)))
    assert (data.names, data.splits, data.samples("test")) == (["left", "right"], "given", 40)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.to(torch.float32)[..., None]
        return self.head((self.embedding(input_ids) * weights).sum(1))


def as_loaded(form: str, tmp_path) -> LoadedModel:
    model, example = Attentive().eval(), (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    path = tmp_path / "model.pt2"
    if form == "exported":
        batch = torch.export.Dim("batch", min=2)
        torch.export.save(torch.export.export(model, example, dynamic_shapes=({0: batch}, {0: batch})), path)
    else:
        torch.jit.save(torch.jit.trace(model, example) if form == "traced" else torch.jit.script(model), path)
    return load_model(ModelFile(path, path.name, ""))


IDS, MASK = RNG.integers(0, 9, (40, 5)), np.tile([1, 1, 1, 0, 0], (40, 1))


@pytest.mark.parametrize("form", ["scripted", "traced", "exported"])
def test_named_inputs_come_in_the_order_of_the_models_arguments(form, dataset, tmp_path):
    loaded = as_loaded(form, tmp_path)
    data = load(dataset(safetensors_bytes({"attention_mask": MASK, "input_ids": IDS, "token_type": MASK, "labels": Y})))
    check_fits(loaded, data)
    assert data.names == ["input_ids", "attention_mask"]
    assert data.example()[1].tolist() == MASK[:2].tolist()
    assert data.warnings == ["Inputs that the model has no argument for were left out: token_type."]


@pytest.mark.parametrize(
    ("arrays", "candidates"),
    [({"ids": IDS, "mask": MASK, "price": Y}, "ids, mask, price"), ({"x": IDS, "price": Y}, "price"), ({"x": IDS}, "")],
)
def test_labels_by_another_name_are_asked_for(arrays, candidates, dataset):
    notes = [note for note in inspect_dataset(dataset(npz(**arrays))).warnings if "called y" in note]
    asked = f"No array is called y. If one holds the labels, call it so: {candidates}."
    assert notes == [asked] * bool(candidates)


def test_names_that_are_not_the_models_come_in_their_stored_order(dataset, tmp_path):
    data = load(dataset(npz(ids=IDS, mask=MASK, y=Y)))
    check_fits(as_loaded("scripted", tmp_path), data)
    assert data.names == ["ids", "mask"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mask": MASK, "input_ids": IDS}, "takes input_ids, attention_mask; .* mask, input_ids. Name every input"),
        ({"ids": IDS}, "the data set's inputs are ids. Give as many"),
        ({"x": IDS}, "the data set has 1 input. Give as many"),
        ({"x0": IDS, "x1": MASK, "x2": MASK}, "has 3 inputs. Give as many, under the model's names or in its order"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused_with_both_lists(arrays, says, dataset, tmp_path):
    with pytest.raises(ShapeMismatch, match=says):
        check_fits(as_loaded("scripted", tmp_path), load(dataset(npz(**arrays, y=Y))))


def test_optional_arguments_may_be_left_to_the_model():
    class Optional(nn.Module):
        def forward(self, x, scale=None, *, flag=False): ...

    class Any(nn.Module):
        def forward(self, *inputs): ...

    class Plain(nn.Module):
        def forward(self, x, scale=None): ...

    assert [forward_arguments(kind()) for kind in (Optional, Any, Plain)] == [
        None,
        None,
        [("x", True), ("scale", False)],
    ]
