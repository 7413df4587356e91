"""What an inspection leaves to show a data set's samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pared.compression.data import inspect_dataset
from tests.unit.compression.test_data import RNG, X, Y, dataset, image, npz, zipped
from tests.unit.compression.test_data_forms import UNLABELLED, pairs, png

__all__ = ["dataset"]


def shown(file, tmp_path):
    inspect_dataset(file, tmp_path)
    (path,) = tmp_path.glob("preview.*")
    return Image.open(path) if path.suffix == ".png" else json.loads(path.read_text())


def test_images_are_shown_on_a_sheet_with_their_classes(dataset, tmp_path):
    entries = {f"{c}/{i}.png": image("RGB", fill=(20 * i, 0, 0)) for c in ("ant", "bée") for i in range(10)}
    sheet = shown(dataset(zipped(entries)), tmp_path)
    assert sheet.width > 8 * 100
    assert {pixel[0] for pixel in sheet.convert("RGB").get_flattened_data()} >= {20 * i for i in range(1, 10, 4)}


def test_float_images_are_stretched_to_what_can_be_seen(dataset, tmp_path):
    x = RNG.normal(size=(40, 3, 8, 8)).astype(np.float32)
    sheet = np.asarray(shown(dataset(npz(x=x, y=Y)), tmp_path))
    assert sheet.std() > 20


def test_masks_are_shown_beside_their_images(dataset, tmp_path):
    sheet = shown(dataset(zipped(pairs())), tmp_path).convert("RGB")
    assert sheet.size == (4 * (2 * 112 + 2), 2 * (93 + 2))
    of_masks = {sheet.getpixel((column * 226 + 150, 40)) for column in range(4)}
    assert (0, 0, 0) in of_masks
    assert len(of_masks) == 3


def test_pixels_without_a_class_are_white(dataset, tmp_path):
    mask = np.zeros((5, 6))
    mask[:, 3:], mask[0] = 1, 255
    drawn = {f"masks/{i}.png": png(mask) for i in range(12)}
    sheet = shown(dataset(zipped(pairs(drawn))), tmp_path).convert("RGB")
    assert [sheet.getpixel((112 + 20, y)) for y in (5, 60)] == [(255, 255, 255), (0, 0, 0)]


def test_rows_are_shown_as_numbers_with_their_targets(dataset, tmp_path):
    found = shown(dataset(npz(x=X, y=Y)), tmp_path)
    assert found["split"] == "train"
    assert found["inputs"][0]["shape"] == [3]
    first = found["samples"][0]
    assert np.allclose(first["inputs"]["x"], X[np.flatnonzero((np.float32(first["inputs"]["x"]) == X).all(1))[0]])
    assert all(sample["target"] in range(4) for sample in found["samples"])


def test_words_are_shown_as_what_became_of_them(dataset, tmp_path):
    rows = ["colour,size,y", *(f"{('red', 'blue')[i % 2]},{i}.5,{('cat', 'dog')[i % 2]}" for i in range(30))]
    first = shown(dataset("\n".join(rows).encode()), tmp_path)["samples"][0]
    assert (first["class"] == "cat") == (first["inputs"]["x"][:2] == [0.0, 1.0])


def test_token_ids_are_shown_by_the_names_of_their_inputs(dataset, tmp_path):
    ids = RNG.integers(0, 9, (40, 300))
    found = shown(dataset(npz(input_ids=ids, attention_mask=ids[:, :4], y=Y)), tmp_path)
    sample = found["samples"][0]["inputs"]
    assert [each["name"] for each in found["inputs"]] == ["input_ids", "attention_mask"]
    assert (len(sample["input_ids"]), len(sample["attention_mask"])) == (256, 4)
    assert all(isinstance(number, int) for number in sample["input_ids"])


@pytest.mark.parametrize("form", UNLABELLED)
def test_data_without_labels_are_shown_without(form, dataset, tmp_path):
    found = shown(dataset(UNLABELLED[form]()), tmp_path)
    assert isinstance(found, Image.Image) or "target" not in found["samples"][0]
