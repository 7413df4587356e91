"""The rules of operators that compute each element by itself: elements that meet at one position go together."""

from __future__ import annotations

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import NO_UNITS, Labels, Tracked, along, spanned
from pared.compression.coupling.rules.core import LabelTracker, rule


@rule(
    "add sub mul div rsub where maximum minimum pow lerp addcmul addcdiv eq ne lt gt le ge logical_and logical_or "
    "masked_fill fmod remainder atan2 __and__ __or__ bitwise_and bitwise_or floor_divide type_as true_divide",
    nature="elementwise",
    also_without_labels=True,  # the numbers that they take may still count channels
)
def elementwise(tracker: LabelTracker, call: Call) -> None:
    """Operands broadcast; elements at one position go together."""
    out = call.results[0] if call.results else None
    if out is None:
        return
    out.layers = broadcast(tracker, call, call.tensors, out.tensor.dim())
    meets = out.tensor.dim() > 0 or any(tracked.name for tracked in call.tensors)  # else it is on its way to a size
    for argument, value in call.arguments.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            tracker.follow(call, argument, None, NO_UNITS, fixed=value)  # as a scale taken from a number of channels
        elif isinstance(value, Tracked) and value.tensor.dim() == 0 and meets:
            tracker.follow_tensor(call, argument)


def broadcast(tracker: LabelTracker, call: Call, operands: list[Tracked], rank: int) -> list[Labels]:
    """Ties labels of broadcast operands; gives the layers of the result."""
    shapes = [(1,) * (rank - t.tensor.dim()) + tuple(t.tensor.shape) for t in operands]
    layers = [[layer.reshape((1,) * (rank - layer.ndim) + layer.shape) for layer in t.layers] for t in operands]
    result: list[Labels] = []
    for me, mine in enumerate(layers):
        for layer in mine:
            dims = spanned(layer)
            for other, theirs in enumerate(layers):
                if other == me or all(shapes[other][dim] == 1 for dim in dims):
                    continue
                met = [their for their in theirs if spanned(their) & dims]
                if not met:
                    tracker.fix([layer], call, "combines them with channels that stay")
                for their in met:
                    tracker.union(layer, their, call, "combines them with channels that stay")
            if not any(spanned(known) >= dims for known in result):
                result = [known for known in result if not spanned(known) <= dims]
                result.append(layer)
    return result


@rule(
    "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus "
    "softsign logsigmoid log_sigmoid exp log sqrt rsqrt abs neg square sin cos erf clamp clamp_min clamp_max "
    "dropout feature_dropout alpha_dropout contiguous clone to detach alias logical_not threshold rrelu "
    "hardshrink softshrink tanhshrink float half double bfloat16 native_dropout reciprocal sign ceil floor round "
    "log1p expm1 nan_to_num isnan isinf fill _to_copy lift_fresh requires_grad",
    nature="elementwise",
)
@rule("zeros_like ones_like full_like empty_like", nature="elementwise")
def unary(tracker: LabelTracker, call: Call) -> None:
    """Each element by itself: labels pass (also through type changes, dropout, activations)."""
    call.results[0].layers = list(call.tensors[0].layers)


@rule("prelu")
def prelu(tracker: LabelTracker, call: Call) -> None:
    """Its weight is one number, or one a channel (dimension 1)."""
    x, w = call.arguments["self"], call.arguments["weight"]
    if w.tensor.numel() > 1:
        tracker.union(x.axis(1), w.axis(0), call)
    tracker.use(call, {"weight": w}, None)
    call.results[0].layers = list(x.layers)


@rule("glu")
def glu(tracker: LabelTracker, call: Call) -> None:
    """glu: the first half times the sigmoid of the second."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    units = x.axis(dim).reshape(2, -1)
    tracker.fix([layer for layer in x.layers if len(spanned(layer)) > 1], call)
    tracker.union(units[0], units[1], call)
    others = [layer for layer in x.layers if dim not in spanned(layer)]
    if len(units[0]) == 1:
        tracker.fix([units], call, "leaves a single channel")
    halves = [along(units[0], dim, x.tensor.dim())] if len(units[0]) > 1 and units.any() else []
    call.results[0].layers = others + halves
