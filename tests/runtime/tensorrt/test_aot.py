"""Engines of classifiers, built by TensorRT for RTX for GPUs that are not here; those of the other
kinds are test_aot_dual.py's and test_aot_pairs.py's.

What they cannot show without a GPU: that they run. tests/gpu does.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.native.cuda_host import tensorrt as built
from tests.runtime.tensorrt import ahead
from tests.runtime.tensorrt.ahead import builder, fixed, needs_rtx, origin, reduced
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.tensorrt.flavour import TensorRtError

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


def test_it_builds_for_other_gpus_than_those_that_are_not_rtx() -> None:
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(ahead.rtx().ahead)
    with pytest.raises(TensorRtError, match="does not build for sm90; it does for sm_75"):
        origin(bundle("vit", "fp16"), "model.onnx", gpu="sm90")


@pytest.mark.parametrize(
    ("kind", "precision", "every"),
    [("vit", "fp16", True), ("vit", "fp32", False), ("pitome", "fp16", False)],
)
def test_our_ops_are_plugins_and_engines_are_built(
    kind: str, precision: Precision, every: bool
) -> None:
    ahead.check_engines(kind, precision, every=every)


@pytest.mark.parametrize("kind", ["vit", "pitome"])
def test_bodies_build_where_there_are_no_plugins(kind: str) -> None:
    ahead.check_bodies(kind, "fp16")


def test_bfloat16_of_a_float16_bundle() -> None:
    ahead.check_bfloat16("vit")


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [
        *(("vit", gpu) for gpu in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120")),
        ("pitome", "sm_86"),
    ],
)
def test_engines_for_other_compute_capabilities(kind: str, gpu: str) -> None:
    ahead.check_gpu(kind, gpu)


@pytest.mark.parametrize("kind", ["vit", "pitome"])
@pytest.mark.parametrize("plan", [(0, 0, 0), (2, 2, 2), (5, 0, 1), (8, 8, 8), (100, 100, 100)])
def test_shapes_follow_from_a_fixed_plan(kind: str, plan: Plan) -> None:
    ahead.check_plan(kind, plan)


def test_a_graph_that_cannot_be_parsed_says_why(tmp_path: Path) -> None:
    made = bundle("vit", "fp16")
    model = onnx.load(made.folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Reduce")
    node.attribute.remove(next(one for one in node.attribute if one.name == "protected"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(TensorRtError, match=r"could not be parsed.*protected"):
        builder().layers(path, origin(made, "model.onnx"))
    # And what is built after it is none the worse.
    assert reduced(
        builder().layers(made.folder / "model.onnx", fixed(made, "model.onnx", (1, 1, 1)))
    )


def test_what_is_no_library_of_plugins_is_refused(tmp_path: Path) -> None:
    from tokenfold.runtime.tensorrt.plugins import registered

    path = tmp_path / "library.so"
    path.write_bytes(b"nothing")
    with pytest.raises(TensorRtError, match="is no library of plugins"):
        registered(ahead.rtx(), path)
    assert registered(ahead.rtx(), built.build()) is ahead.registered()
