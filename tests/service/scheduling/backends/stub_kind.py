"""A backend kind for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from tokenfold.bundle.bundle import Bundle
from tokenfold.inference.backend import Backend
from tokenfold.runtime.tensorrt.process import ProgressCallback
from tokenfold.service.scheduling.backends.kinds import BackendKind


def _nothing(_: Bundle, __: ProgressCallback, ___: threading.Event) -> None:
    return


class StubKind(BackendKind):
    """A backend kind whose methods call the given functions."""

    def __init__(
        self,
        name: str,
        device: Literal["cpu", "cuda"],
        load: Callable[[Bundle], Backend],
        missing: str | None = None,
        unfit: str | None = None,
        *,
        unprepared: Callable[[Bundle], Sequence[str]] = lambda _: (),
        prepare: Callable[[Bundle, ProgressCallback, threading.Event], None] = _nothing,
    ) -> None:
        self.name = name
        self.device = device
        self._load = load
        self._missing = missing
        self._unfit = unfit
        self._unprepared = unprepared
        self._prepare = prepare

    def load(self, bundle: Bundle) -> Backend:
        return self._load(bundle)

    def missing(self) -> str | None:
        return self._missing

    def unfit(self, _: Bundle) -> str | None:
        return self._unfit

    def unprepared(self, bundle: Bundle) -> Sequence[str]:
        return self._unprepared(bundle)

    def prepare(
        self, bundle: Bundle, on_progress: ProgressCallback, stopping: threading.Event
    ) -> None:
        self._prepare(bundle, on_progress, stopping)
