"""The demo classifiers: their profile and their export are reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.schedule import DEFAULT_LEVELS
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality.classifier import measure
from tokenfold.export.quality.photos import Photos
from tokenfold.export.recipe import Recipe
from tokenfold.export.stages import Workers
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints.load import load_classifier as load
from tokenfold.runtime.session import Session

DEMO = Path(__file__).parents[3] / "models" / "demo"
CHECKPOINT = DEMO / "checkpoints" / "cifar10"
BUNDLES = ["cifar10", "cifar10-int8"]
DATA = Path(__file__).parents[4] / "shared" / "data" / "cifar10-train.zip"


def test_the_bundles_are_small() -> None:
    files = [path for path in (DEMO / "bundles").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25_000_000


@pytest.mark.parametrize("name", BUNDLES)
def test_every_level_has_its_measured_accuracy(name: str) -> None:
    bundle = Bundle.open(DEMO / "bundles" / name)
    assert bundle.manifest.name == name
    assert {level: point.reduction for level, point in bundle.manifest.levels.items()} == (
        DEFAULT_LEVELS
    )
    assert bundle.profile is not None
    for level in bundle.manifest.levels:
        measured = bundle.profile.levels[level].quality["classify"]
        assert (measured.metric, measured.samples) == ("top1", 5000)
        assert measured.value > 0.75
        assert bundle.profile.levels[level].latency
    exact = bundle.profile.levels["exact"].quality["classify"]
    assert exact.value >= 0.78


@pytest.mark.parametrize("name", BUNDLES)
def test_the_checkpoint_exports_to_the_shipped_bundle(name: str, tmp_path: Path) -> None:
    shipped = Bundle.open(DEMO / "bundles" / name)
    recipe = Recipe(name=name, precision=shipped.manifest.precision)
    exported = export_bundle(load(str(CHECKPOINT)), "a test", tmp_path / name, recipe)
    assert exported.manifest.workload == shipped.manifest.workload
    assert exported.manifest.levels == shipped.manifest.levels
    assert exported.manifest.tasks == shipped.manifest.tasks
    images = random_images(shipped.manifest.preprocess.size, 8)
    shipped_session, exported_session = Session(shipped), Session(exported)
    for level in shipped.manifest.levels.values():
        before = shipped_session.run(images, level.plan, slots=True)
        after = exported_session.run(images, level.plan, slots=True)
        assert np.array_equal(before.slots, after.slots)  # type: ignore[arg-type]
        np.testing.assert_allclose(before.logits, after.logits, atol=1e-4)


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} does not exist")
@pytest.mark.parametrize("name", BUNDLES)
def test_accuracy_matches_the_profile(name: str, tmp_path: Path) -> None:
    from tokenfold.models.training.cifar import save_held_out

    bundle = Bundle.open(DEMO / "bundles" / name)
    manifest = bundle.manifest
    save_held_out(DATA, tmp_path / "held-out.zip")
    photos = Photos(tmp_path / "held-out.zip", manifest.tasks["classify"])
    assert len(photos) == 5000
    photos.names, photos.labels = photos.names[::10], (photos.labels or [])[::10]
    two_levels = {level: manifest.levels[level] for level in ("exact", "balanced")}
    session = Session(bundle)
    measured = measure(
        manifest.model_copy(update={"levels": two_levels}),
        session,
        photos,
        unreduced=session,
        workers=Workers(2),
    )
    for level, profile in measured.items():
        share = profile.quality["classify"]
        published = bundle.profile.levels[level].quality["classify"]  # type: ignore[union-attr]
        assert share.low <= published.value <= share.high, (
            f"{level}: measured {share}, profile {published}"
        )
