"""Tests of the session backends: results do not depend on the batch or on the number of steps."""

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
    """Return three samples with texts of different lengths."""
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


def assert_same(actual: Sample, expected: Sample) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("task", list(TASKS))
def test_texts_of_different_lengths_in_a_batch_answer_as_alone(
    backend: Backend, task: PairTask
) -> None:
    images = 2 if task == "reason" else 1
    call = Call("answer", task, (PLAN,) * images, (SHAPE,) * images)
    batch = samples(images)
    single_outputs = [backend.run([sample], call, slots=True)[0] for sample in batch]
    logits = [actual["logits"] for actual in backend.run(batch, call, slots=False)]
    for actual, expected in zip(logits, single_outputs, strict=True):
        np.testing.assert_allclose(actual, expected["logits"], rtol=1e-6)
    for sample, outputs in zip(batch, single_outputs, strict=True):
        prefixes = ["", "second_"][:images]
        assert set(outputs) == {"logits"} | {
            f"{prefix}{kind}_slots" for prefix in prefixes for kind in ("text", "image")
        }
        assert len(outputs["text_slots"]) == len(sample["input_ids"])
        assert len(outputs["image_slots"]) == WORKLOAD.image


@pytest.mark.parametrize("task", list(TASKS))
def test_embed_and_fuse_answer_as_a_single_step(backend: Backend, task: PairTask) -> None:
    images = 2 if task == "reason" else 1
    batch = samples(images)
    single_step = backend.run(batch, Call("answer", task, (PLAN,) * images, (SHAPE,)), slots=True)
    fused: list[dict[str, npt.NDArray[Any]]] = [
        {"input_ids": sample["input_ids"]} for sample in batch
    ]
    for pixels, tokens in zip(PIXELS[:images], TOKENS, strict=False):
        embed = Call("embed", task, (), (SHAPE,))
        embedded = backend.run([{PIXELS[0]: item[pixels]} for item in batch], embed, slots=False)
        for sample, output in zip(fused, embedded, strict=True):
            assert output[TOKENS[0]].shape == (WORKLOAD.image, 3)
            sample[tokens] = output[TOKENS[0]]
    two_steps = backend.run(fused, Call("fuse", task, (PLAN,) * images, (SHAPE,)), slots=True)
    for output, expected in zip(two_steps, single_step, strict=True):
        assert_same(output, expected)


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return sessions.load(Bundle.open(dual_bundle(tmp_path_factory.mktemp("bundle") / "a")))


READ = Call("read", "embed", (), ())


def test_texts_without_images_share_a_run(dual: Backend) -> None:
    batch = [{"input_ids": sample["input_ids"]} for sample in samples(1)]
    assert dual.batch_size_for(READ, len(batch)) == len(batch)
    assert dual.batch_size_for(READ, 1000) < 1000
    outputs = dual.run(batch, READ, slots=True)
    for sample, output in zip(batch, outputs, strict=True):
        (single_output,) = dual.run([sample], READ, slots=False)
        assert_same(output, single_output)
        assert np.linalg.norm(output["vector"]) == pytest.approx(1)


def test_texts_of_a_quantised_model_run_one_by_one() -> None:
    shipped = Bundle.open(DEMO / "scenes-retrieval")
    assert shipped.manifest.precision == "int8"
    quantised = sessions.load(shipped)
    batch = [{"input_ids": sample["input_ids"]} for sample in samples(1)]
    batch_outputs = quantised.run(batch, READ, slots=False)
    single_outputs = [quantised.run([sample], READ, slots=False)[0] for sample in batch]
    # In a batch, a vector would depend on the other texts of the batch.
    differences = [
        np.abs(batched["vector"] - single["vector"]).max()
        for batched, single in zip(batch_outputs, single_outputs, strict=True)
    ]
    assert max(differences) > 1e-4
    assert quantised.batch_size_for(READ, 3) == 1


def test_image_vectors_do_not_depend_on_the_batch(dual: Backend) -> None:
    call = Call("answer", "embed", ((4, 0, 0, 0),), (SHAPE,))
    assert dual.batch_size_for(call, 3) == 1
    batch = [{"image": sample["image"]} for sample in samples(1)]
    outputs = dual.run(batch, call, slots=True)
    assert [set(output) for output in outputs] == [{"vector", "slots"}] * 3
    for sample, output in zip(batch, outputs, strict=True):
        (single_output,) = dual.run([sample], call, slots=False)
        assert_same(single_output, {"vector": output["vector"]})
        assert len(output["slots"]) == standin_dual.WORKLOAD.tokens


GPU: tuple[Device, ...] = ("cuda", "tensorrt")


class Session:
    """A session with a maximum batch size, which runs nothing."""

    native = False

    def __init__(self, max_batch: int) -> None:
        self.max_batch_size = max_batch

    def warm(self, _: Iterable[Plan]) -> None: ...


def on_device(device: Device, max_batch: int = 128, max_texts: int = 1) -> SessionBackend[Any]:
    class Plain(SessionBackend[Any]):
        def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
            raise AssertionError((samples, call, slots))

        def _max_cpu_batch(self, _: Call) -> int:
            return max_texts

    manifest = SimpleNamespace(levels={})
    return Plain(Session(max_batch), SimpleNamespace(manifest=manifest), device)  # type: ignore[arg-type]


def test_a_gpu_has_two_runs_in_flight() -> None:
    assert on_device("cpu").max_concurrent_runs is None
    assert on_device("cuda").max_concurrent_runs == on_device("tensorrt").max_concurrent_runs == 2


def test_a_cpu_runs_items_one_by_one_unless_batches_are_faster() -> None:
    assert on_device("cpu").batch_size_for(READ, 100) == 1
    assert on_device("cpu", max_texts=16).batch_size_for(READ, 100) == 16
    assert on_device("cpu", max_texts=16).batch_size_for(READ, 3) == 3


@given(st.sampled_from(GPU), st.integers(1, 1000), st.sampled_from(BUCKETS))
def test_a_gpu_batch_takes_what_waits_with_little_padding(
    device: Device, waiting: int, max_batch: int
) -> None:
    items = on_device(device, max_batch).batch_size_for(READ, waiting)
    assert 1 <= items <= min(waiting, max_batch)
    size = min(bucket for bucket in BUCKETS if bucket >= items)
    assert 4 * (size - items) <= size
    # The rest needs no more runs than necessary.
    assert waiting >= max_batch or 2 * items > waiting
