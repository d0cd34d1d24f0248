"""int8 graphs: quantised weights, float reductions, and outputs close to the original graph's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import tiny
from tokenfold.export import quantise
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime.graph import open_graph
from tokenfold.runtime.libraries import DOMAIN


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    checkpoint, path = tiny.checkpoint(), tmp_path / "model.onnx"
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True).write(path)
    return path


def tokenfold_ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)


def test_outputs_stay_close_and_reductions_stay_ops(graph: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    quantise.quantise(graph, target)
    original, quantised = onnx.load(graph), onnx.load(target)
    assert tokenfold_ops(quantised) == tokenfold_ops(original)
    kinds = [weight.data_type for weight in quantised.graph.initializer]
    assert kinds.count(onnx.TensorProto.INT8) >= 12, "the weights of every linear layer"
    feeds = {"image": random_images(tiny.SIZE, 4), "plan": np.array([2, 2, 2])}
    expected, actual = (open_graph(path).run(["logits"], feeds)[0] for path in (graph, target))
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.25


def test_replacing_leaves_no_other_files(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenfold.export.graphs.onnx_file.EXTERNAL_ABOVE", 20_000)
    checkpoint = tiny.checkpoint()
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, None, True).write(graph)
    weights = graph.with_name("model.onnx.data")
    before = weights.stat().st_size
    quantise.replace(graph)
    files = {path.name for path in graph.parent.iterdir()}
    assert files <= {"model.onnx", "model.onnx.data"}
    after = sum(path.stat().st_size for path in graph.parent.iterdir())
    assert after < before
    kinds = {weight.data_type for weight in onnx.load(graph).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
