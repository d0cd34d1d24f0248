"""Networks that see an image, or two, with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from tokenfold.runtime.pair import Float, PairOutput, PairSession, ask
from tokenfold.service.scheduling.backends.backend import PIXELS, TOKENS, Call, Sample
from tokenfold.service.scheduling.backends.sessions import SessionBackend
from tokenfold.service.scheduling.backends.stacking import padded, stacked


class PairBackend(SessionBackend[PairSession]):
    """A bundle's two graphs, in one session."""

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        if call.step == "embed":
            found = self._session.embed(stacked(samples, PIXELS[0]))
            return [{TOKENS[0]: tokens} for tokens in found]
        # Which see no image with a text.
        assert call.task != "classify"
        assert call.task != "embed"
        ids, size = padded([sample["input_ids"] for sample in samples])
        images = [self._tokens(samples, call, at) for at in range(len(call.plans))]
        passes = ask(self._session, images, ids, size, call.plans, task=call.task, slots=slots)
        return [_output(sample, passes, row) for row, sample in enumerate(samples)]

    def _tokens(self, samples: Sequence[Sample], call: Call, at: int) -> Float:
        """(B, I, D) of each item's image `at`."""
        if call.step == "fuse":
            return stacked(samples, TOKENS[at])
        return self._session.embed(stacked(samples, PIXELS[at]))


def _output(sample: Sample, passes: Sequence[PairOutput], row: int) -> Sample:
    """One item's outputs, without the padding of its text."""
    logits = passes[-1].logits
    assert logits is not None  # the last pass answers
    found: dict[str, npt.NDArray[Any]] = {"logits": logits[row]}
    for which, done in zip(("", "second_"), passes, strict=False):
        if done.text_slots is not None and done.image_slots is not None:
            found[which + "text_slots"] = done.text_slots[row, : len(sample["input_ids"])]
            found[which + "image_slots"] = done.image_slots[row]
    return found
