"""What is said of scenes by somebody who looks for one."""

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

Say = Callable[[scenes.Scene, np.random.Generator], str]


@pytest.mark.parametrize("say", [description, query])
def test_every_word_is_known_and_no_text_is_cut(say: Say) -> None:
    for seed in range(500):
        read = TEXT.encode(say(scenes.scene(seed), np.random.default_rng(seed)))
        assert "[UNK]" not in read.tokens
        assert not read.cut
        assert len(read.ids) < MAX_TEXT


def test_a_description_names_every_thing() -> None:
    for seed in range(200):
        scene = scenes.scene(seed)
        text = description(scene, np.random.default_rng(seed))
        for shape in scenes.SHAPES:
            wanted = sum(thing.shape == shape for thing in scene.things)
            assert len(re.findall(rf"\b{shape}\b", text)) == wanted
        assert not any(plural_of(shape) in text for shape in scenes.SHAPES)


def test_places_are_where_the_things_are() -> None:
    seen = 0
    for seed in range(300):
        (first, *others) = scenes.scene(seed).things
        if others[0].shape == first.shape:
            continue
        text = description(scenes.scene(seed), np.random.default_rng(seed))
        phrase = next((part for part in re.split(r",| and ", text) if first.shape in part), "")
        for row in filter(None, ROWS):
            if f" {row}" in phrase and sum(first.shape in part for part in text.split()) == 1:
                seen += 1
                assert (first.y < SIZE / 2) == (row == "top")
    assert seen > 10


def test_the_same_draw_says_the_same() -> None:
    scene = scenes.scene(7)
    assert query(scene, np.random.default_rng(1)) == query(scene, np.random.default_rng(1))
    assert {query(scene, np.random.default_rng(at)) for at in range(8)} != {
        query(scene, np.random.default_rng(1))
    }


def test_the_words_hold_those_of_the_other_texts() -> None:
    assert set(scenes.WORDS) < set(DESCRIPTION_WORDS)
