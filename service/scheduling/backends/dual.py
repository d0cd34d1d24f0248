"""Dual encoders."""

from __future__ import annotations

from collections.abc import Sequence

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.graph import Device
from tokenfold.service.scheduling.backends.backend import PIXELS, Call, Sample
from tokenfold.service.scheduling.backends.sessions import SessionBackend
from tokenfold.service.scheduling.backends.stacking import padded, stacked

# A text of a few tokens takes as long as its network's weights take to be read, and several share
# that: 16 texts of 8 tokens go through matrices of CLIP-B/16's sizes in 6.9 ms each, one in 22 ms.
# Not in int8, for its activations are scaled by the largest of a run: a text of CLIP-B/16 came out
# at a cosine of 0.9994 to itself alone, depending on the others. That costs: 4.5 ms, not 2.0.
_TEXTS = 16


class DualBackend(SessionBackend[DualSession]):
    """A bundle's two graphs, in one session."""

    def __init__(self, session: DualSession, bundle: Bundle, device: Device) -> None:
        """See `SessionBackend`."""
        super().__init__(session, bundle, device)
        self._texts = 1 if bundle.manifest.precision == "int8" else _TEXTS

    def _beside(self, call: Call) -> int:
        return self._texts if call.step == "read" else 1

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        if call.step == "read":
            ids, size = padded([sample["input_ids"] for sample in samples])
            return [{"vector": row} for row in self._session.embed_texts(ids, size)]
        (plan,) = call.plans
        images = stacked(samples, PIXELS[0])
        vectors, found = self._session.embed_images(images, plan, slots=slots)
        if found is None:
            return [{"vector": row} for row in vectors]
        return [{"vector": row, "slots": one} for row, one in zip(vectors, found, strict=True)]
