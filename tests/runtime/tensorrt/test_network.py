"""Tests of graphs prepared for TensorRT: equal results, and attributes and outputs for plugins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests import tiny
from tests.runtime.tensorrt.bundles import KINDS, bundle
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.export.ops.functions import functions
from tokenfold.export.verification.inputs import random_images
from tokenfold.runtime.libraries import DOMAIN
from tokenfold.runtime.tensorrt import network

PLAN = (3, 2, 1)


def graph(kind: str = "vit", precision: str = "fp32") -> Path:
    exported = bundle(kind, "fp16" if precision == "fp16" else "fp32")
    return exported.folder / GRAPHS[exported.manifest.kind][0]


def logits(model: ModelProto | Path, plan: tuple[int, ...] | None = PLAN) -> np.ndarray:
    source = model if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    feeds = {"image": random_images(tiny.SIZE, 3)}
    if plan is not None:
        feeds["plan"] = np.asarray(plan, dtype=np.int64)
    outputs: list[np.ndarray] = session.run(["logits"], feeds)
    return outputs[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_portable_bodies_give_equal_logits(precision: str) -> None:
    path = graph(precision=precision)
    model = network.prepare(path, plugins=False)
    assert not model.functions
    assert all(node.domain != DOMAIN for node in model.graph.node)
    np.testing.assert_array_equal(logits(model), logits(path))


def test_a_fixed_plan_is_not_an_input() -> None:
    path = graph()
    model = network.prepare(path, plugins=False, plan=PLAN)
    assert [value.name for value in model.graph.input] == ["image"]
    np.testing.assert_array_equal(logits(model, None), logits(path))


def test_only_a_cast_reads_uint8_inputs() -> None:
    for kind in KINDS:
        exported = bundle(kind, "fp16")
        for name in GRAPHS[exported.manifest.kind]:
            model = network.prepare(exported.folder / name, plugins=True)
            uint8_inputs = {
                value.name
                for value in model.graph.input
                if value.type.tensor_type.elem_type == TensorProto.UINT8
            }
            users = [node for node in model.graph.node if uint8_inputs & set(node.input)]
            assert len(users) == len(uint8_inputs)
            assert all(node.op_type == "Cast" for node in users)


def test_uint8_inputs_without_a_cast_are_rejected(tmp_path: Path) -> None:
    image, same = (
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 3])
        for name in ("image", "same")
    )
    nodes = [helper.make_node("Identity", ["image"], ["same"])]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "bytes", [image], [same])), path)
    with pytest.raises(ValueError, match="the graph never casts its uint8 input 'image'"):
        network.prepare(path, plugins=False)


@pytest.mark.parametrize("kind", list(KINDS))
def test_plugin_nodes_mark_their_counts(kind: str) -> None:
    exported = bundle(kind, "fp16")
    bodies = functions()
    for name in GRAPHS[exported.manifest.kind]:
        model = network.prepare(exported.folder / name, plugins=True)
        ours = [node for node in model.graph.node if node.domain == DOMAIN]
        assert {node.op_type for node in ours} <= network.PLUGINS
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        for node in ours:
            attributes = {
                attribute.name: helper.get_attribute_value(attribute)
                for attribute in node.attribute
            }
            counts = attributes.get(network.SHAPE_INPUTS, [])
            names = [bodies[node.op_type].input[index] for index in counts]
            assert names == [
                name
                for name in bodies[node.op_type].input
                if name in COUNT_INPUTS.get(node.op_type, ())
            ]
            # One extra output per count that the shapes of the other outputs do not reveal.
            extra = len(node.output) - len(bodies[node.op_type].output)
            assert extra == EXTRA_OUTPUTS.get(node.op_type, 0)


COUNT_INPUTS = {
    "Importance": ("queries",),
    "MatchToMe": ("r",),
    "MatchPiToMe": ("r",),
    "MatchToMePacked": ("r",),
    "MatchPiToMePacked": ("r",),
    "MatchPuMer": ("text", "counts"),
    "Reduce": ("r",),
}
EXTRA_OUTPUTS = {
    **dict.fromkeys(COUNT_INPUTS, 1),
    "MatchPuMer": 4,  # One for the text, and three for the counts.
    "Reduce": 0,  # The width of y reveals the count.
}


def test_every_op_except_linear_layers_is_a_plugin() -> None:
    other_ops = {name for name in functions() if name not in network.PLUGINS}
    assert other_ops == {"Linear", "LinearGelu", "LinearAdd"}


def test_to_bfloat16_leaves_no_float16() -> None:
    for kind in KINDS:
        exported = bundle(kind, "fp16")
        for name in GRAPHS[exported.manifest.kind]:
            for plugins in (True, False):
                model = network.prepare(exported.folder / name, plugins=plugins)
                before = [numpy_helper.to_array(weight) for weight in model.graph.initializer]
                network.to_bfloat16(model)
                assert not _of_type(model, TensorProto.FLOAT16)
                for weight, old in zip(model.graph.initializer, before, strict=True):
                    if weight.data_type == TensorProto.BFLOAT16:
                        new = numpy_helper.to_array(weight).astype(np.float32)
                        np.testing.assert_allclose(new, old.astype(np.float32), rtol=2**-8)


def _of_type(model: ModelProto, data_type: int) -> list[str]:
    """Return the names of weights, constants, casts, inputs and outputs of a type."""
    nodes = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    attributes = [(node.name, attribute) for node in nodes for attribute in node.attribute]
    return [
        *(weight.name for weight in model.graph.initializer if weight.data_type == data_type),
        *(
            name
            for name, attribute in attributes
            if (attribute.name in ("to", "dtype") and attribute.i == data_type)
            or (attribute.HasField("t") and attribute.t.data_type == data_type)
        ),
        *(
            value.name
            for value in (*model.graph.input, *model.graph.output)
            if value.type.tensor_type.elem_type == data_type
        ),
    ]
