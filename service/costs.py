"""How long one run of a model takes here, by plan: measured at warm-up, corrected by every run.

A profile's latencies come from the machine that exported the bundle; the warm-up measures this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from models.reduction.schedule import flops_ratio
from models.reduction.workload import BaseWorkload, Plan

# Weight of one run in the drift: about the last twenty count.
_WEIGHT = 0.05
# Seconds without a run in which half of a slowness is forgotten.
_HALF_LIFE = 5.0


class Costs:
    """Expected seconds of a run of one image.

    What is known is the time of each level, on a machine at rest, and one drift for the whole
    model: how much longer runs take now, because of neighbours, heat, or other work.

    A slowness fades while nothing runs: it may be why nothing does, every budget being refused.
    A drift below 1 refuses nobody, and stays.
    """

    def __init__(
        self, workload: BaseWorkload, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        clock: seconds, never going back.
        """
        self._workload = workload
        self._clock = clock
        self._lock = threading.Lock()
        self._at_rest: dict[Plan, float] = {}
        # FLOPs ratios in rising order, and the seconds of each: for plans between the levels.
        self._curve: tuple[list[float], list[float]] = ([], [])
        self._drift = 1.0
        self._observed = clock()  # when the drift was that

    def learn(self, at_rest: Mapping[Plan, float]) -> None:
        """Take the warm-up's seconds per run, by plan."""
        points = sorted((flops_ratio(self._workload, plan), s) for plan, s in at_rest.items())
        with self._lock:
            self._at_rest = dict(at_rest)
            self._curve = ([ratio for ratio, _ in points], [s for _, s in points])
            self._drift = 1.0
            self._observed = self._clock()

    def observe(self, plan: Plan, seconds: float) -> None:
        """Correct the estimates by a run that took `seconds` for one image."""
        expected = self._expected(plan)
        if expected is None:
            return
        # One stalled run must not shut out every budget for the next minute.
        ratio = min(seconds / expected, 10.0)
        with self._lock:
            drift, now = self._faded()
            self._drift = drift + _WEIGHT * (ratio - drift)
            self._observed = now

    def seconds(self, plan: Plan) -> float:
        """Expected time of one run now; 0 before the warm-up."""
        expected = self._expected(plan)
        if expected is None:
            return 0.0
        with self._lock:
            drift, _ = self._faded()
        return expected * drift

    def _faded(self) -> tuple[float, float]:
        """The drift as it is now, and when that is."""
        now = self._clock()
        slowness = max(0.0, self._drift - 1.0)
        return self._drift - slowness * (1.0 - 0.5 ** ((now - self._observed) / _HALF_LIFE)), now

    def _expected(self, plan: Plan) -> float | None:
        known = self._at_rest.get(plan)
        if known is not None or not self._at_rest:
            return known
        ratios, seconds = self._curve
        return float(np.interp(flops_ratio(self._workload, plan), ratios, seconds))
