"""From an uploaded file to a module: recognised by content, refused with a reason, opened, inspected."""

from pared.compression.loading.examples import (
    arguments_of,
    called_on_tensors,
    example_from_specs,
    forward_arguments,
    guess_example_inputs,
    on_tensors,
)
from pared.compression.loading.folding import confirmed, folding_difference
from pared.compression.loading.inspection import PASSED_OVER, inspect_model, inspect_weights
from pared.compression.loading.loaded import LoadedModel
from pared.compression.loading.opening import (
    is_without_architecture,
    load_model,
    load_weights,
    missing_architecture,
    with_architecture,
)
from pared.compression.loading.own_form import in_own_form, own_inputs, own_types, usual_type
from pared.compression.loading.parametrized import Folded, fold_module
from pared.compression.loading.pickles import load_weights_only
from pared.compression.loading.weights_alone import is_parameter

__all__ = [
    "PASSED_OVER",
    "Folded",
    "LoadedModel",
    "arguments_of",
    "called_on_tensors",
    "confirmed",
    "example_from_specs",
    "fold_module",
    "folding_difference",
    "forward_arguments",
    "guess_example_inputs",
    "in_own_form",
    "inspect_model",
    "inspect_weights",
    "is_parameter",
    "is_without_architecture",
    "load_model",
    "load_weights",
    "load_weights_only",
    "missing_architecture",
    "on_tensors",
    "own_inputs",
    "own_types",
    "usual_type",
    "with_architecture",
]
