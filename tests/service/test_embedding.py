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
from tokenfold.inference.errors import ImageFormat, InvalidRequest, RequestError, UnknownLevel
from tokenfold.inference.levels import Selector
from tokenfold.service.core import Core
from tokenfold.service.errors import Draining
from tokenfold.service.galleries.inference import Embedded, choose, embed_images, embed_text
from tokenfold.service.scheduling.catalog import Model


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
def model(core: Core) -> Model:
    return core.catalog.find(None, "embed")


def images(core: Core, model: Model, *pictures: bytes) -> list[Embedded | RequestError]:
    choice = choose(core, model, Selector(level="fast"), images=len(pictures))
    return asyncio.run(embed_images(core, model, pictures, choice))


def test_images_in_order(core: Core, model: Model) -> None:
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


def test_one_that_fails_fails_alone(core: Core, model: Model) -> None:
    red, bad, blue = images(core, model, picture("red"), b"none", picture("blue"))
    assert isinstance(red, Embedded)
    assert isinstance(bad, ImageFormat)
    assert isinstance(blue, Embedded)
    # And when it is the only one, too.
    (bad,) = images(core, model, b"none")
    assert isinstance(bad, ImageFormat)


def test_a_text(core: Core, model: Model) -> None:
    found = asyncio.run(embed_text(core, model, "a blue circle"))
    assert found.reduction is None
    assert int(found.vector.argmax()) == 2
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        asyncio.run(embed_text(core, model, "\u200b"))


def test_levels(core: Core, model: Model) -> None:
    assert choose(core, model, Selector(reduction=0.6)).level == "fast"
    with pytest.raises(UnknownLevel):
        choose(core, model, Selector(level="turbo"))


def test_more_than_may_wait(core: Core, model: Model) -> None:
    with pytest.raises(InvalidRequest, match="65 runs"):
        choose(core, model, Selector(), images=65)


def test_a_server_that_shuts_down(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a")
    core = Core(standin.settings(tmp_path))
    core.start()
    until(lambda: core.started)
    model = core.catalog.find(None, "embed")
    core.stop()
    with pytest.raises(Draining):
        asyncio.run(embed_text(core, model, "red"))
