"""A bundle's graph as TensorRT wants it: what the stored one lacks for it is added in memory.

- Bodies of ops that are no plugins are put in their nodes' places.
- Pixels become floats at once: TensorRT casts bytes, and does nothing else with them.
- Nodes say which of their inputs are counts, and get outputs whose sizes say what the counts are
  worth, for our plugins (native/tensorrt/plugin.h).
- Nodes are named by their op, so that layers can be told from each other.
- A plan can be fixed, and float16 can become bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.libraries import DOMAIN

SHAPE_INPUTS = "tensorrt_plugin_shape_input_indices"

_COUNTS = {
    "Importance": (4,),
    "MatchToMe": (2,),
    "MatchPiToMe": (2,),
    "MatchToMePacked": (2,),
    "MatchPiToMePacked": (2,),
    "MatchPuMer": (3, 4),
    "Reduce": (3,),
}
"""Inputs that are counts."""

_NOTED = {
    "Importance": 1,
    "MatchToMe": 1,
    "MatchPiToMe": 1,
    "MatchToMePacked": 1,
    "MatchPiToMePacked": 1,
    "MatchPuMer": 4,
}
"""How many counts an op's outputs do not tell by their shapes."""

PLUGINS = frozenset({*_COUNTS, "Attend", "AttendPacked"})
"""Ops that are plugins where their library is; the others' bodies are TensorRT's own layers."""

_MOVES = frozenset({"Transpose", "Reshape", "Slice", "Identity", "Squeeze", "Unsqueeze", "Pad"})
"""Nodes that move elements, whatever their type."""


def prepared(path: Path, *, plugins: bool, plan: Plan | None = None) -> ModelProto:
    """A graph, ready to be parsed. Weights outside of its file stay there.

    Args:
        plugins: whether the ops are plugins, rather than their bodies.
        plan: to fix; None for a plan that is an input.
    """
    model = onnx.load(path, load_external_data=False)
    kept = PLUGINS if plugins else frozenset[str]()
    bodies = [(body.domain, body.name) for body in model.functions if body.name not in kept]
    if bodies:
        model = onnx.inliner.inline_selected_functions(model, bodies)
    # Types of what has moved in front of a cast are no longer true.
    del model.graph.value_info[:]
    _cast_pixels(model)
    _name_nodes(model.graph.node)
    if plugins:
        for node in model.graph.node:
            _tell_counts(node)
    if plan is not None:
        _fix(model, plan)
    return model


def reducing(model: ModelProto) -> int:
    """How many layers of a graph reduce."""
    return sum(node.domain == DOMAIN and node.op_type == "Reduce" for node in model.graph.node)


def to_bfloat16(model: ModelProto) -> None:
    """Make bfloat16 of all that is float16: weights, constants, casts. Weights must be inside."""
    for function in model.functions:
        for node in function.node:
            _widen(node)
    for node in model.graph.node:
        _widen(node)
    for weight in model.graph.initializer:
        _widen_tensor(weight)
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT16:
            kind.elem_type = TensorProto.BFLOAT16


def _cast_pixels(model: ModelProto) -> None:
    graph = model.graph
    for given in graph.input:
        if given.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        moved, target = {given.name}, None
        for node in graph.node:
            if node.op_type == "Cast" and node.input[0] in moved:
                target = _integer(node, "to")
                break
            if node.op_type in _MOVES and node.input[0] in moved:
                moved.add(node.output[0])
        if target is None:
            raise ValueError(f"{given.name} is of bytes, and nothing casts them")
        cast = f"{given.name}_cast"
        for node in graph.node:
            node.input[:] = [cast if name == given.name else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", [given.name], [cast], to=target))


def _name_nodes(nodes: Iterable[NodeProto]) -> None:
    for at, node in enumerate(nodes):
        node.name = f"{node.op_type}_{at}"


def _tell_counts(node: NodeProto) -> None:
    if node.domain != DOMAIN or node.op_type not in _COUNTS:
        return
    node.attribute.append(helper.make_attribute(SHAPE_INPUTS, list(_COUNTS[node.op_type])))
    for at in range(_NOTED.get(node.op_type, 0)):
        node.output.append(f"{node.output[0]}_count_{at}")


def _fix(model: ModelProto, plan: Sequence[int]) -> None:
    """Make a constant of the input `plan`."""
    left = [given for given in model.graph.input if given.name != "plan"]
    if len(left) == len(model.graph.input):
        return
    del model.graph.input[:]
    model.graph.input.extend(left)
    counts = np.asarray(plan, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(counts, "plan"))


def _integer(node: NodeProto, name: str) -> int:
    (found,) = (one for one in node.attribute if one.name == name)
    return int(found.i)


def _widen(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.BFLOAT16
        elif attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    values = numpy_helper.to_array(tensor).astype(np.float32)
    wide = helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, values.ravel())
    tensor.CopyFrom(wide)
