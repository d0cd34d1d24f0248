"""Where ONNX Runtime would run each node of a graph, had it a GPU: its rule, without one.

A session on CUDA gives every node to the GPU, and takes some back: what hangs off values that are
on the host anyway, shapes above all, and needs nothing from the GPU. Where a node then reads what
lies on the other side, a copy is put between, which waits, and keeps the graph out of a CUDA graph.
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
"""Inputs that the kernels for CUDA want on the host; of our ops as their sources say."""

ON_HOST = {"Shape", "Size"}
"""Ops whose kernels for CUDA leave what they compute on the host."""

SMALL = 100
"""Elements of a constant that may be on either side."""


def kind(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def copies(model: ModelProto) -> list[str]:
    """What would be copied between host and GPU while the graph runs, as `value for node`.

    A graph's input comes to either side, but not to both.
    """
    graph = model.graph
    host_nodes, host_values = _taken_back(graph)
    constants = _small(graph) | {weight.name for weight in graph.initializer}
    side = dict.fromkeys(host_values, True)
    inputs = {put.name for put in graph.input}
    found = []
    for node in graph.node:
        for at, name in enumerate(node.input):
            if not name or name in constants:
                continue
            wanted = node.output[0] in host_nodes or at in HOST_INPUTS.get(kind(node), ())
            if name in inputs:
                side.setdefault(name, wanted)
            if wanted != side.get(name, False):
                found.append(f"{name} for {kind(node)} {node.name}")
    return found


def on_host(model: ModelProto) -> set[str]:
    """The names of all values that are on the host."""
    return _taken_back(model.graph)[1]


def _taken_back(graph: GraphProto) -> tuple[set[str], set[str]]:
    """The first outputs of the nodes that run on the host, and all values that are there."""
    nodes: set[str] = set()
    values: set[str] = set()
    free = _small(graph) | {put.name for put in graph.input}
    for node in graph.node:  # in topological order, so that producers come first
        if kind(node) in ON_HOST:
            values.add(node.output[0])
            continue
        given = [(at, name) for at, name in enumerate(node.input) if name]
        own = [(at, name) for at, name in given if name not in free]
        wants = HOST_INPUTS.get(kind(node), set())
        if any(name in values for _, name in given) and all(
            name in values and at not in wants for at, name in own
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
