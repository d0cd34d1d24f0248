"""ONNX Runtime, of networks that see an image, or two, with a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from export.bundle import Bundle
from export.pair_runtime import Float, PairOutput, PairSession, ask
from export.plugins.onnxruntime.library import Device
from service.backends import batching
from service.backends.backend import PIXELS, TOKENS, Call, Sample
from service.backends.stacking import padded, stacked


class OnnxRuntimePairs:
    """A bundle's two graphs in sessions of ONNX Runtime."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        self._device = device
        self._session = PairSession(bundle, device=device)
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

    def close(self) -> None:
        """See `Backend.close`."""
        self._session.close()


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
