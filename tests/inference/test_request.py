"""Tests of requests and results as plain data, and of the pairing of images with texts."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.inference.errors import (
    EmptyText,
    InternalError,
    InvalidRequest,
    RequestError,
    TooSlowNow,
)
from tokenfold.inference.levels import Choice, Selector
from tokenfold.inference.request import Item, ItemResult, Request, Result, matrix, one_by_one
from tokenfold.inference.work import Work
from tokenfold.service import errors as service_errors

COUNTS = st.integers(1, 40)


@given(COUNTS, st.sampled_from([1, 2]))
def test_equal_counts_are_paired_in_order(count: int, per_item: int) -> None:
    items = one_by_one(count * per_item, count, name="question", per_item=per_item)
    assert [item.text for item in items] == list(range(count))
    assert [image for item in items for image in item.images] == list(range(count * per_item))


@given(COUNTS, st.sampled_from([1, 2]))
def test_a_single_image_or_text_is_reused_for_all(count: int, per_item: int) -> None:
    texts = one_by_one(per_item, count, name="question", per_item=per_item)
    assert texts == [Item(tuple(range(per_item)), text) for text in range(count)]
    images = one_by_one(count * per_item, 1, name="question", per_item=per_item)
    assert [item.text for item in images] == [0] * count
    assert [image for item in images for image in item.images] == list(range(count * per_item))


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 2]))
def test_other_counts_are_refused(images: int, texts: int, per_item: int) -> None:
    if images == texts * per_item or images == per_item:
        return
    with pytest.raises(InvalidRequest, match=f"{images} of image and {texts} of statement"):
        one_by_one(images, texts, name="statement", per_item=per_item)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_matrix_pairs_every_image_with_every_text(images: int, texts: int) -> None:
    if images * texts > 60:
        with pytest.raises(InvalidRequest, match=f"{images * texts} pairs"):
            matrix(images, texts, max_pairs=60)
        return
    items = matrix(images, texts, max_pairs=60)
    assert len(items) == images * texts
    for row in range(images):
        for column in range(texts):
            assert items[row * texts + column] == Item((row,), column)


def test_a_request_and_a_result_survive_pickling() -> None:
    request = Request(
        model="pairs",
        task="vqa",
        items=one_by_one(2, 1, name="question"),
        images=[b"first", "c2Vjb25k"],
        texts=["what"],
        selector=Selector(reduction=0.5),
        deadline=3.0,
        priority=1,
        caller="127.0.0.1",
    )
    assert pickle.loads(pickle.dumps(request)) == request
    work = Work(3, 4, 0.75, 5, 2)
    item = ItemResult(
        output={"logits": np.array([1.0, 2.0], np.float32)},
        works=(work,),
        shapes=((16, 16),),
        batch_size=2,
        decode_seconds=0.1,
        embed_seconds=0.2,
        run_seconds=0.3,
        ended=4.0,
    )
    choice = Choice("fast", (1, 0), 0.5, work)
    failure = TooSlowNow("The queue is long.", retry_after=2)
    copy = pickle.loads(pickle.dumps(Result(choice, [item, failure])))
    assert copy.choice == choice
    np.testing.assert_array_equal(copy.items[0].output["logits"], item.output["logits"])
    assert copy.items[0].works == (work,)
    assert type(copy.items[1]) is TooSlowNow
    assert (copy.items[1].detail, copy.items[1].retry_after) == (failure.detail, 2)


def test_requests_have_different_ids() -> None:
    ids = {Request(model="m", task="classify", items=[Item((0,))]).id for _ in range(3)}
    assert len(ids) == 3


def _kinds(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


@pytest.mark.parametrize("kind", [*_kinds(RequestError), service_errors.Expired])
def test_every_error_survives_pickling(kind: type[RequestError]) -> None:
    if kind is EmptyText:
        error: RequestError = EmptyText("labels", 3)
    elif kind is InternalError:
        error = InternalError("what happened")
    else:
        error = kind("what happened", retry_after=2)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
