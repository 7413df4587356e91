"""Reads the tensors of a state dict, and fits them to an architecture by the names that both have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pared.compression.architectures import LayeredModule, current_name
from pared.compression.loading.checkpoints import StateDict, chosen, left_out_notes, possible, state_dicts
from pared.compression.loading.file_format import Container
from pared.compression.loading.loaded import Origin, State, check_tensors, first_line, listed, shape_text
from pared.compression.loading.own_form import Form, form_note, typed
from pared.compression.loading.parametrized import Folded, fold_state
from pared.compression.loading.pickles import load_weights_only
from pared.compression.work import ModelFile
from pared.errors import ShapeMismatch, UnsupportedModel
from pared.weights.parametrized import computed_from
from pared.weights.safetensors import BadSafetensors, read_header
from pared.wording import shortened

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DataParallel, torch.compile and their like put into the names of tensors."""
_MOST_WRAPPED = 16  # parts of a name that may stand before the module's own
_BESIDE = re.compile(
    "loss|losses|criterion|criteria|metrics?|acc|accuracy|auc|auroc|f1|precision|recall|iou|jaccard|dice|psnr|ssim|lpips|"
    "fid|confmat|mae|mse|rmse|perplexity|bleu|wer|cer",
    re.IGNORECASE,
)
"""Words in the names of losses and metrics, which keep tensors beside those of the model."""


@dataclass(frozen=True)
class ReadState:
    """A state dict as it was read: its tensors by the module's names, in float32, and whence they are.

    `as_stored`: the tensors of the file by its own names. `forms` and `origin` are those of a `LoadedModel`.
    """

    state: State
    as_stored: State
    forms: dict[str, Form]
    folded: Folded
    origin: Origin
    notes: list[str]


def read_state_dict(file: ModelFile, container: Container, module: LayeredModule | None = None) -> ReadState:
    """The state dict that is meant, of an upload that holds one or several.

    Args:
        module: what it is to fit; None: the tensors keep the names that they have in the file.

    Raises:
        UnsupportedModel: damaged, no state dict, or several and none is chosen.
        ShapeMismatch: it does not fit the module.
    """
    found, optimizers = _stored(file.path, container)
    whence = Origin(file.path, container)
    fit = None if module is None else lambda one: _fit(one, module, file.prefix, whence)
    one, read = chosen(found, file.weights, fit)
    read = read or _fit(one, None, file.prefix, whence)
    others = [each.name for each in found if each is not one and each.looks() > 1 and not each.is_aside()]
    origin = replace(read.origin, others=others, optimizers=optimizers)
    return replace(read, origin=origin, notes=[*left_out_notes(one), *read.notes])


def stored_tensors(path: Path, container: Container, notes: list[str]) -> State:
    """The tensors of a file with one state dict, unchecked and in their own types.

    What was left out is added to `notes`.

    Raises:
        UnsupportedModel: as `read_state_dict`.
    """
    one, _ = chosen(_stored(path, container)[0], None, None)
    notes += left_out_notes(one)
    return one.tensors


def _stored(path: Path, container: Container) -> tuple[list[StateDict], list[str]]:
    """All state dicts of a file, and where the states of optimizers are."""
    if container == "safetensors":
        return [StateDict((), _read_safetensors(path), [])], []
    return state_dicts(load_weights_only(path, legacy=container == "legacy_state_dict"))


@dataclass(frozen=True)
class Outline:
    """The names and shapes in a state dict, what it is called in a list, and what is to be said of it."""

    shapes: dict[str, tuple[int, ...]]
    notes: list[str]
    name: str = ""
    described: str = ""


def read_outlines(file: ModelFile, container: Container) -> list[Outline]:
    """Each state dict of a file that may be meant, where no architecture decides; of safetensors without the tensors.

    Raises:
        UnsupportedModel: damaged, or no state dict.
    """
    if container == "safetensors" and not file.prefix and not file.weights:
        try:
            entries = read_header(file.path).tensors
        except BadSafetensors as error:
            raise UnsupportedModel(f"This safetensors file is damaged: {error}. Save and upload it again.") from error
        kinds = {entry.dtype for entry in entries}
        if kinds <= _DTYPES.keys() and not computed_from(entry.name for entry in entries):
            shapes = {entry.name: entry.shape for entry in entries}
            return [Outline(shapes, form_note(_DTYPES[kind] for kind in kinds))]
    outlines = []
    for one in possible(_stored(file.path, container)[0], file.weights):
        read = _fit(one, None, file.prefix, Origin(file.path, container))
        shapes = {name: tuple(tensor.shape) for name, tensor in read.state.items()}
        outlines.append(Outline(shapes, [*left_out_notes(one), *read.notes], one.name, one.described()))
    return outlines


def told_apart(outlines: Sequence[Outline]) -> bool:
    """Whether an architecture can be named that fits one of these state dicts and no other."""
    return any(not any(_alike(one, other) for other in outlines if other is not one) for one in outlines)


def _alike(one: Outline, other: Outline) -> bool:
    return fits(one.shapes, other.shapes) or fits(other.shapes, one.shapes)


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Plain types in safetensors -> those of torch."""


def _read_safetensors(path: Path) -> State:
    try:
        header = read_header(path)
        tensors = safetensors.torch.load_file(path)
    except BadSafetensors as error:
        raise UnsupportedModel(f"This safetensors file is damaged: {error}. Save and upload it again.") from error
    except Exception as error:
        raise UnsupportedModel(f"This safetensors file does not open: {first_line(error)}.") from error
    # As they lie in the file, for of equal weights the first go, also where a job goes from file to file.
    return {entry.name: tensors[entry.name] for entry in header.tensors}


def _fit(one: StateDict, module: LayeredModule | None, prefix: str | None, whence: Origin) -> ReadState:
    """One state dict by the names of the module, if there is one."""
    notes: list[str] = []
    stored, prefix = _under(one.tensors, prefix, notes)
    check_tensors(stored)
    notes += form_note(tensor.dtype for tensor in stored.values())
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    layers = [] if module is None else module.named_modules()
    plain, folded = fold_state(state, [name for name, layer in layers if isinstance(layer, _TRANSPOSED)])
    if module is None:
        names, wrapper = {name.removeprefix(prefix): name for name in plain}, ""
    else:
        names, wrapper = _names_in_file(plain, module.state_dict(), prefix, notes)
    notes += folded.notes(sum(plain[name].numel() for name in names.values()))
    first_of = {name: sources[0] for name, sources in folded.sources.items()}
    kinds = {name: stored[first_of.get(file_name, file_name)].dtype for name, file_name in names.items()}
    return ReadState(
        state={name: plain[file_name] for name, file_name in names.items()},
        as_stored=stored,
        forms=typed({name: kind for name, kind in kinds.items() if kind.is_floating_point}),
        folded=folded,
        origin=replace(whence, keys=one.keys, names=names, prefix=prefix + wrapper, folded=folded.sources),
        notes=notes,
    )


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _under(tensors: State, prefix: str | None, notes: list[str]) -> tuple[State, str]:
    """The tensors whose names begin with a prefix, and the prefix with its full stop."""
    if not prefix:
        return tensors, ""
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    under = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not under:
        there = list(dict.fromkeys(f"{name.partition('.')[0]}." for name in tensors if "." in name))
        raise UnsupportedModel(
            f"`prefix`: no tensor's name begins with {prefix!r}. The names begin with {shortened(there) or 'no prefix'}"
            f": {listed(tensors)}. Upload it again with one of these, or without `prefix`."
        )
    if others := [name for name in tensors if name not in under]:
        notes.append(f"Tensors whose names do not begin with {prefix!r} were left out: {shortened(others)}.")
    return under, prefix


# -- names in the file and in the module -----------------------------------------------------------


def fits(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> bool:
    """Whether a module whose state dict has the expected names and shapes takes a file's, under one prefix or more."""
    state, wanted = (
        {name: torch.empty(tuple(shape), device="meta") for name, shape in each.items()} for each in (shapes, expected)
    )
    names_in_file = _ways_to_name({name: name for name in state})
    return any(_fits(names, state, wanted, prefix) for names in names_in_file for prefix in _prefixes(names, wanted))


def _names_in_file(state: State, expected: State, given: str, notes: list[str]) -> tuple[dict[str, str], str]:
    """The module's name of each tensor -> that in the file; and what stands before it there, behind the given prefix.

    Raises:
        ShapeMismatch: tensors are missing, left over or of another shape.
        UnsupportedModel: they fit under several prefixes.
    """
    by_name = {name.removeprefix(given): name for name in state}
    for names in _ways_to_name(by_name):
        fits = [prefix for prefix in _prefixes(names, expected) if _fits(names, state, expected, prefix)]
        distinct = [each for at, each in enumerate(fits) if not _same(names, state, expected, each, fits[:at])]
        if len(distinct) > 1:
            raise UnsupportedModel(
                f"The architecture fits the weights under several prefixes: {shortened(list(map(repr, distinct)))}. "
                "Say which: upload it again with `prefix` set to one, such as POST /v1/models?prefix="
                f"{given + distinct[0]}, or `--prefix {given + distinct[0]}` on the command line."
            )
        if distinct:
            return _taken(names, state, expected, given, distinct[0], notes), distinct[0]
    raise _mismatch(by_name, state, expected)


def _ways_to_name(by_name: dict[str, str]) -> list[dict[str, str]]:
    """What the tensors may be called: as in the file, without the names of wrappers, and as torchvision does today."""
    short = {_without_wrappers(name): file_name for name, file_name in by_name.items()}
    current = {current_name(name): file_name for name, file_name in short.items()}
    return [names for names in (by_name, short, current) if len(names) == len(by_name)]


def _taken(
    names: Mapping[str, str], state: State, expected: State, given: str, prefix: str, notes: list[str]
) -> dict[str, str]:
    taken = {name: names[prefix + name] for name in expected if prefix + name in names}
    if wrapped := [file_name for name, file_name in taken.items() if file_name != given + prefix + name]:
        older = [name for name in wrapped if current_name(name) != name]
        notes.append(
            f"The file has names of an older torchvision, such as {older[0]!r}; the result has today's."
            if older
            else f"What wrappers put into the names of weights was taken out of them, as of {wrapped[0]!r}; the result "
            "has the architecture's names."
        )
    elif prefix:
        notes.append(f"The prefix {prefix!r} was taken off the names of the weights.")
    chosen_names = set(taken.values())
    beside = [name for name in state if name not in chosen_names]
    layers = [name for name in beside if state[name].dim() > 1 and not _is_beside(name.removeprefix(given))]
    if layers:
        raise ShapeMismatch(
            f"The architecture fits what lies under {prefix!r}, and the file holds more: "
            f"{listed({name: state[name] for name in layers})}. If that is no part of the model, upload it again with "
            f"`prefix` set to it (POST /v1/models?prefix={given + prefix}, `--prefix {given + prefix}`); else give "
            "the architecture of the whole."
        )
    if beside:
        notes.append(f"Tensors beside the model were left out: {listed({name: state[name] for name in beside})}.")
    return taken


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(names: Mapping[str, str], expected: State) -> list[str]:
    """What stands in the file before names of the module, that of the most tensors first."""
    count = Counter("" for name in names if name in expected)
    count.update(prefix for name in names for prefix in _before(name) if name[len(prefix) :] in expected)
    return sorted(count, key=lambda prefix: (-count[prefix], len(prefix)))


def _before(name: str) -> Iterator[str]:
    """The beginnings of a name up to each full stop."""
    for stop in [match.end() for match, _ in zip(re.finditer(r"\.", name), range(_MOST_WRAPPED), strict=False)]:
        yield name[:stop]


def _required(expected: State) -> list[str]:
    """What the file must have: before torch 0.4.1 batch norms had no counter, and few read it."""
    return [name for name in expected if not name.endswith("num_batches_tracked")]


def _fits(names: Mapping[str, str], state: State, expected: State, prefix: str) -> bool:
    """Whether all that the module has is there under a prefix, and nothing else is."""
    for name in _required(expected):
        if prefix + name not in names or state[names[prefix + name]].shape != expected[name].shape:
            return False
    inside = (name for name in names if name.startswith(prefix) and name[len(prefix) :] not in expected)
    return all(not prefix and _is_beside(name) for name in inside)


def _is_beside(name: str) -> bool:
    """Whether a tensor belongs to a loss, a metric or a head that only training has, by the first part of its name."""
    if name.startswith("aux_classifier."):  # torchvision's segmentation models
        return True
    words = re.split(r"_|(?<=[a-z])(?=[A-Z])", name.partition(".")[0])
    return any(_BESIDE.fullmatch(word) for word in words)


def _same(names: Mapping[str, str], state: State, expected: State, prefix: str, others: Sequence[str]) -> bool:
    """Whether the same weights lie under another prefix."""
    return any(
        all(torch.equal(state[names[prefix + name]], state[names[other + name]]) for name in _required(expected))
        for other in others
    )


def _mismatch(names: Mapping[str, str], state: State, expected: State) -> ShapeMismatch:
    """What is missing, left over or of another shape under the prefix of the most tensors."""
    prefix = next(iter(_prefixes(names, expected)), "")
    found: dict[str, Tensor] = {
        name.removeprefix(prefix) if name.startswith(prefix) else name: state[file_name]
        for name, file_name in names.items()
    }
    missing = [name for name in _required(expected) if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    parts = ["The weights do not fit the architecture."]
    if missing:
        parts.append(f"Missing from the file: {listed({name: expected[name] for name in missing})}.")
    if extra:
        parts.append(f"In the file but not in the architecture: {listed({name: found[name] for name in extra})}.")
    if extra and not missing and not wrong:
        parts.append(
            "Give the architecture of all of them; or, if these are no part of the model, leave them out of the file: "
            "torch.save({name: state[name] for name in model.state_dict()}, …)."
        )
    if wrong:
        shapes = [
            f"{n} is {shape_text(found[n])} in the file, {shape_text(expected[n])} in the architecture" for n in wrong
        ]
        parts.append(f"Other shapes: {shortened(shapes, between='; ')}.")
    in_order = [tensor.shape for tensor in found.values()] == [tensor.shape for tensor in expected.values()]
    if in_order and missing:
        pairs = [f"{theirs} for {ours}" for ours, theirs in zip(expected, found, strict=True) if ours != theirs]
        parts.append(
            "All shapes agree in order, so only the names differ: give each layer the file's name as its third entry "
            f'(["Linear", {{…}}, "fc1"]): {shortened(pairs)}.'
        )
    return ShapeMismatch(" ".join(parts))
