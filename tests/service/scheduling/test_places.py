"""Places: room, and how long the queue takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.inference.errors import TooSlowNow
from tokenfold.service.errors import QueueFull
from tokenfold.service.scheduling.queue import Places

FOREVER = float("inf")


def test_nobody_waits_for_an_idle_worker() -> None:
    places = Places(limit=10, workers=2)
    # Of 1 s and 3 s, by two workers.
    places.take([0.5, 1.5], longest=3.0, within=FOREVER)
    assert places.wait == 2.0  # one after the other
    places.begin(0.5)
    assert places.wait == 1.75  # what runs is half done
    places.begin(1.5)
    assert places.wait == 1.0
    places.end(0.5)
    assert places.wait == 0.0


def test_there_is_room_for_all_or_none() -> None:
    places = Places(limit=3, workers=1)
    places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    places.check(1)
    with pytest.raises(QueueFull, match="2 items wait already, and at most 3 may") as refused:
        places.take([1.0, 1.0], longest=1.0, within=FOREVER)
    assert refused.value.retry_after == 2
    assert places.waiting == 2


def test_nobody_waits_in_vain() -> None:
    places = Places(limit=3, workers=1)
    places.take([2.0], longest=2.0, within=2.0)
    with pytest.raises(TooSlowNow, match=r"take about 2\.0 s, and requests may take 2\.5 s"):
        places.take([0.1, 1.0], longest=1.0, within=2.5)
    assert places.waiting == 1


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.booleans()), min_size=1))
def test_what_came_and_went_leaves_nothing(items: list[tuple[float, bool]]) -> None:
    places = Places(limit=len(items), workers=1)
    places.take([cost for cost, _ in items], longest=1.0, within=FOREVER)
    for cost, runs in items:
        if runs:
            places.begin(cost)
        else:
            places.leave(cost)
    for cost, runs in items:
        if runs:
            places.end(cost)
    assert (places.waiting, places.running, places.wait) == (0, 0, 0.0)
    places.take([1.0], longest=1.0, within=FOREVER)
    assert places.wait == 1.0
