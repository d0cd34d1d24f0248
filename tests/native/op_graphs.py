"""Graphs of a few ops, with or without the op library, for the tests of the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from tests.native.emulated import session as emulated
from tokenfold.export.ops.functions import OPSET, PLUGIN_ATTRIBUTES, VERSION, functions
from tokenfold.runtime import libraries
from tokenfold.runtime.libraries import DOMAIN

HALF, FLOAT, WHOLE = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
GAP = 1e-4

needs_library = pytest.mark.skipif(
    libraries.find() is None, reason="the C++ ops are not built: run `make plugins`"
)
runtimes = pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=needs_library)], ids=["portable", "native"]
)


def value(name: str, kind: int, *shape: str | int) -> ValueInfoProto:
    """Return an input or output of a graph."""
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    """Return a node of one of our ops."""
    return helper.make_node(op, inputs, outputs, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)


def session(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    *,
    native: bool,
    threads: int = 1,
) -> ort.InferenceSession:
    """Return a session of a graph of our ops, including their portable bodies."""
    bodies = functions()
    model = helper.make_model(
        helper.make_graph(nodes, "ops", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[bodies[kind] for kind in sorted({node.op_type for node in nodes})],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    if native and emulated.enabled():
        return emulated.Session(model.SerializeToString(), threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if native:
        options.register_custom_ops_library(str(libraries.find()))
    return ort.InferenceSession(model.SerializeToString(), options)


def close(values: torch.Tensor) -> bool:
    """Whether rounding could change the order along the last axis; exact ties do not count."""
    gaps = values.sort(-1).values.diff(dim=-1)
    return bool(((gaps > 0) & (gaps < GAP)).any())
