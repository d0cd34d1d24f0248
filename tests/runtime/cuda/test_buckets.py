"""Buckets: every number of items has one, and little of a run is padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.runtime.cuda.buckets import BUCKETS, MOST, bucket, fill, largest, up_to


def test_buckets_grow_by_at_most_a_half() -> None:
    assert BUCKETS[0] == 1
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert all(2 * high <= 3 * low for low, high in pairwise(BUCKETS[1:]))


@given(st.integers(1, MOST))
def test_the_bucket_is_the_smallest_that_holds_them(items: int) -> None:
    size = bucket(items)
    assert size in BUCKETS
    assert size >= items
    assert all(other < items for other in BUCKETS if other < size)


@pytest.mark.parametrize("items", [-1, 0, MOST + 1])
def test_no_bucket_holds_these(items: int) -> None:
    with pytest.raises(ValueError, match="a run takes 1 to 128 items"):
        bucket(items)


@pytest.mark.parametrize("most", [0, -3])
def test_a_run_of_nothing(most: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        largest(most)


@given(st.integers(1, 10 * MOST), st.integers(1, 2 * MOST))
def test_a_run_is_filled_with_little_padding(waiting: int, most: int) -> None:
    items = fill(waiting, most)
    assert 1 <= items <= min(waiting, most)
    assert bucket(items) <= most
    assert bucket(items) - items <= bucket(items) / 4
    # No smaller than it needs to be: a full bucket, or everything there is.
    assert items == waiting or items in BUCKETS


@given(st.integers(1, MOST))
def test_the_largest_bucket_is_the_last_of_those(most: int) -> None:
    assert up_to(most)[-1] == largest(most) <= most


def test_by_example() -> None:
    assert [fill(waiting, 128) for waiting in (1, 5, 7, 9, 17, 35, 36, 65, 72, 97, 500)] == [
        *(1, 5, 7, 9, 16, 32, 36, 64, 72, 97, 128)
    ]
    assert fill(40, 20) == 16
    assert fill(40, 1) == 1
