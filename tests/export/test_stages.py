"""Threads that work through a stage."""

from __future__ import annotations

from tokenfold.export.stages import Workers


def test_results_are_in_the_order_of_the_items() -> None:
    steps: list[None] = []
    workers = Workers(3, lambda: steps.append(None))
    assert workers.map(lambda item: item * item, range(20)) == [item * item for item in range(20)]
    assert len(steps) == 20
    assert Workers().map(str, [1, 2]) == ["1", "2"]
