"""What backends share whose runs are those of a session: of a bundle, on a device."""

from __future__ import annotations

from typing import Generic, TypeVar

from export.bundle import Bundle
from export.runtime import Device, Loaded
from service.backends import batching
from service.backends.backend import Call

S = TypeVar("S", bound=Loaded)


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
    def at_once(self) -> int | None:
        """See `Backend.at_once`."""
        return batching.at_once(self._device)

    def take(self, call: Call, waiting: int, /) -> int:
        """See `Backend.take`."""
        beside = self._beside(call)
        return batching.take(self._device, waiting, beside=beside, most=self._session.most)

    def _beside(self, _: Call) -> int:
        """Items of one run on a CPU at most."""
        return 1

    def close(self) -> None:
        """See `Backend.close`."""
        self._session.close()
