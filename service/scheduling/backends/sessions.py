"""What backends share whose runs are those of a session: of a bundle, on a device."""

from __future__ import annotations

from typing import Generic, TypeVar

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.graph import Device
from tokenfold.runtime.session import BaseSession
from tokenfold.service.scheduling.backends import batching
from tokenfold.service.scheduling.backends.backend import Call

S = TypeVar("S", bound=BaseSession)


class SessionBackend(Generic[S]):
    """All of a `Backend` but how it runs."""

    def __init__(self, session: S, bundle: Bundle, device: Device) -> None:
        """Args:
        session: of the bundle on the device; prepared for the plans of its levels.
        """
        self._session = session
        self._device = device
        session.warm(level.plan for level in bundle.manifest.levels.values())

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    @property
    def max_concurrent_runs(self) -> int | None:
        """See `Backend.max_concurrent_runs`."""
        return batching.max_concurrent_runs(self._device)

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        """See `Backend.batch_size_for`."""
        beside = self._beside(call)
        return batching.take(
            self._device, waiting, beside=beside, most=self._session.max_batch_size
        )

    def _beside(self, _: Call) -> int:
        """Items of one run on a CPU at most."""
        return 1

    def close(self) -> None:
        """See `Backend.close`."""
        self._session.close()
