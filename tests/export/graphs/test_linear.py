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

from tests import tiny
from tokenfold.export.graphs import linear
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.ops.functions import functions
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime.libraries import DOMAIN

HEADER = '<ir_version: 10, opset_import: ["": 20, "tokenfold": 1]>'
WEIGHTS = {
    "w": (8, 12),
    "bias": (12,),
    "bias_of_8": (8,),
    "square": (8, 8),
    "row": (1, 1, 12),
    "w_of_24": (8, 24),
    "bias_of_24": (24,),
}


def parsed(body: str, *, output: str = "float16[b, n, e] y", half: bool = True) -> onnx.ModelProto:
    """Return a graph with the inputs x, other, residual and kind, and the weights it uses."""
    inputs = (
        "float16[b, n, 8] x, float16[b, n, 8] other, float16[b, m, 12] residual, "
        "float16[1, 1, 12] kind"
    )
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
        tensor.name: draw.standard_normal(
            (1 if tensor.shape[0] == 1 else 2, 1 if tensor.shape[1] == 1 else 3, tensor.shape[2])
        ).astype(np.float16)
        for tensor in session.get_inputs()
    }
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def with_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    del model.functions[:]
    model.functions.extend(body for kind, body in functions().items() if kind in used)
    return model


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse the linear layers of a model and check that its outputs stay equal."""
    before = answers(with_bodies(model))
    linear.fuse(model)
    onnx.checker.check_model(with_bodies(model))
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
        # The shape of the residual is unknown, so it may differ.
        (
            "p = MatMul(x, w) q = Add(p, bias) r = MatMul(other, w) s = Add(r, bias) y = Add(q, s)",
            {"Linear": 2, "Add": 1},
        ),
        # Either layer could include the sum; the first one does.
        (
            "p = MatMul(x, w) q = Add(p, bias) r = MatMul(x, w) s = Add(r, bias) "
            "t = Add(q, residual) y = Add(t, s)",
            {"Linear": 1, "LinearAdd": 1, "Add": 1},
        ),
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(q, q)", {"Linear": 1, "Add": 1}),
        # Residuals that cuBLASLt would have to broadcast.
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(q, row)", {"Linear": 1, "Add": 1}),
        ("p = MatMul(x, w) q = Add(p, bias) y = Add(q, kind)", {"Linear": 1, "Add": 1}),
        ("p = MatMul(x, w) y = Add(p, row)", {"MatMul": 1, "Add": 1}),
        ("y = MatMul(x, w)", {"MatMul": 1}),
        ("t = Transpose<perm = [0, 2, 1]>(other) y = MatMul(x, t)", {"MatMul": 1, "Transpose": 1}),
    ],
)
def test_linear_layers_are_recognised(body: str, expected: dict[str, int]) -> None:
    assert kinds(fused(parsed(body))) == expected


QKV = """
    p = MatMul(x, w_of_24) q = Add(p, bias_of_24) a, b, c = Split<axis = -1, num_outputs = 3>(q)
    n = Shape<start = 0, end = 2>(x)
    size = ConstantOfShape<value = float[1] {1.0}>(n)
"""
ATTEND = "<heads: int = 2, scale: float = 0.5>(a, b, c, size)"


def test_attention_and_matchers_read_packed_tokens() -> None:
    body = f"""{QKV}
        y = tokenfold.Attend{ATTEND}
        r = Constant<value_ints = [1]>()
        s = tokenfold.MatchToMe<heads: int = 2, protected: int = 1>(b, size, r)
        t = tokenfold.MatchPiToMe
            <heads: int = 2, protected: int = 1, margin: float = 0.5>(b, size, r)
    """
    counts = kinds(fused(parsed(body, output="float16[b, n, e] y, int64[b, n] s, int64[b, n] t")))
    assert counts["AttendPacked"] == counts["MatchToMePacked"] == counts["MatchPiToMePacked"] == 1
    assert not counts["Split"]


@pytest.mark.parametrize(
    ("users", "output"),
    [
        ("y = Add(a, b)", "float16[b, n, e] y"),
        (f"y = tokenfold.Attend{ATTEND} z = Add(a, y)", "float16[b, n, e] z"),
        (f"y = tokenfold.Attend{ATTEND}", "float16[b, n, e] y, float16[b, n, e] b"),
        (f"y = tokenfold.Attend{ATTEND.replace('a, b', 'b, a')}", "float16[b, n, e] y"),
        (f"y = tokenfold.Attend{ATTEND.replace('a, b', 'a, x')}", "float16[b, n, e] y"),
    ],
)
def test_tokens_with_other_users_are_split(users: str, output: str) -> None:
    model = parsed(QKV + users, output=output)
    linear.fuse(model)
    assert kinds(model)["Split"] == 1
    assert not kinds(model)["AttendPacked"]


def test_outputs_with_other_users_stay() -> None:
    body = "p = MatMul(x, w) q = Add(p, bias) r = Gelu(q) y = Add(q, r)"
    assert kinds(fused(parsed(body))) == {"Linear": 1, "Gelu": 1, "Add": 1}
    both_outputs = "float16[b, n, e] q, float16[b, n, e] y"
    body = "p = MatMul(x, w) q = Add(p, bias) y = Gelu(q)"
    assert kinds(fused(parsed(body, output=both_outputs))) == {"Linear": 1, "Gelu": 1}


def test_weights_that_several_layers_share_are_kept() -> None:
    body = "p = MatMul(x, square) q = Add(p, bias_of_8) r = MatMul(q, square) y = Add(r, bias_of_8)"
    model = fused(parsed(body))
    assert kinds(model) == {"Linear": 2}
    assert {weight.name for weight in model.graph.initializer} == {"square", "bias_of_8"}


def test_other_precisions_are_not_fused() -> None:
    model = parsed("p = MatMul(x, w) y = Add(p, bias)", half=False)
    before = model.SerializeToString()
    linear.fuse(model)
    assert model.SerializeToString() == before


def test_a_network_in_half_precision_has_no_other_products(tmp_path: Path) -> None:
    check = tiny.checkpoint()
    matchers = [ToMe()] * check.model.config.depth
    graph = ClassifierGraph(check.model, check.preprocess, matchers, True, torch.float16)
    graph.write(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    counts = kinds(model)
    # Patches, and each layer's queries, keys and values.
    assert counts["Linear"] == 1 + len(matchers)
    assert counts["LinearGelu"] == len(matchers)
    assert counts["LinearAdd"] == 2 * len(matchers)
    assert counts["AttendPacked"] == counts["MatchToMePacked"] == len(matchers)
    assert not counts["MatMul"]
    assert {function.name for function in model.functions} >= {"Linear", "LinearGelu", "LinearAdd"}
