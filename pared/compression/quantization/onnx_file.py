"""Makes int8 files of a float32 ONNX file by ONNX Runtime's own quantizer, a precision for each layer."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.loading.onnx.reading import graphs_of
from pared.compression.quantization.onnx_layers import OnnxLayer, layers_of
from pared.compression.quantization.onnx_smoothing import smooth
from pared.compression.quantization.onnx_weights import store_as_int8, weights_of
from pared.errors import ExportFailed
from pared.reports import Precision
from pared.specs.quantization import Calibration, Method

_DYNAMIC = ("MatMul", "LSTM")
"""What the quantizer makes dynamic; it takes a Gemm for a MatMul and an Add."""
_DYNAMIC_LAYERS = (*_DYNAMIC, "Gemm")
_STATIC_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BETWEEN = (
    "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose",
    "Squeeze", "Unsqueeze", "Concat", "Slice", "Split", "Pad", "Resize", "Add",
)  # fmt: skip
"""Operators between static layers that keep int8 as it is."""
_DELICATE = ("LayerNormalization", "Softmax", "InstanceNormalization")
"""Operators beside which sums stay float32, and what linear layers give: numbers of very different sizes."""
_HELD_APART = ("onnx.infer", "onnx.quant.pre_process")
"""Notes that the quantizer leaves in a file for itself."""


@dataclass(frozen=True)
class FloatFile:
    """A float32 ONNX file that is ready to be quantized, and its layers."""

    path: Path
    layers: list[OnnxLayer]
    method: Method
    inputs: tuple[str, ...]
    scratch: Path
    delicate: bool
    """Whether it has any of `_DELICATE`."""

    def usual(self) -> dict[str, Precision]:
        """Layer -> the precision that the method has for it."""
        import onnx

        operators = {node.name: node.op_type for node in onnx.load(self.path).graph.node}
        kinds: tuple[str, ...] = {"dynamic": _DYNAMIC_LAYERS, "static": _STATIC_LAYERS, "weight_only": ()}[self.method]
        found: dict[str, Precision] = {}
        for layer in self.layers:
            whole = all(operators[name] in kinds for name in layer.operators)
            found[layer.name] = "int8" if whole else "int8_weights"
        return found


def float_file(path: Path, module: nn.Module, method: Method, scratch: Path) -> FloatFile:
    """Make a float32 ONNX file ready.

    Args:
        path: of the file, which stays as it is.
        module: that it was made of.
        scratch: a folder for what is needed on the way.
    """
    import onnx

    ready = scratch / "ready.onnx"
    model = onnx.load(path)
    if method != "weight_only":
        with _quiet(), contextlib.suppress(Exception):  # it can be quantized as it is too, if not as well
            from onnxruntime.quantization.shape_inference import quant_pre_process

            quant_pre_process(path, ready, skip_symbolic_shape=True)
            if ready.stat().st_size <= 1.1 * path.stat().st_size:  # else a weight that two layers share was copied
                model = onnx.load(ready)
    layers = layers_of(model, module)
    onnx.save(model, ready)
    inputs = tuple(value.name for value in model.graph.input)
    return FloatFile(ready, layers, method, inputs, scratch, any(n.op_type in _DELICATE for n in model.graph.node))


class Calibrated:
    """The ranges of what flows between the layers of a float32 file, over some training samples; taken once."""

    path: Path
    """The file, of a transformer with smoothed inputs of its linear layers, whose ranges these are."""

    def __init__(self, file: FloatFile, calibration: Calibration, batches: Sequence[tuple[Tensor, ...]]) -> None:
        """Args: batches: inputs of the model."""
        import onnx

        self.path, self.cache, self.calibration = file.path, file.scratch / "ranges.json", calibration
        self._batches, self._names = batches, file.inputs
        if file.delicate:
            self.path = file.scratch / "smoothed.onnx"
            model = onnx.load(file.path)
            smooth(model, batches)
            onnx.save(model, self.path)

    def reader(self) -> Any:
        """What the quantizer reads the samples from."""
        from onnxruntime.quantization import CalibrationDataReader

        batches, names = iter(self._batches), self._names

        class Reader(CalibrationDataReader):  # type: ignore[misc] # a class without types
            def get_next(self) -> dict[str, Any] | None:
                inputs = next(batches, None)
                return None if inputs is None else dict(zip(names, (x.numpy() for x in inputs), strict=True))

        return Reader()


def write_quantized(
    file: FloatFile,
    precisions: Mapping[str, Precision],
    path: Path,
    calibrated: Calibrated | None,
    *,
    alone: bool = False,
) -> None:
    """Write an int8 file.

    Args:
        precisions: layer -> its precision.
        calibrated: for the method static.
        alone: quantize these layers and nothing between them.
    """
    import onnx

    kept = _operators(file, precisions, "float32")
    chosen = _operators(file, precisions, "int8")
    if chosen and file.method == "dynamic":
        _dynamic(file, chosen, path)
    elif chosen and calibrated is not None:
        _static(file, chosen, path, calibrated, alone=alone)
    model = onnx.load(path if chosen else file.path)
    store_as_int8(model, {name for each in kept for name in (each, f"{each}_MatMul")})
    _tidy(model)
    onnx.save(model, path)


def _operators(file: FloatFile, precisions: Mapping[str, Precision], precision: Precision) -> list[str]:
    return [name for layer in file.layers if precisions[layer.name] == precision for name in layer.operators]


def _dynamic(file: FloatFile, chosen: list[str], path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            file.path,
            path,
            op_types_to_quantize=list(_DYNAMIC),
            nodes_to_quantize=[name for each in chosen for name in (each, f"{each}_MatMul")],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _static(file: FloatFile, chosen: list[str], path: Path, calibrated: Calibrated, *, alone: bool) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "min_max": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    between = [] if alone else _between(file, chosen, onnx.load(file.path, load_external_data=False).graph.node)
    with _quiet(), _with_finite_ranges(calibrated.calibration):
        quantize_static(
            calibrated.path,
            path,
            calibrated.reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_STATIC_LAYERS, *_BETWEEN],
            nodes_to_quantize=[*chosen, *between],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[calibrated.calibration.method],
            calibration_cache_path=calibrated.cache,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]} if file.delicate else {},
        )


@contextlib.contextmanager
def _with_finite_ranges(calibration: Calibration) -> Iterator[None]:
    """Say what a histogram means that cannot be made, such as of a mask that is −inf where nothing is looked at."""
    try:
        yield
    except ValueError as error:
        if calibration.method == "min_max" or "not finite" not in str(error):
            raise
        raise ExportFailed(
            f"Calibration by {calibration.method} counts how often each value comes, and the model has some that are "
            'not finite, such as those of a mask. Give `"calibration": {"method": "min_max"}`.'
        ) from error


def _between(file: FloatFile, chosen: Collection[str], nodes: Sequence[Any]) -> list[str]:
    """The operators between layers that are to stay in int8: what leads to a layer that is left out stays float32."""
    kept = {
        node.name: node for node in nodes if node.op_type in _BETWEEN and not (file.delicate and node.op_type == "Add")
    }
    maker = {name: node.name for node in nodes for name in node.output}
    left_out = {name for layer in file.layers for name in layer.operators} - set(chosen)
    todo = [node for node in nodes if node.name in left_out]
    while todo:
        for name in todo.pop().input:
            made_by = kept.pop(maker.get(name, ""), None)
            todo += [] if made_by is None else [made_by]
    return list(kept)


def precisions_in(path: Path, file: FloatFile) -> dict[str, Precision]:
    """Layer -> what a written file has it in, as its operators say."""
    import onnx

    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}
    maker = {name: node for node in model.graph.node for name in node.output}
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    found: dict[str, Precision] = {}
    for layer in file.layers:
        of_operators = [_precision(name, nodes, maker, floats) for name in layer.operators]
        found[layer.name] = next(each for each in _COARSEST_LAST if each in of_operators)
    return found


_COARSEST_LAST: tuple[Precision, ...] = ("float32", "int8_weights", "int8")


def _precision(name: str, nodes: Mapping[str, Any], maker: Mapping[str, Any], floats: Collection[str]) -> Precision:
    if f"{name}_quant" in nodes or f"{name}_MatMul_quant" in nodes:
        return "int8"
    node = nodes[name] if name in nodes else nodes[f"{name}_MatMul"]
    if weights_of(node, floats):
        return "float32"
    makers = [maker[each].op_type for each in node.input[:2] if each in maker]
    return "int8" if makers == ["DequantizeLinear"] * 2 else "int8_weights"


def _tidy(model: Any) -> None:
    """Leave out what nothing reads, and the quantizer's notes for itself."""
    graphs = list(graphs_of(model.graph))
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs for value in graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    notes = [entry for entry in model.metadata_props if entry.key not in _HELD_APART]
    del model.metadata_props[:]
    model.metadata_props.extend(notes)
    del model.graph.value_info[:]


def write_short(made: Path, path: Path) -> None:
    """Write a file anew with short names for what flows between its operators, which small models are full of.

    Names of inputs, outputs and weights stay. So do all names where a branch or a loop may read what is outside of it.
    """
    import onnx

    model = onnx.load(made)
    nodes = model.graph.node
    if not any(attribute.HasField("g") or attribute.graphs for node in nodes for attribute in node.attribute):
        lasting = [*model.graph.input, *model.graph.output, *model.graph.initializer]
        outside = {value.name for value in lasting} | {""}
        inside = (name for node in nodes for name in node.output if name not in outside)
        fresh = (name for number in itertools.count() if (name := f"v{number:x}") not in outside)
        names = dict(zip(inside, fresh, strict=False))
        for node in nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
                node.ClearField("name")
    _tidy(model)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice to prepare the file, and torch's gradients for what it reads."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with torch.no_grad():
            yield
    finally:
        logging.disable(level)
