"""Graphs as TensorRT wants them: the same numbers, and what its plugins need to be told."""

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
from tokenfold.runtime.native import DOMAIN
from tokenfold.runtime.tensorrt import network

PLAN = (3, 2, 1)


def graph(kind: str = "vit", precision: str = "fp32") -> Path:
    made = bundle(kind, "fp16" if precision == "fp16" else "fp32")
    return made.folder / GRAPHS[made.manifest.kind][0]


def logits(model: ModelProto | Path, plan: tuple[int, ...] | None = PLAN) -> np.ndarray:
    given = model if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    feeds = {"image": random_images(tiny.SIZE, 3)}
    if plan is not None:
        feeds["plan"] = np.asarray(plan, dtype=np.int64)
    found: np.ndarray = session.run(["logits"], feeds)[0]
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_with_bodies_it_says_the_same(precision: str) -> None:
    path = graph(precision=precision)
    model = network.prepared(path, plugins=False)
    assert not model.functions
    assert all(node.domain != DOMAIN for node in model.graph.node)
    np.testing.assert_array_equal(logits(model), logits(path))


def test_a_fixed_plan_is_no_input() -> None:
    path = graph()
    model = network.prepared(path, plugins=False, plan=PLAN)
    assert [given.name for given in model.graph.input] == ["image"]
    np.testing.assert_array_equal(logits(model, None), logits(path))


def test_pixels_become_floats_at_once() -> None:
    for kind in KINDS:
        made = bundle(kind, "fp16")
        for name in GRAPHS[made.manifest.kind]:
            model = network.prepared(made.folder / name, plugins=True)
            bytes_in = {
                given.name
                for given in model.graph.input
                if given.type.tensor_type.elem_type == TensorProto.UINT8
            }
            users = [node for node in model.graph.node if bytes_in & set(node.input)]
            assert len(users) == len(bytes_in)
            assert all(node.op_type == "Cast" for node in users)


def test_bytes_that_nothing_casts_are_refused(tmp_path: Path) -> None:
    given, out = (
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 3])
        for name in ("image", "same")
    )
    nodes = [helper.make_node("Identity", ["image"], ["same"])]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "bytes", [given], [out])), path)
    with pytest.raises(ValueError, match="image is of bytes, and nothing casts them"):
        network.prepared(path, plugins=False)


@pytest.mark.parametrize("kind", list(KINDS))
def test_plugins_are_told_their_counts(kind: str) -> None:
    made = bundle(kind, "fp16")
    bodies = functions()
    for name in GRAPHS[made.manifest.kind]:
        model = network.prepared(made.folder / name, plugins=True)
        ours = [node for node in model.graph.node if node.domain == DOMAIN]
        assert {node.op_type for node in ours} <= network.PLUGINS
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        for node in ours:
            given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            counts = given.get(network.SHAPE_INPUTS, [])
            names = [bodies[node.op_type].input[at] for at in counts]
            assert names == [
                one for one in bodies[node.op_type].input if one in COUNTED.get(node.op_type, ())
            ]
            # As many more outputs as TensorRT could not tell the counts from others' shapes.
            extra = len(node.output) - len(bodies[node.op_type].output)
            assert extra == EXTRA.get(node.op_type, 0)


COUNTED = {
    "Importance": ("queries",),
    "MatchToMe": ("r",),
    "MatchPiToMe": ("r",),
    "MatchToMePacked": ("r",),
    "MatchPiToMePacked": ("r",),
    "MatchPuMer": ("text", "counts"),
    "Reduce": ("r",),
}
EXTRA = {
    **dict.fromkeys(COUNTED, 1),
    "MatchPuMer": 4,  # text, and three counts
    "Reduce": 0,  # the width of y tells
}


def test_every_op_is_a_plugin_or_a_linear_layer() -> None:
    others = {name for name in functions() if name not in network.PLUGINS}
    assert others == {"Linear", "LinearGelu", "LinearAdd"}


def test_bfloat16_leaves_no_float16() -> None:
    for kind in KINDS:
        made = bundle(kind, "fp16")
        for name in GRAPHS[made.manifest.kind]:
            for plugins in (True, False):
                model = network.prepared(made.folder / name, plugins=plugins)
                before = [numpy_helper.to_array(one) for one in model.graph.initializer]
                network.to_bfloat16(model)
                assert not _of_type(model, TensorProto.FLOAT16)
                for one, old in zip(model.graph.initializer, before, strict=True):
                    if one.data_type == TensorProto.BFLOAT16:
                        new = numpy_helper.to_array(one).astype(np.float32)
                        np.testing.assert_allclose(new, old.astype(np.float32), rtol=2**-8)


def _of_type(model: ModelProto, kind: int) -> list[str]:
    """What is of a type: weights, constants, casts, inputs and outputs."""
    nodes = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    attributes = [(node.name, one) for node in nodes for one in node.attribute]
    return [
        *(one.name for one in model.graph.initializer if one.data_type == kind),
        *(name for name, one in attributes if one.name in ("to", "dtype") and one.i == kind),
        *(name for name, one in attributes if one.HasField("t") and one.t.data_type == kind),
        *(
            one.name
            for one in (*model.graph.input, *model.graph.output)
            if one.type.tensor_type.elem_type == kind
        ),
    ]
