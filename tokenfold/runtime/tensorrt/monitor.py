"""How far a build is, from the phases that TensorRT tells of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenfold.runtime.tensorrt.flavour import Flavour

Advance = Callable[[float, str], None]
"""Told how much is done, 0 to 1, and what is being done."""


class Phases:
    """Phases within phases, each of some steps: a phase is a part of the step its parent is at."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._open: dict[str, list[Any]] = {}  # name -> [parent, steps, steps done]
        self._most = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._open[name] = [parent, max(steps, 1), 0]
        self._tell(name)

    def step(self, name: str, step: int) -> None:
        """A step of it is done, counted from 0."""
        phase = self._open.get(name)
        if phase is not None:
            phase[2] = min(step + 1, phase[1])
            self._tell(name)

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._open.pop(name, None)

    def _tell(self, name: str) -> None:
        done, at, depth = 0.0, name, 0
        # A parent that has ended, or itself as its parent, would be no end of it.
        while at in self._open and depth < len(self._open):
            parent, steps, finished = self._open[at]
            done, at, depth = min((finished + done) / steps, 1.0), parent or "", depth + 1
        # A phase that turns out to have more parts than one thought sets nothing back.
        self._most = max(self._most, done)
        self._advance(self._most, name)


@cache
def _class(flavour: Flavour) -> Any:
    class Monitor(flavour.api.IProgressMonitor):  # type: ignore[misc, name-defined]
        """What is raised where progress is told ends the build: it cannot cross TensorRT.

        Attributes:
            error: what was raised first.
        """

        def __init__(self, advance: Advance) -> None:
            super().__init__()
            self._phases = Phases(advance)
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._do(lambda: self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._do(lambda: self._phases.step(phase_name, step))
            return self.error is None  # whether to go on

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _do(self, work: Callable[[], None]) -> None:
            if self.error is None:
                try:
                    work()
                except BaseException as error:
                    self.error = error

    return Monitor


def monitor(flavour: Flavour, advance: Advance) -> Any:
    """What a builder tells of its progress."""
    return _class(flavour)(advance)
