"""Graphs of dual encoders compute the vectors of the network in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests import tiny
from tokenfold.export.graphs.dual import ImageGraph, TextGraph
from tokenfold.export.matchers import matchers
from tokenfold.export.reference import normalised
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.networks.dual import DualEncoder
from tokenfold.runtime.graph import Feeds, Graph, open_graph
from tokenfold.runtime.libraries import DOMAIN

CHECKPOINTS = {"clip": tiny.dual_checkpoint(), "siglip": tiny.dual_checkpoint(siglip=True)}


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def checkpoint(request: pytest.FixtureRequest) -> DualCheckpoint:
    return CHECKPOINTS[request.param]


@pytest.fixture(scope="module")
def texts(checkpoint: DualCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("graphs") / "text.onnx"
    TextGraph(checkpoint.model).write(path)
    return open_graph(path, threads=1, native=True)


def drawn(model: DualEncoder, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(sum(lengths))
    ids = draw.integers(0, model.config.text.vocabulary, (len(lengths), max(lengths)))
    size = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return {"input_ids": ids, "text_size": size.astype(np.float32)}


@pytest.mark.parametrize("lengths", [(12,), (2,), (3, 12, 7), (5, 2), (4, 4)])
def test_texts_of_any_length(
    checkpoint: DualCheckpoint, texts: Graph, lengths: tuple[int, ...]
) -> None:
    feeds = drawn(checkpoint.model, lengths)
    vectors = texts.run(["vector"], feeds)[0]
    with torch.inference_mode():
        ids, size = (torch.from_numpy(feeds[name]) for name in ("input_ids", "text_size"))
        expected = checkpoint.model.embed_texts(ids, size).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_padding_changes_nothing(checkpoint: DualCheckpoint, texts: Graph) -> None:
    feeds = drawn(checkpoint.model, (3, 12, 7))
    batched = texts.run(["vector"], feeds)[0]
    for row, length in enumerate((3, 12, 7)):
        alone = {name: value[row : row + 1, :length] for name, value in feeds.items()}
        np.testing.assert_allclose(texts.run(["vector"], alone)[0][0], batched[row], atol=1e-6)


def test_images_at_several_plans(checkpoint: DualCheckpoint, tmp_path: Path) -> None:
    layers = matchers("tome", checkpoint.model.config.image)
    path = tmp_path / "image.onnx"
    ImageGraph(checkpoint.model, checkpoint.preprocess, layers, proportional=True).write(path)
    assert DOMAIN in {node.domain for node in onnx.load(path).graph.node}
    images = random_images(tiny.SIZE, 3)
    x = normalised(images, checkpoint.preprocess)
    for native in (True, False):
        session = open_graph(path, threads=1, native=native)
        for plan in ((0, 0, 0), (2, 2, 2), (4, 0, 1)):
            feeds = {"image": images, "plan": np.array(plan)}
            vector, slots = session.run(["vector", "slots"], feeds)
            with torch.inference_mode():
                expected = checkpoint.model.embed_images(x, plan, layers).numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)
            assert slots.max() + 1 == checkpoint.model.config.workload("tome").widths(plan)[-1]


@pytest.mark.parametrize("siglip", [False, True])
def test_edges_that_patches_do_not_tile_are_left_out(siglip: bool, tmp_path: Path) -> None:
    size = (30, 37)  # not multiples of the patch size 8, like SigLIP's 384 pixels in patches of 14
    changes = {"image_size": size, "cut_edges": True}
    model = tiny.dual(siglip=siglip, image=changes)
    preprocess = tiny.PREPROCESS.model_copy(update={"size": size})
    path = tmp_path / "image.onnx"
    ImageGraph(model, preprocess, None, proportional=True).write(path)
    images = random_images(size, 3)
    feeds: Feeds = {"image": images, "plan": np.zeros(3, np.int64)}
    (vector,) = open_graph(path, threads=1, native=True).run(["vector"], feeds)
    with torch.inference_mode():
        expected = model.embed_images(normalised(images, preprocess)).numpy()
    np.testing.assert_allclose(vector, expected, atol=1e-5)
