"""What an ONNX file calls its inputs and outputs, and of which types it has them, so that a result can be like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OnnxForm:
    """How an ONNX file looks from outside.

    Attributes:
        inputs, outputs: their names, in order.
        types: of inputs and outputs by name, as numbers of TensorProto.DataType.
        dims: names of the free dimensions of each input, by position.
        metadata: texts that the file keeps beside the graph, such as names of classes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, int]
    dims: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, str] = field(default_factory=dict)
