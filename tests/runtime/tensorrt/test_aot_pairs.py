"""Tests that engines of image-text networks build without a GPU; see test_aot.py."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import ANY

import onnx
import pytest

from tests.runtime.tensorrt import aot
from tests.runtime.tensorrt.aot import builder, needs_rtx, static_spec
from tests.runtime.tensorrt.bundles import LEVELS, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.pair_workload import PairWorkload

pytestmark = [needs_rtx, pytest.mark.timeout(600)]

BATCH = 2


@pytest.mark.parametrize(
    ("kind", "precision", "all_profiles"),
    # test_command.py builds all profiles of ViLT in float16.
    [("vilt", "fp16", False), ("vilt", "fp32", False), ("meter", "fp16", True)],
)
def test_ops_become_plugins_and_engines_build(
    kind: str, precision: Precision, all_profiles: bool
) -> None:
    aot.check_engines(kind, precision, all_profiles=all_profiles)


@pytest.mark.parametrize(("kind", "precision"), [("vilt", "fp32"), ("meter", "fp16")])
def test_portable_bodies_build_without_plugins(kind: str, precision: Precision) -> None:
    aot.check_bodies(kind, precision)


@pytest.mark.parametrize("kind", ["vilt", "meter"])
def test_float16_bundle_builds_in_bfloat16(kind: str) -> None:
    aot.check_bfloat16(kind)


@pytest.mark.parametrize(("kind", "gpu"), [("vilt", "sm_80"), ("meter", "sm_120")])
def test_engines_name_their_compute_capability(kind: str, gpu: str) -> None:
    aot.check_gpu(kind, gpu)


def save_static_joint_graph(exported: Bundle, folder: Path, *, text: int, image: int) -> Path:
    """Save the joint graph with static input sizes, and return its path."""
    model = onnx.load(exported.folder / "joint.onnx")
    sizes = {"batch": BATCH, "text": text, "image": image}
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    path = folder / "joint.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("text", [12, 5])
@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("kind", ["vilt", "meter"])
def test_tensorrt_infers_shapes_from_pumer_counts(
    tmp_path: Path, kind: str, level: str, text: int
) -> None:
    exported = bundle(kind, "fp16")
    workload = exported.manifest.workload
    assert isinstance(workload, PairWorkload)
    plan = exported.manifest.plan(exported.manifest.levels[level], text=text, image=workload.image)
    path = save_static_joint_graph(exported, tmp_path, text=text, image=workload.image)
    layers = builder().layers(path, static_spec(exported, "joint.onnx", plan))
    shapes = {
        prefix: [layer.shapes for layer in layers if layer.name.startswith(prefix)]
        for prefix in ("MatchPuMer_", "MatchToMe_", "Reduce_", "Importance_")
    }
    streams = workload.sized(text=text).streams(plan)
    reducing_layers = [layer for layer in range(workload.depth) if layer in workload.layers]
    remaining = [streams[layer + 1] for layer in reducing_layers]
    # METER reduces text and image separately, ViLT reduces them together.
    separate = kind == "meter"
    widths = [width for tokens in remaining for width in (tokens if separate else (sum(tokens),))]
    assert shapes["Reduce_"] == [((BATCH, n, 48), (BATCH, n), ANY) for n in widths]
    # The sizes of extra outputs encode text tokens and the counts to prune and merge.
    expected = [(streams[layer][0], *plan[3 * layer : 3 * layer + 3]) for layer in reducing_layers]
    pumer = [tuple(size - 1 for (size,) in counts) for _, *counts in shapes["MatchPuMer_"]]
    assert pumer == [(0, *counts[1:3], 0) if separate else counts for counts in expected]
    merged = [count - 1 for _, (count,) in shapes["MatchToMe_"]]
    assert merged == [counts[3] for counts in expected if separate]
    assert [count - 1 for _, (count,) in shapes["Importance_"]] == [
        counts[0] for counts in expected
    ]
