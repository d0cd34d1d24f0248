"""Closed-loop load: every caller starts its next call when its last one has ended."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

# Performs one piece of work; returns None on success, otherwise a short name of the error.
Call = Callable[[], str | None]

A = TypeVar("A")
B = TypeVar("B")

MAX_CALLS = 1_000_000
MAX_SECONDS = 600.0


@dataclass(frozen=True)
class FinishedCall:
    """A finished call: its end and duration, in seconds of the monotonic clock."""

    end: float
    seconds: float
    error: str | None = None


class Schedule(NamedTuple):
    """Rounds of a comparison.

    Attributes:
        rounds: number of rounds, with a measurement of each side.
        seconds: duration of a measurement, after `warm_up` seconds.
        concurrency: concurrent callers of the service.
    """

    rounds: int
    seconds: float
    warm_up: float
    concurrency: int


@dataclass(frozen=True)
class Report:
    """Results of a load.

    Attributes:
        images: successful calls in the measured time.
        seconds: time between the ends of the first and the last successful call.
        images_per_second: successful calls after the first, divided by `seconds`.
        p50_ms, p90_ms, p99_ms: durations of the successful calls; None without any.
        errors: number of errors by name: a status code, `timeout` or `connection`.
        generator_cpu: processor seconds per second used by this process.
        service_cpu: processor seconds per second used by the process under load, if known.
    """

    images: int
    seconds: float
    images_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]
    generator_cpu: float
    service_cpu: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as a dict for json.dumps."""
        return asdict(self)


def alternate(round_index: int, first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """Run two measurements and return both results; odd rounds run the second one first."""
    if round_index % 2:
        second_result = second()
        return first(), second_result
    return first(), second()


def total_errors(reports: Iterable[Report]) -> dict[str, int]:
    """Return the number of errors in all reports, by name."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.errors)
    return dict(total)


def percentile_ms(durations: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile, in ms, of durations in seconds; None without any."""
    if not durations:
        return None
    return float(np.percentile(durations, percent, method="inverted_cdf")) * 1e3


def summarise(
    finished: Sequence[FinishedCall],
    start: float,
    stop: float,
    *,
    generator_cpu: float = 0.0,
    service_cpu: float | None = None,
) -> Report:
    """Summarise the calls that ended between two times.

    The rate counts intervals between ends, not ends in a fixed time: with few long calls, the
    latter errs by one call in either direction.

    Args:
        finished: calls in any order.
        start: start of the measured time; calls that ended before are warm-up.
        stop: end of the measured time; calls that ended later ran while other callers had stopped.
        generator_cpu, service_cpu: as in the report.
    """
    measured = [call for call in finished if start <= call.end <= stop]
    successful = [call for call in measured if call.error is None]
    ends = [call.end for call in successful]
    seconds = max(ends) - min(ends) if ends else 0.0
    durations = [call.seconds for call in successful]
    return Report(
        images=len(successful),
        seconds=seconds,
        images_per_second=(len(successful) - 1) / seconds if seconds > 0 else 0.0,
        p50_ms=percentile_ms(durations, 50),
        p90_ms=percentile_ms(durations, 90),
        p99_ms=percentile_ms(durations, 99),
        errors=dict(Counter(call.error for call in measured if call.error is not None)),
        generator_cpu=generator_cpu,
        service_cpu=service_cpu,
    )


def closed_loop(
    calls: Sequence[Call],
    *,
    seconds: float,
    warm_up: float = 0.0,
    max_calls: int = MAX_CALLS,
    service_cpu: Callable[[], float] | None = None,
) -> Report:
    """Repeat every call until the time is over, each in its own thread.

    Args:
        calls: one call per caller.
        seconds: duration of the measurement, after the warm-up.
        warm_up: duration of the warm-up in seconds.
        max_calls: maximum number of calls after the warm-up.
        service_cpu: returns the processor seconds that the process under load has used so far.

    Raises:
        ValueError: a limit is not positive, or too large.
    """
    if not calls:
        raise ValueError("calls is empty; at least one caller is needed")
    if not 0 < seconds <= MAX_SECONDS or not 0 <= warm_up <= MAX_SECONDS:
        raise ValueError(
            f"seconds must be above 0 and at most {MAX_SECONDS:g}, warm_up at least 0; "
            f"got {seconds:g} and {warm_up:g}"
        )
    if not 0 < max_calls <= MAX_CALLS:
        raise ValueError(f"max_calls must be between 1 and {MAX_CALLS}, not {max_calls}")
    call_numbers = itertools.count()
    start = time.monotonic() + warm_up
    stop = start + seconds

    def caller(call: Call) -> list[FinishedCall]:
        finished = []
        begin = time.monotonic()
        while begin < stop and (begin < start or next(call_numbers) < max_calls):
            error = call()
            end = time.monotonic()
            finished.append(FinishedCall(end, end - begin, error))
            begin = end
        return finished

    def usage() -> tuple[float, float, float]:
        service_seconds = 0.0 if service_cpu is None else service_cpu()
        return time.monotonic(), time.process_time(), service_seconds

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(caller, call) for call in calls]
        time.sleep(warm_up)
        before = usage()
        wait(futures, timeout=stop - before[0])
        elapsed, generator_seconds, service_seconds = (
            after - earlier for earlier, after in zip(before, usage(), strict=True)
        )
        finished = [call for future in futures for call in future.result()]
    return summarise(
        finished,
        start,
        stop,
        generator_cpu=generator_seconds / elapsed,
        service_cpu=None if service_cpu is None else service_seconds / elapsed,
    )
