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
from service.backends.backend import PIXELS, Backend, Call, Sample
from service.backends.onnxruntime_dual import OnnxRuntimeDual
from service.backends.onnxruntime_pairs import OnnxRuntimePairs
from service.backends.onnxruntime_session import OnnxRuntimeSession
from service.backends.stacking import stacked


class OnnxRuntime(OnnxRuntimeSession[Session]):
    """A bundle of an image classifier in a session of ONNX Runtime."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        super().__init__(Session(bundle, device=device), bundle, device)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        logits, found = self._session.run(stacked(samples, PIXELS[0]), plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]


def load(bundle: Bundle, device: Device = "cpu") -> Backend:
    """A bundle of any kind."""
    match bundle.manifest.kind:
        case "classifier":
            return OnnxRuntime(bundle, device)
        case "pair":
            return OnnxRuntimePairs(bundle, device)
        case "dual":
            return OnnxRuntimeDual(bundle, device)
