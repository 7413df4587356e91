"""From an uploaded file to a module."""

from __future__ import annotations

from typing import Any

from pared.compression.architectures import build
from pared.compression.intake.loaded import LoadedModel, listed
from pared.compression.intake.programs import load_program
from pared.compression.intake.recognising import recognise
from pared.compression.intake.state_dicts import fitted, read_state_dict
from pared.compression.intake.torchscript import load_torchscript
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
    container = recognise(file.path)
    if container == "torchscript":
        return load_torchscript(file)
    if container == "exported_program":
        return load_program(file)
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
    module.load_state_dict(fitted(state, module, notes))
    return LoadedModel(
        module=module.eval(),
        format="state_dict",
        flavour="state_dict",
        architecture=module.architecture,
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=notes,
    )
