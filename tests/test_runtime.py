"""A session: any number of threads at once, on native or portable ops."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from export.bundle import Bundle
from export.pipeline import export_bundle
from export.plugins.onnxruntime import library
from export.recipe import Recipe
from export.runtime import Session
from export.verify import random_images
from tests import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(tiny.checkpoint(), "a test", out, Recipe(name="tiny"))


def test_slots_come_when_asked_for(bundle: Bundle) -> None:
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


def test_portable_ops_give_the_same(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(tiny.SIZE, 4)
    usual = Session(bundle)
    assert usual.native == (library.find() is not None)
    monkeypatch.setenv(library.VARIABLE, "none")
    for portable in (Session(bundle), Session(bundle, native=False)):
        assert not portable.native
        for level in bundle.manifest.levels.values():
            own, other = (session.run(images, level.plan).logits for session in (portable, usual))
            np.testing.assert_allclose(own, other, atol=1e-5)
