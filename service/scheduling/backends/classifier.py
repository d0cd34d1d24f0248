"""Image classifiers."""

from __future__ import annotations

from collections.abc import Sequence

from tokenfold.runtime.session import Session
from tokenfold.service.scheduling.backends.backend import PIXELS, Call, Sample
from tokenfold.service.scheduling.backends.sessions import SessionBackend
from tokenfold.service.scheduling.backends.stacking import stacked


class ClassifierBackend(SessionBackend[Session]):
    """A bundle's graph, in a session."""

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        logits, found = self._session.run(stacked(samples, PIXELS[0]), plan, slots=slots)
        if found is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, found, strict=True)]
