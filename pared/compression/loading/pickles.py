"""Opens what `torch.save` wrote without running its pickle, and says of one that does not open what it holds."""

from __future__ import annotations

import argparse
import codecs
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch._weights_only_unpickler import Unpickler

from pared.compression.loading.loaded import SAVE_ADVICE, first_line
from pared.errors import OutOfMemory, UnsupportedModel

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C

_PLAIN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    codecs.encode,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]
"""Plain data that training scripts put beside weights and that torch asks its users about: none of it runs code."""


def load_weights_only(path: Path, *, legacy: bool) -> Any:
    """`torch.load` with `weights_only=True` and nothing else: no fallback runs a pickle.

    Args:
        legacy: whether the file is no zip archive, but of the format before torch 1.6.

    Raises:
        UnsupportedModel: damaged, or it holds what only running its code would open; says what.
        OutOfMemory: its tensors do not fit.
    """
    if legacy:
        _check_legacy(path)
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
    except MemoryError as error:
        raise OutOfMemory("The file's tensors need more memory than a job may use.") from error
    except Exception as error:
        raise _refusal(path, error) from error


# -- what a file holds that does not open ----------------------------------------------------------


def _refusal(path: Path, error: Exception) -> UnsupportedModel:
    classes = _foreign_classes(path)
    module = _pickled_module(classes)
    if module is not None:
        return UnsupportedModel(
            f"This file is a pickled nn.Module ({module[:100]}); opening it would run its code. Where its class can be "
            "imported, load it with `model = torch.load(path, weights_only=False)` (of a checkpoint, take the entry "
            f"that is the module). {SAVE_ADVICE}"
        )
    if classes:
        return UnsupportedModel(
            f"This file holds Python objects besides tensors ({', '.join(classes[:3])[:200]}); opening them would run "
            "their code. Where their classes can be imported, load it with `checkpoint = torch.load(path, "
            "weights_only=False)` and save the weights alone: torch.save(checkpoint['state_dict'], …), by the key that "
            "they have there."
        )
    return UnsupportedModel(
        f"torch cannot read this file, which may be damaged or cut off: {first_line(error)}. Save and upload it again."
    )


def _pickled_module(classes: list[str]) -> str | None:
    """The class of the nn.Module among what a pickle names, in its order: a module stands before its parts."""
    first = next((at for at, name in enumerate(classes) if name.startswith("torch.nn.modules.")), None)
    if first is None:
        return None
    known = {"torch", "numpy", "__builtin__", *sys.stdlib_module_names}
    own = [name for name in classes[:first] if name.partition(".")[0] not in known]
    return own[-1] if own else classes[first]


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
    harmless = {f"{each.__module__}.{each.__qualname__}" for each in _PLAIN if isinstance(each, type)}
    harmless |= {"_codecs.encode", *(each[1] for each in _PLAIN if isinstance(each, tuple))}
    return [
        name
        for name in dict.fromkeys(named)
        if not name.startswith(ours) and not plain.fullmatch(name) and name not in harmless
    ]


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


# -- the format before torch 1.6 -------------------------------------------------------------------


class _ClaimsTooMuch(Exception):
    """The pickle asks for more room than the file could fill."""


class _Claims:
    """The storages that a pickle asks for, made without memory."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._storages: dict[Any, tuple[torch.UntypedStorage, int]] = {}

    def storage(self, saved_id: Any) -> torch.storage.TypedStorage:
        """What the pickle gets in the place of the storage that torch would make."""
        _, kind, key, _, elements, *_ = saved_id
        if key not in self._storages:
            nbytes = elements * int(torch._utils._element_size(kind.dtype))  # type: ignore[no-untyped-call]
            self._bytes += nbytes
            if elements < 0 or self._bytes > self._most_bytes:
                raise _ClaimsTooMuch
            self._storages[key] = torch.UntypedStorage(nbytes, device="meta"), nbytes  # type: ignore[no-untyped-call]
        stored, _ = self._storages[key]
        return torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=stored, dtype=kind.dtype, _internal=True
        )

    def check_tensors(self) -> None:
        """A tensor that is larger than its storage has made it grow."""
        if any(storage.nbytes() > nbytes for storage, nbytes in self._storages.values()):
            raise _ClaimsTooMuch


def _check_legacy(path: Path) -> None:
    """The old format allocates what its pickle claims: hold the tensors' claims against the file, without any room."""
    claims = _Claims(path.stat().st_size)
    try:
        with path.open("rb") as file:
            by_torch = _TORCH_MAGIC in _integers(file)
            if by_torch:
                _integers(file), _integers(file)  # the protocol, and the sizes of the machine's numbers
                with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_PLAIN):
                    unpickler = Unpickler(file, encoding="utf-8")
                    unpickler.persistent_load = claims.storage  # type: ignore[method-assign]
                    unpickler.load()  # type: ignore[no-untyped-call]
        claims.check_tensors()
    except _ClaimsTooMuch:
        raise UnsupportedModel(
            "This file claims tensors larger than itself. If they are real, save them anew with a current PyTorch: "
            "torch.save(model.state_dict(), …)."
        ) from None
    except pickle.UnpicklingError:
        return  # torch stops at the same place, and what it made room for until then is checked
    except NotImplementedError:
        raise UnsupportedModel(
            "This file holds a tensor that is quantized or sparse. Upload the model in float32, before such steps."
        ) from None
    except Exception as error:
        raise UnsupportedModel(
            f"This is a damaged pickle ({first_line(error)}), or a pickle that torch did not write. {SAVE_ADVICE}"
        ) from error
    if not by_torch:
        raise UnsupportedModel(f"This is a Python pickle; opening it would run its code. {SAVE_ADVICE}")


def _integers(file: BinaryIO) -> list[int]:
    """Every integer in the next pickle of a file, save those that number its memo."""
    return [
        argument
        for opcode, argument, _ in pickletools.genops(file)
        if type(argument) is int and not opcode.name.endswith(("PUT", "GET"))
    ]
