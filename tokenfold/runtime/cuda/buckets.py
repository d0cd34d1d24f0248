"""Batch sizes that a GPU runs: a captured graph is of one size, so others are padded up to it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Each at most half as large again as the one before it, from 2 on."""

MOST = BUCKETS[-1]


def bucket(items: int) -> int:
    """The batch that `items`, 1 to `MOST`, run in: the smallest bucket that holds them.

    Raises:
        ValueError: no bucket does.
    """
    if not 1 <= items <= MOST:
        raise ValueError(f"a run takes 1 to {MOST} items, not {items}")
    return BUCKETS[bisect_left(BUCKETS, items)]


def largest(most: int) -> int:
    """The largest bucket of at most `most` items, 1 or more.

    Raises:
        ValueError: `most` is less than 1.
    """
    if most < 1:
        raise ValueError(f"a run takes at least one item, not {most}")
    return BUCKETS[bisect_right(BUCKETS, most) - 1]


def fill(waiting: int, most: int) -> int:
    """How many of the waiting items make the next run, 1 or more.

    All of them up to the largest bucket; but where more than a quarter of their bucket would be
    padding, only as many as fill a smaller one, and the rest make the run after it.

    Args:
        waiting: items, 1 or more.
        most: items of one run at most, 1 or more.
    """
    items = min(waiting, largest(most))
    size = bucket(items)
    return items if 4 * (size - items) <= size else largest(items)


def up_to(most: int) -> tuple[int, ...]:
    """The buckets of at most `most` items."""
    return BUCKETS[: bisect_right(BUCKETS, most)]
