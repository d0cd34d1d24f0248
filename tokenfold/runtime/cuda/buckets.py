"""Batch sizes that a GPU runs.

A recorded CUDA graph has one batch size, so other batches are padded up to the next bucket.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Batch sizes. From 2 on, each is at most 1.5 times the one before it."""

MAX_BATCH = BUCKETS[-1]


def bucket(items: int) -> int:
    """Return the smallest bucket that holds `items` items, 1 to `MAX_BATCH`.

    Raises:
        ValueError: `items` is out of range.
    """
    if not 1 <= items <= MAX_BATCH:
        raise ValueError(f"a run takes 1 to {MAX_BATCH} items, not {items}")
    return BUCKETS[bisect_left(BUCKETS, items)]


def largest_bucket(max_items: int) -> int:
    """Return the largest bucket of at most `max_items` items.

    Raises:
        ValueError: `max_items` is less than 1.
    """
    if max_items < 1:
        raise ValueError(f"a run takes at least one item, not {max_items}")
    return BUCKETS[bisect_right(BUCKETS, max_items) - 1]


def next_run_size(waiting: int, max_items: int) -> int:
    """Return the number of waiting items that make the next run.

    A run takes all waiting items, up to the largest bucket. If padding would fill more than a
    quarter of the bucket, the run takes only enough items to fill a smaller bucket, and the
    remaining items wait for the run after it.

    Args:
        waiting: number of waiting items, 1 or more.
        max_items: maximum number of items in one run, 1 or more.
    """
    items = min(waiting, largest_bucket(max_items))
    size = bucket(items)
    return items if 4 * (size - items) <= size else largest_bucket(items)


def buckets_up_to(max_items: int) -> tuple[int, ...]:
    """Return the buckets of at most `max_items` items."""
    return BUCKETS[: bisect_right(BUCKETS, max_items)]
