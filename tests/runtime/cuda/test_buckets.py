"""Tests of batch buckets: every batch size has one, and padding is limited."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.runtime.cuda.buckets import (
    BUCKETS,
    MAX_BATCH,
    bucket,
    buckets_up_to,
    largest_bucket,
    next_run_size,
)


def test_each_bucket_is_at_most_half_again_as_large_as_the_one_before() -> None:
    assert BUCKETS[0] == 1
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert all(2 * high <= 3 * low for low, high in pairwise(BUCKETS[1:]))


@given(st.integers(1, MAX_BATCH))
def test_bucket_is_the_smallest_that_fits(items: int) -> None:
    size = bucket(items)
    assert size in BUCKETS
    assert size >= items
    assert all(other < items for other in BUCKETS if other < size)


@pytest.mark.parametrize("items", [-1, 0, MAX_BATCH + 1])
def test_bucket_rejects_item_counts_out_of_range(items: int) -> None:
    with pytest.raises(ValueError, match="a run takes 1 to 128 items"):
        bucket(items)


@pytest.mark.parametrize("max_items", [0, -3])
def test_largest_bucket_rejects_limits_below_one(max_items: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        largest_bucket(max_items)


@given(st.integers(1, 10 * MAX_BATCH), st.integers(1, 2 * MAX_BATCH))
def test_at_most_a_quarter_of_a_run_is_padding(waiting: int, max_items: int) -> None:
    items = next_run_size(waiting, max_items)
    assert 1 <= items <= min(waiting, max_items)
    assert bucket(items) <= max_items
    assert bucket(items) - items <= bucket(items) / 4
    # The run takes all waiting items, or fills a bucket.
    assert items == waiting or items in BUCKETS


@given(st.integers(1, MAX_BATCH))
def test_largest_bucket_is_the_last_of_buckets_up_to(max_items: int) -> None:
    assert buckets_up_to(max_items)[-1] == largest_bucket(max_items) <= max_items


def test_next_run_size_examples() -> None:
    assert [
        next_run_size(waiting, 128) for waiting in (1, 5, 7, 9, 17, 35, 36, 65, 72, 97, 500)
    ] == [*(1, 5, 7, 9, 16, 32, 36, 64, 72, 97, 128)]
    assert next_run_size(40, 20) == 16
    assert next_run_size(40, 1) == 1
