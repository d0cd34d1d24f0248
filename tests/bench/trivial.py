"""A graph with almost no computation, for bundles that are quick to measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tokenfold.bundle.manifest import Level
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.workload import Method, Plan
from tokenfold.models.networks.vit import VisionConfig

CONFIG = VisionConfig(
    image_size=(8, 8), patch_size=4, dim=8, depth=2, heads=2, mlp_dim=16, classes=3
)
LABELS = ("a", "b", "c")
QUICK = ("--rounds", "2", "--seconds", "0.001")

Make = Callable[..., Path]


def graph() -> onnx.ModelProto:
    """Return a graph whose logits are mean colours; each removed token allocates 2**20 floats."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["mean"], keepdims=0),
        helper.make_node("ReduceSum", ["plan"], ["removed"], keepdims=1),
        helper.make_node("Mul", ["removed", "floats"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=1),
        helper.make_node("Add", ["mean", "zero"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["slots"], to=TensorProto.INT64),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3]),
        helper.make_tensor_value_info("plan", TensorProto.INT64, [CONFIG.depth]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, ["batch", 3]),
    ]
    constants = [
        helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("floats", TensorProto.INT64, [1], [2**20]),
    ]
    mean_colours = helper.make_graph(nodes, "mean", inputs, outputs, constants)
    return helper.make_model(
        mean_colours, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def level(method: Method, plan: Plan, reduction: float) -> Level:
    workload = CONFIG.workload(method)
    return Level(
        reduction=reduction,
        plan=plan,
        flops_ratio=flops_ratio(workload, plan),
        tokens_out=workload.widths(plan)[-1],
    )
