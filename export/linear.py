"""Linear layers of a traced graph as ops of their own, see `export.plugins.linear`.

Only those whose weights are float16: what is exported in another precision is for CPUs, whose
quantiser and runtime look for plain matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.plugins.functions import DOMAIN, PLUGIN_ATTRIBUTES


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
    """Replace the linear layers in float16 of a graph, where it stands.

    A layer whose outcome is split into equal parts, as that for queries, keys and values is,
    becomes as many layers: nothing is to be copied apart then.
    """
    graph = _Graph(model.graph)
    for product in [node for node in model.graph.node if node.op_type == "MatMul"]:
        found = graph.layer(product)
        if found is None:
            continue
        parts = graph.parts(found)
        graph.replace(found, found.nodes[-1].output if parts is None else parts.output, parts)
    graph.finish()


class _Graph:
    """A graph that is rewritten."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._at = {node.output[0]: at for at, node in enumerate(graph.node)}
        self._gone: set[int] = set()
        self._new: dict[int, list[NodeProto]] = {}

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
            # A constant, such as an embedding of positions, is broadcast.
            if residual not in self._weights:
                return _Found([product, add, user], "LinearAdd", [*found.inputs, residual])
        return found

    def parts(self, found: _Found) -> NodeProto | None:
        """The node that splits a layer's outcome along its channels, if only one does, evenly."""
        if found.kind != "Linear":
            return None
        user = self._only_user(found.nodes[-1])
        if user is None or user.op_type != "Split":
            return None
        attributes = {one.name: helper.get_attribute_value(one) for one in user.attribute}
        width = self._weights[found.inputs[2]].dims[0]
        if attributes.get("axis", 0) not in (-1, 2) or width % len(user.output):
            return None
        if len(user.input) > 1:
            sizes = self._weights.get(user.input[1])
            if sizes is None or len(set(numpy_helper.to_array(sizes).tolist())) != 1:
                return None
        return user

    def replace(self, found: _Found, outputs: Iterable[str], split: NodeProto | None) -> None:
        """Put one op for each output where the last of the layer's nodes was."""
        outputs = list(outputs)
        inputs = [found.inputs] if split is None else self._divided(found.inputs, len(outputs))
        gone = found.nodes if split is None else [*found.nodes, split]
        self._new[self._at[gone[-1].output[0]]] = [
            helper.make_node(
                found.kind, given, [output], domain=DOMAIN, name=output, **PLUGIN_ATTRIBUTES
            )
            for given, output in zip(inputs, outputs, strict=True)
        ]
        self._gone |= {self._at[node.output[0]] for node in gone}

    def finish(self) -> None:
        """Write the nodes, and drop weights that nobody uses any more."""
        nodes = []
        for at, node in enumerate(self._graph.node):
            nodes += self._new.get(at, [] if at in self._gone else [node])
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        used = {name for node in kept for name in node.input} | self._outputs
        unused = [name for name in self._weights if name not in used]
        for name in unused:
            self._graph.initializer.remove(self._weights[name])

    def _divided(self, inputs: list[str], count: int) -> list[list[str]]:
        x, w, bias = inputs
        named = []
        for at in range(count):
            own = [x]
            for name in (w, bias):
                part = np.split(numpy_helper.to_array(self._weights[name]), count, axis=-1)[at]
                tensor = numpy_helper.from_array(np.ascontiguousarray(part), f"{name}.{at}")
                self._graph.initializer.append(tensor)
                own.append(tensor.name)
            named.append(own)
        return named

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


def _is_exact(gelu: NodeProto) -> bool:
    return all(helper.get_attribute_value(one) in (b"none", "none") for one in gelu.attribute)


def _other(pair: Iterable[str], name: str) -> str:
    """Of two names the one that is not `name`; of twice the same that one."""
    return next((one for one in pair if one != name), name)
