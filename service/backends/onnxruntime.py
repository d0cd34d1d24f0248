"""ONNX Runtime on the CPU: one session with one thread a run, run from every worker at once.

That beats batching on a CPU and keeps one copy of the weights (reference/export.md, measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from export.bundle import Bundle
from export.runtime import Session
from service.backends.backend import Backend, Call, Sample
from service.backends.onnxruntime_pairs import OnnxRuntimePairs


class OnnxRuntime:
    """A bundle of an image classifier in a session of ONNX Runtime."""

    max_batch = 1

    def __init__(self, bundle: Bundle) -> None:
        self._session = Session(bundle)

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        images = [sample["image"] for sample in samples]
        # A view where there is only one: no copy of the pixels.
        batch: npt.NDArray[Any] = images[0][np.newaxis] if len(images) == 1 else np.stack(images)
        logits, found = self._session.run(batch, plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]


def load(bundle: Bundle) -> Backend:
    """A bundle of any kind."""
    return OnnxRuntime(bundle) if bundle.manifest.text is None else OnnxRuntimePairs(bundle)
