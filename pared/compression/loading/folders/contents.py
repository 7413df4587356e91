"""Reads a model folder from the zip that it was uploaded as: its config, its weights, and what goes along with them."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch import Tensor

from pared.compression.loading.archives import BROKEN_MEMBER
from pared.compression.loading.file_format import folder_entries
from pared.compression.loading.folders.names import CONFIG, find_root
from pared.compression.loading.loaded import State, check_tensors
from pared.compression.loading.state_dicts import stored_tensors
from pared.errors import UnsupportedModel
from pared.wording import shortened

_MAX_JSON_BYTES = 64 * 2**20
_MAX_CARRIED_BYTES = 256 * 2**20
_INDEX = (".safetensors.index.json", ".bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_OTHERS = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "model.onnx": "ONNX",
}
_CARRIED = (".json", ".txt", ".md", ".model", ".spm", ".jinja", ".vocab", ".bpe", ".tiktoken", ".license")
_NOT_CARRIED = (".index.json", "adapter_config.json", "training_args.json", "trainer_state.json")


@dataclass(frozen=True)
class Contents:
    """The files of a folder. Names are relative to it."""

    path: Path
    """The zip."""
    root: str
    """What stands before each name in the zip: nothing, or the folder's own name and a slash."""
    sizes: dict[str, int]
    config: dict[str, Any]

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            UnsupportedModel: it is damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.root + name)
        except (*BROKEN_MEMBER, OSError) as error:
            raise UnsupportedModel(f"{name} in this folder is damaged: zip the folder and upload it again.") from error

    def json(self, name: str) -> Any:
        """The content of one JSON file.

        Raises:
            UnsupportedModel: it is damaged or too large.
        """
        if self.sizes[name] > _MAX_JSON_BYTES:
            raise UnsupportedModel(f"{name} has {self.sizes[name]:,} bytes, which no such file needs.")
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UnsupportedModel(f"{name} is not JSON. Save the folder again with save_pretrained.") from error

    @property
    def carried(self) -> list[str]:
        """The files that go into a result as they are: tokenizers, processors and their settings, but no weights."""
        parts = _modules_after(self) if "modules.json" in self.sizes else set()
        return [
            name
            for name, size in self.sizes.items()
            if name != CONFIG
            and size <= _MAX_CARRIED_BYTES
            and (
                (name.lower().endswith(_CARRIED) and not name.endswith(_NOT_CARRIED))
                or PurePosixPath(name).name.upper() in {"LICENSE", "NOTICE"}
                or name.partition("/")[0] in parts
            )
            and (name.partition("/")[0] in parts or "/" not in name)
        ]

    @property
    def code(self) -> list[str]:
        """Python files, which are neither run nor written into a result."""
        return [name for name in self.sizes if name.endswith(".py")]


def _modules_after(contents: Contents) -> set[str]:
    """The folders of what sentence-transformers puts after the model, such as its pooling."""
    listed = contents.json("modules.json")
    paths = [each.get("path") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return {path for path in paths if isinstance(path, str) and path and "/" not in path}


def tokenizer_in(path: Path) -> bytes | None:
    """The `tokenizer.json` of a folder that was uploaded as a zip, if it has one."""
    contents = read_contents(path, folder_entries(path))
    return contents.read("tokenizer.json") if "tokenizer.json" in contents.sizes else None


def read_contents(path: Path, entries: Sequence[zipfile.ZipInfo]) -> Contents:
    """The files of a folder, and its config.

    Raises:
        UnsupportedModel: its config is damaged, or asks for code of its own or for weights that are packed.
    """
    root = find_root(entry.filename for entry in entries) or ""
    sizes = {
        entry.filename.removeprefix(root): entry.file_size
        for entry in entries
        if entry.filename.startswith(root) and not entry.is_dir()
    }
    contents = Contents(path, root, sizes, {})
    config = contents.json(CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UnsupportedModel(
            "config.json names no `model_type`, by which transformers knows the architecture. Save the folder with "
            "save_pretrained of a transformers model."
        )
    if config.get("auto_map"):
        code = f" ({shortened(contents.code, 3)})" if contents.code else ""
        raise UnsupportedModel(
            f"config.json has `auto_map`: this model is made by code of its own{code}, which would have to be trusted, "
            "and pared runs no code of an upload. Upload it as TorchScript (torch.jit.trace) or as a torch.export "
            "program; or take `auto_map` out if transformers knows this architecture by itself."
        )
    if config.get("quantization_config"):
        method = str(dict(config["quantization_config"]).get("quant_method", "some method"))[:40]
        raise UnsupportedModel(
            f"The weights of this folder are quantized already ({method}). Prune before quantizing: upload the folder "
            "that it was made from."
        )
    return Contents(path, root, sizes, config)


def read_weights(contents: Contents, notes: list[str]) -> State:
    """All tensors of the folder, as they are stored.

    Raises:
        UnsupportedModel: files are missing, damaged or outside of the folder; or they hold more than tensors.
    """
    names = weight_files(contents)
    state: State = {}
    for name in names:
        found = _tensors(contents, name, notes)
        twice = sorted(found.keys() & state.keys())
        if twice:
            raise UnsupportedModel(f"{twice[0][:200]} stands in two of the folder's files: save the folder again.")
        state |= found
    check_tensors(state)
    return state


def _tensors(contents: Contents, name: str, notes: list[str]) -> State:
    """Those of one file, which is unpacked for as long as it is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights")
        with zipfile.ZipFile(contents.path) as archive, path.open("wb") as file:
            try:
                with archive.open(contents.root + name) as packed:
                    while chunk := packed.read(1 << 22):
                        file.write(chunk)
            except BROKEN_MEMBER as error:
                raise UnsupportedModel(f"{name} in this folder is damaged: zip it and upload it again.") from error
        with path.open("rb") as file:
            head = file.read(64)
        kind: Literal["safetensors", "zip_state_dict", "legacy_state_dict"]
        if head.startswith(b"version https://git-lfs"):
            raise UnsupportedModel(
                f"{name} is a Git LFS pointer, not the weights: run `git lfs pull` and zip it again."
            )
        if name.endswith(".safetensors"):
            kind = "safetensors"
        else:
            kind = "zip_state_dict" if head.startswith(b"PK") else "legacy_state_dict"
        try:
            return stored_tensors(path, kind, notes)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{name}: {error.detail}") from error


def weight_files(contents: Contents) -> list[str]:
    """The files that hold the weights: one, or those that an index names.

    Raises:
        UnsupportedModel: there are none, or not those that the index names.
    """
    for ending, whole in zip(_INDEX, _WHOLE, strict=True):
        if whole in contents.sizes:
            return [whole]
        index = whole.removesuffix(".safetensors").removesuffix(".bin") + ending
        if index in contents.sizes:
            return _of_index(contents, index)
    alone = [name for name in contents.sizes if "/" not in name and name.endswith((".safetensors", ".bin"))]
    alone = [name for name in alone if name not in {"training_args.bin", "optimizer.bin", "scheduler.bin"}]
    if len(alone) == 1:
        return alone
    if alone and all("-of-" in name for name in alone):
        raise UnsupportedModel(
            f"This folder holds weights in parts ({shortened(sorted(alone), 3)}) without the index that says which "
            f"tensor is where: add {_WHOLE[0]}.index.json."
        )
    other = next((f"{name}, of {what}" for name, what in _OTHERS.items() if name in contents.sizes), None)
    raise UnsupportedModel(
        f"This folder has a config.json and no weights of PyTorch in it ({other or shortened(sorted(contents.sizes))})."
        " Save it with save_pretrained, which writes model.safetensors."
    )


def _of_index(contents: Contents, index: str) -> list[str]:
    listed = contents.json(index)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(each, str) for each in places.values()):
        raise UnsupportedModel(f"{index} has no `weight_map` of tensors to files: save the folder again.")
    names = sorted(set(places.values()))
    outside = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    if outside:
        raise UnsupportedModel(
            f"{index} names a file outside of the folder ({outside[0][:100]!r}). Weights lie beside their index: save "
            "the folder again."
        )
    missing = [name for name in names if name not in contents.sizes]
    if missing:
        raise UnsupportedModel(
            f"{len(missing)} of the {len(names)} files that {index} names are missing: {shortened(missing, 5)}. Add "
            "them to the folder, and zip it again."
        )
    return names


def tensor_types(state: dict[str, Tensor]) -> str:
    """The type of most floating-point tensors, for a message."""
    kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()]
    return max(sorted(set(kinds)), key=kinds.count) if kinds else "float32"
