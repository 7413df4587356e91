"""Packs a Hugging Face model folder into a zip, which is how it is uploaded."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".ckpt", ".pt", ".pth", ".tflite")
_NOT_OF_THE_MODEL = ("training_args.bin", "optimizer.bin", "scheduler.bin")


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """The file itself, or a zip of a folder, which is there for as long as it is used.

    Raises:
        ValueError: a folder without a config.json.
    """
    if not path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="pared-") as temporary:
        packed = Path(temporary, f"{path.resolve().name}.zip")
        pack(path, packed)
        yield packed


def pack(folder: Path, path: Path) -> None:
    """Write a zip of the model in a folder: config, weights, tokenizer. A folder always gives the same bytes.

    Raises:
        ValueError: the folder has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is a folder without a config.json, so no model that save_pretrained wrote. Name a file, or the "
            "folder that holds config.json and model.safetensors."
        )
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(_of_the_model(folder)):
            entry = zipfile.ZipInfo(name)
            with (folder / name).open("rb") as file, archive.open(entry, "w", force_zip64=True) as packed:
                shutil.copyfileobj(file, packed, 1 << 20)


def _of_the_model(folder: Path) -> Iterator[str]:
    beside = {file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    safe = any(name.endswith(".safetensors") for name in beside)
    for name in beside:
        if name.endswith(_OTHER_WEIGHTS) or name in _NOT_OF_THE_MODEL or (safe and name.endswith(".bin")):
            continue
        if name != "pytorch_model.bin.index.json" or not safe:
            yield name
    for part in _parts_after(folder):
        yield from (str(file.relative_to(folder)) for file in (folder / part).rglob("*") if file.is_file())


def _parts_after(folder: Path) -> list[str]:
    """The folders of what sentence-transformers puts after the model."""
    try:
        listed = json.loads((folder / "modules.json").read_text())
        paths = [str(each["path"]) for each in listed]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [path for path in paths if path and "/" not in path and path != ".." and (folder / path).is_dir()]
