"""Builds models with transformers, of a config and weights alone: no code of a folder is imported, nothing fetched."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.reloading import reloaded
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.loading.loaded import first_line, shape_text
from pared.errors import ShapeMismatch, UnsupportedModel
from pared.wording import shortened

_LENGTH = 16  # of an example's texts
_SAMPLES = 8000  # of an example's sound
_ROWS = 2
_MOST_LAYERS = 4096


def transformers() -> Any:
    """The library, which takes seconds to import and so is imported for model folders alone.

    Raises:
        UnsupportedModel: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedModel(
            "This is a Hugging Face model folder, and this server was set up without transformers. Install "
            "pared[worker,hf] on its workers, or upload the model as TorchScript."
        ) from error
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of tracing and of transformers, which say nothing to whoever uploads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config_of(settings: Mapping[str, Any]) -> Any:
    """The transformers config of these settings.

    Raises:
        UnsupportedModel: transformers does not know the architecture, or the settings contradict each other.
    """
    library = transformers()
    kind = str(settings["model_type"])
    if kind not in library.CONFIG_MAPPING:
        raise UnsupportedModel(
            f"config.json has the model_type {kind[:60]!r}, which transformers {library.__version__} does not have. "
            "Upload the model as TorchScript (torch.jit.trace) or as a torch.export program."
        )
    try:
        with quietly():
            config = library.AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if k != "model_type"})
    except Exception as error:
        raise UnsupportedModel(f"transformers does not take this config.json: {first_line(error)}.") from error
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def class_of(config: Any, named: Any) -> Any:
    """The class that config.json names, if transformers has it and it is of this config; else its base model.

    Raises:
        UnsupportedModel: there is none.
    """
    library = transformers()
    own = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for name in named if isinstance(named, list) else []:
        for place in (library, own):
            found = getattr(place, name, None) if isinstance(name, str) and name.isidentifier() else None
            if _builds(found, config):
                return found
    with contextlib.suppress(KeyError, ValueError):
        return library.MODEL_MAPPING[type(config)]
    raise UnsupportedModel(
        f"transformers has no model for the config of {config.model_type!r}: config.json names "
        f"{shortened([str(each)[:60] for each in named or []]) or 'no architecture'}."
    )


def class_named(name: str, config: Any) -> Any:
    """A class that `class_of` found before."""
    return class_of(config, [name])


def _builds(found: Any, config: Any) -> bool:
    library = transformers()
    return (
        inspect.isclass(found)
        and issubclass(found, library.PreTrainedModel)
        and getattr(found, "config_class", None) is type(config)
    )


def outline(config: Any, cls: Any, options: Mapping[str, Any]) -> nn.Module:
    """The model without memory for its weights, on the meta device.

    Raises:
        UnsupportedModel: the config's sizes contradict each other.
    """
    layers = {
        name: value
        for name, value in config.to_dict().items()
        if "layer" in name and type(value) is int and value > _MOST_LAYERS
    }
    if layers:
        raise UnsupportedModel(f"config.json claims {shortened([f'{n}={v:,}' for n, v in layers.items()])}.")
    try:
        with quietly(), torch.device("meta"):
            model: nn.Module = cls(config, **options)
            model.tie_weights()  # type: ignore[operator]
    except Exception as error:
        raise UnsupportedModel(
            f"transformers does not build a model of this config.json: {first_line(error)}."
        ) from error
    return model


def built(settings: Mapping[str, Any], class_name: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """The model with these weights, in float32 and eval mode, and what transformers says of the loading.

    Raises:
        UnsupportedModel: it cannot be built.
        ShapeMismatch: weights are missing, or have other shapes.
    """
    config = config_of(settings)
    cls = class_named(class_name, config)
    try:
        with quietly():
            model, told = cls.from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **options,
            )
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedModel(f"transformers does not load these weights: {first_line(error)}.") from error
    wrong = [
        f"{name} is {tuple(there)} in the file, {tuple(wanted)} by config.json"
        for name, there, wanted in sorted(told["mismatched_keys"])
    ]
    if wrong:
        raise ShapeMismatch(
            f"config.json does not fit the weights: {shortened(wrong, 4, between='; ')}. Take both from one folder."
        )
    missing = sorted(told["missing_keys"])
    if missing:
        raise ShapeMismatch(
            f"{len(missing)} of the weights that {class_name} needs are not in the folder: {shortened(missing, 5)}. "
            "Name in `architectures` of config.json the class that the folder was saved with, or save it anew."
        )
    return model.eval(), told


def inputs_of(model: Any) -> tuple[str, ...]:
    """The names of the inputs that a model is traced with."""
    main = str(model.main_input_name)
    taken = inspect.signature(model.forward).parameters
    if main not in taken:  # parts of a larger model keep its word for them
        main = next((name for name in _MAIN if name in taken), main)
    names = [main]
    if main == "input_ids" and "attention_mask" in taken:
        names.append("attention_mask")
    if "decoder_input_ids" in taken:
        names.append("decoder_input_ids")
    return tuple(names)


_MAIN = ("input_ids", "pixel_values", "input_values", "input_features")


def example_of(config: Any, names: Sequence[str], *, rows: int = _ROWS, longer: int = 0) -> tuple[Tensor, ...]:
    """Seeded inputs as the config describes them, each of `rows` samples; texts and sounds `longer` by so much.

    Raises:
        UnsupportedModel: an input of a kind that is not known.
    """
    generator = torch.Generator().manual_seed(0)
    length = min([_LENGTH, *(value for name in _LENGTHS if type(value := getattr(config, name, None)) is int)])
    length = max(2, length - 4) + (min(longer, 2) if longer else 0)

    def made(name: str) -> Tensor:
        if name in {"input_ids", "decoder_input_ids"}:
            vocabulary = getattr(config.get_text_config(), "vocab_size", None) or 2
            return torch.randint(min(3, vocabulary - 1), vocabulary, (rows, length), generator=generator)
        if name == "attention_mask":
            mask = torch.ones(rows, length, dtype=torch.int64)
            mask[1:, length - length // 4 :] = 0
            return mask
        if name == "pixel_values":
            height, width = _image_size(config)
            channels = getattr(config, "num_channels", 3)
            return torch.randn(rows, channels, height, width, generator=generator)
        if name == "input_values" and hasattr(config, "conv_stride"):
            return torch.randn(rows, _SAMPLES + 400 * longer, generator=generator)
        if name == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            return torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        raise UnsupportedModel(
            f"This model takes {name}, for which no example can be made from its config. Upload it as TorchScript "
            "(torch.jit.trace), with an example of your own."
        )

    return tuple(made(name) for name in names)


_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)


class Answering(nn.Module):
    """A transformers model as a function of tensors. Its parameters have the names that they have in the model."""

    def __init__(self, model: Any, names: Sequence[str], *, hidden_only: bool) -> None:
        """Args: hidden_only: answer with the last hidden state alone."""
        super().__init__()
        self.__dict__["_whole"] = model  # no part of this module: its own parts are
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = False
        self.__dict__["_names"], self.__dict__["_hidden_only"] = tuple(names), hidden_only

        def forward(*inputs: Tensor) -> Any:
            return self._answer(*inputs)

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.__dict__["forward"] = forward

    def _answer(self, *inputs: Tensor) -> Any:
        given = dict(zip(self.__dict__["_names"], inputs, strict=True))
        answer = self.__dict__["_whole"](**given, return_dict=True)
        if self.__dict__["_hidden_only"]:
            return answer["last_hidden_state"]
        named = {name: value for name, value in answer.items() if isinstance(value, Tensor)}
        known = [named[name] for name in _ANSWERS if name in named]
        known = known[:1] if known and "logits" in named else known
        answers = known or list(named.values())
        if not answers:
            raise ValueError("it answers with no tensor")
        return answers[0] if len(answers) == 1 else tuple(answers)


_ANSWERS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")


def traced(model: Any, folder: ModelFolder, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """The model as TorchScript, its tensors under the names that they have in the folder.

    Raises:
        UnsupportedModel: it cannot be traced.
    """
    answering = Answering(model, folder.inputs, hidden_only=folder.hidden_only)
    try:
        with quietly(), torch.no_grad():
            script: torch.jit.ScriptModule = torch.jit.trace(answering, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
    except MemoryError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"The forward of {folder.class_name} cannot be traced with {', '.join(folder.inputs)}: "
            f"{first_line(error)}. Upload the model as TorchScript or as a torch.export program."
        ) from error
    script = reloaded(script, own_parameters=False).eval()  # the model itself is not used further
    script.inlined_graph  # noqa: B018 - looked at before the first run, for what ran unoptimized is never inlined
    return script


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, under all its names."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}


def tied_in(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    together: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        together.setdefault(id(tensor), []).append(name)
    return [names for names in together.values() if len(names) > 1]


def described(tensor: Tensor, name: str) -> str:
    """A tensor in a message."""
    return f"{name[:100]} {shape_text(tensor)}"
