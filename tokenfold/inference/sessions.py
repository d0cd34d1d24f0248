"""Backends on the sessions of `tokenfold.runtime`, for each kind of bundle.

On a CPU, every worker runs the same one-thread session with one item per run: that is faster than
batching, and keeps one copy of the weights (measured: docs/benchmarks.md). On a GPU, ONNX Runtime
or TensorRT engines run batches, and CUDA graphs are captured for the plans of the levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.bundle import Bundle
from tokenfold.inference.backend import PIXELS, TOKENS, Backend, Call, Sample
from tokenfold.runtime.cuda import buckets
from tokenfold.runtime.cuda.buffers import RUNS_IN_FLIGHT
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.graph import Device
from tokenfold.runtime.pair import Float, PairOutput, PairSession, ask
from tokenfold.runtime.session import BaseSession, Session

# A run over a few tokens takes as long as it takes to read the weights, so texts share runs on a
# CPU: 16 texts of 8 tokens take 6.9 ms each with matrices of CLIP-B/16's sizes, one alone 22 ms.
# Not in int8, whose activations are scaled by the largest value of a run: the vector of a text of
# CLIP-B/16 then depends on the others (cosine 0.9994), so that a text takes 4.5 ms and not 2.0.
_MAX_TEXTS = 16

S = TypeVar("S", bound=BaseSession)


def load(bundle: Bundle, device: Device = "cpu", *, engines: Path | None = None) -> Backend:
    """Load a bundle.

    Args:
        bundle: a bundle of any kind.
        device: the device that runs it.
        engines: folder of its TensorRT engines, for the device "tensorrt".

    Raises:
        RuntimeError: the device is not available, or an engine is missing or does not fit.
    """
    match bundle.manifest.kind:
        case "classifier":
            classifier = Session(bundle, device=device, engines=engines)
            return ClassifierBackend(classifier, bundle, device)
        case "pair":
            pair = PairSession(bundle, device=device, engines=engines)
            return PairBackend(pair, bundle, device)
        case "dual":
            dual = DualSession(bundle, device=device, engines=engines)
            return DualBackend(dual, bundle, device)


class SessionBackend(ABC, Generic[S]):
    """Base class for backends on a session."""

    def __init__(self, session: S, bundle: Bundle, device: Device) -> None:
        """Prepare runs of the bundle's levels.

        Args:
            session: of the bundle, on the device.
            bundle: the bundle.
            device: the device.
        """
        self._session = session
        self._device = device
        session.warm(level.plan for level in bundle.manifest.levels.values())

    @property
    def native(self) -> bool:
        """Whether the compiled reduction ops run."""
        return self._session.native

    @property
    def max_concurrent_runs(self) -> int | None:
        """See `Backend.max_concurrent_runs`."""
        return None if self._device == "cpu" else RUNS_IN_FLIGHT

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        """See `Backend.batch_size_for`."""
        if self._device == "cpu":
            return min(waiting, self._max_cpu_batch(call))
        # The items that have queued up while the device was busy share a run.
        return buckets.next_run_size(waiting, self._session.max_batch_size)

    @abstractmethod
    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""

    def close(self) -> None:
        """See `Backend.close`."""
        self._session.close()

    def _max_cpu_batch(self, _: Call) -> int:
        """Return the number of items that a run on a CPU may have."""
        return 1


class ClassifierBackend(SessionBackend[Session]):
    """An image classifier."""

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        (plan,) = call.plans
        logits, rows = self._session.run(_stacked(samples, PIXELS[0]), plan, slots=slots)
        if rows is None:
            return [{"logits": row} for row in logits]
        return [{"logits": row, "slots": item} for row, item in zip(logits, rows, strict=True)]


class DualBackend(SessionBackend[DualSession]):
    """A dual encoder."""

    def __init__(self, session: DualSession, bundle: Bundle, device: Device) -> None:
        """See `SessionBackend`."""
        super().__init__(session, bundle, device)
        self._max_texts = 1 if bundle.manifest.precision == "int8" else _MAX_TEXTS

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        if call.step == "read":
            ids, size = _padded([sample["input_ids"] for sample in samples])
            return [{"vector": row} for row in self._session.embed_texts(ids, size)]
        (plan,) = call.plans
        images = _stacked(samples, PIXELS[0])
        vectors, rows = self._session.embed_images(images, plan, slots=slots)
        if rows is None:
            return [{"vector": row} for row in vectors]
        return [{"vector": row, "slots": item} for row, item in zip(vectors, rows, strict=True)]

    def _max_cpu_batch(self, call: Call) -> int:
        return self._max_texts if call.step == "read" else 1


class PairBackend(SessionBackend[PairSession]):
    """A network that reads an image, or two, together with a text."""

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """See `Backend.run`."""
        if call.step == "embed":
            tokens = self._session.embed(_stacked(samples, PIXELS[0]))
            return [{TOKENS[0]: row} for row in tokens]
        # Pair networks have no tasks without a text.
        assert call.task != "classify"
        assert call.task != "embed"
        ids, size = _padded([sample["input_ids"] for sample in samples])
        images = [self._tokens(samples, call, index) for index in range(len(call.plans))]
        passes = ask(self._session, images, ids, size, call.plans, task=call.task, slots=slots)
        return [_outputs(sample, passes, row) for row, sample in enumerate(samples)]

    def _tokens(self, samples: Sequence[Sample], call: Call, index: int) -> Float:
        """Return the tokens of each item's image `index`, (B, I, D)."""
        if call.step == "fuse":
            return _stacked(samples, TOKENS[index])
        return self._session.embed(_stacked(samples, PIXELS[index]))


def _outputs(sample: Sample, passes: Sequence[PairOutput], row: int) -> Sample:
    """Return one item's outputs, without the padding of its text."""
    logits = passes[-1].logits
    assert logits is not None  # only the last pass has logits
    outputs: dict[str, npt.NDArray[Any]] = {"logits": logits[row]}
    for prefix, result in zip(("", "second_"), passes, strict=False):
        if result.text_slots is not None and result.image_slots is not None:
            outputs[prefix + "text_slots"] = result.text_slots[row, : len(sample["input_ids"])]
            outputs[prefix + "image_slots"] = result.image_slots[row]
    return outputs


def _stacked(samples: Sequence[Sample], name: str) -> npt.NDArray[Any]:
    """Return an input of equal shapes as a batch, (B, ...)."""
    if len(samples) == 1:
        return samples[0][name][np.newaxis]  # a view: no copy
    return np.stack([sample[name] for sample in samples])


def _padded(
    texts: Sequence[npt.NDArray[Any]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return token ids (B, T), padded with zeros, and sizes (B, T) that are 0 for the padding."""
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    size = np.zeros((len(texts), longest), dtype=np.float32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        size[row, : len(text)] = 1.0
    return ids, size
