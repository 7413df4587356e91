"""How a model folder is packed for an upload."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from pared.folders import as_file, pack


def made(folder: Path, *names: str) -> Path:
    """A folder with these files, each with its own name in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def packed(folder: Path, path: Path) -> set[str]:
    """The names in a folder's zip."""
    pack(folder, path)
    with zipfile.ZipFile(path) as archive:
        assert all(archive.read(name).decode() == name for name in archive.namelist() if name != "modules.json")
        return set(archive.namelist())


def test_a_model_is_packed_and_what_lies_beside_it_is_not(tmp_path):
    folder = made(
        tmp_path / "model",
        *("config.json", "model.safetensors", "tokenizer.json", "LICENSE"),
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "optimizer.bin", ".gitattributes"),
        *("onnx/model.onnx", "runs/events.txt", "1_Pooling/config.json", ".git/HEAD"),
    )
    assert packed(folder, tmp_path / "a.zip") == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "../runs"}]))
    assert packed(folder, tmp_path / "b.zip") >= {"1_Pooling/config.json", "modules.json"}
    assert not any("events" in name or ".." in name for name in packed(folder, tmp_path / "b.zip"))


def test_weights_of_torch_are_packed_where_there_are_no_others(tmp_path):
    folder = made(tmp_path / "model", "config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json")
    assert len(packed(folder, tmp_path / "a.zip")) == 3


def test_the_same_folder_gives_the_same_bytes_and_links_are_followed(tmp_path):
    blobs = made(tmp_path / "blobs", "config.json", "model.safetensors")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    pack(folder, tmp_path / "a.zip")
    pack(blobs, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_file_is_itself_and_a_folder_without_config_says_what_to_name(tmp_path):
    folder = made(tmp_path / "model", "model.safetensors")
    with as_file(folder / "model.safetensors") as file:
        assert file == folder / "model.safetensors"
    with pytest.raises(ValueError, match=r"without a config\.json"), as_file(folder):
        pass
