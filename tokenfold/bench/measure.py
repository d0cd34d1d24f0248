"""Measure subjects side by side: short slices in rounds, so that noise affects all alike.

Each round gives every subject one slice of time, in a new random order. Ratios compare slices of
the same round, and reports show medians over the rounds. Therefore a neighbour that is busy for a
few seconds spoils a few rounds, not the result.
"""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

K = TypeVar("K")
SEED = 0
PROBE_RUNS = 2
"""Runs that estimate the duration of one run in a launch queue."""


class Subject(NamedTuple):
    """Something that processes images.

    Attributes:
        run: processes one batch, given the running number of the run; called from `callers`
            threads concurrently.
        callers: number of threads; each starts its next run when its last one has ended.
        batch: images per run.
    """

    run: Callable[[int], object]
    callers: int
    batch: int = 1


class LaunchQueue(NamedTuple):
    """Asynchronous work, such as a GPU's: many runs are launched, then awaited together.

    Attributes:
        launch: starts the next run and returns before it has ended.
        wait: blocks until all launched runs have ended.
    """

    launch: Callable[[], object]
    wait: Callable[[], object]

    def seconds(self, budget: float) -> float:
        """Return the average duration of a run, over as many as take about `budget` seconds."""
        # The first run fills caches and raises clock rates; the next ones give the number to run.
        self._timed(1)
        runs = self._timed(PROBE_RUNS)
        return self._timed(max(PROBE_RUNS, round(budget / runs)))

    def _timed(self, runs: int) -> float:
        begin = time.perf_counter()
        for _ in range(runs):
            self.launch()
        self.wait()
        return (time.perf_counter() - begin) / runs


class TimedSubject(NamedTuple):
    """Something that times its own slices, such as a launch queue or another process.

    Attributes:
        seconds: runs for about the given number of seconds, and returns the mean duration of a run.
        batch: images per run.
    """

    seconds: Callable[[float], float]
    batch: int = 1


@dataclass(frozen=True)
class Measurement:
    """Measurements of one subject.

    Attributes:
        rates: images per second, by round.
        seconds: duration of every run in every round, while the other callers ran too.
    """

    rates: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)

    def percentile_ms(self, percent: float) -> float:
        """Return the nearest-rank percentile of the duration of a run, in milliseconds."""
        return float(np.percentile(self.seconds, percent, method="inverted_cdf")) * 1e3

    def ratio_to(self, other: Measurement) -> Ratio:
        """Return the speed relative to another subject measured in the same rounds."""
        ratios = [
            rate / other_rate for rate, other_rate in zip(self.rates, other.rates, strict=True)
        ]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return Ratio(float(middle), float(low), float(high))


class Ratio(NamedTuple):
    """Median of the rounds' ratios, with the quartiles."""

    median: float
    low: float
    high: float


def measure_rounds(
    subjects: Mapping[K, Subject | TimedSubject],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[], None] = lambda: None,
) -> dict[K, Measurement]:
    """Measure subjects side by side.

    An additional first round warms up and is not counted.

    Args:
        rounds: slices per subject.
        seconds: duration of a slice. A started run is finished, and each caller makes at least
            one run.
        progress: called after every slice, `slice_count(len(subjects), rounds)` times.
    """
    order = list(subjects)
    # Seeded, so that a measurement can be repeated with the same order.
    draw = random.Random(SEED)
    rates: dict[K, list[float]] = {key: [] for key in order}
    run_seconds: dict[K, list[float]] = {key: [] for key in order}
    callers = [subject.callers for subject in subjects.values() if isinstance(subject, Subject)]
    with ThreadPoolExecutor(max(callers, default=1)) as pool:
        for round_index in range(rounds + 1):
            draw.shuffle(order)
            for key in order:
                by_caller = _slice(pool, subjects[key], seconds)
                if round_index > 0:
                    # Callers end at different moments, so each has its own rate.
                    runs = sum(len(durations) / sum(durations) for durations in by_caller)
                    rates[key].append(runs * subjects[key].batch)
                    run_seconds[key].extend(itertools.chain.from_iterable(by_caller))
                progress()
    return {key: Measurement(tuple(rates[key]), tuple(run_seconds[key])) for key in subjects}


def slice_count(subjects: int, rounds: int) -> int:
    """Return the number of slices that `measure_rounds` takes."""
    return subjects * (rounds + 1)


def _slice(
    pool: ThreadPoolExecutor, subject: Subject | TimedSubject, seconds: float
) -> list[list[float]]:
    """Return the durations of each caller's runs, in seconds.

    A subject that times itself returns only its mean.
    """
    if isinstance(subject, TimedSubject):
        return [[subject.seconds(seconds)]]
    run_numbers = itertools.count()
    # The previous subject has left the caches cold.
    list(pool.map(subject.run, [next(run_numbers) for _ in range(subject.callers)]))
    barrier = threading.Barrier(subject.callers)

    def call() -> list[float]:
        durations: list[float] = []
        barrier.wait()
        begin = time.perf_counter()
        stop = begin + seconds
        while not durations or begin < stop:
            subject.run(next(run_numbers))
            end = time.perf_counter()
            durations.append(end - begin)
            begin = end
        return durations

    futures = [pool.submit(call) for _ in range(subject.callers)]
    return [future.result() for future in futures]
