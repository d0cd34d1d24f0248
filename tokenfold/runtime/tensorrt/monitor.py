"""Progress of a build, computed from the phases that TensorRT reports."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenfold.runtime.tensorrt.variant import TensorRTVariant

PhaseCallback = Callable[[float, str], None]
"""Receives the completed fraction, 0 to 1, and the name of the current phase."""


class Phases:
    """Nested phases of several steps each: a phase is a part of its parent's current step."""

    def __init__(self, progress: PhaseCallback) -> None:
        self._progress = progress
        self._open: dict[str, list[Any]] = {}  # name -> [parent, steps, completed steps]
        self._max_done = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        self._open[name] = [parent, max(steps, 1), 0]
        self._report(name)

    def step(self, name: str, step: int) -> None:
        """Complete step `step` of a phase, counted from 0."""
        phase = self._open.get(name)
        if phase is not None:
            phase[2] = min(step + 1, phase[1])
            self._report(name)

    def finish(self, name: str) -> None:
        """End a phase."""
        self._open.pop(name, None)

    def _report(self, name: str) -> None:
        done, ancestor, depth = 0.0, name, 0
        # The depth limit stops at a cycle, such as a phase that is its own parent.
        while ancestor in self._open and depth < len(self._open):
            parent, steps, completed = self._open[ancestor]
            done, ancestor, depth = min((completed + done) / steps, 1.0), parent or "", depth + 1
        # A phase that grows must not move the progress backwards.
        self._max_done = max(self._max_done, done)
        self._progress(self._max_done, name)


@cache
def _monitor_class(variant: TensorRTVariant) -> Any:
    class Monitor(variant.api.IProgressMonitor):  # type: ignore[misc, name-defined]
        """TensorRT progress monitor that reports to a callback.

        An exception of the callback cannot cross TensorRT, so the monitor keeps it and ends the
        build.

        Attributes:
            error: the callback's first exception.
        """

        def __init__(self, progress: PhaseCallback) -> None:
            super().__init__()
            self._phases = Phases(progress)
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._do(lambda: self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._do(lambda: self._phases.step(phase_name, step))
            return self.error is None  # False ends the build.

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _do(self, work: Callable[[], None]) -> None:
            if self.error is None:
                try:
                    work()
                except BaseException as error:
                    self.error = error

    return Monitor


def create_monitor(variant: TensorRTVariant, progress: PhaseCallback) -> Any:
    """Create a TensorRT progress monitor that reports to `progress`."""
    return _monitor_class(variant)(progress)
