"""Replaces torch's fused attention operators by plain ones, which can have any number of heads.

`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` run through one operator each where no gradient is wanted. It
takes as many features for all heads together as the model has, so that no head can go, and it cannot be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Tuple  # noqa: UP035

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.coupling.interpreter import calls_own_forward, inlined, inlined_graph, nodes_of
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.verify import Mismatch, answers, compare


def unfused(module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """The same model without those operators; the module itself where it has none, or does not answer alike without.

    Args:
        module: of the caller's own, in eval mode; it is not changed.
    """
    if not any(node.kind() in _PLAIN for node in nodes_of(inlined(module.graph.copy()))):
        return module
    plain = reloaded(module)
    graph = inlined_graph(plain)
    _take_other_branches(graph)
    for node in [node for node in nodes_of(graph) if node.kind() in _PLAIN]:
        with graph.insert_point_guard(node):
            _replace(graph, node)
    try:
        plain = reloaded(plain)  # which leaves out the branches that are never taken
        _drop_unread_results(plain)
        compare(answers(module, example), example, plain, "nothing")
    except (Mismatch, RuntimeError, torch.jit.Error):
        return module
    return plain


def _take_other_branches(graph: Any) -> None:
    """Where a file can do without a fused operator, as it does in training, let it always do so."""
    for node in nodes_of(graph):
        if node.kind() != "prim::If":
            continue
        for taken, block in zip((True, False), node.blocks(), strict=True):
            if any(inner.kind() in _AVOIDED for inner in block.nodes()):
                condition = node.inputsAt(0)  # which also says to what follows whether this has answered
                with graph.insert_point_guard(condition.node()):
                    condition.replaceAllUsesWith(graph.insertConstant(not taken))
                break


def _drop_unread_results(module: torch.jit.ScriptModule) -> None:
    """Leave out what nobody reads, such as the heads' mean weights, which `nn.MultiheadAttention` gives by default."""
    graph = inlined_graph(module)
    if not calls_own_forward(module) and all(
        value.type().kind() == "TensorType" for value in graph.outputs()
    ):  # a tuple would come apart
        torch._C._jit_pass_lower_all_tuples(graph)
    torch._C._jit_pass_dce(graph)


def _replace(graph: Any, node: Any) -> None:
    """Put the plain operators in the place of a fused one."""
    kind, inputs, outputs = node.kind(), list(node.inputs()), list(node.outputs())
    if kind == "aten::_native_multi_head_attention":
        alike = len({value.debugName() for value in inputs[:3]}) == 1
        inputs.append(graph.insertConstant(alike))
        if not outputs[1].uses():
            inputs[_NEED_WEIGHTS] = graph.insertConstant(False)
    (result,) = graph.insertGraph(_PLAIN[kind].inlined_graph, inputs)
    results = [result] if len(outputs) == 1 else list(result.node().inputs())
    for output, plain in zip(outputs, results, strict=True):
        output.replaceAllUsesWith(plain)
    node.destroy()


_NEED_WEIGHTS = 10  # the position of this argument


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Optional[Tensor],  # noqa: UP045 - TorchScript reads these
    need_weights: bool,
    average_attn_weights: bool,
    mask_type: Optional[int],  # noqa: UP045
    alike: bool,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """`alike`: query, key and value are one tensor."""
    if alike:
        q, k, v = functional.linear(query, qkv_weight, qkv_bias).chunk(3, -1)
    else:
        q_weight, k_weight, v_weight = qkv_weight.chunk(3)
        q_bias, k_bias, v_bias = qkv_bias.chunk(3)
        q = functional.linear(query, q_weight, q_bias)
        k = functional.linear(key, k_weight, k_bias)
        v = functional.linear(value, v_weight, v_bias)
    width = embed_dim // num_head
    q, k, v = _heads(q, width), _heads(k, width), _heads(v, width)
    shown: Optional[Tensor] = None  # noqa: UP045
    if mask is not None:
        shown = mask.to(torch.bool).logical_not()
        if mask_type is not None and mask_type == 1:  # of (batch, keys); else of (…, queries, keys)
            shown = shown[:, None, None, :]
    weights = torch.empty(0)
    if need_weights:
        scores = torch.matmul(q, k.transpose(-2, -1)) * width**-0.5
        if shown is not None:
            scores = scores.masked_fill(shown.logical_not(), -float("inf"))
        weights = torch.softmax(scores, -1)
        mixed = torch.matmul(weights, v)
        if average_attn_weights:
            weights = weights.mean(1)
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, shown)
    return functional.linear(mixed.transpose(1, 2).flatten(2), proj_weight, proj_bias), weights


def _heads(x: Tensor, width: int) -> Tensor:
    return x.view(x.size(0), x.size(1), -1, width).transpose(1, 2)  # (batch, heads, tokens, width)


def _encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Optional[Tensor],  # noqa: UP045
    mask_type: Optional[int],  # noqa: UP045
) -> Tensor:
    x = src
    if norm_first:
        x = functional.layer_norm(x, [embed_dim], norm_weight_1, norm_bias_1, eps)
    x = (
        src
        + _attention(
            x,
            x,
            x,
            embed_dim,
            num_heads,
            qkv_weight,
            qkv_bias,
            proj_weight,
            proj_bias,
            mask,
            False,
            False,
            mask_type,
            True,
        )[0]
    )
    y = x
    if norm_first:
        y = functional.layer_norm(x, [embed_dim], norm_weight_2, norm_bias_2, eps)
    else:
        x = functional.layer_norm(x, [embed_dim], norm_weight_1, norm_bias_1, eps)
        y = x
    y = functional.linear(y, ffn_weight_1, ffn_bias_1)
    y = functional.linear(functional.gelu(y) if use_gelu else torch.relu(y), ffn_weight_2, ffn_bias_2)
    x = x + y
    if not norm_first:
        x = functional.layer_norm(x, [embed_dim], norm_weight_2, norm_bias_2, eps)
    return x


_PLAIN: dict[str, Any] = {
    "aten::_native_multi_head_attention": torch.jit.script(_attention),
    "aten::_transformer_encoder_layer_fwd": torch.jit.script(_encoder_layer),
}
ON_TENSORS: Mapping[str, Callable[..., Any]] = {
    "aten::_native_multi_head_attention": lambda *args: _attention(*(*args, args[0] is args[1] is args[2])),
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
}
"""What each of them computes, for whoever follows a graph operator by operator; with its own arguments."""

_AVOIDED = {*_PLAIN, "aten::_nested_tensor_from_mask"}  # which takes padding out, for fused operators alone
