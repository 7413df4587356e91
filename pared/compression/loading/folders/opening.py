"""From a model folder to a traced module in float32, checked against its config, its weights and its tokenizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.verify import flat_tensors, relative_difference
from pared.compression.loading.file_format import folder_entries
from pared.compression.loading.folders import building
from pared.compression.loading.folders.contents import Contents, read_contents, read_weights
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.loaded import LoadedModel, first_line, other_types
from pared.compression.loading.own_form import Form, typed
from pared.compression.work import ModelFile
from pared.errors import ModelFailed, UnsupportedModel
from pared.wording import shortened

_HALF = (torch.float16, torch.bfloat16)
_ALIKE = 1e-4


@dataclass(frozen=True)
class Opened:
    """A folder's model, before it is traced."""

    model: Any
    folder: ModelFolder
    contents: Contents
    notes: list[str]
    forms: dict[str, Form]
    """What each tensor is stored in, by the model's names."""


def load_folder(file: ModelFile) -> LoadedModel:
    """Open a model folder that was uploaded as a zip.

    Raises:
        UnsupportedModel: what the folder holds is no model that transformers builds without further code.
        ShapeMismatch: config and weights do not fit.
        ModelFailed: the model does not run on inputs like those that its config describes.
    """
    opened = open_folder(file)
    folder, model = opened.folder, opened.model
    example = building.example_of(model.config, folder.inputs)
    script = building.traced(model, folder, example)
    free = _free_lengths(opened, script, opened.notes)
    return LoadedModel(
        module=script,
        format="huggingface",
        flavour="traced",
        sha256=file.sha256,
        file_bytes=file.path.stat().st_size,
        warnings=opened.notes,
        example=example,
        free_dims=free,
        unsaved=frozenset(name for name, _ in script.named_buffers() if name not in dict(model.state_dict())),
        forms=opened.forms,
        folder=folder,
    )


def open_folder(file: ModelFile) -> Opened:
    """The model of a folder, built and checked. Raises: as `load_folder`."""
    contents = read_contents(file.path, folder_entries(file.path))
    config = building.config_of(contents.config)
    cls = building.class_of(config, contents.config.get("architectures"))
    notes: list[str] = []
    state = read_weights(contents, notes)
    options = _options(config, cls, state)
    outline = building.outline(config, cls, options)
    _hold_ties(outline, state)
    _hold_tokenizer(contents, config)
    model, told = building.built(contents.config, cls.__name__, options, state)
    other = other_types(state)
    if other:
        notes.append(f"Weights in {other} are computed with in float32; the result has them in their own types again.")
    left_out = sorted(told["unexpected_keys"])
    if left_out:
        notes.append(f"Weights that {cls.__name__} does not have were left out: {shortened(left_out, 5)}.")
    if contents.code:
        notes.append(f"Code in the folder was neither run nor kept: {shortened(contents.code, 5)}.")
    folder = ModelFolder(
        path=file.path,
        config=model.config.to_dict(),
        class_name=cls.__name__,
        options=options,
        inputs=building.inputs_of(model),
        hidden_only="modules.json" in contents.sizes,
    )
    return Opened(model, folder, contents, notes, typed(_types(model, state)))


def _options(config: Any, cls: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whether the class is to be built without the pooler that such folders often lack."""
    takes = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    has = any(name.partition("pooler.")[1] for name in state)
    return {"add_pooling_layer": False} if takes and not has else {}


def _types(model: Any, state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The stored type of each tensor, under the model's names; of a parameter that was renamed, that of most."""
    kinds = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    usual = max(dict.fromkeys(kinds), key=kinds.count) if kinds else torch.float32
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    stored = {name: tensor.dtype for name, tensor in state.items()}
    found = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in [*parameters.items(), *model.named_buffers(remove_duplicate=False)]:
        if tensor.is_floating_point():
            near = (name, f"{prefix}{name}", name.removeprefix(prefix))
            other = usual if name in parameters else torch.float32  # of a buffer that transformers makes
            found[name] = next((stored[each] for each in near if each in stored), other)
    return found


def _hold_ties(outline: Any, state: Mapping[str, Tensor]) -> None:
    """Raises UnsupportedModel where a file holds two different tensors for what the config says is one."""
    prefix = f"{getattr(outline, 'base_model_prefix', '')}."
    for names in building.tied_in(outline):
        present = {
            each: state[each]
            for name in names
            for each in dict.fromkeys((name, name.removeprefix(prefix)))
            if each in state
        }
        first, *others = present.items() if present else [("", torch.empty(0))]
        for name, tensor in others:
            if tensor.shape != first[1].shape or not torch.equal(tensor, first[1]):
                raise UnsupportedModel(
                    f"{first[0][:100]} and {name[:100]} are one weight by config.json (tie_word_embeddings), and the "
                    "folder holds two that differ. Set tie_word_embeddings to false in config.json if both were "
                    "trained, or save the folder again with save_pretrained."
                )


def _hold_tokenizer(contents: Contents, config: Any) -> None:
    """Raises UnsupportedModel for a tokenizer whose ids the model's embedding does not hold."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if type(rows) is not int:
        return
    ids: list[int] = []
    name = "tokenizer.json"
    if name in contents.sizes:
        parsed = contents.json(name)
        words = parsed.get("model", {}).get("vocab") if isinstance(parsed, dict) else None
        if isinstance(words, dict):
            ids = [value for value in words.values() if type(value) is int]
        elif isinstance(words, list):
            ids = list(range(len(words)))
    elif "vocab.txt" in contents.sizes:
        name = "vocab.txt"
        ids = list(range(len(contents.read(name).splitlines())))
    if ids and max(ids) >= rows:
        raise UnsupportedModel(
            f"{name} gives token ids up to {max(ids):,}, and the model has an embedding for {rows:,} (vocab_size): it "
            "is the tokenizer of another model. Put the model's own tokenizer into the folder, or leave it out."
        )


def _free_lengths(
    opened: Opened, script: torch.jit.ScriptModule, notes: list[str]
) -> tuple[frozenset[int], ...] | None:
    """Which sizes of the inputs are free: what was traced is run with others, beside the model itself.

    Raises:
        ModelFailed: it does not answer as the model does even for inputs of the same sizes.
        UnsupportedModel: it does so for one batch size alone.
    """
    model, folder = opened.model, opened.folder
    answering = building.Answering(model, folder.inputs, hidden_only=folder.hidden_only)

    def alike(**sizes: int) -> bool:
        inputs = building.example_of(model.config, folder.inputs, **sizes)
        with building.quietly(), torch.no_grad(), optimized_execution(False):
            try:
                expected = flat_tensors(answering(*inputs))
            except Exception as error:
                raise ModelFailed(
                    f"{folder.class_name} failed on an example of its inputs: {first_line(error)}."
                ) from error
            try:
                actual = flat_tensors(script(*inputs))
            except Exception:  # noqa: BLE001 - whatever it is, tracing fixed a size
                return False
        return len(actual) == len(expected) and all(
            one.shape == other.shape and relative_difference(one, other) <= _ALIKE
            for one, other in zip(actual, expected, strict=True)
        )

    if not alike(rows=3):
        if not alike():
            raise ModelFailed(f"{folder.class_name} answers otherwise once it is traced, so it cannot be followed.")
        raise UnsupportedModel(
            f"Tracing {folder.class_name} fixes its batch size. Upload the model as a torch.export program."
        )
    lengths = frozenset({0, 1})
    if any(name in _OF_LENGTH for name in folder.inputs) and alike(rows=3, longer=1):
        return tuple(lengths if name in _OF_LENGTH else frozenset({0}) for name in folder.inputs)
    if any(name in _OF_LENGTH for name in folder.inputs):
        notes.append("Tracing fixed the length of the inputs to that of the example.")
    return None


_OF_LENGTH = ("input_ids", "attention_mask", "decoder_input_ids", "input_values")
