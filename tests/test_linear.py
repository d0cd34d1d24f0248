"""Linear layers in half precision: one node each, and the same results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from export import graph as graphs
from export import linear
from export.plugins.functions import DOMAIN, functions
from models.reduction.tome import ToMe
from tests import tiny

HEADER = '<ir_version: 10, opset_import: ["": 20, "tokenfold": 1]>'
WEIGHTS = {
    "w": (8, 12),
    "bias": (12,),
    "bias_of_8": (8,),
    "square": (8, 8),
    "row": (1, 1, 12),
}


def made(body: str, *, output: str = "float16[b, n, e] y", half: bool = True) -> onnx.ModelProto:
    """A graph of x (b, n, 8), other and residual, with the weights above where it uses them."""
    inputs = "float16[b, n, 8] x, float16[b, n, 8] other, float16[b, n, 12] residual"
    text = f"{HEADER} test ({inputs}) => ({output}) {{ {body} }}"
    model = onnx.parser.parse_model(text if half else text.replace("float16", "float"))
    used = {name for node in model.graph.node for name in node.input}
    draw = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if name in used:
            values = draw.standard_normal(shape).astype(np.float16 if half else np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def answers(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    draw = np.random.default_rng(1)
    feeds = {
        given.name: draw.standard_normal((2, 3, given.shape[2])).astype(np.float16)
        for given in session.get_inputs()
    }
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its linear layers fused, which answers as before."""
    before = answers(model)
    linear.fuse(model)
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    model.functions.extend(body for kind, body in functions().items() if kind in used)
    onnx.checker.check_model(model)
    for old, new in zip(before, answers(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=2e-3, atol=2e-3)
    return model


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = MatMul(x, w) y = Add(p, bias)", {"Linear": 1}),
        ("p = MatMul(x, w) y = Add(bias, p)", {"Linear": 1}),
        ("p = MatMul(x, w) q = Add(p, bias) y = Gelu(q)", {"LinearGelu": 1}),
        (
            'p = MatMul(x, w) q = Add(p, bias) y = Gelu<approximate = "none">(q)',
            {"LinearGelu": 1},
        ),
        (
            'p = MatMul(x, w) q = Add(p, bias) y = Gelu<approximate = "tanh">(q)',
            {"Linear": 1, "Gelu": 1},
        ),
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(residual, q)", {"LinearAdd": 1}),
        # The layer before is as good a residual as any; one of the two takes the other up.
        (
            "p = MatMul(x, w) q = Add(p, bias) r = MatMul(other, w) s = Add(r, bias) y = Add(q, s)",
            {"Linear": 1, "LinearAdd": 1},
        ),
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(q, q)", {"Linear": 1, "Add": 1}),
        # A constant may be of another shape, which cuBLASLt does not broadcast.
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(q, row)", {"Linear": 1, "Add": 1}),
        ("p = MatMul(x, w) y = Add(p, row)", {"MatMul": 1, "Add": 1}),
        ("y = MatMul(x, w)", {"MatMul": 1}),
        ("t = Transpose<perm = [0, 2, 1]>(other) y = MatMul(x, t)", {"MatMul": 1, "Transpose": 1}),
    ],
)
def test_what_is_a_linear_layer(body: str, expected: dict[str, int]) -> None:
    assert kinds(fused(made(body))) == expected


def test_parts_of_a_layer_become_layers() -> None:
    body = "p = MatMul(x, w) q = Add(p, bias) a, b, y = Split<axis = -1, num_outputs = 3>(q)"
    model = fused(made(body, output="float16[b, n, e] a, float16[b, n, e] b, float16[b, n, e] y"))
    assert kinds(model) == {"Linear": 3}
    names = {weight.name for weight in model.graph.initializer}
    assert names == {f"{name}.{part}" for name in ("w", "bias") for part in range(3)}


@pytest.mark.parametrize(
    "split",
    [
        "a, y = Split<axis = 1, num_outputs = 2>(q)",
        "sizes = Constant<value_ints = [4, 8]>() a, y = Split<axis = -1>(q, sizes)",
    ],
)
def test_other_splits_stay(split: str) -> None:
    model = made(f"p = MatMul(x, w) q = Add(p, bias) {split}", output="float16[b, n, e] a")
    linear.fuse(model)
    assert kinds(model)["Linear"] == 1
    assert kinds(model)["Split"] == 1


def test_what_others_need_stays() -> None:
    body = "p = MatMul(x, w) q = Add(p, bias) r = Gelu(q) y = Add(q, r)"
    assert kinds(fused(made(body))) == {"Linear": 1, "Gelu": 1, "Add": 1}
    both = "float16[b, n, e] q, float16[b, n, e] y"
    body = "p = MatMul(x, w) q = Add(p, bias) y = Gelu(q)"
    assert kinds(fused(made(body, output=both))) == {"Linear": 1, "Gelu": 1}


def test_weights_that_several_layers_share_are_kept() -> None:
    body = "p = MatMul(x, square) q = Add(p, bias_of_8) r = MatMul(q, square) y = Add(r, bias_of_8)"
    model = fused(made(body))
    assert kinds(model) == {"Linear": 2}
    assert {weight.name for weight in model.graph.initializer} == {"square", "bias_of_8"}


def test_other_precisions_stay_as_they_are() -> None:
    model = made("p = MatMul(x, w) y = Add(p, bias)", half=False)
    before = model.SerializeToString()
    linear.fuse(model)
    assert model.SerializeToString() == before


def test_a_network_in_half_precision_has_no_other_products(tmp_path: Path) -> None:
    check = tiny.checkpoint()
    matchers = [ToMe()] * check.model.config.depth
    graph = graphs.Graph(check.model, check.preprocess, matchers, True, torch.float16)
    graphs.export(graph, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    found = kinds(model)
    # Patches; queries, keys and values of each layer.
    assert found["Linear"] == 1 + 3 * len(matchers)
    assert found["LinearGelu"] == len(matchers)
    assert found["LinearAdd"] == 2 * len(matchers)
    assert not found["MatMul"]
    assert {function.name for function in model.functions} >= {"Linear", "LinearGelu", "LinearAdd"}
