"""Measuring side by side: short slices in rounds, so that a noisy machine disturbs all alike.

Each round gives every subject one slice of time, in an order drawn anew. What is compared are two
slices of one round, and what is reported are medians over the rounds: a neighbour that wakes up
for a few seconds costs a few rounds, not the result.
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
"""Runs of a queue from which its speed is guessed."""


class Subject(NamedTuple):
    """Something that processes images.

    Attributes:
        run: processes one batch, the n-th of all; called from `callers` threads at once.
        callers: threads that each start their next run when the last has ended.
        batch: images of one run.
    """

    run: Callable[[int], object]
    callers: int
    batch: int = 1


class LaunchQueue(NamedTuple):
    """Something that is only started, many times in a row, and waited for once: a GPU's work.

    Attributes:
        launch: starts the next run, and returns before it has ended.
        wait: until all that was started has ended.
    """

    launch: Callable[[], object]
    wait: Callable[[], object]

    def seconds(self, most: float) -> float:
        """The time of one run among others, of as many as take about `most` seconds."""
        # One to fill caches and raise clocks, some to see how many make a slice.
        self._timed(1)
        runs = self._timed(PROBE_RUNS)
        return self._timed(max(PROBE_RUNS, round(most / runs)))

    def _timed(self, runs: int) -> float:
        begin = time.perf_counter()
        for _ in range(runs):
            self.launch()
        self.wait()
        return (time.perf_counter() - begin) / runs


class TimedSubject(NamedTuple):
    """Something that times its own slices, such as a queue, or another process.

    Attributes:
        seconds: of one run, on average over a slice of about so many seconds.
        batch: images of one run.
    """

    seconds: Callable[[float], float]
    batch: int = 1


@dataclass(frozen=True)
class Measurement:
    """What was seen of a subject.

    Attributes:
        rates: images per second, round by round.
        seconds: of every run in every round, each beside those of the other callers.
    """

    rates: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """The median round's."""
        return statistics.median(self.rates)

    def percentile_ms(self, percent: float) -> float:
        """Nearest-rank percentile of the time of one run, milliseconds."""
        return float(np.percentile(self.seconds, percent, method="inverted_cdf")) * 1e3

    def ratio_to(self, other: Measurement) -> Ratio:
        """How many times faster than the other; both from the same rounds."""
        pairs = [own / theirs for own, theirs in zip(self.rates, other.rates, strict=True)]
        low, middle, high = np.percentile(pairs, [25, 50, 75])
        return Ratio(float(middle), float(low), float(high))


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and the quartiles around it."""

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

    One more round comes before the others, to warm up: it is not counted.

    Args:
        rounds: slices of each subject.
        seconds: of one slice. A run that has begun is finished, and each caller makes at least one.
        progress: called after every slice, `slice_count(len(subjects), rounds)` times.
    """
    order = list(subjects)
    # Seeded: a run of the bench can be repeated as it was.
    draw = random.Random(SEED)
    rates: dict[K, list[float]] = {key: [] for key in order}
    times: dict[K, list[float]] = {key: [] for key in order}
    callers = [one.callers for one in subjects.values() if isinstance(one, Subject)]
    with ThreadPoolExecutor(max(callers, default=1)) as pool:
        for at in range(rounds + 1):
            draw.shuffle(order)
            for key in order:
                by_caller = _slice(pool, subjects[key], seconds)
                if at > 0:
                    # Callers end at different moments: each has its own rate.
                    runs = sum(len(own) / sum(own) for own in by_caller)
                    rates[key].append(runs * subjects[key].batch)
                    times[key].extend(itertools.chain.from_iterable(by_caller))
                progress()
    return {key: Measurement(tuple(rates[key]), tuple(times[key])) for key in subjects}


def slice_count(subjects: int, rounds: int) -> int:
    """How many slices of time `measure_rounds` takes."""
    return subjects * (rounds + 1)


def _slice(pool: ThreadPoolExecutor, subject: Subject | TimedSubject, seconds: float) -> list[list[float]]:
    """Durations of the runs of each caller, seconds; what times itself has their mean alone."""
    if isinstance(subject, TimedSubject):
        return [[subject.seconds(seconds)]]
    turns = itertools.count()
    # Whatever ran before has left the caches to this one cold.
    list(pool.map(subject.run, [next(turns) for _ in range(subject.callers)]))
    gate = threading.Barrier(subject.callers)

    def call() -> list[float]:
        durations: list[float] = []
        gate.wait()
        begin = time.perf_counter()
        stop = begin + seconds
        while not durations or begin < stop:
            subject.run(next(turns))
            end = time.perf_counter()
            durations.append(end - begin)
            begin = end
        return durations

    calls = [pool.submit(call) for _ in range(subject.callers)]
    return [made.result() for made in calls]
