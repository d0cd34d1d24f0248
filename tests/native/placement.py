"""Predict on which device ONNX Runtime would run each node of a graph, without a GPU.

A CUDA session assigns every node to the GPU, and then moves some back to the host: nodes that
depend on host values, mainly shapes, and need nothing from the GPU. When a node reads a value on
the other device, the session inserts a copy. The copy waits for the GPU, so the graph cannot be
recorded as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto

from tokenfold.runtime.libraries import DOMAIN

HOST_INPUTS: dict[str, set[int]] = {
    "Clip": {1, 2},
    "ConstantOfShape": {0},
    "CumSum": {1},
    "Expand": {1},
    "Pad": {1, 2, 3},
    "Range": {0, 1, 2},
    "ReduceSum": {1},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "TopK": {1},
    "Unsqueeze": {1},
    f"{DOMAIN}::Importance": {4},
    f"{DOMAIN}::MatchToMe": {2},
    f"{DOMAIN}::MatchToMePacked": {2},
    f"{DOMAIN}::MatchPiToMe": {2},
    f"{DOMAIN}::MatchPiToMePacked": {2},
    f"{DOMAIN}::MatchPuMer": {3, 4},
    f"{DOMAIN}::Reduce": {3},
}
"""Inputs that CUDA kernels read from the host, by op. Our ops' sources declare theirs."""

ON_HOST = {"Shape", "Size"}
"""Ops whose CUDA kernels leave their outputs on the host."""

SMALL = 100
"""Maximum number of elements of a constant that may be on either device."""


def kind(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def copies(model: ModelProto) -> list[str]:
    """Return the copies between host and GPU during a run, as `value for node`.

    A graph's input may be on either device, but not on both.
    """
    graph = model.graph
    host_nodes, host_values = _host_nodes_and_values(graph)
    constants = _small(graph) | {weight.name for weight in graph.initializer}
    side = dict.fromkeys(host_values, True)
    inputs = {value.name for value in graph.input}
    copied = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            if not name or name in constants:
                continue
            on_host_side = node.output[0] in host_nodes or index in HOST_INPUTS.get(kind(node), ())
            if name in inputs:
                side.setdefault(name, on_host_side)
            if on_host_side != side.get(name, False):
                copied.append(f"{name} for {kind(node)} {node.name}")
    return copied


def on_host(model: ModelProto) -> set[str]:
    """Return the names of all values on the host."""
    return _host_nodes_and_values(model.graph)[1]


def _host_nodes_and_values(graph: GraphProto) -> tuple[set[str], set[str]]:
    """Return the first output of each node on the host, and all values on the host."""
    nodes: set[str] = set()
    values: set[str] = set()
    free = _small(graph) | {value.name for value in graph.input}
    for node in graph.node:  # Nodes are in topological order, so producers come first.
        if kind(node) in ON_HOST:
            values.add(node.output[0])
            continue
        inputs = [(index, name) for index, name in enumerate(node.input) if name]
        bound_inputs = [(index, name) for index, name in inputs if name not in free]
        host_inputs = HOST_INPUTS.get(kind(node), set())
        if any(name in values for _, name in inputs) and all(
            name in values and index not in host_inputs for index, name in bound_inputs
        ):
            nodes.add(node.output[0])
            values.update(node.output)
    return nodes, values


def _small(graph: GraphProto) -> set[str]:
    return set(_small_names(graph))


def _small_names(graph: GraphProto) -> Iterator[str]:
    for weight in graph.initializer:
        if math.prod(weight.dims) <= SMALL:
            yield weight.name
    for node in graph.node:
        if node.op_type == "Constant":
            yield node.output[0]
