"""From an uploaded file to a module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from pared.compression.architectures import build
from pared.compression.loading.file_format import STATE_DICTS, recognise
from pared.compression.loading.folders.opening import load_folder
from pared.compression.loading.known_architectures import recognised, recognised_note
from pared.compression.loading.loaded import LoadedModel, listed
from pared.compression.loading.onnx import load_onnx
from pared.compression.loading.programs import load_program
from pared.compression.loading.state_dicts import read_state_dict
from pared.compression.loading.torchscript import load_torchscript
from pared.compression.loading.weights_alone import WeightsAlone
from pared.compression.work import ModelFile
from pared.errors import InvalidArchitecture, UnsupportedModel
from pared.specs.running import Run


def load_model(file: ModelFile, architecture: Any | None = None) -> LoadedModel:
    """Open an upload. TorchScript runs code when it is opened: call this inside the sandbox.

    Args:
        file: the upload.
        architecture: for a state dict; stands in for the one posted with the upload.

    Raises:
        UnsupportedModel: not a model we open; the text says what it looks like and what to do.
        InvalidArchitecture: a state dict without an architecture, or with one that does not build.
        ShapeMismatch: the weights do not fit the architecture.
    """
    file = with_architecture(file, architecture)
    if is_without_architecture(file):
        raise missing_architecture(file)
    loaded = _opened(file)
    return replace(
        loaded,
        warnings=[*file.notes, *loaded.warnings],
        sparse=loaded.sparse | file.sparse,
        onnx=loaded.onnx or file.onnx,
    )


def with_architecture(file: ModelFile, architecture: Any | None = None) -> ModelFile:
    """The upload with what it is opened as: the job's architecture, its own, or else that which its tensors are of.

    Raises:
        UnsupportedModel: damaged, or no state dict.
    """
    if architecture is not None:
        return replace(file, architecture=architecture)
    known = recognised(file) if file.architecture is None else None
    return file if known is None else replace(file, architecture=known, notes=(*file.notes, recognised_note(known)))


def is_without_architecture(file: ModelFile) -> bool:
    """Whether what `with_architecture` gave is a state dict of which nothing says what it belongs to."""
    return file.architecture is None and recognise(file.path) in STATE_DICTS


def missing_architecture(file: ModelFile, why: str = "the job runs it") -> InvalidArchitecture:
    """The refusal of a state dict that nothing says the architecture of, where `why` the job runs it.

    Raises:
        UnsupportedModel: it holds several, and none is chosen.
    """
    state = read_state_dict(file, recognise(file.path)).state
    refused = Run("/architecture", why).refused()
    return InvalidArchitecture(f"An architecture {refused['detail']} The file has {listed(state)}.", errors=[refused])


def _opened(file: ModelFile) -> LoadedModel:
    container = recognise(file.path)
    if container not in STATE_DICTS:
        _refuse_choice(file)
    if container == "torchscript":
        return load_torchscript(file)
    if container == "exported_program":
        return load_program(file)
    if container == "onnx":
        return load_onnx(file)
    if container == "huggingface":
        return load_folder(file)
    module = build(file.architecture)
    read = read_state_dict(file, container, module)
    counters = {name: tensor for name, tensor in module.state_dict().items() if name not in read.state}
    module.load_state_dict(counters | read.state)
    return LoadedModel(
        module=module.eval(),
        format="state_dict",
        flavour="state_dict",
        architecture=module.architecture,
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=read.notes,
        sparse=frozenset(_named(module, read.folded.sparse)),
        forms=read.forms,
        origin=read.origin,
    )


def load_weights(file: ModelFile) -> LoadedModel:
    """Open a state dict without any architecture, as a module that holds its tensors and cannot run.

    Raises:
        UnsupportedModel: not a state dict that we open.
    """
    container = recognise(file.path)
    read = read_state_dict(file, container)
    return LoadedModel(
        module=WeightsAlone(read).eval(),
        format="state_dict",
        flavour="state_dict",
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=[*file.notes, *read.notes],
        sparse=frozenset(read.folded.sparse),
        forms=read.forms,
        origin=read.origin,
        runs=False,
    )


def _refuse_choice(file: ModelFile) -> None:
    """Refuse `weights` and `prefix` where there is nothing to choose."""
    named = [name for name in ("weights", "prefix") if getattr(file, name)]
    if named:
        raise UnsupportedModel(
            f"`{named[0]}` chooses among the tensors of a state dict, and this file is a whole model: upload it again "
            "without it."
        )


def _named(module: nn.Module, names: set[str]) -> Iterator[str]:
    """The module's names of these tensors, which a file may give a prefix."""
    for name, _ in module.named_parameters():
        if any(f".{each}".endswith(f".{name}") for each in names):
            yield name
