"""Reads the tensors of a state dict, never running a pickle, and fits them to an architecture."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor

from pared.compression.architectures import LayeredModule
from pared.compression.loading.file_format import Container
from pared.compression.loading.loaded import (
    SAVE_ADVICE,
    check_tensors,
    first_line,
    listed,
    other_types,
    shape_text,
)
from pared.errors import OutOfMemory, ShapeMismatch, UnsupportedModel
from pared.weights.safetensors import BadSafetensors, read_header
from pared.wording import shortened

State = dict[str, Tensor]


def read_state_dict(path: Path, container: Container, notes: list[str]) -> State:
    """The tensors of a file, in float32. What was left out or converted is added to `notes`.

    Raises:
        UnsupportedModel: damaged, not a state dict, or holding what only running its code would open.
    """
    state = stored_tensors(path, container, notes)
    check_tensors(state)
    other = other_types(state)
    if other:
        notes.append(f"Weights in {other} were converted to float32.")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def stored_tensors(path: Path, container: Container, notes: list[str]) -> State:
    """The tensors of a file, unchecked and in their own types. What was left out is added to `notes`.

    Raises:
        UnsupportedModel: as `read_state_dict`.
    """
    if container == "safetensors":
        try:
            read_header(path)
            loaded: Any = safetensors.torch.load_file(path)
        except BadSafetensors as error:
            raise UnsupportedModel(f"This safetensors file is damaged: {error}. Save and upload it again.") from error
        except Exception as error:
            raise UnsupportedModel(f"This safetensors file does not open: {first_line(error)}.") from error
    else:
        if container == "legacy_state_dict":
            _check_legacy(path)
        loaded = _load_weights_only(path, mmap=container == "zip_state_dict")
    return _only_tensors(loaded, notes)


def _load_weights_only(path: Path, *, mmap: bool) -> Any:
    """`torch.load` with `weights_only=True` and nothing else: no fallback runs a pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError as error:
        raise OutOfMemory("The file's tensors need more memory than a job may use.") from error
    except Exception as error:
        classes = _foreign_classes(path)
        if any(name.startswith("torch.nn.modules.") for name in classes):
            own = next((name for name in classes if not name.startswith(("torch.", "collections."))), classes[0])
            raise UnsupportedModel(
                f"This file is a pickled nn.Module ({own[:100]}); opening it would run its code. {SAVE_ADVICE}"
            ) from error
        if classes:
            raise UnsupportedModel(
                f"This file holds Python objects besides tensors ({', '.join(classes[:3])[:200]}); opening them would "
                f"run their code. {SAVE_ADVICE}"
            ) from error
        raise UnsupportedModel(
            f"torch cannot read this file, which may be damaged or cut off: {first_line(error)}. "
            "Save and upload it again."
        ) from error


def _foreign_classes(path: Path) -> list[str]:
    """Classes that a pickle names and a state dict does not need, found without running it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as file:
                    named = _classes_named(cast("BinaryIO", file))
        else:
            with path.open("rb") as file:
                named = [one for _ in range(4) for one in _classes_named(file)]
    except Exception:  # noqa: BLE001 - this only words an error
        return []
    ours = ("torch._utils.", "torch._tensor.", "torch.storage.", "collections.OrderedDict", "torch.nn.parameter.")
    plain = re.compile(r"torch\.\w+(Storage|Tensor)?")
    return [name for name in dict.fromkeys(named) if not name.startswith(ours) and not plain.fullmatch(name)]


def _classes_named(file: BinaryIO) -> list[str]:
    named, texts = [], [""]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            named.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            named.append(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return named


def _check_legacy(path: Path) -> None:
    """The old format (before torch 1.6) allocates what its pickle claims: hold the claims against the file."""
    torch_magic = 0x1950A86A20F9469CFC6C
    try:
        with path.open("rb") as file:
            by_torch = torch_magic in _integers(file)
            # Then the protocol, the sizes of the machine's numbers, and the state dict.
            claims = [_integers(file) for _ in range(3)][-1] if by_torch else []
    except Exception as error:
        raise UnsupportedModel(
            f"This is a damaged pickle ({first_line(error)}), or a pickle that torch did not write. {SAVE_ADVICE}"
        ) from error
    if not by_torch:
        raise UnsupportedModel(f"This is a Python pickle; opening it would run its code. {SAVE_ADVICE}")
    if any(abs(claim) > path.stat().st_size for claim in claims):
        raise UnsupportedModel(
            "This file claims tensors larger than itself. If they are real, save them anew with a current PyTorch: "
            "torch.save(model.state_dict(), …)."
        )


def _integers(file: BinaryIO) -> list[int]:
    """Every integer in the next pickle of a file, save those that number its memo."""
    return [
        argument
        for opcode, argument, _ in pickletools.genops(file)
        if type(argument) is int and not opcode.name.endswith(("PUT", "GET"))
    ]


def _only_tensors(loaded: Any, notes: list[str]) -> State:
    """The state dict in what `torch.load` returned: itself, or the one nested in a checkpoint."""
    if not isinstance(loaded, Mapping):
        kind = "one tensor" if isinstance(loaded, Tensor) else f"a {type(loaded).__name__}"
        raise UnsupportedModel(
            f"This file holds {kind}, not a state dict. Save the weights with "
            "torch.save(model.state_dict(), …) and name their architecture."
        )
    direct = _tensors_of(loaded)
    if not direct:
        nested = {key: _tensors_of(value) for key, value in loaded.items() if isinstance(value, Mapping)}
        candidates = [key for key, tensors in nested.items() if tensors]
        usual = [key for key in ("state_dict", "model_state_dict", "model", "net") if key in candidates]
        if len(candidates) != 1 and not usual:
            keys = shortened([str(key)[:60] for key in loaded]) or "nothing"
            raise UnsupportedModel(
                f"No state dict was found in this file (it holds {keys}). Save the weights alone with "
                "torch.save(model.state_dict(), …)."
            )
        chosen = usual[0] if usual else candidates[0]
        notes.append(f"The weights were taken from {str(chosen)!r} in the checkpoint; the rest was left out.")
        loaded, direct = loaded[chosen], nested[chosen]
    others = [str(key)[:60] for key in loaded if key not in direct]
    if others:
        notes.append(f"Entries that are no tensors were left out: {shortened(others)}.")
    return direct


def _tensors_of(values: Mapping[Any, Any]) -> State:
    return {key: value.detach() for key, value in values.items() if isinstance(key, str) and isinstance(value, Tensor)}


def fitted(state: State, module: LayeredModule, notes: list[str]) -> State:
    """The state dict under the architecture's names.

    Raises:
        ShapeMismatch: keys are missing, left over or of another shape.
    """
    expected = module.state_dict()
    prefix = _common_prefix(state, expected)
    if prefix:
        notes.append(f"The prefix {prefix!r} was taken off the names of the weights.")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    # Files from before torch 0.4.1 lack this counter, and without a momentum of None nothing reads it.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in counters.items() if name not in state} | state

    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if not (missing or extra or wrong):
        return state
    parts = ["The weights do not fit the architecture."]
    if missing:
        parts.append(f"Missing from the file: {listed({name: expected[name] for name in missing})}.")
    if extra:
        parts.append(f"In the file but not in the architecture: {listed({name: state[name] for name in extra})}.")
    if wrong:
        shapes = [
            f"{n} is {shape_text(state[n])} in the file, {shape_text(expected[n])} in the architecture" for n in wrong
        ]
        parts.append(f"Other shapes: {shortened(shapes, between='; ')}.")
    in_order = [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in expected.values()]
    if in_order and missing:
        pairs = [f"{theirs} for {ours}" for ours, theirs in zip(expected, state, strict=True) if ours != theirs]
        parts.append(
            "All shapes agree in order, so only the names differ: give each layer the file's name as its third entry "
            f'(["Linear", {{…}}, "fc1"]): {shortened(pairs)}.'
        )
    raise ShapeMismatch(" ".join(parts))


def _common_prefix(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What wrappers (`module.`, `model.`, `_orig_mod.`) put before every name, if without it the names fit better."""
    prefix = ""
    matches = sum(name in expected for name in state)
    while state and matches < len(state):
        first = next(iter(state))[len(prefix) :].partition(".")[0]
        longer = f"{prefix}{first}."
        if not first or not all(name.startswith(longer) for name in state):
            break
        prefix = longer
        if sum(name.removeprefix(prefix) in expected for name in state) > matches:
            return prefix
    return ""
