"""Every operator of ONNX that pared opens, against the examples that ONNX has of each."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.defs import get_all_schemas_with_history

from pared.compression.loading.onnx.code import Code, Value
from pared.compression.loading.onnx.converting import _Writer, convert, refuse_unknown
from pared.compression.loading.onnx.graph import in_layers, read_graph
from pared.compression.loading.onnx.operators import OPERATORS, unknown_attribute
from pared.compression.loading.onnx.reading import bring_in, in_float32
from pared.errors import UnsupportedModel

RIGHTLY_REFUSED = [
    "from the data",  # a size or a setting that is an input
    "computes its",
    "cache of keys and values",
    "caps its scores",
    "which only training reads",
    "has the attribute",
    "no answer is alike",
    "no gradient goes through it",
    "linear_before_reset=0",
    "sequence_lens",
    "peepholes",
    "the last of equals",
    "with gaps (dilations)",
    "batch_dims",
    "combines what it writes",
    "positions of its maxima",
    "mean or deviation beside its result",
    "which torch does not have",
    "settings that pared does not have",
    "an aspect ratio of its own",
    "as many positions as the data has",
    "makes a type that pared does not have",
    "to have non-zero size",  # the largest of nothing
    "Dimension out of range",  # a mask of attention with one dimension
]
EXAMPLES_ELSEWHERE = {"Constant", "Cast", "CastLike"}
"""Constants are tensors of the file here, and all examples of casts are of types beyond the plain ones."""
NONE_OPENED = {"Hardmax", "GRU"}
"""GRUs are opened that reset after the product; those of the examples reset before it."""
OF_SIZES = {"ConstantOfShape", "Range", "NonZero"}
"""Operators whose first input is a size, or decides on one."""
PLAIN = {"float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"}


@pytest.fixture(scope="module")
def cases():
    """Operator -> (name of an example, its model, inputs and outputs), for those of plain types."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for case in collected:
        nodes = [] if case.model is None else list(case.model.graph.node)
        if len(nodes) == 1 and not nodes[0].domain and nodes[0].op_type in OPERATORS:
            ((inputs, outputs),) = case.data_sets
            if all(str(np.asarray(array).dtype) in PLAIN for array in (*inputs, *outputs)):
                found[nodes[0].op_type].append((case.name, case.model, inputs, outputs))
    return found


def in_plain_types(array):
    array = np.asarray(array)
    wide = str(array.dtype) in ("float16", "bfloat16", "float64")
    return torch.from_numpy(array.astype(np.float32) if wide else array.copy())


def answers(model, inputs, *, compiled):
    """What is made of an example: all but its first input are tensors of the file, as exporters have them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    bring_in(proto, {})
    in_float32(proto)
    graph = read_graph(proto.graph)
    refuse_unknown(graph)
    count = 0 if graph.nodes[0].op in OF_SIZES else 1
    first, fixed = graph.inputs[:count], dict(zip(graph.inputs[count:], inputs[count:], strict=True))
    graph = replace(graph, tensors={**graph.tensors, **fixed}, inputs=first)
    if graph.nodes[0].op == "LayerNormalization":  # whose examples all ask for mean and deviation, which nobody reads
        graph = in_layers(replace(graph, outputs=graph.outputs[:1]), {})
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if compiled and first:
        module = convert(graph, inputs[:1], opset).module
        with torch.no_grad():
            result = module(*inputs[:1])
        return list(result) if isinstance(result, tuple) else [result]
    values = {name: Value(tensor, "x0") for name, tensor in zip(first, inputs, strict=False)}
    with torch.no_grad():
        made = _Writer(Code(first="x0"), opset).run(graph, values, 0)
    return [made[name].tensor for name in graph.outputs]


@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - EXAMPLES_ELSEWHERE))
def test_an_operator_answers_as_its_examples_say(cases, operator):
    right = 0
    for name, model, given, wanted in cases[operator]:
        inputs = [in_plain_types(array) for array in given]
        try:
            got = answers(model, inputs, compiled=right < 3)
        except UnsupportedModel as error:
            if any(reason in error.detail for reason in RIGHTLY_REFUSED):
                continue
            raise
        for one, array in zip(got, wanted, strict=operator != "LayerNormalization"):
            # Attention in bfloat16 is rounded between its steps in the examples.
            close = 1e-2 if "bf16" in name else 2e-3
            torch.testing.assert_close(one, in_plain_types(array), rtol=close, atol=close, equal_nan=True, msg=name)
        right += 1
    assert right or operator in NONE_OPENED, f"no example of {operator} is opened"


def test_attributes_of_every_version_are_known_or_refused():
    """An attribute that is read past would change an answer in silence, on inputs that no comparison tries."""
    refused = {
        (schema.name, name)
        for schema in get_all_schemas_with_history()
        if schema.domain == "" and schema.name in OPERATORS and schema.since_version >= 9
        for name in schema.attributes
        if unknown_attribute(schema.name, [name]) is not None
    }
    assert refused == {
        ("Attention", "left_window_size"),
        ("Attention", "right_window_size"),
        ("Constant", "sparse_value"),
        ("Constant", "value_string"),
        ("Constant", "value_strings"),
        *((name, f"activation_{greek}") for name in ("LSTM", "GRU", "RNN") for greek in ("alpha", "beta")),
    }
