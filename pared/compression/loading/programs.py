"""Opens a torch.export program (`.pt2`): reads it as data, and turns it into equivalent TorchScript."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.verify import flat_tensors
from pared.compression.loading.folding import folded
from pared.compression.loading.loaded import LoadedModel, check_tensors, device_notes, first_line
from pared.compression.loading.own_form import form_note, forms_of, in_float32
from pared.compression.loading.program_code import as_torchscript, devices_named, mode_flags
from pared.compression.loading.program_files import Nesting, Program, read_program
from pared.compression.loading.recurrent_states import hold_states
from pared.compression.work import ModelFile
from pared.errors import UnsupportedModel

_ROWS = 4  # of an example, where the program leaves its batch free
_MOST_ELEMENTS = 1 << 28
_DICT = "builtins.dict"


def load_program(file: ModelFile) -> LoadedModel:
    """Open a torch.export program.

    Raises:
        UnsupportedModel: it cannot be read, or is no straight line of plain operators.
    """
    program = read_program(file.path)
    tensors = program.tensors | program.constants
    check_tensors(tensors)
    forms = forms_of(program.tensors)
    try:
        script = _script(program)
        example, free = _inputs(program)
        notes = _notes(program)
        if example and not any(0 in dims for dims in free):
            script, example, free, note = _with_any_batch(program, script, example, free)
            notes.append(note)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of what is where it was looked for
        raise UnsupportedModel(
            f"This program's graph is not as torch.export writes it ({type(error).__name__} at {first_line(error)}). "
            "It may be damaged: save it again."
        ) from error
    notes += form_note(form.dtype for form in forms.values())
    loaded = LoadedModel(
        module=script,
        format="exported_program",
        flavour="exported",
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=notes,
        frozen_names=[name for name, tensor in script.named_parameters() if not tensor.requires_grad],
        example=example,
        arguments=tuple(spec["user_input"]["arg"]["as_tensor"]["name"] for spec in _user_inputs(program)),
        free_dims=tuple(frozenset(dims) for dims in free),
        unsaved=frozenset(program.constants),
        forms=forms,
    )
    return folded(loaded)


def _script(program: Program, *, free_batch: bool = False) -> torch.jit.ScriptModule:
    """The program as TorchScript, in float32 and eval mode."""
    return hold_states(in_float32(as_torchscript(program, free_batch=free_batch))[0])[0].eval()


def _inputs(program: Program) -> tuple[tuple[Tensor, ...] | None, list[set[int]]]:
    """Inputs like those of the export, and which dimensions of each are free. None: too large, or not told."""
    metas = [
        program.graph.tensor_values[spec["user_input"]["arg"]["as_tensor"]["name"]] for spec in _user_inputs(program)
    ]
    free = [{dim for dim, size in enumerate(meta.sizes) if size.as_int is None} for meta in metas]
    shapes = [[size.example for size in meta.sizes] for meta in metas]
    known = [[size for size in shape if size is not None and size >= 0] for shape in shapes]
    if known != shapes or sum(math.prod(shape) for shape in known) > _MOST_ELEMENTS:
        return None, free
    batches = {size.model_dump_json() for meta in metas for size in meta.sizes[:1]}
    if len(batches) == 1 and all(0 in dims for dims in free):
        known = [[min(shape[0], _ROWS), *shape[1:]] for shape in known]
    generator = torch.Generator().manual_seed(0)
    return tuple(_like(meta.torch_dtype, shape, generator) for meta, shape in zip(metas, known, strict=True)), free


def _user_inputs(program: Program) -> list[dict[str, Any]]:
    """What the signature says of the inputs that are the caller's to give."""
    return [spec for spec in program.input_specs if "user_input" in spec]


def _like(dtype: torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal numbers, in float32; zeros and ones of any other type."""
    if dtype.is_floating_point:
        return torch.randn(*shape, generator=generator)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)


def _with_any_batch(
    program: Program, script: torch.jit.ScriptModule, example: tuple[Tensor, ...], free: list[set[int]]
) -> tuple[torch.jit.ScriptModule, tuple[Tensor, ...], list[set[int]], str]:
    """A program that was exported for one batch size, taking any if it can; and what to say of that."""
    rows = len(example[0]) if example[0].dim() else 0
    freed = _script(program, free_batch=True)
    if takes_any_batch(script, freed, example):
        note = (
            f"This program was exported for a batch of {rows} alone. Its own steps take any, which was checked, so the "
            "result takes any batch too."
        )
        return freed, tuple(repeated(tensor, _ROWS) for tensor in example), [{0, *dims} for dims in free], note
    note = (
        f"This program takes a batch of {rows} alone, where training and measuring need others: export it with "
        "torch.export.export(model, args, dynamic_shapes=[{0: torch.export.Dim.AUTO}]), an entry for each input."
    )
    return script, example, free, note


def takes_any_batch(script: torch.jit.ScriptModule, freed: torch.jit.ScriptModule, example: Sequence[Tensor]) -> bool:
    """Whether the program whose reshapes were freed treats each row as the program itself does, however many come."""
    rows = len(example[0]) if example[0].dim() else 0
    if not rows or any(not tensor.dim() or len(tensor) != rows for tensor in example):
        return False
    with torch.no_grad(), optimized_execution(False):
        try:
            expected = flat_tensors(script(*example))
            single = flat_tensors(freed(*(tensor[:1] for tensor in example)))
            double = flat_tensors(freed(*(repeated(tensor, 2 * rows) for tensor in example)))
        except Exception:  # noqa: BLE001 - whatever it is, it takes no other batch
            return False
    wanted = [(tensor[:1], repeated(tensor, 2 * rows)) for tensor in expected if tensor.dim()]
    actual = list(zip(single, double, strict=True))
    return len(wanted) == len(actual) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)
        for pair, others in zip(actual, wanted, strict=True)
        for one, other in zip(pair, others, strict=True)
    )


def repeated(tensor: Tensor, rows: int) -> Tensor:
    """The rows of a tensor, over and over until there are so many."""
    return tensor[torch.arange(rows) % len(tensor)]


def _notes(program: Program) -> list[str]:
    notes = device_notes(devices_named(program))
    modes = mode_flags(program)
    if modes == {True}:
        notes.append(
            "This program was exported in training mode, with dropout and batch statistics switched on for good. Here "
            "they follow what the model does, and are off when it is evaluated; results are programs for evaluation."
        )
    elif len(modes) > 1:
        notes.append(
            "Some of this program's batch norms and dropouts were exported in training mode, and are on even when it "
            "is evaluated. Call model.eval() before torch.export.export."
        )
    fixed = [spec["constant_input"]["name"][:60] for spec in program.input_specs if "constant_input" in spec]
    if fixed:
        notes.append(f"The inputs {', '.join(fixed)} were fixed by the export, so the result does not take them.")
    if not _positional(program.in_spec) and not fixed:
        notes.append(
            "This program takes its inputs by name or inside of containers; here and in the result they come one after "
            "the other, in the order in which it has them."
        )
    if any(child.type is not None for child in program.out_spec.children_spec) or program.out_spec.type == _DICT:
        notes.append(
            "This program answers with tensors inside of containers; the result gives them one after the other."
        )
    return notes


def _positional(spec: Nesting) -> bool:
    """Whether all inputs are tensors, given one after the other."""
    return (
        len(spec.children_spec) == 2
        and not spec.children_spec[1].children_spec
        and all(child.type is None for child in spec.children_spec[0].children_spec)
    )
