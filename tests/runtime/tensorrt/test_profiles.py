"""Tests of optimization profiles: they include every size that the service may use."""

from __future__ import annotations

import pytest

from tests.runtime.tensorrt.bundles import KINDS, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS, Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.runtime.cuda.buckets import BUCKETS, MAX_BATCH
from tokenfold.runtime.tensorrt.profiles import (
    BATCH_RANGES,
    SizeRange,
    optimization_profiles,
    takes_plan,
)
from tokenfold.service.settings import DEMO


def test_every_batch_size_is_in_exactly_one_profile() -> None:
    for batch in range(1, MAX_BATCH + 1):
        assert sum(allowed.min <= batch <= allowed.max for allowed in BATCH_RANGES) == 1
    assert {allowed.opt for allowed in BATCH_RANGES} <= set(BUCKETS)


@pytest.mark.parametrize("kind", list(KINDS))
def test_ranges_are_ordered(kind: str) -> None:
    manifest = bundle(kind, "fp16").manifest
    for graph in GRAPHS[manifest.kind]:
        for profile in optimization_profiles(manifest, graph):
            ranges = [profile.batch, *profile.plan]
            ranges += [allowed for sizes in profile.sizes.values() for allowed in sizes]
            assert all(0 <= allowed.min <= allowed.opt <= allowed.max for allowed in ranges)
            assert bool(profile.plan) == takes_plan(graph)
        assert not any(
            profile.plan for profile in optimization_profiles(manifest, graph, plan=False)
        )


@pytest.mark.parametrize("kind", list(KINDS))
def test_plans_of_all_levels_are_in_range(kind: str) -> None:
    manifest = bundle(kind, "fp16").manifest
    graph = next(graph for graph in GRAPHS[manifest.kind] if takes_plan(graph))
    for profile in optimization_profiles(manifest, graph):
        for level in manifest.levels.values():
            assert len(level.plan) == len(profile.plan)
            assert all(
                allowed.min <= count <= allowed.max
                for allowed, count in zip(profile.plan, level.plan, strict=True)
            )


def test_dynamic_sizes_are_filled_in_order() -> None:
    manifest = bundle("vilt", "fp16").manifest
    profile = optimization_profiles(manifest, "joint.onnx")[1]
    batch, workload = profile.batch, manifest.workload
    assert isinstance(workload, PairWorkload)
    texts = SizeRange(min=1, opt=workload.most_text, max=workload.most_text)
    assert profile.shape("input_ids", (-1, -1)) == (batch, texts)
    assert profile.shape("image_tokens", (-1, -1, 48)) == (
        *(batch, SizeRange.fixed(workload.image)),
        SizeRange.fixed(48),
    )
    assert profile.shape("other", (-1, 48)) == (batch, SizeRange.fixed(48))
    assert profile.shape("second", (1,)) == (SizeRange.fixed(1),)


def bounded_manifest() -> Manifest:
    """Return the manifest of a network that takes images of many sizes, like published ViLTs."""
    manifest = Bundle.open(DEMO / "scenes").manifest
    preprocess = manifest.preprocess.model_copy(
        update={"resize": "bounded", "shorter_side": 96, "longest": 160, "multiple": 8}
    )
    return manifest.model_copy(update={"preprocess": preprocess})


@pytest.mark.parametrize(
    "photo", [(96, 96), (100, 4000), (4000, 100), (1, 1), (333, 500), (160, 96), (50, 70)]
)
def test_image_sizes_are_in_range(photo: tuple[int, int]) -> None:
    manifest = bounded_manifest()
    sides = manifest.preprocess.size_of(*photo)
    ranges = optimization_profiles(manifest, "vision.onnx")[0].sizes["image"]
    assert all(
        allowed.min <= side <= allowed.max for allowed, side in zip(ranges, sides, strict=True)
    )
    rows, columns = (side // 8 for side in sides)
    (tokens,) = optimization_profiles(manifest, "joint.onnx")[0].sizes["image_tokens"]
    assert tokens.min <= 1 + rows * columns <= tokens.max
