"""Scores of images with one text, for re-ranking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import standin
from tests.service.standin import picture, until
from tests.service.standin_pairs import WORKLOAD, pair_bundle
from tokenfold.inference.errors import ImageFormat, InvalidRequest, TwoSelectors
from tokenfold.inference.levels import Selector
from tokenfold.service.core import Core
from tokenfold.service.galleries.inference import Matched, match_scores

RED, BLUE = picture("red"), picture("blue")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    root: Path = tmp_path_factory.mktemp("bundles")
    pair_bundle(root / "a")
    found = Core(standin.settings(root))
    found.start()
    until(lambda: found.started)
    yield found
    found.stop()


def match(core: Core, *pictures: bytes, text: str = "red", level: str = "exact") -> Matched:
    model = core.catalog.find(None, "match")
    return asyncio.run(match_scores(core, model, pictures, text, Selector(level=level)))


def test_scores_in_order(core: Core) -> None:
    found = match(core, BLUE, RED, BLUE, text="the blue one", level="fast")
    assert [isinstance(score, float) and score > 0.5 for score in found.scores] == [
        *(True, False, True)
    ]
    assert found.reduction["level"] == "fast"
    assert found.reduction["tokens_in"] == 3 * (WORKLOAD.image + 5)
    assert found.reduction["flops_ratio"] < 0.6
    assert set(found.timings_ms) == {"decode", "queue", "infer", "post"}


def test_one_that_fails_fails_alone(core: Core) -> None:
    found = match(core, RED, b"none", RED)
    assert isinstance(found.scores[1], ImageFormat)
    assert found.scores[0] == found.scores[2]
    # What was not run is not counted.
    assert found.reduction["tokens_in"] == 2 * (WORKLOAD.image + 3)


def test_nothing_to_answer(core: Core) -> None:
    with pytest.raises(ImageFormat):
        match(core, b"none", b"neither")
    with pytest.raises(InvalidRequest, match=r"text\.0: is empty"):
        match(core, RED, text="\u200b")
    model = core.catalog.find(None, "match")
    with pytest.raises(TwoSelectors):
        asyncio.run(match_scores(core, model, [RED], "red", Selector("exact", 0.5)))
