"""Prepare a bundle's graph for TensorRT, by rewriting a copy in memory.

- Calls of functions that are not plugins are replaced by the functions' bodies.
- A cast to floating point follows each uint8 input at once: TensorRT supports no other use of
  uint8.
- Plugin nodes get an attribute that lists which inputs are counts, and extra outputs whose sizes
  encode the counts (see native/tensorrt/plugin.h).
- Nodes are named by their op, so that layers can be told apart.
- Optionally, the plan becomes a constant, and float16 becomes bfloat16.
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
"""Indices of the inputs that are counts, by op."""

_COUNT_OUTPUTS = {
    "Importance": 1,
    "MatchToMe": 1,
    "MatchPiToMe": 1,
    "MatchToMePacked": 1,
    "MatchPiToMePacked": 1,
    "MatchPuMer": 4,
}
"""Number of extra outputs by op: one per count that the shapes of the outputs do not reveal."""

PLUGINS = frozenset({*_COUNTS, "Attend", "AttendPacked"})
"""Ops with a plugin. The bodies of other ops become TensorRT's own layers."""

_MOVES = frozenset({"Transpose", "Reshape", "Slice", "Identity", "Squeeze", "Unsqueeze", "Pad"})
"""Ops that move elements of any type."""


def prepare(path: Path, *, plugins: bool, plan: Plan | None = None) -> ModelProto:
    """Load a graph and prepare it for the parser. External weights are not loaded.

    Args:
        plugins: whether ops become plugins, rather than their portable bodies.
        plan: the plan to fix; None to keep it as an input.
    """
    model = onnx.load(path, load_external_data=False)
    plugin_ops = PLUGINS if plugins else frozenset[str]()
    bodies = [(body.domain, body.name) for body in model.functions if body.name not in plugin_ops]
    if bodies:
        model = onnx.inliner.inline_selected_functions(model, bodies)
    # Moving the cast changes the types of values between the input and the cast's old place.
    del model.graph.value_info[:]
    _cast_pixels(model)
    _name_nodes(model.graph.node)
    if plugins:
        for node in model.graph.node:
            _mark_counts(node)
    if plan is not None:
        _fix_plan(model, plan)
    return model


def to_bfloat16(model: ModelProto) -> None:
    """Convert all float16 weights, constants, casts, inputs and outputs to bfloat16.

    External weights must have been loaded into the model.
    """
    for function in model.functions:
        for node in function.node:
            _convert_node(node)
    for node in model.graph.node:
        _convert_node(node)
    for weight in model.graph.initializer:
        _convert_tensor(weight)
    for value in (*model.graph.input, *model.graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type == TensorProto.FLOAT16:
            tensor_type.elem_type = TensorProto.BFLOAT16


def _cast_pixels(model: ModelProto) -> None:
    """Cast each uint8 input at once, to the type that the graph casts it to later.

    Raises:
        ValueError: the graph never casts the input.
    """
    graph = model.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        moved, target = {value.name}, None
        for node in graph.node:
            if node.op_type == "Cast" and node.input[0] in moved:
                target = _int_attribute(node, "to")
                break
            if node.op_type in _MOVES and node.input[0] in moved:
                moved.add(node.output[0])
        if target is None:
            raise ValueError(f"the graph never casts its uint8 input {value.name!r}")
        cast = f"{value.name}_cast"
        for node in graph.node:
            node.input[:] = [cast if name == value.name else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", [value.name], [cast], to=target))


def _name_nodes(nodes: Iterable[NodeProto]) -> None:
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"


def _mark_counts(node: NodeProto) -> None:
    if node.domain != DOMAIN or node.op_type not in _COUNTS:
        return
    node.attribute.append(helper.make_attribute(SHAPE_INPUTS, list(_COUNTS[node.op_type])))
    for index in range(_COUNT_OUTPUTS.get(node.op_type, 0)):
        node.output.append(f"{node.output[0]}_count_{index}")


def _fix_plan(model: ModelProto, plan: Sequence[int]) -> None:
    """Replace the input `plan`, if there is one, by a constant."""
    other_inputs = [value for value in model.graph.input if value.name != "plan"]
    if len(other_inputs) == len(model.graph.input):
        return
    del model.graph.input[:]
    model.graph.input.extend(other_inputs)
    counts = np.asarray(plan, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(counts, "plan"))


def _int_attribute(node: NodeProto, name: str) -> int:
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == name)
    return int(attribute.i)


def _convert_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.BFLOAT16
        elif attribute.type == AttributeProto.TENSOR:
            _convert_tensor(attribute.t)


def _convert_tensor(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    values = numpy_helper.to_array(tensor).astype(np.float32)
    converted = helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, values.ravel())
    tensor.CopyFrom(converted)
