"""Linear layers of a traced graph as ops of their own, see `tokenfold.export.ops.linear`.

Only those whose weights are float16: what is exported in another precision is for CPUs, whose
quantiser and runtime look for plain matrix products.

Queries, keys and values come out of one layer, side by side in each token. Nothing copies them
apart where all that takes them can read them as they are: that is an op `Packed` then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tokenfold.export.ops.functions import PLUGIN_ATTRIBUTES
from tokenfold.runtime.native import DOMAIN

MATCHERS = ("MatchToMe", "MatchPiToMe")
"""Ops that look at keys alone."""


_Shape = tuple[int | str, ...]
_PACKED = {"Attend": "AttendPacked", **{kind: f"{kind}Packed" for kind in MATCHERS}}


class _Found(NamedTuple):
    """A linear layer of a graph.

    Attributes:
        nodes: what it is made of, the matrix product first.
        kind: op type that does the same.
        inputs: of that op: x, w, bias, and perhaps a residual.
    """

    nodes: list[NodeProto]
    kind: str
    inputs: list[str]


def fuse(model: onnx.ModelProto) -> None:
    """Replace the linear layers in float16 of a graph, where it stands."""
    graph = _Graph(model.graph)
    for product in [node for node in model.graph.node if node.op_type == "MatMul"]:
        found = graph.layer(product)
        if found is not None:
            graph.replace(found)
    for split in [node for node in model.graph.node if node.op_type == "Split"]:
        graph.pack(split)
    graph.finish()


class _Graph:
    """A graph that is rewritten."""

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
        self._at = {node.output[0]: at for at, node in enumerate(graph.node)}
        self._gone: set[int] = set()
        self._layers: set[str] = set()  # by their outcome
        self._new: dict[int, NodeProto] = {}
        self._plugin = [helper.make_attribute(*one) for one in PLUGIN_ATTRIBUTES.items()]

    def layer(self, product: NodeProto) -> _Found | None:
        """The linear layer that begins with a matrix product, if one does."""
        x, w = product.input
        if not self._is_half(w, dimensions=2) or x in self._weights:
            return None
        add = self._only_user(product)
        if add is None or add.op_type != "Add":
            return None
        bias = _other(add.input, product.output[0])
        if not self._is_half(bias, dimensions=1):
            return None
        found = _Found([product, add], "Linear", [x, w, bias])
        user = self._only_user(add)
        if user is not None and user.op_type == "Gelu" and _is_exact(user):
            return _Found([product, add, user], "LinearGelu", found.inputs)
        if user is not None and user.op_type == "Add":
            residual = _other(user.input, add.output[0])
            rows, width = self._shapes.get(x, ())[:-1], self._weights[w].dims[1]
            if rows and _is_alike(self._shapes.get(residual, ()), (*rows, width)):
                return _Found([product, add, user], "LinearAdd", [*found.inputs, residual])
        return found

    def replace(self, found: _Found) -> None:
        """Put one op where the last of the layer's nodes was."""
        last = found.nodes[-1].output[0]
        self._put(last, found.kind, found.inputs)
        self._layers.add(last)
        self._gone |= {self._at[node.output[0]] for node in found.nodes}

    def pack(self, split: NodeProto) -> None:
        """Let attention and matchers read a token's queries, keys and values as they lie."""
        whole, own = split.input[0], list(split.output)
        if whole not in self._layers or len(own) != 3:
            return
        if len(split.input) > 1 and not self._is_even(split.input[1]):
            return
        axis = {one.name: helper.get_attribute_value(one) for one in split.attribute}.get("axis", 0)
        users = [node for name in own for node in self._users.get(name, [])]
        attention = [node for node in users if node.op_type == "Attend"]
        matchers = [node for node in users if node.op_type in MATCHERS]
        if (
            axis not in (-1, 2)
            or any(name in self._outputs for name in own)
            or len(attention) != 3
            or list(attention[0].input[:3]) != own
            or len(users) != 3 + len(matchers)
            or any(node.input[0] != own[1] for node in matchers)
        ):
            return
        self._gone.add(self._at[own[0]])
        for node, taken in ((attention[0], 3), *((node, 1) for node in matchers)):
            inputs = [whole, *node.input[taken:]]
            self._put(node.output[0], _PACKED[node.op_type], inputs, node.attribute)

    def finish(self) -> None:
        """Write the nodes, and drop weights that nobody uses any more."""
        kept = []
        for at, node in enumerate(self._graph.node):
            if at in self._new or at not in self._gone:
                copy = NodeProto()
                copy.CopyFrom(self._new.get(at, node))
                kept.append(copy)
        del self._graph.node[:]
        self._graph.node.extend(kept)
        used = {name for node in kept for name in node.input} | self._outputs
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
        """One of our ops where the node was that gave `output`."""
        node = helper.make_node(kind, inputs, [output], domain=DOMAIN, name=output)
        node.attribute.extend(attributes or self._plugin)
        self._new[self._at[output]] = node

    def _is_even(self, sizes: str) -> bool:
        """Whether a constant has one number, however often."""
        found = self._weights.get(sizes)
        return found is not None and len(set(numpy_helper.to_array(found).tolist())) == 1

    def _only_user(self, node: NodeProto) -> NodeProto | None:
        """What alone takes a node's only output."""
        if len(node.output) != 1 or node.output[0] in self._outputs:
            return None
        users = self._users.get(node.output[0], [])
        # Two layers that are added to each other share that node: the first has it.
        free = len(users) == 1 and self._at[users[0].output[0]] not in self._gone
        return users[0] if free else None

    def _is_half(self, name: str, *, dimensions: int) -> bool:
        weight = self._weights.get(name)
        return (
            weight is not None
            and weight.data_type == TensorProto.FLOAT16
            and len(weight.dims) == dimensions
        )


def _shape(value: onnx.ValueInfoProto) -> _Shape | None:
    """Numbers and names, or None if one has neither."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_param or dim.dim_value for dim in dims)
    return shape if all(shape) else None


def _is_alike(residual: _Shape, product: _Shape) -> bool:
    """Whether nothing is broadcast, as an embedding of a token's kind would be.

    What is behind a reduction has a size of another name, but the same.
    """
    return len(residual) == len(product) and all(
        one == other or (isinstance(one, str) and isinstance(other, str))
        for one, other in zip(residual, product, strict=True)
    )


def _is_exact(gelu: NodeProto) -> bool:
    return all(helper.get_attribute_value(one) in (b"none", "none") for one in gelu.attribute)


def _other(pair: Iterable[str], name: str) -> str:
    """Of two names the one that is not `name`; of twice the same that one."""
    return next((one for one in pair if one != name), name)
