"""How long one run of a model takes here, by FLOPs: measured at warm-up, corrected by every run.

A profile's latencies come from the machine that exported the bundle; the warm-up measures this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tokenfold.service.scheduling.backends.backend import Step
from tokenfold.service.scheduling.work import Works

# Weight of one run in the drift: about the last twenty count.
_WEIGHT = 0.05
# Seconds without a run in which half of a slowness is forgotten.
_HALF_LIFE = 5.0


class Times(NamedTuple):
    """Seconds on a machine at rest, while every worker runs.

    Attributes:
        runs: of one image, with its text where there is one, by FLOPs.
        embedding: of those that an image takes which several texts share.
        reading: of a text by itself, by FLOPs.
        share: of an item's time alone that one more item of a run adds to it, on a busy device;
            1 where batches gain nothing.
    """

    runs: Mapping[int, float]
    embedding: float = 0.0
    reading: Mapping[int, float] = {}
    share: float = 1.0


class _Curve:
    """Seconds by FLOPs."""

    def __init__(self, known: Mapping[int, float]) -> None:
        self._known = dict(known)
        self._flops = sorted(known)
        self._seconds = [known[flops] for flops in self._flops]

    def at(self, flops: int) -> float:
        """0 if nothing is known."""
        found = self._known.get(flops)
        if found is not None or not self._known:
            return found or 0.0
        if flops > self._flops[-1]:
            # A larger image than any that was measured.
            return self._seconds[-1] * flops / self._flops[-1]
        return float(np.interp(flops, self._flops, self._seconds))


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
        self._runs = _Curve({})
        self._reading = _Curve({})
        self._embedding = 0.0
        self._share = 1.0
        self._drift = 1.0
        self._observed = clock()  # when the drift was that

    @property
    def share(self) -> float:
        """See `Times`."""
        return self._share

    def learn(self, at_rest: Times) -> None:
        """Take the warm-up's times."""
        with self._lock:
            self._runs = _Curve(at_rest.runs)
            self._reading = _Curve(at_rest.reading)
            self._embedding = at_rest.embedding
            self._share = at_rest.share
            self._drift = 1.0
            self._observed = self._clock()

    def observe(
        self, works: Works, seconds: float, step: Step = "answer", *, items: int = 1
    ) -> None:
        """Correct the estimates by a run of some items like this one, that took `seconds`."""
        expected = self._at_rest(works, step) * (1.0 + (items - 1) * self._share)
        if not expected:
            return
        with self._lock:
            drift, now = self._faded()
            if self._share < 1.0:
                # Batches follow each other on their device: one has waited for that before it.
                seconds = min(seconds, now - self._observed)
            # One stalled run must not shut out every budget for the next minute.
            ratio = min(seconds / expected, 10.0)
            self._drift = drift + _WEIGHT * (ratio - drift)
            self._observed = now

    def seconds(self, works: Works, step: Step = "answer") -> float:
        """Expected time of one item's run now; 0 before the warm-up.

        Args:
            works: one for each image that the item looks at, its embedding included whatever the
                step; or one of its text.
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
        if step == "read":
            return sum(self._reading.at(work.flops) for work in works)
        shared = self._embedding if step == "fuse" else 0.0
        return sum(max(0.0, self._runs.at(work.flops) - shared) for work in works)
