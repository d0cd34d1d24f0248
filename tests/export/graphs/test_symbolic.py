"""Symbolic operators: the nodes that they emit, and the matchers and counts that they reject."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tokenfold.export.graphs import onnx_file
from tokenfold.export.graphs.symbolic import Symbolic, on_host
from tokenfold.models.networks.operators import Tokens
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime.libraries import DOMAIN

HEADS, DIM = 2, 8


class Layer(nn.Module):
    """A layer that attends and reduces by one count of its plan."""

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, x: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        ops = Symbolic()
        tokens = Tokens.start(x)
        tokens = tokens._replace(x=ops.attend(x, x, x, None, HEADS))
        tokens = ops.reduce(tokens, x, HEADS, self.matcher, on_host(plan, x))
        return tokens.x, tokens.size


def trace(matcher: Matcher, path: Path) -> onnx.ModelProto:
    onnx_file.write(
        Layer(matcher),
        [torch.zeros(2, 9, DIM), torch.full((1,), 2, dtype=torch.int64)],
        path,
        input_names=["x", "plan"],
        output_names=["y", "size"],
        dynamic_shapes=[{0: Dim("batch")}, None],
    )
    return onnx.load(path)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


@pytest.mark.parametrize(
    ("matcher", "op", "expected"),
    [
        (ToMe(class_token=True), "MatchToMe", {"protected": 1}),
        (PiToMe(0.5, 2), "MatchPiToMe", {"protected": 2, "margin": 0.5}),
    ],
)
def test_a_layer_becomes_three_nodes(
    matcher: Matcher, op: str, expected: dict[str, object], tmp_path: Path
) -> None:
    model = trace(matcher, tmp_path / "layer.onnx")
    nodes = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    assert set(nodes) == {"Attend", op, "Reduce"} == {body.name for body in model.functions}
    assert attributes(nodes["Attend"]).items() >= {"heads": HEADS, "scale": 0.5}.items()
    assert attributes(nodes[op]).items() >= {"heads": HEADS, **expected}.items()
    assert attributes(nodes["Reduce"])["protected"] == expected["protected"]


def test_the_plan_depends_on_a_shape_so_that_it_stays_on_the_host(tmp_path: Path) -> None:
    model = trace(ToMe(), tmp_path / "layer.onnx")
    readers = [node.op_type for node in model.graph.node if "plan" in node.input]
    assert readers == ["Add"]


def test_counts_and_matchers_without_a_node_are_rejected() -> None:
    tokens, ops = Tokens.start(torch.zeros(1, 4, DIM)), Symbolic()
    with pytest.raises(TypeError, match="a count in a graph must be a tensor, not int"):
        ops.reduce(tokens, tokens.x, HEADS, ToMe(), 1)
    with pytest.raises(TypeError, match="PuMer needs the importance"):
        ops.reduce(tokens, tokens.x, HEADS, PuMer(), (1, 1, 1))
    with pytest.raises(TypeError, match="object has no op to export to"):
        ops.reduce(tokens, tokens.x, HEADS, object(), torch.ones(1))  # type: ignore[arg-type]
