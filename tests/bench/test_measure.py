"""Measurement in rounds of slices: the runs, their number, and the statistics, but no speeds."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from tokenfold.bench.measure import Measurement, Subject, measure_rounds, slice_count


def test_every_subject_gets_a_slice_in_every_round() -> None:
    slice_order: list[str] = []
    steps: list[None] = []

    def subject(name: str) -> Subject:
        def run(_run_number: int) -> None:
            if not slice_order or slice_order[-1] != name:
                slice_order.append(name)
            time.sleep(0.001)

        return Subject(run, callers=1)

    subjects = {name: subject(name) for name in ("a", "b", "c")}
    measurements = measure_rounds(
        subjects, rounds=4, seconds=0.002, progress=lambda: steps.append(None)
    )
    assert list(measurements) == ["a", "b", "c"]
    assert {len(measured.rates) for measured in measurements.values()} == {4}
    assert len(steps) == slice_count(3, 4) == 15
    # Slices are interleaved: no subject gets all its slices in a row.
    assert len(slice_order) >= 10


def test_callers_run_concurrently_and_cycle_through_the_inputs() -> None:
    barrier = threading.Barrier(3, timeout=20)
    run_numbers: list[int] = []

    def run(run_number: int) -> None:
        run_numbers.append(run_number)
        # Only passed when three callers wait here at the same time.
        barrier.wait()

    # Slices are so short that each caller makes one run; unequal numbers would block the barrier.
    measure_rounds({"x": Subject(run, callers=3)}, rounds=2, seconds=1e-9)
    # Three rounds including the warm-up; in each, one run per caller before the clock starts.
    assert Counter(run_numbers) == dict.fromkeys(range(6), 3)


def test_rates_count_images_not_runs() -> None:
    def run(_run_number: int) -> None:
        time.sleep(0.002)

    measurements = measure_rounds({"x": Subject(run, callers=2, batch=5)}, rounds=3, seconds=0.01)[
        "x"
    ]
    # Two callers that take at least 2 ms per run cannot be faster on any machine.
    assert 0 < measurements.images_per_second <= 5 * 2 / 0.002
    assert min(measurements.seconds) >= 0.002
    assert len(measurements.seconds) >= 6


def test_a_failed_run_ends_the_measurement() -> None:
    def run(run_number: int) -> None:
        if run_number >= 2:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_rounds({"x": Subject(run, callers=2)}, rounds=1, seconds=0.01)


def test_statistics() -> None:
    measurement = Measurement(rates=(10.0, 30.0, 20.0), seconds=(0.1, 0.2, 0.3, 0.4))
    other = Measurement(rates=(5.0, 10.0, 20.0), seconds=(0.1,))
    assert measurement.images_per_second == 20.0
    assert measurement.percentile_ms(50) == pytest.approx(200.0)
    assert measurement.percentile_ms(99) == pytest.approx(400.0)
    # The median of the rounds' ratios 2, 3 and 1, not the ratio of the medians.
    assert measurement.ratio_to(other).median == 2.0
    assert measurement.ratio_to(other).low == 1.5
    assert measurement.ratio_to(other).high == 2.5
    assert measurement.ratio_to(measurement) == (1.0, 1.0, 1.0)
