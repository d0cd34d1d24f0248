"""How long one run of a model takes here, by FLOPs: measured at warm-up, corrected by every run.

A profile's latencies come from the machine that exported the bundle; the warm-up measures this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from service.backends.backend import Step
from service.work import Works

# Weight of one run in the drift: about the last twenty count.
_WEIGHT = 0.05
# Seconds without a run in which half of a slowness is forgotten.
_HALF_LIFE = 5.0


class Costs:
    """Expected seconds of a run of one item.

    What is known is the time of each level, on a machine at rest, and one drift for the whole
    model: how much longer runs take now, because of neighbours, heat, or other work.

    Between the levels, and for texts and images of other lengths, time follows the FLOPs.

    A slowness fades while nothing runs: it may be why nothing does, every budget being refused.
    A drift below 1 refuses nobody, and stays.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        clock: seconds, never going back.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[int, float] = {}
        # FLOPs in rising order, and the seconds of each.
        self._curve: tuple[list[int], list[float]] = ([], [])
        self._embedding = 0.0
        self._drift = 1.0
        self._observed = clock()  # when the drift was that

    def learn(self, at_rest: Mapping[int, float], *, embedding: float = 0.0) -> None:
        """Take the warm-up's times.

        Args:
            at_rest: seconds of a run on one image, by its FLOPs; 1 or more.
            embedding: seconds of those that an image takes which several texts share.
        """
        points = sorted(at_rest.items())
        with self._lock:
            self._known = dict(at_rest)
            self._curve = ([flops for flops, _ in points], [s for _, s in points])
            self._embedding = embedding
            self._drift = 1.0
            self._observed = self._clock()

    def observe(self, works: Works, seconds: float, step: Step = "answer") -> None:
        """Correct the estimates by a run that took `seconds` for one item."""
        expected = self._at_rest(works, step)
        if not expected:
            return
        # One stalled run must not shut out every budget for the next minute.
        ratio = min(seconds / expected, 10.0)
        with self._lock:
            drift, now = self._faded()
            self._drift = drift + _WEIGHT * (ratio - drift)
            self._observed = now

    def seconds(self, works: Works, step: Step = "answer") -> float:
        """Expected time of one item's run now; 0 before the warm-up.

        Args:
            works: one for each image that the item looks at, its embedding included whatever the
                step.
        """
        expected = self._at_rest(works, step)
        if not expected:
            return 0.0
        with self._lock:
            drift, _ = self._faded()
        return expected * drift

    def _faded(self) -> tuple[float, float]:
        """The drift as it is now, and when that is."""
        now = self._clock()
        slowness = max(0.0, self._drift - 1.0)
        return self._drift - slowness * (1.0 - 0.5 ** ((now - self._observed) / _HALF_LIFE)), now

    def _at_rest(self, works: Works, step: Step) -> float:
        if step == "embed":
            return self._embedding
        shared = self._embedding if step == "fuse" else 0.0
        return sum(max(0.0, self._pass(work.flops) - shared) for work in works)

    def _pass(self, flops: int) -> float:
        """One image, with its text where there is one."""
        known = self._known.get(flops)
        if known is not None or not self._known:
            return known or 0.0
        measured, seconds = self._curve
        if flops > measured[-1]:
            return seconds[-1] * flops / measured[-1]  # a larger image than any that was measured
        return float(np.interp(flops, measured, seconds))
