"""ONNX Runtime on the CPU: one session with one thread a run, run from every worker at once.

That beats batching on a CPU and keeps one copy of the weights (reference/export.md, measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.bundle import Bundle
from export.runtime import Session
from models.reduction.workload import Plan
from service.backends.backend import Sample


class OnnxRuntime:
    """A bundle in a session of ONNX Runtime."""

    max_batch = 1

    def __init__(self, bundle: Bundle) -> None:
        self._session = Session(bundle)

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    def run(self, samples: Sequence[Sample], plan: Plan, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        images = [sample["image"] for sample in samples]
        # A view where there is only one: no copy of the pixels.
        batch = images[0][np.newaxis] if len(images) == 1 else np.stack(images)
        logits, found = self._session.run(batch, plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]
