"""Inference for galleries: embeddings, levels and match scores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.service import standin
from tests.service.standin import picture, until
from tests.service.standin_dual import WIDTH, dual_bundle
from tests.service.standin_pairs import WORKLOAD, pair_bundle
from tokenfold.inference.errors import (
    ImageFormat,
    InvalidRequest,
    RequestError,
    TwoSelectors,
    UnknownLevel,
)
from tokenfold.inference.levels import Selector
from tokenfold.service.core import Core
from tokenfold.service.errors import Draining
from tokenfold.service.galleries.inference import (
    Embedded,
    GalleryInference,
    Matched,
)
from tokenfold.service.scheduling.catalog import ServedModel


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    root: Path = tmp_path_factory.mktemp("bundles")
    dual_bundle(root / "a")
    core = Core(standin.settings(root, queue_limit=64))
    core.start()
    until(lambda: core.started)
    yield core
    core.stop()


@pytest.fixture
def model(core: Core) -> ServedModel:
    return core.catalog.find(None, "embed")


def images(core: Core, model: ServedModel, *pictures: bytes) -> list[Embedded | RequestError]:
    selector = Selector(level="fast")
    choice = asyncio.run(
        GalleryInference(core.dispatcher).choose(model, selector, images=len(pictures))
    )
    return asyncio.run(GalleryInference(core.dispatcher).embed_images(model, pictures, choice))


def test_embeddings_are_in_the_order_of_the_images(core: Core, model: ServedModel) -> None:
    names = ["red", "blue", "lime"] * 10
    embeddings = images(core, model, *map(picture, names))
    assert len(embeddings) == len(names)
    for name, embedding in zip(names, embeddings, strict=True):
        assert isinstance(embedding, Embedded)
        assert embedding.vector.dtype == np.float32
        assert embedding.vector.shape == (WIDTH,)
        assert int(embedding.vector[:3].argmax()) == ["red", "lime", "blue"].index(name)
        assert embedding.reduction is not None
        assert embedding.reduction["level"] == "fast"
        assert set(embedding.timings_ms) == {"decode", "queue", "infer", "post"}


def test_a_bad_image_fails_alone(core: Core, model: ServedModel) -> None:
    red, bad, blue = images(core, model, picture("red"), b"none", picture("blue"))
    assert isinstance(red, Embedded)
    assert isinstance(bad, ImageFormat)
    assert isinstance(blue, Embedded)
    # Also if it is the only image.
    (bad,) = images(core, model, b"none")
    assert isinstance(bad, ImageFormat)


def test_a_text_is_embedded(core: Core, model: ServedModel) -> None:
    embedding = asyncio.run(GalleryInference(core.dispatcher).embed_text(model, "a blue circle"))
    assert embedding.reduction is None
    assert int(embedding.vector.argmax()) == 2
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        asyncio.run(GalleryInference(core.dispatcher).embed_text(model, "\u200b"))


def test_a_selector_chooses_the_level(core: Core, model: ServedModel) -> None:
    assert (
        asyncio.run(GalleryInference(core.dispatcher).choose(model, Selector(reduction=0.6))).level
        == "fast"
    )
    with pytest.raises(UnknownLevel):
        asyncio.run(GalleryInference(core.dispatcher).choose(model, Selector(level="turbo")))


def test_more_images_than_may_wait_are_refused(core: Core, model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="65 runs"):
        asyncio.run(GalleryInference(core.dispatcher).choose(model, Selector(), images=65))


def test_a_server_that_shuts_down_refuses_texts(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a")
    core = Core(standin.settings(tmp_path))
    core.start()
    until(lambda: core.started)
    model = core.catalog.find(None, "embed")
    core.stop()
    with pytest.raises(Draining):
        asyncio.run(GalleryInference(core.dispatcher).embed_text(model, "red"))


RED, BLUE = picture("red"), picture("blue")


@pytest.fixture(scope="module")
def matching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    root: Path = tmp_path_factory.mktemp("bundles")
    pair_bundle(root / "a")
    core = Core(standin.settings(root))
    core.start()
    until(lambda: core.started)
    yield core
    core.stop()


def match(matching: Core, *pictures: bytes, text: str = "red", level: str = "exact") -> Matched:
    model = matching.catalog.find(None, "match")
    return asyncio.run(
        GalleryInference(matching.dispatcher).match_scores(
            model, pictures, text, Selector(level=level)
        )
    )


def test_scores_are_in_the_order_of_the_images(matching: Core) -> None:
    matched = match(matching, BLUE, RED, BLUE, text="the blue one", level="fast")
    assert [isinstance(score, float) and score > 0.5 for score in matched.scores] == [
        *(True, False, True)
    ]
    assert matched.reduction["level"] == "fast"
    assert matched.reduction["tokens_in"] == 3 * (WORKLOAD.image + 5)
    assert matched.reduction["flops_ratio"] < 0.6
    assert set(matched.timings_ms) == {"decode", "queue", "infer", "post"}


def test_a_bad_image_fails_alone_in_matching(matching: Core) -> None:
    matched = match(matching, RED, b"none", RED)
    assert isinstance(matched.scores[1], ImageFormat)
    assert matched.scores[0] == matched.scores[2]
    # Only images that ran are counted.
    assert matched.reduction["tokens_in"] == 2 * (WORKLOAD.image + 3)


def test_a_request_without_any_result_fails(matching: Core) -> None:
    with pytest.raises(ImageFormat):
        match(matching, b"none", b"neither")
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        match(matching, RED, text="\u200b")
    model = matching.catalog.find(None, "match")
    with pytest.raises(TwoSelectors):
        asyncio.run(
            GalleryInference(matching.dispatcher).match_scores(
                model, [RED], "red", Selector("exact", 0.5)
            )
        )
