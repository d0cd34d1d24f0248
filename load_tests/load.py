"""Closed-loop load: every caller starts its next call when the last has ended."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Does one piece of work. Returns None when it went well, or else a short name of what went wrong.
Call = Callable[[], str | None]

MOST_CALLS = 1_000_000
LONGEST_SECONDS = 600.0


@dataclass(frozen=True)
class Done:
    """One finished call: its end and its duration, seconds of the monotonic clock."""

    end: float
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """What a load met.

    Attributes:
        images: answered well in the measured time.
        seconds: from the first of these answers to the last.
        images_per_second: images after the first, over these seconds.
        p50_ms, p90_ms, p99_ms: durations of the calls that went well; None without any.
        errors: count by name: a status code, `timeout` or `connection`.
        generator_cpu: seconds of processor time that this process itself spent, per second.
        service_cpu: the same of the process under load, where it is known.
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
        """The attributes, for json.dumps."""
        return asdict(self)


def percentile_ms(durations: Sequence[float], percent: float) -> float | None:
    """Nearest-rank percentile of durations in seconds, as milliseconds; None of nothing."""
    if not durations:
        return None
    return float(np.percentile(durations, percent, method="inverted_cdf")) * 1e3


def summarise(
    done: Sequence[Done],
    start: float,
    stop: float,
    *,
    generator_cpu: float = 0.0,
    service_cpu: float | None = None,
) -> Report:
    """Sum up the calls that ended between two times.

    The rate counts intervals between answers, not answers in a fixed time: with few calls of
    long duration, the latter errs by one call in either direction.

    Args:
        done: in any order.
        start: of the measured time; what ended before is warm-up.
        stop: of the measured time; what ended later ran while other callers had stopped.
        generator_cpu, service_cpu: as in the report.
    """
    measured = [call for call in done if start <= call.end <= stop]
    good = [call for call in measured if call.error is None]
    ends = [call.end for call in good]
    seconds = max(ends) - min(ends) if ends else 0.0
    durations = [call.seconds for call in good]
    return Report(
        images=len(good),
        seconds=seconds,
        images_per_second=(len(good) - 1) / seconds if seconds > 0 else 0.0,
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
    most: int = MOST_CALLS,
    service_cpu: Callable[[], float] | None = None,
) -> Report:
    """Run every call again and again, each in a thread of its own.

    Args:
        calls: one per caller.
        seconds: to measure, after the warm-up.
        warm_up: seconds to run before.
        most: calls to start after the warm-up.
        service_cpu: tells the processor seconds that the process under load has spent so far.

    Raises:
        ValueError: a bound that is not positive, or beyond what one run may take.
    """
    if not calls:
        raise ValueError("no caller")
    if not 0 < seconds <= LONGEST_SECONDS or not 0 <= warm_up <= LONGEST_SECONDS:
        raise ValueError(f"seconds must be above 0 and at most {LONGEST_SECONDS:g}")
    if not 0 < most <= MOST_CALLS:
        raise ValueError(f"between 1 and {MOST_CALLS} calls can be made")
    started = itertools.count()
    start = time.monotonic() + warm_up
    stop = start + seconds

    def caller(call: Call) -> list[Done]:
        done = []
        begin = time.monotonic()
        while begin < stop and (begin < start or next(started) < most):
            error = call()
            end = time.monotonic()
            done.append(Done(end, end - begin, error))
            begin = end
        return done

    def spent() -> tuple[float, float, float]:
        served = 0.0 if service_cpu is None else service_cpu()
        return time.monotonic(), time.process_time(), served

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(caller, call) for call in calls]
        time.sleep(warm_up)
        before = spent()
        wait(running, timeout=stop - before[0])
        elapsed, generated, served = (b - a for a, b in zip(before, spent(), strict=True))
        done = [call for future in running for call in future.result()]
    return summarise(
        done,
        start,
        stop,
        generator_cpu=generated / elapsed,
        service_cpu=None if service_cpu is None else served / elapsed,
    )
