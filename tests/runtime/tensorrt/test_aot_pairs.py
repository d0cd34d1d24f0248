"""Engines of networks that see an image with a text, built for GPUs that are not here; see
test_aot.py.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import ANY

import onnx
import pytest

from tests.runtime.tensorrt import ahead
from tests.runtime.tensorrt.ahead import builder, fixed, needs_rtx
from tests.runtime.tensorrt.bundles import LEVELS, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.pair_workload import PairWorkload

pytestmark = [needs_rtx, pytest.mark.timeout(600)]

BATCH = 2


@pytest.mark.parametrize(
    ("kind", "precision", "every"),
    # All of ViLT's in float16 are built by test_command.py.
    [("vilt", "fp16", False), ("vilt", "fp32", False), ("meter", "fp16", True)],
)
def test_our_ops_are_plugins_and_engines_are_built(
    kind: str, precision: Precision, every: bool
) -> None:
    ahead.check_engines(kind, precision, every=every)


@pytest.mark.parametrize(("kind", "precision"), [("vilt", "fp32"), ("meter", "fp16")])
def test_bodies_build_where_there_are_no_plugins(kind: str, precision: Precision) -> None:
    ahead.check_bodies(kind, precision)


@pytest.mark.parametrize("kind", ["vilt", "meter"])
def test_bfloat16_of_a_float16_bundle(kind: str) -> None:
    ahead.check_bfloat16(kind)


@pytest.mark.parametrize(("kind", "gpu"), [("vilt", "sm_80"), ("meter", "sm_120")])
def test_engines_for_other_compute_capabilities(kind: str, gpu: str) -> None:
    ahead.check_gpu(kind, gpu)


def sized(made: Bundle, folder: Path, *, text: int, image: int) -> Path:
    """The graph in which image and text meet, for inputs of these sizes alone."""
    model = onnx.load(made.folder / "joint.onnx")
    sizes = {"batch": BATCH, "text": text, "image": image}
    for given in model.graph.input:
        for dim in given.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    path = folder / "joint.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("text", [12, 5])
@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("kind", ["vilt", "meter"])
def test_shapes_follow_from_pumers_counts(tmp_path: Path, kind: str, level: str, text: int) -> None:
    made = bundle(kind, "fp16")
    workload = made.manifest.workload
    assert isinstance(workload, PairWorkload)
    plan = made.manifest.plan(made.manifest.levels[level], text=text, image=workload.image)
    path = sized(made, tmp_path, text=text, image=workload.image)
    layers = builder().layers(path, fixed(made, "joint.onnx", plan))
    found = {
        kind: [layer.shapes for layer in layers if layer.name.startswith(kind)]
        for kind in ("MatchPuMer_", "MatchToMe_", "Reduce_", "Importance_")
    }
    streams = workload.sized(text=text).streams(plan)
    at = [layer for layer in range(workload.depth) if layer in workload.layers]
    left = [streams[layer + 1] for layer in at]
    # METER's text and image are two streams, ViLT's are one.
    apart = kind == "meter"
    widths = [width for both in left for width in (both if apart else (sum(both),))]
    assert found["Reduce_"] == [((BATCH, n, 48), (BATCH, n), ANY) for n in widths]
    # What goes is told by the sizes of outputs: text tokens, and counts to prune and merge.
    asked = [(streams[layer][0], *plan[3 * layer : 3 * layer + 3]) for layer in at]
    pumer = [tuple(size - 1 for (size,) in told) for _, *told in found["MatchPuMer_"]]
    assert pumer == [(0, *counts[1:3], 0) if apart else counts for counts in asked]
    merged = [told - 1 for _, (told,) in found["MatchToMe_"]]
    assert merged == [counts[3] for counts in asked if apart]
    assert [told - 1 for _, (told,) in found["Importance_"]] == [counts[0] for counts in asked]
