"""For which sizes engines are built: all that the service may ask for."""

from __future__ import annotations

import pytest

from tests.runtime.tensorrt.bundles import KINDS, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS, Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.runtime.cuda.buckets import BUCKETS, MOST
from tokenfold.runtime.tensorrt.profiles import BATCHES, Range, profiles, takes_plan
from tokenfold.service.settings import DEMO


def test_every_batch_is_in_one_profile() -> None:
    for batch in range(1, MOST + 1):
        assert sum(one.least <= batch <= one.most for one in BATCHES) == 1
    assert {one.usual for one in BATCHES} <= set(BUCKETS)


@pytest.mark.parametrize("kind", list(KINDS))
def test_ranges_hold_what_they_are_of(kind: str) -> None:
    manifest = bundle(kind, "fp16").manifest
    for graph in GRAPHS[manifest.kind]:
        for profile in profiles(manifest, graph):
            every = [profile.batch, *profile.plan]
            every += [one for sizes in profile.sizes.values() for one in sizes]
            assert all(0 <= one.least <= one.usual <= one.most for one in every)
            assert bool(profile.plan) == takes_plan(graph)
        assert not any(one.plan for one in profiles(manifest, graph, plan=False))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_level_is_within(kind: str) -> None:
    manifest = bundle(kind, "fp16").manifest
    graph = next(graph for graph in GRAPHS[manifest.kind] if takes_plan(graph))
    for profile in profiles(manifest, graph):
        for level in manifest.levels.values():
            assert len(level.plan) == len(profile.plan)
            assert all(
                one.least <= count <= one.most
                for one, count in zip(profile.plan, level.plan, strict=True)
            )


def test_shapes_are_filled_in_order() -> None:
    manifest = bundle("vilt", "fp16").manifest
    profile = profiles(manifest, "joint.onnx")[1]
    batch, most = profile.batch, manifest.workload
    assert isinstance(most, PairWorkload)
    texts = Range(least=1, usual=most.most_text, most=most.most_text)
    assert profile.shape("input_ids", (-1, -1)) == (batch, texts)
    assert profile.shape("image_tokens", (-1, -1, 48)) == (
        *(batch, Range.of(most.image)),
        Range.of(48),
    )
    assert profile.shape("other", (-1, 48)) == (batch, Range.of(48))
    assert profile.shape("second", (1,)) == (Range.of(1),)


def bounded() -> Manifest:
    """Of a network that takes images of many sizes, as published ViLTs do."""
    manifest = Bundle.open(DEMO / "scenes").manifest
    ready = manifest.preprocess.model_copy(
        update={"resize": "bounded", "shorter_side": 96, "longest": 160, "multiple": 8}
    )
    return manifest.model_copy(update={"preprocess": ready})


@pytest.mark.parametrize(
    "photo", [(96, 96), (100, 4000), (4000, 100), (1, 1), (333, 500), (160, 96), (50, 70)]
)
def test_images_of_many_sizes_are_within(photo: tuple[int, int]) -> None:
    manifest = bounded()
    sides = manifest.preprocess.size_of(*photo)
    ranges = profiles(manifest, "vision.onnx")[0].sizes["image"]
    assert all(one.least <= side <= one.most for one, side in zip(ranges, sides, strict=True))
    rows, columns = (side // 8 for side in sides)
    (tokens,) = profiles(manifest, "joint.onnx")[0].sizes["image_tokens"]
    assert tokens.least <= 1 + rows * columns <= tokens.most
