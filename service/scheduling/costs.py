"""Expected duration of runs by FLOPs: measured at warm-up, and corrected by every run.

A profile's latencies belong to the machine that exported the bundle; the warm-up measures this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tokenfold.inference.backend import Step
from tokenfold.inference.work import Works

# Weight of one run in the drift: about the last twenty runs count.
_WEIGHT = 0.05
# Seconds without a run after which half of a slowdown is forgotten.
_HALF_LIFE = 5.0


class Times(NamedTuple):
    """Durations in seconds on an otherwise idle machine, while every worker runs.

    Attributes:
        runs: of one image, with its text if there is one, by FLOPs.
        embedding: of embedding an image that several texts share.
        reading: of a text by itself, by FLOPs.
        share: fraction of an item's duration alone that one more item adds to a run on a busy
            device; 1 where batches gain nothing.
    """

    runs: Mapping[int, float]
    embedding: float = 0.0
    reading: Mapping[int, float] = {}
    share: float = 1.0


class _Curve:
    """Duration in seconds as a function of FLOPs, by linear interpolation."""

    def __init__(self, known: Mapping[int, float]) -> None:
        self._known = dict(known)
        self._flops = sorted(known)
        self._seconds = [known[flops] for flops in self._flops]

    def at(self, flops: int) -> float:
        """Return the duration, 0 if nothing was measured."""
        seconds = self._known.get(flops)
        if seconds is not None or not self._known:
            return seconds or 0.0
        if flops > self._flops[-1]:
            # The image is larger than any that was measured.
            return self._seconds[-1] * flops / self._flops[-1]
        return float(np.interp(flops, self._flops, self._seconds))


class Costs:
    """Expected duration of a run of one item.

    The warm-up measures the duration of each level on an idle machine. One factor for the whole
    model, the drift, says how much longer runs take at the moment, for example because of other
    load on the machine. The durations of other plans, texts and images follow from their FLOPs.

    A drift above 1 fades while nothing runs: it may be the reason that nothing runs, if it exceeds
    every latency budget. A drift below 1 refuses no request, and stays.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create costs of a model that was not measured yet.

        Args:
            clock: monotonic clock, in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._runs = _Curve({})
        self._reading = _Curve({})
        self._embedding = 0.0
        self._share = 1.0
        self._drift = 1.0
        self._observed = clock()  # time of the last change of the drift

    @property
    def share(self) -> float:
        """See `Times`."""
        return self._share

    def learn(self, at_rest: Times) -> None:
        """Store the durations of the warm-up."""
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
        """Correct the estimates by a run.

        Args:
            works: cost of one of its items.
            seconds: its duration.
            step: its step.
            items: number of its items, which are alike.
        """
        expected = self._at_rest(works, step) * (1.0 + (items - 1) * self._share)
        if not expected:
            return
        with self._lock:
            drift, now = self._faded()
            if self._share < 1.0:
                # Batches follow each other on a device: a run includes the wait for the last one.
                seconds = min(seconds, now - self._observed)
            # One stalled run must not exceed every budget for the next minute.
            ratio = min(seconds / expected, 10.0)
            self._drift = drift + _WEIGHT * (ratio - drift)
            self._observed = now

    def seconds(self, works: Works, step: Step = "answer") -> float:
        """Return the expected duration of one item's run at the moment; 0 before the warm-up.

        Args:
            works: cost of the item, which includes the embedding of its images for every step.
            step: the step.
        """
        expected = self._at_rest(works, step)
        if not expected:
            return 0.0
        with self._lock:
            drift, _ = self._faded()
        return expected * drift

    def _faded(self) -> tuple[float, float]:
        """Return the present drift, and the present time."""
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
