"""ONNX files as exporters of several frameworks write them, and such as cannot be opened."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.support.files.base import HeldFile

FLOAT = TensorProto.FLOAT
CHANNELS = {"granularity": "channel", "amount": 0.5}


def made(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
    tensors: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    kind: int = FLOAT,
    domain: str = "",
) -> onnx.ModelProto:
    """A model of these nodes; a size of an input or output may be a name."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (tensors or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in outputs.items()],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tests")


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    """Weights of some size."""
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(dtype)


def like_sklearn(dtype: Any = np.float32) -> onnx.ModelProto:
    """Products and additions apart, matrices as (in, out)."""
    tensors = {
        "coefficient": numbers(12, 24, dtype=dtype),
        "intercepts": numbers(24, seed=1, dtype=dtype),
        "coefficient1": numbers(24, 3, seed=2, dtype=dtype),
        "intercepts1": numbers(1, 3, seed=3, dtype=dtype),
    }
    nodes = [
        helper.make_node("MatMul", ["X", "coefficient"], ["mul_result"], "MatMul"),
        helper.make_node("Add", ["mul_result", "intercepts"], ["add_result"], "Add"),
        helper.make_node("Relu", ["add_result"], ["next_activations"], "Relu"),
        helper.make_node("MatMul", ["next_activations", "coefficient1"], ["mul_result1"], "MatMul1"),
        helper.make_node("Add", ["mul_result1", "intercepts1"], ["add_result1"], "Add1"),
        helper.make_node("Softmax", ["add_result1"], ["probabilities"], "Softmax", axis=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return made(nodes, {"X": [None, 12]}, {"probabilities": [None, 3]}, tensors, opset=13, kind=kind)


def like_tensorflow() -> onnx.ModelProto:
    """Pictures with channels last, turned around each layer; uneven padding by SAME; sizes from Shape."""
    tensors = {
        "net/conv/kernel:0": numbers(16, 3, 3, 3),
        "net/bn/gamma:0": numbers(16, seed=1) + 1,
        "net/bn/beta:0": numbers(16, seed=2),
        "net/bn/mean:0": numbers(16, seed=3),
        "net/bn/var:0": np.abs(numbers(16, seed=4)) + 0.5,
        "net/conv2/kernel:0": numbers(8, 16, 3, 3, seed=5),
        "net/conv2/bias:0": numbers(8, seed=6),
        "net/dense/kernel:0": numbers(8 * 16, 5, seed=7),
        "net/dense/bias:0": numbers(5, seed=8),
        "rest": np.array([-1], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([1], np.int64),
    }
    conv = {"auto_pad": "SAME_UPPER", "strides": [2, 2], "kernel_shape": [3, 3]}
    norms = [f"net/bn/{part}:0" for part in ("gamma", "beta", "mean", "var")]
    nodes = [
        helper.make_node("Transpose", ["image:0"], ["nchw"], "net/conv/Conv2D__6", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "net/conv/kernel:0"], ["c1"], "net/conv/Conv2D", **conv),
        helper.make_node("BatchNormalization", ["c1", *norms], ["b1"], "net/bn/FusedBatchNormV3", epsilon=1e-3),
        helper.make_node("Relu", ["b1"], ["r1"], "net/relu"),
        helper.make_node("Conv", ["r1", "net/conv2/kernel:0", "net/conv2/bias:0"], ["c2"], "net/conv2/Conv2D", **conv),
        helper.make_node("Transpose", ["c2"], ["nhwc"], "net/conv2__9", perm=[0, 2, 3, 1]),
        helper.make_node("Shape", ["nhwc"], ["shape"], "net/flatten/Shape"),
        helper.make_node("Slice", ["shape", "start", "end"], ["batch"], "net/flatten/strided_slice"),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], "net/flatten/packed", axis=0),
        helper.make_node("Reshape", ["nhwc", "sizes"], ["flat"], "net/flatten/Reshape"),
        helper.make_node("MatMul", ["flat", "net/dense/kernel:0"], ["product"], "net/dense/MatMul"),
        helper.make_node("Add", ["product", "net/dense/bias:0"], ["Identity:0"], "net/dense/BiasAdd"),
    ]
    return made(nodes, {"image:0": ["unk__1", 16, 16, 3]}, {"Identity:0": ["unk__1", 5]}, tensors, opset=13)


def like_paddle() -> onnx.ModelProto:
    """Weights in Constant nodes, a bias as a column, a squeeze-and-excitation gate, a resize; free height and width."""
    weights = {
        "conv2d_0.w_0": numbers(16, 3, 3, 3),
        "conv2d_0.b_0": numbers(1, 16, 1, 1, seed=1),
        "conv2d_1.w_0": numbers(4, 16, 1, 1, seed=2),
        "conv2d_2.w_0": numbers(16, 4, 1, 1, seed=3),
        "conv2d_3.w_0": numbers(2, 16, 3, 3, seed=4),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in weights.items()
    ]
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes += [
        helper.make_node("Conv", ["x", "conv2d_0.w_0"], ["p0"], **pads),
        helper.make_node("Add", ["p0", "conv2d_0.b_0"], ["p1"]),
        helper.make_node("HardSwish", ["p1"], ["p2"]),
        helper.make_node("GlobalAveragePool", ["p2"], ["p3"]),
        helper.make_node("Conv", ["p3", "conv2d_1.w_0"], ["p4"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["p4"], ["p5"]),
        helper.make_node("Conv", ["p5", "conv2d_2.w_0"], ["p6"], kernel_shape=[1, 1]),
        helper.make_node("HardSigmoid", ["p6"], ["p7"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["p2", "p7"], ["p8"]),
        helper.make_node(
            "Resize",
            ["p8", "", "scales"],
            ["p9"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        helper.make_node("Conv", ["p9", "conv2d_3.w_0"], ["p10"], **pads),
        helper.make_node("Sigmoid", ["p10"], ["sigmoid_0.tmp_0"]),
    ]
    return made(nodes, {"x": [-1, 3, "?", "?"]}, {"sigmoid_0.tmp_0": [-1, 2, "?", "?"]}, opset=14)


class Blocks(nn.Module):
    """A convolution with its batch norm, a residual block and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 20), nn.Linear(20, 4)
        self.bn.running_var.uniform_(0.5, 2)
        self.bn.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answers of (batch, 3, 8, 8)."""
        x = torch.relu(self.bn(self.conv(x)))
        x = nn.functional.max_pool2d(x + self.outer(torch.relu(self.inner(x))), 2)
        return self.fc2(torch.relu(self.fc1(x.view(x.size(0), -1))))


class Recurrent(nn.Module):
    """Two layers of an LSTM in both directions, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 16, 2, batch_first=True, bidirectional=True)
        self.gru, self.fc = nn.GRU(32, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answers of (batch, time, 6)."""
        return self.fc(self.gru(self.lstm(x)[0])[0][:, -1])


class Encoder(nn.Module):
    """Tokens through two transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.layers, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 3)
        for tensor in self.parameters():  # layers are copies, whose equal weights an exporter would tie
            tensor.data += 0.1 * torch.randn_like(tensor)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Answers of (batch, length)."""
        return self.fc(self.layers(self.words(ids)).mean(1))


def traced(module: nn.Module, example: torch.Tensor, path: Path, *, free: bool = True, opset: int = 17) -> Path:
    """As torch's older exporter writes it."""
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return path


def exported(module: nn.Module, example: torch.Tensor, path: Path) -> Path:
    """As torch's current exporter writes it, all sizes of the input free that may be."""
    dims = (dict.fromkeys(range(example.dim() if example.dim() == 2 else 1), torch.export.Dim.AUTO),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=dims,
        )
    return path


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(model.SerializeToString())
    return path


def with_data_beside(folder: Path) -> Path:
    """A model whose weights lie in a file of their own."""
    path = folder / "model.onnx"
    onnx.save(like_tensorflow(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    return path


def zipped(folder: Path) -> Path:
    """Both in one zip, in a folder."""
    with_data_beside(folder)
    with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("model.onnx", "model.onnx.data"):
            archive.write(folder / name, f"export/{name}")
    return folder / "model.zip"


def with_one(operator: str, *, domain: str = "", **attributes: Any) -> onnx.ModelProto:
    """A model of one operator with a name."""
    node = helper.make_node(operator, ["x"], ["y"], f"/{operator.lower()}", domain=domain, **attributes)
    return made([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, domain=domain)


def quantized() -> onnx.ModelProto:
    """A model whose weights are 8 bits wide."""
    tensors = {"scale": np.float32(0.1), "zero": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "/quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "/dequantize"),
    ]
    return made(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, tensors)


def _smaller(names: tuple[str, str], kind: str = "tensor(float)") -> Any:
    """A check that the result is ONNX again, of the upload's names and types."""

    def check(results: Mapping[str, Path]) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(results["model.onnx"], providers=["CPUExecutionProvider"])
        assert (session.get_inputs()[0].name, session.get_outputs()[0].name) == names
        assert session.get_inputs()[0].type == kind
        assert session.get_inputs()[0].shape[0] is None or isinstance(session.get_inputs()[0].shape[0], str)

    return check


def _of_torch(module: type[nn.Module], example: torch.Tensor, **options: Any) -> Any:
    def write(folder: Path) -> Path:
        torch.manual_seed(0)
        return traced(module(), example, folder / "model.onnx", **options)

    return write


ROWS: list[HeldFile] = [
    HeldFile(
        "ONNX of scikit-learn, products and additions apart",
        lambda folder: saved(like_sklearn(), folder / "model.onnx"),
        spec=CHANNELS,
        check=_smaller(("X", "probabilities")),
    ),
    HeldFile(
        "ONNX of scikit-learn, float16",
        lambda folder: saved(like_sklearn(np.float16), folder / "model.onnx"),
        spec=CHANNELS,
        check=_smaller(("X", "probabilities"), "tensor(float16)"),
    ),
    HeldFile(
        "ONNX of TensorFlow, channels last",
        lambda folder: saved(like_tensorflow(), folder / "model.onnx"),
        spec=CHANNELS,
        check=_smaller(("image:0", "Identity:0")),
    ),
    HeldFile(
        "ONNX of Paddle, weights in Constant nodes, free height and width",
        lambda folder: saved(like_paddle(), folder / "inference.onnx"),
        spec=CHANNELS,
        check=_smaller(("x", "sigmoid_0.tmp_0")),
    ),
    HeldFile(
        "ONNX of torch's older exporter, for a batch of 1",
        _of_torch(Blocks, torch.randn(1, 3, 8, 8), free=False),
        spec=CHANNELS,
        check=_smaller(("input", "logits")),
    ),
    HeldFile(
        "ONNX of torch's older exporter, recurrent layers",
        _of_torch(Recurrent, torch.randn(2, 7, 6)),
        spec=CHANNELS,
        check=_smaller(("input", "logits")),
    ),
    HeldFile(
        "ONNX in a zip with its data beside it",
        zipped,
        spec=CHANNELS,
        check=_smaller(("image:0", "Identity:0")),
    ),
    HeldFile("ONNX without the data that is beside it", with_data_beside, refused="zip model.zip model.onnx"),
    HeldFile(
        "ONNX with an operator that pared does not open",
        lambda folder: saved(with_one("NonMaxSuppression"), folder / "model.onnx"),
        refused="The operator NonMaxSuppression (node /nonmaxsuppression) is not one that pared opens",
    ),
    HeldFile(
        "ONNX optimized for one runtime",
        lambda folder: saved(with_one("FusedConv", domain="com.microsoft"), folder / "model.onnx"),
        refused="com.microsoft::FusedConv",
    ),
    HeldFile(
        "ONNX with 8-bit weights",
        lambda folder: saved(quantized(), folder / "model.onnx"),
        refused="upload the float32 model",
    ),
]
