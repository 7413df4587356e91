"""From an uploaded file to a module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from pared.compression.architectures import build
from pared.compression.loading.file_format import recognise
from pared.compression.loading.folders.opening import load_folder
from pared.compression.loading.loaded import LoadedModel, listed
from pared.compression.loading.parametrized import fold_state
from pared.compression.loading.programs import load_program
from pared.compression.loading.state_dicts import fitted, read_state_dict
from pared.compression.loading.torchscript import load_torchscript
from pared.compression.work import ModelFile
from pared.errors import InvalidArchitecture


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
    loaded = _opened(file, architecture)
    return replace(loaded, warnings=[*file.notes, *loaded.warnings], sparse=loaded.sparse | file.sparse)


def _opened(file: ModelFile, architecture: Any | None) -> LoadedModel:
    container = recognise(file.path)
    if container == "torchscript":
        return load_torchscript(file)
    if container == "exported_program":
        return load_program(file)
    if container == "huggingface":
        return load_folder(file)
    notes: list[str] = []
    state = read_state_dict(file.path, container, notes)
    chosen = architecture if architecture is not None else file.architecture
    if chosen is None:
        raise InvalidArchitecture(
            "A state dict holds weights only, so it needs an architecture: give a known name such as "
            '"resnet_small", or {"layers": [["Linear", {"in_features": …, "out_features": …}, "fc1"], …]} whose layer '
            f"names match the file's. The file holds: {listed(state)}."
        )
    module = build(chosen)
    transposed = [name for name, layer in module.named_modules() if isinstance(layer, _TRANSPOSED)]
    plain, folded = fold_state(state, transposed)
    module.load_state_dict(fitted(plain, module, notes))
    notes += folded.notes(sum(parameter.numel() for parameter in module.parameters()))
    return LoadedModel(
        module=module.eval(),
        format="state_dict",
        flavour="state_dict",
        architecture=module.architecture,
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=notes,
        sparse=frozenset(_named(module, folded.sparse)),
    )


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _named(module: nn.Module, names: set[str]) -> Iterator[str]:
    """The module's names of these tensors, which a file may give a prefix."""
    for name, _ in module.named_parameters():
        if any(f".{each}".endswith(f".{name}") for each in names):
            yield name
