"""Graphs of image-text networks: any text, grid and plan, on portable and native ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION, Level, Manifest, TextSpec
from tokenfold.bundle.pair_workload import PairMethod, PairWorkload
from tokenfold.bundle.text import random_texts
from tokenfold.bundle.workload import Plan
from tokenfold.bundle.writing import stored_files, write_manifest, writing
from tokenfold.export.graphs.pair import JointGraph, VisionGraph
from tokenfold.export.reference import PairReference
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.networks.pair import images as images_of
from tokenfold.runtime import libraries
from tokenfold.runtime.libraries import DOMAIN
from tokenfold.runtime.pair import PairSession, ask

PLANS: dict[PairMethod, list[Plan]] = {
    "none": [(0, 0, 0, 0)],
    "tome": [(0, 0, 0, 0), (2, 3, 0, 1), (99, 99, 99, 99)],
    "pumer": [
        (0,) * 12,
        (0, 0, 0, 2, 5, 2, 1, 3, 1, 0, 0, 0),
        (0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0, 0),
        (0, 0, 0, 99, 99, 99, 99, 99, 99, 0, 0, 0),
    ],
}
# Sizes of images, and lengths of the texts in a batch.
BATCHES = [((32, 32), (12, 5, 7)), ((32, 32), (6,)), ((40, 24), (3, 9)), ((8, 64), (4,))]


def write(
    out: Path,
    checkpoint: PairCheckpoint,
    workload: PairWorkload,
    *,
    weighted: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Write a bundle without verifying it."""
    full = workload.widths(workload.unreduced)[-1]
    with writing(out) as folder:
        VisionGraph(checkpoint.model, checkpoint.preprocess, dtype).write(folder / VISION)
        JointGraph(checkpoint.model, workload, weighted=weighted, dtype=dtype).write(folder / JOINT)
        checkpoint.text.save(folder / TOKENIZER)
        manifest = Manifest(
            name="tiny",
            tasks=dict(checkpoint.labels),
            source="a test",
            precision="fp32",
            workload=workload,
            weighted=weighted,
            text=TextSpec(most_tokens=checkpoint.text.most_tokens),
            preprocess=checkpoint.preprocess,
            levels={
                "exact": Level(reduction=0, plan=workload.unreduced, flops_ratio=1, tokens_out=full)
            },
            default_level="exact",
            versions={},
            files=stored_files(folder),
        )
        write_manifest(folder, manifest)
    return Bundle.open(out)


BundleMaker = Callable[..., Bundle]


@pytest.fixture(scope="module")
def bundle_for(tmp_path_factory: pytest.TempPathFactory) -> BundleMaker:
    """Return a function that writes a bundle of the tiny network for a method, once per method."""
    folder = tmp_path_factory.mktemp("bundles")

    @cache
    def make(method: PairMethod, weighted: bool = True) -> Bundle:
        checkpoint = tiny.pair_checkpoint()
        workload = checkpoint.model.config.workload(method)
        return write(folder / f"{method}-{weighted}", checkpoint, workload, weighted=weighted)

    return make


def sessions(bundle: Bundle) -> list[PairSession]:
    portable = PairSession(bundle, native=False)
    return [PairSession(bundle), portable] if libraries.find() else [portable]


@pytest.mark.parametrize(
    ("method", "weighted"), [("none", True), ("tome", True), ("pumer", True), ("pumer", False)]
)
def test_any_text_grid_and_plan_equal_pytorch(
    method: PairMethod, weighted: bool, bundle_for: BundleMaker
) -> None:
    checkpoint = tiny.pair_checkpoint()
    workload = checkpoint.model.config.workload(method)
    bundle = bundle_for(method, weighted)
    reference = PairReference(checkpoint, workload, weighted=weighted)
    for session in sessions(bundle):
        for seed, (size, lengths) in enumerate(BATCHES):
            ids, sizes = random_texts(checkpoint.text, lengths, seed)
            sides = np.split(random_images(size, 2 * len(lengths), seed), 2)
            session_tokens, reference_tokens = (
                [network.embed(side) for side in sides] for network in (session, reference)
            )
            np.testing.assert_allclose(session_tokens, reference_tokens, atol=1e-5)
            for plan in PLANS[method]:
                for task in checkpoint.labels:
                    count = images_of(task)
                    outputs, expected_outputs = (
                        ask(
                            network,
                            images[:count],
                            ids,
                            sizes,
                            [plan] * count,
                            task=task,
                            slots=True,
                        )
                        for network, images in (
                            (session, session_tokens),
                            (reference, reference_tokens),
                        )
                    )
                    for output, expected in zip(outputs, expected_outputs, strict=True):
                        np.testing.assert_allclose(output.pooled, expected.pooled, atol=1e-4)
                        np.testing.assert_array_equal(output.image_slots, expected.image_slots)
                        present = sizes > 0
                        assert output.text_slots is not None
                        assert expected.text_slots is not None
                        np.testing.assert_array_equal(
                            output.text_slots[present], expected.text_slots[present]
                        )
                    assert outputs[-1].logits is not None
                    assert expected_outputs[-1].logits is not None
                    np.testing.assert_allclose(
                        outputs[-1].logits, expected_outputs[-1].logits, atol=1e-4
                    )


def test_padding_changes_no_answer(bundle_for: BundleMaker) -> None:
    checkpoint, bundle = tiny.pair_checkpoint(), bundle_for("pumer", True)
    ids, size = random_texts(checkpoint.text, (5, 11), 0)
    # The counts are small enough for the short text, because clamping depends on the length.
    for session in sessions(bundle):
        image = session.embed(random_images(tiny.SIZE, 2))
        for plan in PLANS["pumer"][:3]:
            alone = session.fuse(image[:1], ids[:1, :5], size[:1, :5], plan, task="vqa")
            beside = session.fuse(image, ids, size, plan, task="vqa")
            assert alone.logits is not None
            assert beside.logits is not None
            np.testing.assert_allclose(alone.logits, beside.logits[:1], atol=1e-5)


def test_graphs_hold_the_expected_ops_and_names(bundle_for: BundleMaker) -> None:
    checkpoint, bundle = tiny.pair_checkpoint(), bundle_for("pumer", True)
    vision, joint = onnx.load(bundle.vision), onnx.load(bundle.joint)
    for model in (vision, joint):
        onnx.checker.check_model(model)
    kinds = [node.op_type for node in joint.graph.node if node.domain == DOMAIN]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Attend": 4,
        # Layers that never reduce have none of these.
        "Importance": 2,
        "MatchPuMer": 2,
        "Reduce": 2,
    }
    assert {body.name for body in joint.functions} == set(kinds)
    assert not [node for node in vision.graph.node if node.domain == DOMAIN]
    inputs = {value.name for value in joint.graph.input}
    assert inputs == {"image_tokens", "input_ids", "text_size", "plan", "second", "other"}
    outputs = [value.name for value in joint.graph.output]
    assert outputs == [*checkpoint.labels, "pooled", "text_slots", "image_slots"]
    # No weight is in both graphs: the joint graph has no weights that embed images.
    shared = {weight.name for weight in vision.graph.initializer if len(weight.raw_data) > 1000}
    assert not shared & {weight.name for weight in joint.graph.initializer}


def test_without_a_head_to_reason_there_is_one_pass(tmp_path: Path) -> None:
    heads = {"match": {"classes": 2}}
    model = tiny.vilt(heads=heads, modalities=2)
    text = tiny.pair_checkpoint().text
    checkpoint = PairCheckpoint(model, tiny.PREPROCESS, {"match": ("no", "yes")}, text, True)
    bundle = write(tmp_path / "b", checkpoint, model.config.workload("none"))
    inputs = {value.name for value in onnx.load(bundle.joint).graph.input}
    assert inputs == {"image_tokens", "input_ids", "text_size", "plan"}
    session = PairSession(bundle)
    ids, size = random_texts(text, (4,), 0)
    image = session.embed(random_images(tiny.SIZE, 1))
    output = session.fuse(image, ids, size, (0, 0, 0, 0), task="match")
    assert output.logits is not None
    assert output.logits.shape == (1, 2)
    assert output.text_slots is None


def test_the_two_passes_differ(bundle_for: BundleMaker) -> None:
    checkpoint, bundle = tiny.pair_checkpoint(), bundle_for("none", True)
    session = PairSession(bundle)
    ids, size = random_texts(checkpoint.text, (4,), 0)
    image = session.embed(random_images(tiny.SIZE, 1))
    plan = (0, 0, 0, 0)
    first = session.fuse(image, ids, size, plan, task="reason")
    assert first.logits is None
    second = session.fuse(image, ids, size, plan, task="reason", second=True, other=first.pooled)
    assert second.logits is not None
    assert np.abs(second.pooled - first.pooled).max() > 1e-3
    with pytest.raises(ValueError, match="first one's"):
        session.fuse(image, ids, size, plan, task="reason", second=True)
    with pytest.raises(ValueError, match="first one's"):
        session.fuse(image, ids, size, plan, task="vqa", other=first.pooled)
