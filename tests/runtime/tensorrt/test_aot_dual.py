"""Tests that engines of dual encoders build without a GPU; see test_aot.py."""

from __future__ import annotations

import pytest

from tests.runtime.tensorrt import aot
from tests.runtime.tensorrt.aot import needs_rtx
from tokenfold.bundle.workload import Plan

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("kind", "all_profiles"), [("clip", True), ("siglip", False)])
def test_ops_become_plugins_and_engines_build(kind: str, all_profiles: bool) -> None:
    aot.check_engines(kind, "fp16", all_profiles=all_profiles)


def test_portable_bodies_build_without_plugins() -> None:
    aot.check_bodies("clip", "fp16")


def test_float16_bundle_builds_in_bfloat16() -> None:
    aot.check_bfloat16("clip")


@pytest.mark.parametrize(("kind", "gpu"), [("clip", "sm_120"), ("siglip", "sm_75")])
def test_engines_name_their_compute_capability(kind: str, gpu: str) -> None:
    aot.check_gpu(kind, gpu)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("plan", [(0, 0, 0), (2, 2, 2), (5, 0, 1), (8, 8, 8), (100, 100, 100)])
def test_tensorrt_infers_shapes_from_a_fixed_plan(kind: str, plan: Plan) -> None:
    aot.check_plan(kind, plan)
