"""Vectors for galleries: in order, each by itself, and with places in the queue."""

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
    Matched,
    choose,
    embed_images,
    embed_text,
    match_scores,
)
from tokenfold.service.scheduling.catalog import ServedModel


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    root: Path = tmp_path_factory.mktemp("bundles")
    dual_bundle(root / "a")
    found = Core(standin.settings(root, queue_limit=64))
    found.start()
    until(lambda: found.started)
    yield found
    found.stop()


@pytest.fixture
def model(core: Core) -> ServedModel:
    return core.catalog.find(None, "embed")


def images(core: Core, model: ServedModel, *pictures: bytes) -> list[Embedded | RequestError]:
    selector = Selector(level="fast")
    choice = asyncio.run(choose(core.dispatcher, model, selector, images=len(pictures)))
    return asyncio.run(embed_images(core.dispatcher, model, pictures, choice))


def test_images_in_order(core: Core, model: ServedModel) -> None:
    names = ["red", "blue", "lime"] * 10
    found = images(core, model, *map(picture, names))
    assert len(found) == len(names)
    for name, one in zip(names, found, strict=True):
        assert isinstance(one, Embedded)
        assert one.vector.dtype == np.float32
        assert one.vector.shape == (WIDTH,)
        assert int(one.vector[:3].argmax()) == ["red", "lime", "blue"].index(name)
        assert one.reduction is not None
        assert one.reduction["level"] == "fast"
        assert set(one.timings_ms) == {"decode", "queue", "infer", "post"}


def test_one_that_fails_fails_alone(core: Core, model: ServedModel) -> None:
    red, bad, blue = images(core, model, picture("red"), b"none", picture("blue"))
    assert isinstance(red, Embedded)
    assert isinstance(bad, ImageFormat)
    assert isinstance(blue, Embedded)
    # And when it is the only one, too.
    (bad,) = images(core, model, b"none")
    assert isinstance(bad, ImageFormat)


def test_a_text(core: Core, model: ServedModel) -> None:
    found = asyncio.run(embed_text(core.dispatcher, model, "a blue circle"))
    assert found.reduction is None
    assert int(found.vector.argmax()) == 2
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        asyncio.run(embed_text(core.dispatcher, model, "\u200b"))


def test_levels(core: Core, model: ServedModel) -> None:
    assert asyncio.run(choose(core.dispatcher, model, Selector(reduction=0.6))).level == "fast"
    with pytest.raises(UnknownLevel):
        asyncio.run(choose(core.dispatcher, model, Selector(level="turbo")))


def test_more_than_may_wait(core: Core, model: ServedModel) -> None:
    with pytest.raises(InvalidRequest, match="65 runs"):
        asyncio.run(choose(core.dispatcher, model, Selector(), images=65))


def test_a_server_that_shuts_down(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a")
    core = Core(standin.settings(tmp_path))
    core.start()
    until(lambda: core.started)
    model = core.catalog.find(None, "embed")
    core.stop()
    with pytest.raises(Draining):
        asyncio.run(embed_text(core.dispatcher, model, "red"))


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
        match_scores(matching.dispatcher, model, pictures, text, Selector(level=level))
    )


def test_scores_in_order(matching: Core) -> None:
    found = match(matching, BLUE, RED, BLUE, text="the blue one", level="fast")
    assert [isinstance(score, float) and score > 0.5 for score in found.scores] == [
        *(True, False, True)
    ]
    assert found.reduction["level"] == "fast"
    assert found.reduction["tokens_in"] == 3 * (WORKLOAD.image + 5)
    assert found.reduction["flops_ratio"] < 0.6
    assert set(found.timings_ms) == {"decode", "queue", "infer", "post"}


def test_an_image_that_fails_to_match_fails_alone(matching: Core) -> None:
    found = match(matching, RED, b"none", RED)
    assert isinstance(found.scores[1], ImageFormat)
    assert found.scores[0] == found.scores[2]
    # What was not run is not counted.
    assert found.reduction["tokens_in"] == 2 * (WORKLOAD.image + 3)


def test_nothing_to_answer(matching: Core) -> None:
    with pytest.raises(ImageFormat):
        match(matching, b"none", b"neither")
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        match(matching, RED, text="\u200b")
    model = matching.catalog.find(None, "match")
    with pytest.raises(TwoSelectors):
        asyncio.run(match_scores(matching.dispatcher, model, [RED], "red", Selector("exact", 0.5)))
