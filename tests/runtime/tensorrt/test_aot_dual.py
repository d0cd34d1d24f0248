"""Engines of dual encoders, built for GPUs that are not here; see test_aot.py."""

from __future__ import annotations

import pytest

from tests.runtime.tensorrt import ahead
from tests.runtime.tensorrt.ahead import needs_rtx
from tokenfold.bundle.workload import Plan

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("kind", "every"), [("clip", True), ("siglip", False)])
def test_our_ops_are_plugins_and_engines_are_built(kind: str, every: bool) -> None:
    ahead.check_engines(kind, "fp16", every=every)


def test_bodies_build_where_there_are_no_plugins() -> None:
    ahead.check_bodies("clip", "fp16")


def test_bfloat16_of_a_float16_bundle() -> None:
    ahead.check_bfloat16("clip")


@pytest.mark.parametrize(("kind", "gpu"), [("clip", "sm_120"), ("siglip", "sm_75")])
def test_engines_for_other_compute_capabilities(kind: str, gpu: str) -> None:
    ahead.check_gpu(kind, gpu)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("plan", [(0, 0, 0), (2, 2, 2), (5, 0, 1), (8, 8, 8), (100, 100, 100)])
def test_shapes_follow_from_a_fixed_plan(kind: str, plan: Plan) -> None:
    ahead.check_plan(kind, plan)
