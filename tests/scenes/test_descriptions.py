"""Descriptions and queries that a scene is searched by."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tokenfold import scenes
from tokenfold.models.training.retrieval_data import MAX_TEXT, TEXT
from tokenfold.scenes.descriptions import DESCRIPTION_WORDS, ROWS, description, query
from tokenfold.scenes.phrases import plural_of
from tokenfold.scenes.world import SIZE

Describe = Callable[[scenes.Scene, np.random.Generator], str]


@pytest.mark.parametrize("describe", [description, query])
def test_every_word_is_known_and_no_text_is_truncated(describe: Describe) -> None:
    for seed in range(500):
        encoding = TEXT.encode(describe(scenes.scene(seed), np.random.default_rng(seed)))
        assert "[UNK]" not in encoding.tokens
        assert not encoding.cut
        assert len(encoding.ids) < MAX_TEXT


def test_a_description_names_every_thing() -> None:
    for seed in range(200):
        scene = scenes.scene(seed)
        text = description(scene, np.random.default_rng(seed))
        for shape in scenes.SHAPES:
            expected = sum(thing.shape == shape for thing in scene.things)
            assert len(re.findall(rf"\b{shape}\b", text)) == expected
        assert not any(plural_of(shape) in text for shape in scenes.SHAPES)


def test_places_are_true() -> None:
    checked = 0
    for seed in range(300):
        (first, *others) = scenes.scene(seed).things
        if others[0].shape == first.shape:
            continue
        text = description(scenes.scene(seed), np.random.default_rng(seed))
        phrase = next((part for part in re.split(r",| and ", text) if first.shape in part), "")
        for row in filter(None, ROWS):
            if f" {row}" in phrase and sum(first.shape in part for part in text.split()) == 1:
                checked += 1
                assert (first.y < SIZE / 2) == (row == "top")
    assert checked > 10


def test_queries_are_deterministic() -> None:
    scene = scenes.scene(7)
    assert query(scene, np.random.default_rng(1)) == query(scene, np.random.default_rng(1))
    assert {query(scene, np.random.default_rng(seed)) for seed in range(8)} != {
        query(scene, np.random.default_rng(1))
    }


def test_the_vocabulary_includes_that_of_the_other_texts() -> None:
    assert set(scenes.WORDS) < set(DESCRIPTION_WORDS)
