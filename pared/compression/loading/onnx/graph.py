"""The nodes of an ONNX graph as plain records, and steps of several nodes that are one layer put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pared.compression.loading.loaded import first_line
from pared.compression.loading.onnx.reading import as_tensor
from pared.errors import UnsupportedModel


@dataclass(frozen=True)
class Node:
    """One node. Attributes: tensors are torch's, graphs are `Graph`s."""

    op: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in order, the tensors of the file by name, and the names of inputs and outputs."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(proto: Any) -> Graph:
    """A GraphProto as records. Constants count as tensors of the file.

    Raises:
        UnsupportedModel: an attribute cannot be read.
    """
    tensors = {tensor.name: as_tensor(tensor) for tensor in proto.initializer}
    nodes = []
    for entry in proto.node:
        try:
            attributes = {attribute.name: _attribute(attribute) for attribute in entry.attribute}
        except (TypeError, ValueError) as error:
            raise UnsupportedModel(
                f"The node {entry.name[:100]} of this file is damaged: {first_line(error)}."
            ) from error
        if entry.op_type == "Constant" and isinstance(attributes.get("value"), Tensor) and len(entry.output) == 1:
            tensors[entry.output[0]] = attributes["value"]
            continue
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        nodes.append(Node(entry.op_type, entry.name, domain, tuple(entry.input), tuple(entry.output), attributes))
    inputs = tuple(value.name for value in proto.input if value.name not in tensors)
    return Graph(tuple(nodes), tensors, inputs, tuple(value.name for value in proto.output))


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.TENSOR:
        return as_tensor(attribute.t)
    if attribute.type == AttributeProto.GRAPH:
        return read_graph(attribute.g)
    return helper.get_attribute_value(attribute)


# -- several nodes as one -------------------------------------------------------------------------


def in_layers(graph: Graph, ranks: Mapping[str, int]) -> Graph:
    """The graph with biases in their layers and layer norms in one node each, and without what nobody reads.

    Args:
        ranks: numbers of dimensions, where they are known.
    """
    graph = _with_norms(graph, ranks)
    return replace(graph, nodes=_read(_with_biases(graph), graph.outputs))


def _read(nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """The nodes whose results somebody reads."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        kept.append(replace(node, outputs=tuple(name if name in wanted else "" for name in node.outputs)))
        wanted.update(node.inputs)
        for value in node.attributes.values():
            if isinstance(value, Graph):
                wanted.update(name for inner in value.nodes for name in inner.inputs)
                wanted.update(value.outputs)
    return tuple(reversed(kept))


def _readers(graph: Graph) -> Counter[str]:
    count = Counter(name for node in graph.nodes for name in node.inputs)
    count.update(graph.outputs)
    for node in graph.nodes:
        for value in node.attributes.values():
            if isinstance(value, Graph):
                count.update(_readers(value))
    return count


def _with_biases(graph: Graph) -> list[Node]:
    """The nodes, with additions of a tensor of the file to a product or a convolution as their bias."""
    readers, nodes = _readers(graph), list(graph.nodes)
    made_at: dict[str, int] = {}
    gone: set[int] = set()
    for position, node in enumerate(nodes):
        if node.op == "Add" and len(node.inputs) == 2:
            for value, bias in (node.inputs, node.inputs[::-1]):
                at = made_at.get(value)
                if at is not None and readers[value] == 1 and _is_bias(nodes[at], graph.tensors, bias):
                    inputs = (*nodes[at].inputs[:2], bias)
                    nodes[at] = replace(nodes[at], inputs=inputs, outputs=node.outputs)
                    gone.add(position)
                    break
        for name in node.outputs:
            made_at[name] = position
    return [node for position, node in enumerate(nodes) if position not in gone]


def _is_bias(node: Node, tensors: Mapping[str, Tensor], name: str) -> bool:
    if name not in tensors or len(node.inputs) < 2 or node.inputs[1] not in tensors or any(node.inputs[2:]):
        return False
    bias, weight = tensors[name], tensors[node.inputs[1]]
    if node.op == "MatMul":
        return weight.dim() == 2 and bias.dim() == 1 and len(bias) == weight.shape[1]
    if node.op == "Conv":
        shape = list(bias.shape)[-weight.dim() + 1 :]
        return bias.dim() >= weight.dim() - 1 and bias.numel() == len(weight) == shape[0] and not node.domain
    return False


def _with_norms(graph: Graph, ranks: Mapping[str, int]) -> Graph:
    """The graph, with layer norms that are written out as mean, difference, square, mean, root and quotient in one."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    readers = _readers(graph)
    follower = {name: node for node in graph.nodes for name in node.inputs if readers[name] == 1}
    made: dict[int, Node] = {}
    for node in graph.nodes:
        found = _norm(node, maker, graph.tensors, ranks)
        if found is None:
            continue
        x, epsilon = found
        parts: list[str] = []
        last = node
        for op in ("Mul", "Add"):
            after = follower.get(last.outputs[0])
            part = None if after is None or after.op != op else _other(after, last.outputs[0])
            if after is None or part is None or part not in graph.tensors or graph.tensors[part].dim() != 1:
                break
            last, parts = after, [*parts, part]
        name = last.name or node.name
        made[id(last)] = Node("LayerNormalization", name, "", (x, *parts), last.outputs, {"epsilon": epsilon})
    return replace(graph, nodes=tuple(made.get(id(node), node) for node in graph.nodes))


def _other(node: Node, name: str) -> str | None:
    return next((each for each in node.inputs if each != name), None) if len(node.inputs) == 2 else None


def _norm(
    node: Node, maker: Mapping[str, Node], tensors: Mapping[str, Tensor], ranks: Mapping[str, int]
) -> tuple[str, float] | None:
    """What a quotient norms over its last dimension, and the number that it adds to the variance."""

    def made(name: str, op: str) -> Node | None:
        found = maker.get(name)
        return found if found is not None and found.op == op and not found.domain else None

    if node.op != "Div" or len(node.inputs) != 2:
        return None
    difference, root = made(node.inputs[0], "Sub"), made(node.inputs[1], "Sqrt")
    total = None if root is None else made(root.inputs[0], "Add")
    if difference is None or total is None:
        return None
    epsilon = next((name for name in total.inputs if name in tensors and tensors[name].numel() == 1), None)
    variance = None if epsilon is None else made(_other(total, epsilon) or "", "ReduceMean")
    mean = made(difference.inputs[1], "ReduceMean")
    if variance is None or mean is None or epsilon is None or mean.inputs[0] != difference.inputs[0]:
        return None
    power, product = made(variance.inputs[0], "Pow"), made(variance.inputs[0], "Mul")
    if (
        power is not None
        and tensors.get(power.inputs[1]) is not None
        and float(tensors[power.inputs[1]].reshape(-1)[0]) == 2
    ):
        squared = [power.inputs[0]]
    elif product is not None:
        squared = list(product.inputs)
    else:
        return None
    same = all(
        name == node.inputs[0] or ((one := made(name, "Sub")) is not None and one.inputs == difference.inputs)
        for name in squared
    )
    x = difference.inputs[0]
    if not same or not all(_over_last(each, x, tensors, ranks) for each in (mean, variance)):
        return None
    return x, float(tensors[epsilon].reshape(-1)[0])


def _over_last(node: Node, x: str, tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> bool:
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in tensors:
        axes = tensors[node.inputs[1]].reshape(-1).tolist()
    last = ranks.get(x, 0) - 1
    return bool(node.attributes.get("keepdims", 1)) and (
        list(axes or []) == [-1] or (last >= 0 and list(axes or []) == [last])
    )
