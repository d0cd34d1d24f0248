"""How long one run of a model takes here, by plan: measured at warm-up, corrected by every run.

A profile's latencies come from the machine that exported the bundle; the warm-up measures this one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from models.reduction.schedule import Plan, Workload, flops_ratio

# Weight of one run in the drift: about the last twenty count.
_WEIGHT = 0.05


class Costs:
    """Expected seconds of a run of one image.

    What is known is the time of each level, on a machine at rest, and one drift for the whole
    model: how much longer runs take now, because of neighbours, heat, or other work.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._lock = threading.Lock()
        self._at_rest: dict[Plan, float] = {}
        # FLOPs ratios in rising order, and the seconds of each: for plans between the levels.
        self._curve: tuple[list[float], list[float]] = ([], [])
        self._drift = 1.0

    def learn(self, at_rest: Mapping[Plan, float]) -> None:
        """Take the warm-up's seconds per run, by plan."""
        points = sorted((flops_ratio(self._workload, plan), s) for plan, s in at_rest.items())
        with self._lock:
            self._at_rest = dict(at_rest)
            self._curve = ([ratio for ratio, _ in points], [s for _, s in points])
            self._drift = 1.0

    def observe(self, plan: Plan, seconds: float) -> None:
        """Correct the estimates by a run that took `seconds` for one image."""
        expected = self._expected(plan)
        if expected is None:
            return
        # One stalled run must not shut out every budget for the next minute.
        ratio = min(seconds / expected, 10.0)
        with self._lock:
            self._drift += _WEIGHT * (ratio - self._drift)

    def seconds(self, plan: Plan) -> float:
        """Expected time of one run now; 0 before the warm-up."""
        expected = self._expected(plan)
        return 0.0 if expected is None else expected * self._drift

    def _expected(self, plan: Plan) -> float | None:
        known = self._at_rest.get(plan)
        if known is not None or not self._at_rest:
            return known
        ratios, seconds = self._curve
        return float(np.interp(flops_ratio(self._workload, plan), ratios, seconds))
