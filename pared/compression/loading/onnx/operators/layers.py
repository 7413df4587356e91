"""Operators with weights: convolutions, products, norms and attention."""

from __future__ import annotations

from typing import Any

from pared.compression.loading.onnx.code import TRAINING, Value
from pared.compression.loading.onnx.operators.elementwise import binary_of
from pared.compression.loading.onnx.operators.padding import cropped, padded, window
from pared.compression.loading.onnx.operators.step import Step, operator


@operator("Conv", "auto_pad dilations group kernel_shape pads strides")
def conv(step: Step) -> Value:
    """A convolution over one to three dimensions; uneven padding is written as a step of its own."""
    x, spatial = step.input(), step.input().rank - 2
    _refuse_rank(step, spatial)
    sizes = step.input(1).shape[2:]
    frame = window(step, x, sizes)
    if not frame.even:
        x, frame = padded(step, x, frame, 0.0), frame.unpadded()
    kind = f"Conv{spatial}d"
    return step.code.call(
        f"conv{spatial}d",
        x,
        step.weight(1, "weight", kind),
        _bias(step, step.given(2), kind),
        frame.strides,
        frame.begins,
        frame.dilations,
        int(step.attribute("group", 1)),
    )


def _refuse_rank(step: Step, spatial: int) -> None:
    if not 1 <= spatial <= 3:
        raise step.refuse(f"works on {spatial} dimensions beside batch and channels; torch has 1 to 3.")


@operator("ConvTranspose", "auto_pad dilations group kernel_shape output_padding output_shape pads strides")
def conv_transpose(step: Step) -> Value:
    """A transposed convolution; what padding takes off unevenly is cut afterwards."""
    x, spatial = step.input(), step.input().rank - 2
    _refuse_rank(step, spatial)
    sizes = step.input(1).shape[2:]
    strides = step.attribute("strides", [1] * spatial)
    dilations = step.attribute("dilations", [1] * spatial)
    extra = list(step.attribute("output_padding", [0] * spatial))
    full = [
        stride * (size - 1) + more + dilation * (kernel - 1) + 1
        for stride, size, more, dilation, kernel in zip(strides, x.shape[2:], extra, dilations, sizes, strict=True)
    ]
    automatic = _text(step.attribute("auto_pad", "NOTSET"))
    wanted = step.attribute("output_shape")
    if wanted is None and automatic.startswith("SAME"):
        wanted = [stride * size for stride, size in zip(strides, x.shape[2:], strict=True)]
    pads = list(step.attribute("pads", [0] * 2 * spatial)) if automatic == "NOTSET" else [0] * 2 * spatial
    if wanted is not None:
        total = [one - other for one, other in zip(full, wanted[-spatial:], strict=True)]
        extra = [more - min(each, 0) for more, each in zip(extra, total, strict=True)]
        less = [max(each, 0) // 2 for each in total]
        more = [max(each, 0) - half for each, half in zip(total, less, strict=True)]
        pads = [*less, *more] if automatic != "SAME_LOWER" else [*more, *less]
    begins, ends = pads[:spatial], pads[spatial:]
    even = begins == ends and all(b <= d * (k - 1) for b, d, k in zip(begins, dilations, sizes, strict=True))
    if any(more >= max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)):
        raise step.refuse("pads its output by more than torch allows (output_padding). Export it otherwise.")
    kind = f"ConvTranspose{spatial}d"
    y = step.code.call(
        f"conv_transpose{spatial}d",
        x,
        step.weight(1, "weight", kind),
        step.weight(2, "bias", kind),
        list(strides),
        begins if even else [0] * spatial,
        extra,
        int(step.attribute("group", 1)),
        list(dilations),
    )
    return y if even else cropped(step, y, begins, ends)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- products -------------------------------------------------------------------------------------


@operator("MatMul")
def matmul(step: Step) -> Value:
    """A product of matrices, which with a matrix of the file is a linear layer. A third input is its bias."""
    x, w, code = step.input(0), step.input(1), step.code
    if _is_matrix(w) and not x.known and x.rank:
        return code.call(
            "linear", x, step.weight(1, "weight", "Linear", transposed=True), step.weight(2, "bias", "Linear")
        )
    y = code.call("matmul", x, w)
    return y if step.given(2) is None else binary_of(step, "Add", y, step.input(2))


def _is_matrix(value: Value) -> bool:
    return value.known and not value.text and value.rank == 2 and value.tensor.is_floating_point()


@operator("Gemm", "alpha beta transA transB")
def gemm(step: Step) -> Value:
    """α · A · B + β · C, either of A and B transposed."""
    a, b, c, code = step.input(0), step.input(1), step.given(2), step.code
    alpha, beta = float(step.attribute("alpha", 1.0)), float(step.attribute("beta", 1.0))
    if step.attribute("transA", 0):
        a = code.call("t", a)
    is_bias = c is None or (c.known and c.tensor.numel() == b.shape[0 if step.attribute("transB", 0) else 1])
    if _is_matrix(b) and not a.known and alpha == beta == 1 and is_bias:
        weight = step.weight(1, "weight", "Linear", transposed=not step.attribute("transB", 0))
        return code.call("linear", a, weight, _bias(step, c, "Linear"))
    if step.attribute("transB", 0):
        b = code.call("t", b)
    y = code.call("matmul", a, b)
    if alpha != 1:
        y = code.call("mul", y, alpha)
    if c is None:
        return y
    return binary_of(step, "Add", y, c if beta == 1 else code.call("mul", c, beta))


def _bias(step: Step, c: Value | None, kind: str) -> Value | None:
    """The bias of a layer, which some exporters write as a row or a column."""
    if c is None or not c.known or c.text:
        return c
    flat = c if c.rank == 1 else Value(c.tensor.reshape(-1), known=True, source=c.source)
    return step.code.weight(flat, step.path(flat, "bias"), kind=kind)


@operator("Einsum", "equation")
def einsum(step: Step) -> Value:
    """A sum of products as its equation says."""
    equation = _text(step.attribute("equation", "")).replace(" ", "")
    return step.code.call("einsum", equation, [step.input(index) for index in range(len(step.inputs))])


# -- norms ----------------------------------------------------------------------------------------


@operator("BatchNormalization", "epsilon momentum training_mode")
def batch_norm(step: Step) -> Value:
    """A batch norm, which uses its statistics or those of the batch, as the model's mode is."""
    if step.outputs > 1 or step.attribute("training_mode", 0):
        raise step.refuse("gives batch statistics, which only training reads. Export the model for inference.")
    kind = f"BatchNorm{min(max(step.input().rank - 2, 1), 3)}d"
    weight, bias = step.weight(1, "weight", kind), step.weight(2, "bias", kind)
    return step.code.call(
        "batch_norm",
        step.input(),
        weight,
        bias,
        step.weight(3, "running_mean", kind, trains=False),
        step.weight(4, "running_var", kind, trains=False),
        TRAINING,
        1 - float(step.attribute("momentum", 0.9)),
        float(step.attribute("epsilon", 1e-5)),
        False,
    )


@operator("LayerNormalization", "axis epsilon")
def layer_norm(step: Step) -> Value:
    """A layer norm over the last dimensions, from `axis` on."""
    if step.outputs > 1:
        raise step.refuse("gives its mean or deviation beside its result, which pared does not follow.")
    x = step.input()
    axis = int(step.attribute("axis", -1)) % x.rank
    shape = x.shape[axis:]
    weight, bias = step.weight(1, "weight", "LayerNorm"), step.weight(2, "bias", "LayerNorm")
    if any(part is not None and part.shape != shape for part in (weight, bias)):
        y = step.code.call("layer_norm", x, shape, None, None, float(step.attribute("epsilon", 1e-5)), False)
        y = y if weight is None else step.code.call("mul", y, weight)
        return y if bias is None else step.code.call("add", y, bias)
    return step.code.call("layer_norm", x, shape, weight, bias, float(step.attribute("epsilon", 1e-5)), False)


@operator("RMSNormalization", "axis epsilon")
def rms_norm(step: Step) -> Value:
    """A norm by the root of the mean square."""
    x = step.input()
    shape = x.shape[int(step.attribute("axis", -1)) % x.rank :]
    if step.input(1).shape != shape:
        raise step.refuse("has a scale of another shape than what it norms. Export it with one number for each.")
    return step.code.call(
        "rms_norm", x, shape, step.weight(1, "weight", "RMSNorm"), float(step.attribute("epsilon", 1e-5))
    )


@operator("InstanceNormalization", "epsilon")
def instance_norm(step: Step) -> Value:
    """A norm of each channel of each sample."""
    kind = f"InstanceNorm{min(max(step.input().rank - 2, 1), 3)}d"
    weight, bias = step.weight(1, "weight", kind), step.weight(2, "bias", kind)
    epsilon = float(step.attribute("epsilon", 1e-5))
    return step.code.call("instance_norm", step.input(), weight, bias, None, None, True, 0.1, epsilon, False)


@operator("GroupNormalization", "epsilon num_groups")
def group_norm(step: Step) -> Value:
    """A group norm. Before version 21 its weights are of groups, and are spread over their channels here."""
    x, groups = step.input(), int(step.attribute("num_groups", 1))
    channels = x.shape[1]
    parts: list[Value | None] = []
    for index, leaf in ((1, "weight"), (2, "bias")):
        given = step.input(index)
        if given.shape == [groups] != [channels] and given.known:
            given = Value(given.tensor.repeat_interleave(channels // groups), known=True)
            parts.append(step.code.weight(given, step.path(step.input(index), leaf), kind="GroupNorm"))
        else:
            parts.append(step.weight(index, leaf, "GroupNorm"))
    return step.code.call("group_norm", x, groups, *parts, float(step.attribute("epsilon", 1e-5)), False)


@operator("LpNormalization", "axis p")
def lp_norm(step: Step) -> Value:
    """Each vector along an axis over its norm."""
    x, code = step.input(), step.code
    axis, power = int(step.attribute("axis", -1)), float(step.attribute("p", 2))
    size = code.call("linalg_vector_norm", x, power, [axis], True)
    safe = code.call("where", code.call("eq", size, 0), code.call("ones_like", size), size)
    return code.call("div", x, safe)


@operator("LRN", "alpha beta bias size")
def local_response_norm(step: Step) -> Value:
    """Each channel over a power of the squares of its neighbours."""
    x, code, size = step.input(), step.code, int(step.attribute("size", 1))
    alpha, beta, bias = (float(step.attribute(n, d)) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    below = (size - 1) // 2
    square = code.call("unsqueeze", code.call("mul", x, x), 1)
    flat = code.call("flatten", square, 3) if x.rank > 2 else code.call("unsqueeze", square, -1)
    around = code.call("constant_pad_nd", flat, [0, 0, below, size - 1 - below], 0.0)
    sums = code.call("squeeze", code.call("avg_pool2d", around, [size, 1], [1, 1]), 1)
    sums = code.call("reshape_as", sums, x)
    return code.call("div", x, code.call("pow", code.call("add", code.call("mul", sums, alpha), bias), beta))


@operator("PRelu")
def prelu(step: Step) -> Value:
    """x, or where it is negative the slope times x: of all, of a channel each, or of any other shape."""
    x, slope, code = step.input(0), step.input(1), step.code
    ahead = [1] * (x.rank - slope.rank) + slope.shape
    of_channels = x.rank > 1 and all(size == 1 for dim, size in enumerate(ahead) if dim != 1)
    if slope.known and (slope.tensor.numel() == 1 or of_channels):
        flat = Value(slope.tensor.reshape(-1), known=True, source=slope.source)
        return code.call("prelu", x, code.weight(flat, step.path(slope, "weight"), kind="PReLU"))
    return code.call("where", code.call("lt", x, 0), code.call("mul", x, slope), x)


# -- attention ------------------------------------------------------------------------------------


@operator("Attention", "is_causal kv_num_heads q_num_heads qk_matmul_output_mode scale softcap")
def attention(step: Step) -> Value:
    """Scaled dot-product attention of ONNX 23, without a cache of keys and values."""
    q, k, v, code = step.input(0), step.input(1), step.input(2), step.code
    if any(step.given(index) is not None for index in (4, 5, 6)) or step.outputs > 1:
        raise step.refuse("reads or gives a cache of keys and values, which pared does not follow.")
    if step.attribute("softcap", 0.0) or step.attribute("qk_matmul_output_mode", 0):
        raise step.refuse("caps its scores (softcap), which torch's attention does not.")
    flat = q.rank == 3
    heads, shared = int(step.attribute("q_num_heads", 0)), int(step.attribute("kv_num_heads", 0))
    if flat:
        q, k, v = (_in_heads(step, x, count) for x, count in ((q, heads), (k, shared), (v, shared)))
    scale = step.attribute("scale")
    y = code.call(
        "scaled_dot_product_attention",
        q,
        k,
        v,
        step.given(3),
        0.0,
        bool(step.attribute("is_causal", 0)),
        scale=None if scale is None else float(scale),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return code.call("flatten", code.call("transpose", y, 1, 2), 2) if flat else y


def _in_heads(step: Step, x: Value, heads: int) -> Value:
    if heads < 1 or x.shape[2] % heads:
        raise step.refuse(f"splits {x.shape[2]} numbers into {heads} heads.")
    sizes = [step.code.size(x, 0), step.code.size(x, 1), heads, x.shape[2] // heads]
    return step.code.call("transpose", step.code.call("reshape", x, sizes), 1, 2)
