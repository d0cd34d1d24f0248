"""Rounds of slices: what runs, how often, and what is made of the times. No test looks at speed."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from tokenfold.bench.measure import Measurement, Subject, measure_rounds, slice_count


def test_every_subject_gets_a_slice_in_every_round() -> None:
    seen: list[str] = []
    steps: list[None] = []

    def subject(name: str) -> Subject:
        def run(_turn: int) -> None:
            if not seen or seen[-1] != name:
                seen.append(name)
            time.sleep(0.001)

        return Subject(run, callers=1)

    subjects = {name: subject(name) for name in ("a", "b", "c")}
    found = measure_rounds(subjects, rounds=4, seconds=0.002, progress=lambda: steps.append(None))
    assert list(found) == ["a", "b", "c"]
    assert {len(measured.rates) for measured in found.values()} == {4}
    assert len(steps) == slice_count(3, 4) == 15
    # Interleaved: in no stretch does one subject get all its slices.
    assert len(seen) >= 10


def test_callers_run_at_once_and_take_turns_with_the_inputs() -> None:
    together = threading.Barrier(3, timeout=20)
    turns: list[int] = []

    def run(turn: int) -> None:
        turns.append(turn)
        # Passed only when three callers are in here at the same time.
        together.wait()

    # So short that each caller makes one run: an uneven number would leave some at the barrier.
    measure_rounds({"x": Subject(run, callers=3)}, rounds=2, seconds=1e-9)
    # Three rounds with the one to warm up; in each, one run per caller before the clock starts.
    assert Counter(turns) == dict.fromkeys(range(6), 3)


def test_rates_count_images_not_runs() -> None:
    def run(_turn: int) -> None:
        time.sleep(0.002)

    found = measure_rounds({"x": Subject(run, callers=2, batch=5)}, rounds=3, seconds=0.01)["x"]
    # Whatever the machine does, two callers of one run each in 2 ms cannot do more.
    assert 0 < found.images_per_second <= 5 * 2 / 0.002
    assert min(found.seconds) >= 0.002
    assert len(found.seconds) >= 6


def test_a_run_that_fails_ends_the_measuring() -> None:
    def run(turn: int) -> None:
        if turn >= 2:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_rounds({"x": Subject(run, callers=2)}, rounds=1, seconds=0.01)


def test_figures() -> None:
    own = Measurement(rates=(10.0, 30.0, 20.0), seconds=(0.1, 0.2, 0.3, 0.4))
    other = Measurement(rates=(5.0, 10.0, 20.0), seconds=(0.1,))
    assert own.images_per_second == 20.0
    assert own.percentile_ms(50) == pytest.approx(200.0)
    assert own.percentile_ms(99) == pytest.approx(400.0)
    # Of the rounds' ratios 2, 3 and 1: not the ratio of the medians.
    assert own.ratio_to(other).median == 2.0
    assert own.ratio_to(other).low == 1.5
    assert own.ratio_to(other).high == 2.5
    assert own.ratio_to(own) == (1.0, 1.0, 1.0)
