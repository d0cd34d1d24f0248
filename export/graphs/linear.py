"""Fusion of linear layers in a traced graph into single ops, see `tokenfold.export.ops.linear`.

Only layers with float16 weights are fused. Other precisions are for CPUs, whose quantiser and
runtime look for plain matrix products.

One layer computes queries, keys and values side by side in each token. If all their users have
`Packed` variants, these replace the split, so that nothing copies queries, keys and values apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tokenfold.export.ops.functions import PLUGIN_ATTRIBUTES
from tokenfold.runtime.libraries import DOMAIN

MATCHERS = ("MatchToMe", "MatchPiToMe")
"""Matcher ops whose first input is the keys."""

_Shape = tuple[int | str, ...]
_PACKED = {"Attend": "AttendPacked", **{kind: f"{kind}Packed" for kind in MATCHERS}}


class _Layer(NamedTuple):
    """A linear layer of a graph.

    Attributes:
        nodes: its nodes, the matrix product first.
        kind: type of the op that replaces it.
        inputs: inputs of that op: x, w, bias, and an optional residual.
    """

    nodes: list[NodeProto]
    kind: str
    inputs: list[str]


def fuse(model: onnx.ModelProto) -> None:
    """Replace the float16 linear layers of a graph, in place."""
    graph = _Graph(model.graph)
    for product in [node for node in model.graph.node if node.op_type == "MatMul"]:
        layer = graph.layer(product)
        if layer is not None:
            graph.replace(layer)
    for split in [node for node in model.graph.node if node.op_type == "Split"]:
        graph.pack(split)
    graph.finish()


class _Graph:
    """A graph that is being rewritten."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        self._shapes = {
            value.name: shape
            for value in (*graph.input, *graph.value_info)
            if (shape := _shape(value)) is not None
        }
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._positions = {node.output[0]: at for at, node in enumerate(graph.node)}
        self._removed: set[int] = set()
        self._layer_outputs: set[str] = set()
        self._replacements: dict[int, NodeProto] = {}
        self._plugin = [helper.make_attribute(*item) for item in PLUGIN_ATTRIBUTES.items()]

    def layer(self, product: NodeProto) -> _Layer | None:
        """Return the linear layer that begins with a matrix product, or None."""
        x, w = product.input
        if not self._is_half(w, dimensions=2) or x in self._weights:
            return None
        add = self._only_user(product)
        if add is None or add.op_type != "Add":
            return None
        bias = _other(add.input, product.output[0])
        if not self._is_half(bias, dimensions=1):
            return None
        layer = _Layer([product, add], "Linear", [x, w, bias])
        user = self._only_user(add)
        if user is not None and user.op_type == "Gelu" and _is_exact(user):
            return _Layer([product, add, user], "LinearGelu", layer.inputs)
        if user is not None and user.op_type == "Add":
            residual = _other(user.input, add.output[0])
            rows, width = self._shapes.get(x, ())[:-1], self._weights[w].dims[1]
            if rows and _is_alike(self._shapes.get(residual, ()), (*rows, width)):
                return _Layer([product, add, user], "LinearAdd", [*layer.inputs, residual])
        return layer

    def replace(self, layer: _Layer) -> None:
        """Replace a layer's nodes by one op at the place of the last node."""
        last = layer.nodes[-1].output[0]
        self._put(last, layer.kind, layer.inputs)
        self._layer_outputs.add(last)
        self._removed |= {self._positions[node.output[0]] for node in layer.nodes}

    def pack(self, split: NodeProto) -> None:
        """Replace the users of a split by their `Packed` variants, if all of them have one."""
        packed, parts = split.input[0], list(split.output)
        if packed not in self._layer_outputs or len(parts) != 3:
            return
        if len(split.input) > 1 and not self._is_even(split.input[1]):
            return
        attributes = {item.name: helper.get_attribute_value(item) for item in split.attribute}
        users = [node for name in parts for node in self._users.get(name, [])]
        attention = [node for node in users if node.op_type == "Attend"]
        matchers = [node for node in users if node.op_type in MATCHERS]
        if (
            attributes.get("axis", 0) not in (-1, 2)
            or any(name in self._outputs for name in parts)
            or len(attention) != 3
            or list(attention[0].input[:3]) != parts
            or len(users) != 3 + len(matchers)
            or any(node.input[0] != parts[1] for node in matchers)
        ):
            return
        self._removed.add(self._positions[parts[0]])
        for node, replaced_inputs in ((attention[0], 3), *((node, 1) for node in matchers)):
            inputs = [packed, *node.input[replaced_inputs:]]
            self._put(node.output[0], _PACKED[node.op_type], inputs, node.attribute)

    def finish(self) -> None:
        """Write the nodes and drop unused weights."""
        nodes = []
        for at, node in enumerate(self._graph.node):
            if at in self._replacements or at not in self._removed:
                copy = NodeProto()
                copy.CopyFrom(self._replacements.get(at, node))
                nodes.append(copy)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | self._outputs
        unused = [name for name in self._weights if name not in used]
        for name in unused:
            self._graph.initializer.remove(self._weights[name])

    def _put(
        self,
        output: str,
        kind: str,
        inputs: Sequence[str],
        attributes: Iterable[onnx.AttributeProto] = (),
    ) -> None:
        """Put one of our ops at the place of the node with this output."""
        node = helper.make_node(kind, inputs, [output], domain=DOMAIN, name=output)
        node.attribute.extend(attributes or self._plugin)
        self._replacements[self._positions[output]] = node

    def _is_even(self, sizes: str) -> bool:
        """Whether all elements of a constant are equal."""
        constant = self._weights.get(sizes)
        return constant is not None and len(set(numpy_helper.to_array(constant).tolist())) == 1

    def _only_user(self, node: NodeProto) -> NodeProto | None:
        """Return the only user of a node's only output, or None."""
        if len(node.output) != 1 or node.output[0] in self._outputs:
            return None
        users = self._users.get(node.output[0], [])
        # If the sum of two layers is a node, both layers end with it; the first layer gets it.
        free = len(users) == 1 and self._positions[users[0].output[0]] not in self._removed
        return users[0] if free else None

    def _is_half(self, name: str, *, dimensions: int) -> bool:
        weight = self._weights.get(name)
        return (
            weight is not None
            and weight.data_type == TensorProto.FLOAT16
            and len(weight.dims) == dimensions
        )


def _shape(value: onnx.ValueInfoProto) -> _Shape | None:
    """Return the numbers and names of a shape, or None if a dimension has neither."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_param or dim.dim_value for dim in dims)
    return shape if all(shape) else None


def _is_alike(residual: _Shape, product: _Shape) -> bool:
    """Whether adding the shapes broadcasts nothing, unlike a modality embedding.

    Equal sizes may have different names behind a reduction.
    """
    return len(residual) == len(product) and all(
        size == expected or (isinstance(size, str) and isinstance(expected, str))
        for size, expected in zip(residual, product, strict=True)
    )


def _is_exact(gelu: NodeProto) -> bool:
    return all(helper.get_attribute_value(item) in (b"none", "none") for item in gelu.attribute)


def _other(pair: Iterable[str], name: str) -> str:
    """Return the name of a pair that is not `name`, or `name` if both are equal."""
    return next((other for other in pair if other != name), name)
