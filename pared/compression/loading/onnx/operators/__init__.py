"""The operators of ONNX that pared opens: what each is in torch's own."""

from pared.compression.loading.onnx.operators import elementwise, layers, layout, pooling, recurrent, reductions, sizes
from pared.compression.loading.onnx.operators.step import OPERATORS, Step, unknown_attribute

__all__ = [
    "OPERATORS",
    "Step",
    "elementwise",
    "layers",
    "layout",
    "pooling",
    "recurrent",
    "reductions",
    "sizes",
    "unknown_attribute",
]
