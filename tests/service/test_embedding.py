"""Vectors for galleries: in order, each by itself, and with places in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.catalog import Model
from service.embedding import Embedded, choose, embed_images, embed_text
from service.engine import Engine
from service.errors import ApiError, Draining, ImageFormat, InvalidRequest, UnknownLevel
from service.levels import Selector
from tests.service import standin
from tests.service.standin import picture, until
from tests.service.standin_dual import WIDTH, dual_bundle


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    root: Path = tmp_path_factory.mktemp("bundles")
    dual_bundle(root / "a")
    found = Engine(standin.settings(root, queue_limit=64))
    found.start()
    until(lambda: found.started)
    yield found
    found.stop()


@pytest.fixture
def model(engine: Engine) -> Model:
    return engine.catalog.find(None, "embed")


def images(engine: Engine, model: Model, *pictures: bytes) -> list[Embedded | ApiError]:
    choice = choose(engine, model, Selector(level="fast"), images=len(pictures))
    return asyncio.run(embed_images(engine, model, pictures, choice))


def test_images_in_order(engine: Engine, model: Model) -> None:
    names = ["red", "blue", "lime"] * 10
    found = images(engine, model, *map(picture, names))
    assert len(found) == len(names)
    for name, one in zip(names, found, strict=True):
        assert isinstance(one, Embedded)
        assert one.vector.dtype == np.float32
        assert one.vector.shape == (WIDTH,)
        assert int(one.vector[:3].argmax()) == ["red", "lime", "blue"].index(name)
        assert one.reduction is not None
        assert one.reduction["level"] == "fast"
        assert set(one.timings_ms) == {"decode", "queue", "infer", "post"}


def test_one_that_fails_fails_alone(engine: Engine, model: Model) -> None:
    red, bad, blue = images(engine, model, picture("red"), b"none", picture("blue"))
    assert isinstance(red, Embedded)
    assert isinstance(bad, ImageFormat)
    assert isinstance(blue, Embedded)
    # And when it is the only one, too.
    (bad,) = images(engine, model, b"none")
    assert isinstance(bad, ImageFormat)


def test_a_text(engine: Engine, model: Model) -> None:
    found = asyncio.run(embed_text(engine, model, "a blue circle"))
    assert found.reduction is None
    assert int(found.vector.argmax()) == 2
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        asyncio.run(embed_text(engine, model, "\u200b"))


def test_levels(engine: Engine, model: Model) -> None:
    assert choose(engine, model, Selector(reduction=0.6)).level == "fast"
    with pytest.raises(UnknownLevel):
        choose(engine, model, Selector(level="turbo"))


def test_more_than_may_wait(engine: Engine, model: Model) -> None:
    with pytest.raises(InvalidRequest, match="65 runs"):
        choose(engine, model, Selector(), images=65)


def test_a_server_that_shuts_down(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a")
    engine = Engine(standin.settings(tmp_path))
    engine.start()
    until(lambda: engine.started)
    model = engine.catalog.find(None, "embed")
    engine.stop()
    with pytest.raises(Draining):
        asyncio.run(embed_text(engine, model, "red"))
