"""Tests of the execution of a request: decoding, shared embeddings, and failed images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from tests.service.standin import picture, until
from tests.service.standin_pairs import pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend, Call, Sample
from tokenfold.inference.errors import ImageFormat, InternalError, RequestError
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.prepared import Prepared
from tokenfold.inference.request import ItemResult, Request, matrix
from tokenfold.service.scheduling.execution import Decoders, Execution
from tokenfold.service.scheduling.scheduler import Scheduler

MAX_PIXELS = 1_000_000
RED, BLUE = picture("red"), picture("blue")


class Recorded:
    """A backend that records its calls, and fails those that `fails` selects."""

    native = False
    max_concurrent_runs = None

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.calls: list[Call] = []
        self.fails: Callable[[Call], bool] = lambda _: False

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        return self._inner.batch_size_for(call, waiting)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        self.calls.append(call)
        if self.fails(call):
            raise RuntimeError("failed")
        return self._inner.run(samples, call, slots=slots)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(pair_bundle(tmp_path_factory.mktemp("bundle") / "a"))


@pytest.fixture
def backend(bundle: Bundle) -> Recorded:
    return Recorded(sessions.load(bundle))


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    pool = Decoders(2)
    pool.start()
    yield pool
    pool.stop()


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    started = Scheduler(workers=2, limit=100)
    started.start()
    yield started
    started.stop()


def match(
    bundle: Bundle,
    backend: Recorded,
    decoders: Decoders,
    scheduler: Scheduler,
    images: Sequence[bytes],
    texts: Sequence[str],
) -> Sequence[ItemResult | RequestError | None]:
    """Run a matrix of images and texts, and return the result of each pair."""
    model = Model(bundle)
    model.open_text()
    items = matrix(len(images), len(texts), max_pairs=100)
    request = Request(model=model.name, task="match", items=items, images=images, texts=texts)
    prepared = Prepared.of(model, request)
    finished = threading.Event()
    ticket = scheduler.admit([0.0] * prepared.runs, within=60.0, done=finished.set)
    choice = model.levels.choose(Selector(), "match")
    execution = Execution(prepared, choice, backend, scheduler, ticket)
    execution.start(decoders, MAX_PIXELS)
    assert finished.wait(20)
    until(lambda: scheduler.pending == 0)
    return execution.results()


def test_an_image_of_several_texts_is_embedded_once(
    bundle: Bundle, backend: Recorded, decoders: Decoders, scheduler: Scheduler
) -> None:
    results = match(bundle, backend, decoders, scheduler, [RED, BLUE], ["red", "blue"])
    steps = [call.step for call in backend.calls]
    assert sorted(steps) == ["embed"] * 2 + ["fuse"] * 4
    logits = []
    for result in results:
        assert isinstance(result, ItemResult)
        assert result.decode_seconds > 0
        assert result.embed_seconds > 0
        logits.append(float(result.output["logits"][0]))
    np.testing.assert_array_equal(np.array(logits) > 0, [True, False, False, True])


def test_an_image_of_one_text_is_not_embedded_first(
    bundle: Bundle, backend: Recorded, decoders: Decoders, scheduler: Scheduler
) -> None:
    (result,) = match(bundle, backend, decoders, scheduler, [RED], ["red"])
    assert [call.step for call in backend.calls] == ["answer"]
    assert isinstance(result, ItemResult)
    assert result.embed_seconds == 0.0


def test_a_bad_image_fails_only_its_items(
    bundle: Bundle, backend: Recorded, decoders: Decoders, scheduler: Scheduler
) -> None:
    results = match(bundle, backend, decoders, scheduler, [b"no image", BLUE], ["red", "blue"])
    kinds = [type(result) for result in results]
    assert kinds == [ImageFormat, ImageFormat, ItemResult, ItemResult]


def test_a_failed_embedding_fails_the_items_of_its_image(
    bundle: Bundle, backend: Recorded, decoders: Decoders, scheduler: Scheduler
) -> None:
    backend.fails = lambda call: call.step == "embed"
    results = match(bundle, backend, decoders, scheduler, [RED], ["red", "blue"])
    assert [type(result) for result in results] == [InternalError, InternalError]
    assert [call.step for call in backend.calls] == ["embed"]
