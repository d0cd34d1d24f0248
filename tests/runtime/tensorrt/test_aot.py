"""Tests that TensorRT for RTX builds engines of classifiers without a GPU.

test_aot_dual.py and test_aot_pairs.py test the other kinds. Running engines needs a GPU, and is
tested in tests/gpu.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.native.cuda_host import tensorrt as cuda_host_plugins
from tests.runtime.tensorrt import aot
from tests.runtime.tensorrt.aot import builder, engine_spec, needs_rtx, reduced_widths, static_spec
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.tensorrt.variant import TensorRTError

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


def test_supported_architectures() -> None:
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(aot.rtx().aot_architectures)
    with pytest.raises(TensorRTError, match="does not build for sm90; supported: sm_75"):
        engine_spec(bundle("vit", "fp16"), "model.onnx", gpu="sm90")


@pytest.mark.parametrize(
    ("kind", "precision", "all_profiles"),
    [("vit", "fp16", True), ("vit", "fp32", False), ("pitome", "fp16", False)],
)
def test_ops_become_plugins_and_engines_build(
    kind: str, precision: Precision, all_profiles: bool
) -> None:
    aot.check_engines(kind, precision, all_profiles=all_profiles)


@pytest.mark.parametrize("kind", ["vit", "pitome"])
def test_portable_bodies_build_without_plugins(kind: str) -> None:
    aot.check_bodies(kind, "fp16")


def test_float16_bundle_builds_in_bfloat16() -> None:
    aot.check_bfloat16("vit")


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [
        *(("vit", gpu) for gpu in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120")),
        ("pitome", "sm_86"),
    ],
)
def test_engines_name_their_compute_capability(kind: str, gpu: str) -> None:
    aot.check_gpu(kind, gpu)


@pytest.mark.parametrize("kind", ["vit", "pitome"])
@pytest.mark.parametrize("plan", [(0, 0, 0), (2, 2, 2), (5, 0, 1), (8, 8, 8), (100, 100, 100)])
def test_tensorrt_infers_shapes_from_a_fixed_plan(kind: str, plan: Plan) -> None:
    aot.check_plan(kind, plan)


def test_parser_errors_name_the_cause(tmp_path: Path) -> None:
    exported = bundle("vit", "fp16")
    model = onnx.load(exported.folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Reduce")
    node.attribute.remove(
        next(attribute for attribute in node.attribute if attribute.name == "protected")
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(TensorRTError, match=r"could not be parsed.*protected"):
        builder().layers(path, engine_spec(exported, "model.onnx"))
    # The builder still works afterwards.
    assert reduced_widths(
        builder().layers(
            exported.folder / "model.onnx", static_spec(exported, "model.onnx", (1, 1, 1))
        )
    )


def test_files_that_are_not_plugin_libraries_are_rejected(tmp_path: Path) -> None:
    from tokenfold.runtime.tensorrt.plugins import register

    path = tmp_path / "library.so"
    path.write_bytes(b"nothing")
    with pytest.raises(TensorRTError, match="is not a plugin library"):
        register(aot.rtx(), path)
    assert register(aot.rtx(), cuda_host_plugins.build()) is aot.plugin_library()
