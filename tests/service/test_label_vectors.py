"""What is remembered of labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.service.zero_shot import LabelVectors


def vectors(*texts: str) -> dict[str, np.ndarray]:
    return {text: np.full(2, len(text), np.float32) for text in texts}


def test_by_model_and_text() -> None:
    labels = LabelVectors()
    labels.keep("a", vectors("red", "blue"))
    assert set(labels.get("a", ["red", "green"])) == {"red"}
    assert labels.get("b", ["red"]) == {}
    assert labels.get("a", ["blue"])["blue"].tolist() == [4, 4]


def test_those_used_longest_ago_go() -> None:
    labels = LabelVectors(most=2)
    labels.keep("a", vectors("red", "blue"))
    labels.get("a", ["red"])
    labels.keep("a", vectors("green"))
    assert set(labels.get("a", ["red", "green", "blue"])) == {"red", "green"}


def test_a_row_does_not_keep_its_batch() -> None:
    labels = LabelVectors()
    batch = np.ones((100, 2), np.float32)
    labels.keep("a", {"red": batch[0]})
    batch[0] = 2
    found = labels.get("a", ["red"])["red"]
    assert found.base is None
    assert found.tolist() == [1, 1]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=9)), st.integers(1, 5))
def test_never_more_than_there_may_be(asked: list[list[str]], most: int) -> None:
    labels = LabelVectors(most)
    for texts in asked:
        labels.keep("m", vectors(*texts))
        assert len(labels) <= most
        # The last ones at least, as far as there is room.
        recent = list(dict.fromkeys(texts))[-most:]
        assert set(labels.get("m", recent)) == set(recent)
