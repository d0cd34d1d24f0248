"""ONNX Runtime, on the CPU or on a GPU.

On a CPU one session with one thread a run, run from every worker at once: that beats batching
there, and keeps one copy of the weights (measured). On a GPU batches, of captured graphs for the
plans of the levels.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.bundle import Bundle
from export.plugins.onnxruntime.library import Device
from export.runtime import Session
from service.backends import batching
from service.backends.backend import PIXELS, Backend, Call, Sample
from service.backends.onnxruntime_dual import OnnxRuntimeDual
from service.backends.onnxruntime_pairs import OnnxRuntimePairs
from service.backends.stacking import stacked


class OnnxRuntime:
    """A bundle of an image classifier in a session of ONNX Runtime."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        self._device = device
        self._session = Session(bundle, device=device)
        self._session.warm(level.plan for level in bundle.manifest.levels.values())

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    @property
    def at_once(self) -> int | None:
        """See `Backend.at_once`."""
        return batching.at_once(self._device)

    def take(self, _: Call, waiting: int, /) -> int:
        """See `Backend.take`."""
        return batching.take(self._device, waiting, most=self._session.most)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        logits, found = self._session.run(stacked(samples, PIXELS[0]), plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]

    def close(self) -> None:
        """See `Backend.close`."""
        self._session.close()


def load(bundle: Bundle, device: Device = "cpu") -> Backend:
    """A bundle of any kind."""
    match bundle.manifest.kind:
        case "classifier":
            return OnnxRuntime(bundle, device)
        case "pair":
            return OnnxRuntimePairs(bundle, device)
        case "dual":
            return OnnxRuntimeDual(bundle, device)
