"""Backends: batches answer as their items alone do, in one step or in two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service import standin_dual
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import SIDE, TASKS, WORKLOAD, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.inference import sessions
from tokenfold.inference.backend import PIXELS, TOKENS, Backend, Call, Sample
from tokenfold.inference.sessions import SessionBackend
from tokenfold.runtime.cuda.buckets import BUCKETS
from tokenfold.runtime.graph import Device
from tokenfold.service.settings import DEMO

PLAN = (2, 4, 1, 1, 2, 1)
SHAPE = (SIDE, SIDE)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return sessions.load(Bundle.open(pair_bundle(tmp_path_factory.mktemp("bundle") / "a")))


def samples(images: int) -> list[Sample]:
    """With texts of different lengths."""
    random = np.random.default_rng(0)
    return [
        {
            **{
                name: random.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
                for name in PIXELS[:images]
            },
            "input_ids": np.array([2, *random.integers(4, 8, length), 3]),
        }
        for length in (7, 3, 5)
    ]


def assert_same(found: Sample, wanted: Sample) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_batch_of_texts_of_different_lengths(backend: Backend, task: PairTask) -> None:
    images = 2 if task == "reason" else 1
    call = Call("answer", task, (PLAN,) * images, (SHAPE,) * images)
    given = samples(images)
    alone = [backend.run([sample], call, slots=True)[0] for sample in given]
    logits = [found["logits"] for found in backend.run(given, call, slots=False)]
    for found, wanted in zip(logits, alone, strict=True):
        np.testing.assert_allclose(found, wanted["logits"], rtol=1e-6)
    for sample, answered in zip(given, alone, strict=True):
        which = ["", "second_"][:images]
        assert set(answered) == {"logits"} | {
            f"{one}{kind}_slots" for one in which for kind in ("text", "image")
        }
        assert len(answered["text_slots"]) == len(sample["input_ids"])
        assert len(answered["image_slots"]) == WORKLOAD.image


@pytest.mark.parametrize("task", list(TASKS))
def test_two_steps_answer_as_one(backend: Backend, task: PairTask) -> None:
    images = 2 if task == "reason" else 1
    given = samples(images)
    once = backend.run(given, Call("answer", task, (PLAN,) * images, (SHAPE,)), slots=True)
    fused: list[dict[str, npt.NDArray[Any]]] = [
        {"input_ids": sample["input_ids"]} for sample in given
    ]
    for pixels, tokens in zip(PIXELS[:images], TOKENS, strict=False):
        embed = Call("embed", task, (), (SHAPE,))
        embedded = backend.run([{PIXELS[0]: one[pixels]} for one in given], embed, slots=False)
        for sample, found in zip(fused, embedded, strict=True):
            assert found[TOKENS[0]].shape == (WORKLOAD.image, 3)
            sample[tokens] = found[TOKENS[0]]
    twice = backend.run(fused, Call("fuse", task, (PLAN,) * images, (SHAPE,)), slots=True)
    for found, wanted in zip(twice, once, strict=True):
        assert_same(found, wanted)


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return sessions.load(Bundle.open(dual_bundle(tmp_path_factory.mktemp("bundle") / "a")))


READ = Call("read", "embed", (), ())


def test_texts_by_themselves_share_a_run(dual: Backend) -> None:
    given = [{"input_ids": sample["input_ids"]} for sample in samples(1)]
    assert dual.batch_size_for(READ, len(given)) == len(given)
    assert dual.batch_size_for(READ, 1000) < 1000
    together = dual.run(given, READ, slots=True)
    for sample, found in zip(given, together, strict=True):
        (alone,) = dual.run([sample], READ, slots=False)
        assert_same(found, alone)
        assert np.linalg.norm(found["vector"]) == pytest.approx(1)


def test_quantised_texts_run_alone() -> None:
    shipped = Bundle.open(DEMO / "scenes-retrieval")
    assert shipped.manifest.precision == "int8"
    quantised = sessions.load(shipped)
    given = [{"input_ids": sample["input_ids"]} for sample in samples(1)]
    together = quantised.run(given, READ, slots=False)
    alone = [quantised.run([sample], READ, slots=False)[0] for sample in given]
    # Else what a text becomes would depend on whose texts it happens to wait with.
    moved = [
        np.abs(found["vector"] - wanted["vector"]).max()
        for found, wanted in zip(together, alone, strict=True)
    ]
    assert max(moved) > 1e-4
    assert quantised.batch_size_for(READ, 3) == 1


def test_vectors_of_images(dual: Backend) -> None:
    call = Call("answer", "embed", ((4, 0, 0, 0),), (SHAPE,))
    assert dual.batch_size_for(call, 3) == 1
    given = [{"image": sample["image"]} for sample in samples(1)]
    found = dual.run(given, call, slots=True)
    assert [set(one) for one in found] == [{"vector", "slots"}] * 3
    for sample, one in zip(given, found, strict=True):
        (alone,) = dual.run([sample], call, slots=False)
        assert_same(alone, {"vector": one["vector"]})
        assert len(one["slots"]) == standin_dual.WORKLOAD.tokens


GPU: tuple[Device, ...] = ("cuda", "tensorrt")


class Session:
    """A session of which only the batch size matters."""

    native = False

    def __init__(self, most: int) -> None:
        self.max_batch_size = most

    def warm(self, _: Iterable[Plan]) -> None: ...


def on_device(device: Device, most: int = 128, max_texts: int = 1) -> SessionBackend[Any]:
    class Plain(SessionBackend[Any]):
        def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
            raise AssertionError((samples, call, slots))

        def _max_cpu_batch(self, _: Call) -> int:
            return max_texts

    manifest = SimpleNamespace(levels={})
    return Plain(Session(most), SimpleNamespace(manifest=manifest), device)  # type: ignore[arg-type]


def test_runs_in_flight() -> None:
    assert on_device("cpu").max_concurrent_runs is None
    assert on_device("cuda").max_concurrent_runs == on_device("tensorrt").max_concurrent_runs == 2


def test_on_a_cpu_one_by_one_unless_batches_gain() -> None:
    assert on_device("cpu").batch_size_for(READ, 100) == 1
    assert on_device("cpu", max_texts=16).batch_size_for(READ, 100) == 16
    assert on_device("cpu", max_texts=16).batch_size_for(READ, 3) == 3


@given(st.sampled_from(GPU), st.integers(1, 1000), st.sampled_from(BUCKETS))
def test_on_a_gpu_what_waits_and_little_padding(device: Device, waiting: int, most: int) -> None:
    items = on_device(device, most).batch_size_for(READ, waiting)
    assert 1 <= items <= min(waiting, most)
    size = min(bucket for bucket in BUCKETS if bucket >= items)
    assert 4 * (size - items) <= size
    # No more runs than it takes are left for later.
    assert waiting >= most or 2 * items > waiting
