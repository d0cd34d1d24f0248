"""Tests of bundles on a GPU, with ONNX Runtime and TensorRT: results equal the CPU's, recorded or
not, from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from tests import tiny
from tests.gpu import engines
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Manifest, Precision
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder, random_texts
from tokenfold.bundle.workload import Plan
from tokenfold.export.families.pair import pair_answers
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.verification.comparison import judge, verify
from tokenfold.export.verification.inputs import (
    Case,
    pair_batches,
    random_images,
    text_batches,
)
from tokenfold.models.checkpoints.checkpoint import AnyCheckpoint
from tokenfold.models.networks.pair import images as images_of
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.cuda.buckets import buckets_up_to
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.graph import Array, Device
from tokenfold.runtime.pair import PairSession, ask
from tokenfold.runtime.session import BaseSession, Session

MISSING = session.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_tensorrt = pytest.mark.skipif(engines.MISSING is not None, reason=str(engines.MISSING))
# Building engines takes minutes.
LONG_TIMEOUT = pytest.mark.timeout(1800)
DEVICES: list[Any] = ["cuda", pytest.param("tensorrt", marks=[needs_tensorrt, LONG_TIMEOUT])]

# Tolerance between two runs on the GPU, where other batch sizes may use other kernels.
BATCH_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "fp16": 1e-2}
RUNS = 200

# Maximum relative error (norm over norm) of engines, for images whose tokens merged identically.
ENGINE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2}
# Minimum share of images whose tokens must merge identically.
MIN_MERGED_IDENTICALLY = 0.5
# Number of other images to ignore. Different merges can end in the same slots, and then the result
# differs by a fifth: in float16 on a CPU, for 2 of 240 images at PiToMe's strongest reduction.
IGNORED_IMAGES = 2
MANY = 40
# One batch size per optimization profile, each of which has its session_a kernels.
COUNTS = (1, 8, MANY)


class Outputs(NamedTuple):
    """Logits or vectors (B, C), and slots (B, N)."""

    values: Array
    slots: Array


def check_alike(
    where: str, precision: Precision, actual: Outputs, expected: Outputs, *, reduced: bool
) -> None:
    """Compare the results of images whose tokens went to the same slots."""
    assert len(actual.values) == len(expected.values) == MANY
    assert np.isfinite(actual.values).all()
    same_slots = (actual.slots == expected.slots).all(1)
    assert same_slots.mean() >= (MIN_MERGED_IDENTICALLY if reduced else 1.0), where
    difference = np.linalg.norm((actual.values - expected.values)[same_slots], axis=1)
    size = np.linalg.norm(expected.values[same_slots], axis=1)
    best = np.argsort(difference / size)[: len(size) - IGNORED_IMAGES if reduced else None]
    error = float(np.linalg.norm(difference[best]) / np.linalg.norm(size[best]))
    assert error <= ENGINE_TOLERANCE[precision], where


def concatenate(runs: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of several runs."""
    return Outputs(*(np.concatenate(parts) for parts in zip(*runs, strict=True)))


class BundleKind(NamedTuple):
    """A kind of bundle whose first graph takes images and a plan.

    Attributes:
        make: creates the checkpoint.
        method: reduction method of the recipe.
        open: opens a session on a device.
        run: runs one batch of images.
    """

    make: Callable[[], AnyCheckpoint]
    method: str
    open: Callable[[Bundle, Device], BaseSession]
    run: Callable[[Any, Array, Plan], Outputs]


def _classify(opened_session: Session, images: Array, plan: Plan) -> Outputs:
    output = opened_session.run(images, plan, slots=True)
    assert output.slots is not None
    return Outputs(output.logits, output.slots)


def _embed(opened_session: DualSession, images: Array, plan: Plan) -> Outputs:
    output = opened_session.embed_images(images, plan, slots=True)
    assert output.slots is not None
    return Outputs(output.vectors, output.slots)


def _classifier(bundle: Bundle, where: Device) -> BaseSession:
    return Session(bundle, device=where, engines=_engines(bundle, where))


def _dual(bundle: Bundle, where: Device) -> BaseSession:
    return DualSession(bundle, device=where, engines=_engines(bundle, where))


def _engines(bundle: Bundle, where: Device) -> Path | None:
    return engines.build_engines(bundle) if where == "tensorrt" else None


KINDS = {
    "tome": BundleKind(tiny.checkpoint, "tome", _classifier, _classify),
    "pitome": BundleKind(tiny.checkpoint, "pitome", _classifier, _classify),
    "clip": BundleKind(tiny.dual_checkpoint, "tome", _dual, _embed),
    "siglip": BundleKind(partial(tiny.dual_checkpoint, siglip=True), "tome", _dual, _embed),
}
IMAGES: list[tuple[str, Precision]] = [
    ("tome", "fp32"),
    ("tome", "fp16"),
    ("pitome", "fp16"),
    ("clip", "fp32"),
    ("siglip", "fp16"),
]
PAIRS: list[tuple[str, Precision]] = [
    ("vilt", "fp32"),
    ("vilt", "fp16"),
    ("vilt-tome", "fp32"),
    ("meter", "fp16"),
]
LEVELS = {"exact": 0, "half": 0.3, "least": 0.5}
WITH_TEXTS: dict[str, tuple[Callable[[], AnyCheckpoint], str]] = {
    "vilt": (tiny.pair_checkpoint, "pumer"),
    "vilt-tome": (tiny.pair_checkpoint, "tome"),
    "meter": (tiny.meter_checkpoint, "pumer"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision], Bundle]:
    """Return a function that exports each bundle once, because exporting is slow."""

    @cache
    def exported(name: str, precision: Precision) -> Bundle:
        fields: dict[str, Any] = {"name": name, "precision": precision}
        if name in KINDS:
            make, fields["method"] = KINDS[name].make, KINDS[name].method
        else:
            make, fields["method"] = WITH_TEXTS[name]
        recipe = Recipe.model_validate({**fields, "levels": LEVELS})
        return export_bundle(make(), "a test", tmp_path_factory.mktemp(name) / "tiny", recipe)

    return exported


class OpenedBundle(NamedTuple):
    """Sessions of a bundle on the CPU and on a GPU backend."""

    device: Device
    kind: BundleKind
    precision: Precision
    bundle: Bundle
    cpu: BaseSession
    gpu: BaseSession

    @property
    def plans(self) -> list[Plan]:
        return [level.plan for level in self.bundle.manifest.levels.values()]

    def run(self, images: Array, plan: Plan) -> Outputs:
        return self.kind.run(self.gpu, images, plan)


@pytest.fixture(scope="module", params=DEVICES)
def where(request: pytest.FixtureRequest) -> Device:
    backend: Device = request.param
    return backend


@pytest.fixture(scope="module", params=IMAGES, ids="-".join)
def opened(
    request: pytest.FixtureRequest, where: Device, bundles: Callable[[str, Precision], Bundle]
) -> Iterator[OpenedBundle]:
    name, precision = request.param
    kind, bundle = KINDS[name], bundles(name, precision)
    gpu = kind.open(bundle, where)
    yield OpenedBundle(where, kind, precision, bundle, kind.open(bundle, "cpu"), gpu)
    gpu.close()


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_results_equal_the_cpus(opened: OpenedBundle, batch: int) -> None:
    assert opened.gpu.native
    images = random_images(tiny.SIZE, batch, seed=batch)
    for name, level in opened.bundle.manifest.levels.items():
        expected = opened.kind.run(opened.cpu, images, level.plan)
        actual = opened.run(images, level.plan)
        assert actual.slots.min() >= -1
        assert actual.slots.max() < level.tokens_out
        moved = (actual.slots != expected.slots).any(1)
        reduced = any(level.plan)
        # In a small batch, one near tie would be a large share.
        if batch > 5 or not moved.any():
            judge(name, opened.precision, actual.values, expected.values, moved, reduced=reduced)
        assert np.isfinite(actual.values).all()


def test_results_do_not_depend_on_the_batch(opened: OpenedBundle) -> None:
    images = random_images(tiny.SIZE, 7)
    limit = BATCH_TOLERANCE[opened.precision]
    (plan, *_) = opened.plans
    together = opened.run(images, plan)
    for index in range(len(images)):
        alone = opened.run(images[index : index + 1], plan)
        np.testing.assert_allclose(alone.values[0], together.values[index], rtol=limit, atol=limit)


def test_recorded_runs_equal_unrecorded_ones_exactly(opened: OpenedBundle) -> None:
    images = random_images(tiny.SIZE, 130, seed=1)
    jobs = [(plan, count) for plan in opened.plans[:3] for count in (1, 3, 11, 130)]
    fresh = opened.kind.open(opened.bundle, opened.device)
    plain = [opened.kind.run(fresh, images[-count:], plan) for plan, count in jobs]
    assert fresh.graph.recorded == 0
    fresh.warm(opened.plans[:3])
    assert fresh.graph.recorded == 3 * len(buckets_up_to(fresh.max_batch_size))
    for _ in range(2):
        for (plan, count), expected in zip(jobs, plain, strict=True):
            actual = opened.kind.run(fresh, images[-count:], plan)
            np.testing.assert_array_equal(actual.values, expected.values)
            np.testing.assert_array_equal(actual.slots, expected.slots)
    fresh.close()


@pytest.mark.parametrize("warm", [False, True])
def test_concurrent_runs_of_a_session(opened: OpenedBundle, warm: bool) -> None:
    if warm:
        opened.gpu.warm(opened.plans[:2])
    images = random_images(tiny.SIZE, 24, seed=2)
    jobs = [
        (images[index : index + 1 + index % 5], opened.plans[index % len(opened.plans)])
        for index in range(20)
    ]
    alone = [opened.run(*job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: opened.run(*job), jobs * 5))
    for index, actual in enumerate(together):
        np.testing.assert_array_equal(actual.values, alone[index % len(jobs)].values)
        np.testing.assert_array_equal(actual.slots, alone[index % len(jobs)].slots)


def test_gpu_memory_does_not_grow(opened: OpenedBundle) -> None:
    images = random_images(tiny.SIZE, 128, seed=3)
    for count in reversed(buckets_up_to(128)):
        for plan in opened.plans:
            opened.run(images[:count], plan)
    before = device.memory().free
    for index in range(RUNS):
        opened.run(images[: 1 + index * 37 % 128], opened.plans[index % len(opened.plans)])
    assert before - device.memory().free < 2**21


def test_text_vectors_equal_the_cpus(opened: OpenedBundle) -> None:
    if not isinstance(opened.gpu, DualSession):
        pytest.skip("this bundle takes no texts")
    cpu = cast(DualSession, opened.cpu)
    limit = 10 * BATCH_TOLERANCE[opened.precision]
    assert opened.bundle.manifest.text is not None
    encoder = TextEncoder.open(opened.bundle.tokenizer, opened.bundle.manifest.text.most_tokens)
    for ids, size in text_batches(encoder):
        expected, actual = (
            dual_session.embed_texts(ids, size) for dual_session in (cpu, opened.gpu)
        )
        np.testing.assert_allclose(actual, expected, atol=limit)


def compare(manifest: Manifest, cpu: PairSession, gpu: PairSession, cases: Sequence[Case]) -> None:
    """Check that both sessions give the same answers; raise VerificationError otherwise."""
    expected, actual = (pair_answers(manifest, session, cases) for session in (cpu, gpu))
    verify(manifest, expected, [actual])


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_results_of_image_text_networks_equal_the_cpus(
    where: Device, bundles: Callable[[str, Precision], Bundle], name: str, precision: Precision
) -> None:
    with_texts = bundles(name, precision)
    manifest = with_texts.manifest
    assert manifest.text is not None
    text = TextEncoder.open(with_texts.tokenizer, manifest.text.most_tokens)
    cpu = PairSession(with_texts)
    gpu = PairSession(with_texts, device=where, engines=_engines(with_texts, where))
    free = isinstance(cpu.graph.inputs["image"][1], str)
    cases = pair_batches(text, tiny.SIZE, patch=8 if free else None)
    compare(manifest, cpu, gpu, cases)
    gpu.warm([])
    assert gpu.graph.recorded == len(buckets_up_to(gpu.max_batch_size))
    compare(manifest, cpu, gpu, cases)
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(compare, manifest, cpu, gpu, cases) for _ in range(4)]:
            job.result()
    gpu.close()


@pytest.mark.parametrize(("name", "precision"), IMAGES + PAIRS)
def test_runs_contain_no_copies_between_host_and_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundles: Callable[[str, Precision], Bundle],
    name: str,
    precision: Precision,
) -> None:
    """A copy to the host would wait for the GPU, and could not be recorded."""
    open_session = session.open_session
    profiled: list[Any] = []

    def open_with_profile(*arguments: Any, **keywords: Any) -> Any:
        prefix = str(tmp_path / f"profile{len(profiled)}")
        profiled.append(open_session(*arguments, **keywords, profile=prefix))
        return profiled[-1]

    monkeypatch.setattr(session, "open_session", open_with_profile)
    bundle = bundles(name, precision)
    images = random_images(tiny.SIZE, 2)
    gpu: BaseSession
    if name in KINDS:
        gpu = KINDS[name].open(bundle, "cuda")
        KINDS[name].run(gpu, images, bundle.manifest.levels["half"].plan)
    else:
        gpu = pairs = PairSession(bundle, device="cuda")
        text = TextEncoder.open(bundle.tokenizer, tiny.vilt().config.most_text)
        cases = pair_batches(text, tiny.SIZE, patch=None)
        compare(bundle.manifest, PairSession(bundle), pairs, cases)
    assert isinstance(gpu.graph, CudaGraph)
    for onnx_session, native in profiled:
        assert native
        events = json.loads(Path(onnx_session.end_profiling()).read_text())
        copies = {
            event["name"]
            for event in events
            if "Memcpy" in str(event.get("args", {}).get("op_name"))
        }
        assert not copies
    gpu.close()


def check_classified(
    kind: BundleKind,
    bundle: Bundle,
    session_a: BaseSession,
    session_b: BaseSession,
    counts: Sequence[int] = COUNTS,
) -> None:
    """Check that two sessions give nearly equal results for images, at every level."""
    images = random_images(tiny.SIZE, MANY, seed=MANY)
    for name, level in bundle.manifest.levels.items():
        expected = kind.run(session_b, images, level.plan)
        for count in counts:
            parts = [images[start : start + count] for start in range(0, MANY, count)]
            actual = concatenate([kind.run(session_a, part, level.plan) for part in parts])
            where = f"level {name}, {count} at once"
            check_alike(where, bundle.manifest.precision, actual, expected, reduced=any(level.plan))


@needs_tensorrt
@LONG_TIMEOUT
@pytest.mark.parametrize(("name", "precision"), IMAGES)
def test_engines_and_onnx_runtime_agree_on_images(
    bundles: Callable[[str, Precision], Bundle], name: str, precision: Precision
) -> None:
    kind, bundle = KINDS[name], bundles(name, precision)
    session_a, session_b = kind.open(bundle, "tensorrt"), kind.open(bundle, "cuda")
    check_classified(kind, bundle, session_a, session_b)
    for opened_session in (session_a, session_b):
        opened_session.close()


def _ask(
    pair_session: PairSession, task: PairTask, plan: Plan, images: Array, ids: Array, size: Array
) -> Outputs:
    """Run a task on images (two per item, if the task has two) with texts of equal length."""
    sides = [pair_session.embed(side) for side in (images, images[::-1])[: images_of(task)]]
    outputs = ask(pair_session, sides, ids, size, [plan] * len(sides), task=task, slots=True)
    logits = outputs[-1].logits
    assert logits is not None
    slots = [slots for output in outputs for slots in (output.text_slots, output.image_slots)]
    return Outputs(logits, np.concatenate([part for part in slots if part is not None], axis=1))


def check_tasks(
    bundle: Bundle, session_a: PairSession, session_b: PairSession, counts: Sequence[int] = COUNTS
) -> None:
    """Check that two sessions give nearly equal results for every task at every level."""
    manifest = bundle.manifest
    assert manifest.text is not None
    encoder = TextEncoder.open(bundle.tokenizer, manifest.text.most_tokens)
    images = random_images(tiny.SIZE, MANY, seed=MANY)
    ids, size = random_texts(encoder, [manifest.text.most_tokens] * MANY, seed=MANY)
    tokens = session_b.embed(images[:1]).shape[1]
    for name, level in manifest.levels.items():
        plan = manifest.plan(level, text=ids.shape[1], image=tokens)
        for task in manifest.pair_tasks:
            for count in counts:
                parts = [slice(start, start + count) for start in range(0, MANY, count)]
                # The batch decides which two images form an item, so batches must be equal.
                actual, expected = (
                    concatenate(
                        [
                            _ask(pair_session, task, plan, images[part], ids[part], size[part])
                            for part in parts
                        ]
                    )
                    for pair_session in (session_a, session_b)
                )
                where = f"level {name}, {task}, {count} at once"
                check_alike(where, manifest.precision, actual, expected, reduced=any(level.plan))


@needs_tensorrt
@LONG_TIMEOUT
@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_engines_and_onnx_runtime_agree_on_images_with_texts(
    bundles: Callable[[str, Precision], Bundle], name: str, precision: Precision
) -> None:
    bundle = bundles(name, precision)
    session_a = PairSession(bundle, device="tensorrt", engines=engines.build_engines(bundle))
    session_b = PairSession(bundle, device="cuda")
    check_tasks(bundle, session_a, session_b)
    for opened_session in (session_a, session_b):
        opened_session.close()


@needs_tensorrt
@LONG_TIMEOUT
def test_static_and_dynamic_engines_agree(
    tmp_path: Path, bundles: Callable[[str, Precision], Bundle]
) -> None:
    kind, bundle = KINDS["tome"], bundles("tome", "fp16")
    dynamic = Session(bundle, device="tensorrt", engines=engines.build_engines(bundle))
    static = Session(
        bundle, device="tensorrt", engines=engines.build_engines(bundle, root=tmp_path, static=True)
    )
    check_classified(kind, bundle, static, dynamic)
    for opened_session in (dynamic, static):
        opened_session.close()
