"""ONNX Runtime on the CPU: one session with one thread a run, run from every worker at once.

That beats batching on a CPU and keeps one copy of the weights (reference/export.md, measured).
"""

from __future__ import annotations

from collections.abc import Sequence

from export.bundle import Bundle
from export.runtime import Session
from service.backends.backend import PIXELS, Backend, Call, Sample
from service.backends.onnxruntime_dual import OnnxRuntimeDual
from service.backends.onnxruntime_pairs import OnnxRuntimePairs
from service.backends.stacking import stacked


class OnnxRuntime:
    """A bundle of an image classifier in a session of ONNX Runtime."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = Session(bundle)

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    def most(self, _: Call, /) -> int:
        """See `Backend.most`."""
        return 1

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        logits, found = self._session.run(stacked(samples, PIXELS[0]), plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]


def load(bundle: Bundle) -> Backend:
    """A bundle of any kind."""
    match bundle.manifest.kind:
        case "classifier":
            return OnnxRuntime(bundle)
        case "pair":
            return OnnxRuntimePairs(bundle)
        case "dual":
            return OnnxRuntimeDual(bundle)
