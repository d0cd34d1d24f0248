"""Sessions: concurrent threads, native and portable ops, and cleanup after errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.verification.inputs import random_images
from tokenfold.runtime import libraries
from tokenfold.runtime import session as runtime
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.graph import CpuGraph
from tokenfold.runtime.pair import PairSession
from tokenfold.runtime.session import Session


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(tiny.checkpoint(), "a test", out, Recipe(name="tiny"))


def test_slots_are_returned_on_request(bundle: Bundle) -> None:
    session = Session(bundle)
    images = random_images(tiny.SIZE, 2)
    assert session.run(images, (1, 1, 1)).slots is None
    slots = session.run(images, (1, 1, 1), slots=True).slots
    assert slots is not None
    assert slots.shape == (2, 17)
    assert slots.max() == 13


def test_threads_share_a_session(bundle: Bundle) -> None:
    session = Session(bundle)
    images = random_images(tiny.SIZE, 24)
    plans = [level.plan for level in bundle.manifest.levels.values()]
    jobs = [(image[None], plans[at % len(plans)]) for at, image in enumerate(images)]
    alone = [session.run(*job).logits for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: session.run(*job).logits, jobs * 4))
    for at, logits in enumerate(together):
        assert np.array_equal(logits, alone[at % len(jobs)])


def test_portable_ops_match_native_ops(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(tiny.SIZE, 4)
    default = Session(bundle)
    assert default.native == (libraries.find() is not None)
    monkeypatch.setenv(libraries.VARIABLES["cpu"], "none")
    for portable in (Session(bundle), Session(bundle, native=False)):
        assert not portable.native
        for level in bundle.manifest.levels.values():
            actual, expected = (
                session.run(images, level.plan).logits for session in (portable, default)
            )
            np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_library_that_cannot_be_loaded_leaves_portable_ops(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = random_images(tiny.SIZE, 2)
    expected = Session(bundle, native=False).run(images, (2, 1, 1)).logits
    damaged = tmp_path / "ops.so"
    damaged.write_bytes(b"not a library")
    monkeypatch.setenv(libraries.VARIABLES["cpu"], str(damaged))
    session = Session(bundle)
    assert not session.native
    np.testing.assert_array_equal(session.run(images, (2, 1, 1)).logits, expected)


class Held(CpuGraph):
    """Graph that records whether it was closed, and that fails to warm."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.closed = False

    def warm(self, _: Iterable[Plan], /) -> None:
        raise MemoryError("no memory")

    def close(self) -> None:
        self.closed = True


def held(monkeypatch: pytest.MonkeyPatch, max_graphs: int = 2) -> list[Held]:
    """Record the graphs that are opened from now on; opening more than `most` of them fails."""
    opened: list[Held] = []

    def open_held(path: Path, **_: Any) -> Held:
        if len(opened) == max_graphs:
            raise MemoryError("no memory")
        opened.append(Held(path))
        return opened[-1]

    monkeypatch.setattr(runtime, "open_graph", open_held)
    return opened


TWO = [(dual_bundle, DualSession), (pair_bundle, PairSession)]


@pytest.mark.parametrize(("write", "make"), TWO)
def test_a_session_that_fails_to_open_releases_its_graphs(
    write: Callable[[Path], Path],
    make: Callable[[Bundle], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = held(monkeypatch, max_graphs=1)
    with pytest.raises(MemoryError):
        make(Bundle.open(write(tmp_path / "a")))
    assert [graph.closed for graph in opened] == [True]


@pytest.mark.parametrize(("write", "make"), TWO)
def test_a_session_that_fails_to_warm_releases_its_graphs(
    write: Callable[[Path], Path],
    make: Callable[[Bundle], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = held(monkeypatch)
    session = make(Bundle.open(write(tmp_path / "a")))
    with pytest.raises(MemoryError):
        session.warm([])
    assert [graph.closed for graph in opened] == [True, True]
