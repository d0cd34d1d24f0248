"""Which image goes with which text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.inference.errors import InvalidRequest
from tokenfold.inference.request import Item, matrix, one_by_one

COUNTS = st.integers(1, 40)


@given(COUNTS, st.sampled_from([1, 2]))
def test_each_with_its_own(count: int, of: int) -> None:
    found = one_by_one(count * of, count, name="question", per_item=of)
    assert [item.text for item in found] == list(range(count))
    assert [image for item in found for image in item.images] == list(range(count * of))


@given(COUNTS, st.sampled_from([1, 2]))
def test_one_for_all(count: int, of: int) -> None:
    texts = one_by_one(of, count, name="question", per_item=of)
    assert texts == [Item(tuple(range(of)), text) for text in range(count)]
    images = one_by_one(count * of, 1, name="question", per_item=of)
    assert [item.text for item in images] == [0] * count
    assert [image for item in images for image in item.images] == list(range(count * of))


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 2]))
def test_others_do_not_pair(images: int, texts: int, of: int) -> None:
    if images == texts * of or images == of:
        return
    with pytest.raises(InvalidRequest, match=f"{images} of image and {texts} of statement"):
        one_by_one(images, texts, name="statement", per_item=of)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_matrix(images: int, texts: int) -> None:
    if images * texts > 60:
        with pytest.raises(InvalidRequest, match=f"{images * texts} pairs"):
            matrix(images, texts, max_pairs=60)
        return
    found = matrix(images, texts, max_pairs=60)
    assert len(found) == images * texts
    for row in range(images):
        for column in range(texts):
            assert found[row * texts + column] == Item((row,), column)
