"""Runner: runs requests on one backend in this process, without a queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tokenfold.inference import images
from tokenfold.inference.backend import PIXELS, TOKENS, Backend, Call, Sample, Shape
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import ItemResult, Request, Result
from tokenfold.runtime.machine import cores

MAX_PIXELS = 200_000_000
"""Largest width times height of an image."""


@dataclass(frozen=True, slots=True)
class _Run:
    """The outputs of one item of a run, and its timing."""

    output: Sample
    batch_size: int
    seconds: float
    ended: float


class Runner:
    """Runs requests on one backend. Images are decoded, and batches run, by a pool of threads."""

    def __init__(self, model: Model, backend: Backend) -> None:
        """Start the threads.

        Args:
            model: the model.
            backend: what runs it.
        """
        self._model = model
        self._backend = backend
        self._pool = ThreadPoolExecutor(backend.max_concurrent_runs or cores())

    def close(self) -> None:
        """End the threads and release the backend. Later runs fail."""
        self._pool.shutdown()
        self._backend.close()

    def run(self, request: Request) -> Result:
        """Run a request.

        Raises:
            RequestError: an image or a text cannot be used, or the selector is invalid.
        """
        prepared = Prepared.of(self._model, request)
        assert isinstance(request.selector, Selector)  # see `_answers`
        choice = self._model.levels.choose(request.selector, request.task)
        decoded = list(self._pool.map(self._decode, request.images))
        inputs = {image: pixels for image, (pixels, _) in enumerate(decoded)}
        shapes: list[Shape] = [(pixels.shape[0], pixels.shape[1]) for pixels, _ in decoded]
        embeds = [
            (prepared.embed_call(shapes[image]), {PIXELS[0]: inputs[image]})
            for image in prepared.shared
        ]
        embedded = dict(zip(prepared.shared, self._batches(embeds, slots=False), strict=True))
        inputs |= {image: run.output[TOKENS[0]] for image, run in embedded.items()}
        calls = [
            prepared.call(item, choice, [shapes[image] for image in item.images])
            for item in request.items
        ]
        samples = [prepared.sample(item, inputs) for item in request.items]
        jobs = [(call, sample) for (call, _), sample in zip(calls, samples, strict=True)]
        runs = self._batches(jobs, slots=request.slots and bool(request.images))
        items = [
            ItemResult(
                output=run.output,
                works=works,
                shapes=[shapes[image] for image in item.images],
                batch_size=run.batch_size,
                decode_seconds=sum(decoded[image][1] for image in item.images),
                embed_seconds=sum(
                    embedded[image].seconds for image in item.images if image in embedded
                ),
                run_seconds=run.seconds,
                ended=run.ended,
            )
            for item, (_, works), run in zip(request.items, calls, runs, strict=True)
        ]
        return Result(choice, items, prepared.texts)

    def _decode(self, encoded: bytes | str) -> tuple[npt.NDArray[Any], float]:
        begun = time.perf_counter()
        pixels = images.decode(encoded, self._model.manifest.preprocess, max_pixels=MAX_PIXELS)
        return pixels, time.perf_counter() - begun

    def _batches(self, jobs: Sequence[tuple[Call, Sample]], *, slots: bool) -> list[_Run]:
        """Run jobs, in batches of the backend's size, concurrently."""
        waiting: dict[Call, list[int]] = {}
        for index, (call, _) in enumerate(jobs):
            waiting.setdefault(call, []).append(index)
        batches: list[tuple[Call, list[int]]] = []
        for call, indices in waiting.items():
            while indices:
                size = max(1, self._backend.batch_size_for(call, len(indices)))
                batches.append((call, indices[:size]))
                indices = indices[size:]

        def run(batch: tuple[Call, list[int]]) -> list[_Run]:
            call, indices = batch
            begun = time.perf_counter()
            outputs = self._backend.run([jobs[index][1] for index in indices], call, slots=slots)
            ended = time.perf_counter()
            return [_Run(output, len(indices), ended - begun, ended) for output in outputs]

        runs: list[_Run | None] = [None] * len(jobs)
        for (_, indices), outputs in zip(batches, self._pool.map(run, batches), strict=True):
            for index, output in zip(indices, outputs, strict=True):
                runs[index] = output
        return [run for run in runs if run is not None]
