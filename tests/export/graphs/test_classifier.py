"""Graphs of image classifiers: any plan, on portable and native ops, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests import tiny
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.reference import normalised
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe, margin
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime import libraries
from tokenfold.runtime.libraries import DOMAIN

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {},
    "distilled": {"distill_token": True, "pool": "class+distill"},
    "mae": {"pool": "mean", "final_norm": "after"},
    "clip": {"pre_norm": True, "activation": "quick_gelu", "patch_bias": False, "pool": "mean"},
    "dinov2": {"layer_scale": True, "pool": "class+mean", "gated_mlp": True},
    "deit3": {"layer_scale": True, "position_prefix": False, "qk_norm": True},
    "conv-stem": {"stem": ((8, 2), (16, 2), (16, 2))},
    "wide": {"image_size": (16, 48), "class_token": False, "pool": "mean"},
}
PLANS = [(0, 0, 0), (2, 2, 2), (0, 5, 1), (8, 0, 3), (100, 100, 100), (1, 0, 0)]


def run(path: Path, native: bool, images: np.ndarray, plan: tuple[int, ...]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if native:
        options.register_custom_ops_library(str(libraries.find()))
    session = ort.InferenceSession(path, options)
    outputs: list[Any] = session.run(None, {"image": images, "plan": np.array(plan)})
    return outputs


def eager(
    checkpoint: Checkpoint,
    matchers: list[Matcher],
    images: np.ndarray,
    plan: tuple[int, ...],
    proportional: bool,
) -> Any:
    x = normalised(images, checkpoint.preprocess)
    with torch.inference_mode():
        return checkpoint.model(x, plan, matchers, proportional=proportional)


@pytest.mark.parametrize("method", ["tome", "pitome"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_plan_equals_pytorch(architecture: str, method: str, tmp_path: Path) -> None:
    if method == "pitome" and architecture not in ("vit", "distilled"):
        pytest.skip("architectures differ outside the ops, so two of them are enough")
    changes = ARCHITECTURES[architecture]
    checkpoint = tiny.checkpoint(**changes)
    config = checkpoint.model.config
    matchers: list[Matcher] = (
        [ToMe(config.class_token, config.distill_token)] * 3
        if method == "tome"
        else [PiToMe(margin(layer, 3), config.protected) for layer in range(3)]
    )
    proportional = architecture != "mae"
    path = tmp_path / "model.onnx"
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, matchers, proportional).write(path)
    for batch in (1, 3):
        images = random_images(config.image_size, batch, seed=batch)
        for plan in PLANS:
            expected = eager(checkpoint, matchers, images, plan, proportional)
            for native in (False, True) if libraries.find() else (False,):
                logits, slots = run(path, native, images, plan)
                np.testing.assert_array_equal(slots, expected.slots.numpy())
                np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)


def test_plan_zero_is_the_unreduced_network(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    reducing, plain = tmp_path / "tome.onnx", tmp_path / "none.onnx"
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True).write(reducing)
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, None, True).write(plain)
    images = random_images(tiny.SIZE, 2)
    with_ops, slots = run(reducing, False, images, (0, 0, 0))
    without, _ = run(plain, False, images, (0, 0, 0))
    # Without the ops ONNX Runtime fuses other neighbours, which rounds differently.
    np.testing.assert_allclose(with_ops, without, atol=1e-5)
    assert (slots == np.arange(17)).all()
    kinds = {node.op_type for node in onnx.load(plain).graph.node if node.domain == DOMAIN}
    assert kinds == {"Attend"}


def test_each_layer_has_the_two_ops_with_their_bodies(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    checkpoint = tiny.checkpoint()
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True).write(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=False)
    nodes = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert nodes.count("MatchToMe") == nodes.count("Reduce") == 3
    assert {body.name for body in model.functions} == {"Attend", "MatchToMe", "Reduce"}
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes["image"] == ["batch", 32, 32, 3]
    assert shapes["plan"] == [3]
    assert shapes["logits"] == ["batch", 5]
    assert shapes["slots"][1:] == [17]


def test_half_precision_keeps_sizes_and_logits_in_single(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    checkpoint = tiny.checkpoint()
    graph = ClassifierGraph(
        checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True, torch.float16
    )
    graph.write(path)
    assert next(checkpoint.model.parameters()).dtype == torch.float32, (
        "the network itself is not converted"
    )
    images = random_images(tiny.SIZE, 4)
    expected = eager(checkpoint, [ToMe()] * 3, images, (0, 0, 0), True)
    for native in (False, True) if libraries.find() else (False,):
        logits, _ = run(path, native, images, (0, 0, 0))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected.logits.numpy(), atol=2e-2)
        assert np.isfinite(run(path, native, images, (3, 3, 3))[0]).all()
