"""The demo vision-language network: its profile and its export are reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenfold import scenes
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality.pair import Items, measure
from tokenfold.export.recipe import Recipe
from tokenfold.export.stages import Workers
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints.load import load
from tokenfold.models.training.pair_data import MEASURED, write_held_out
from tokenfold.runtime.pair import PairSession, ask

DEMO = Path(__file__).parents[3] / "models" / "demo"
CHECKPOINT = DEMO / "checkpoints" / "scenes"
BUNDLES = ["scenes", "scenes-int8"]
# Minimum for the unreduced network, and maximum loss with 40 % fewer FLOPs.
MIN_ACCURACY: dict[PairTask, float] = {"vqa": 0.9, "entail": 0.9, "reason": 0.8}
MAX_LOSS = 0.01


@pytest.mark.parametrize("name", BUNDLES)
def test_every_level_has_its_measured_accuracy(name: str) -> None:
    bundle = Bundle.open(DEMO / "bundles" / name)
    assert bundle.manifest.name == name
    assert bundle.profile is not None
    exact = bundle.profile.levels["exact"].quality
    balanced = bundle.profile.levels["balanced"].quality
    assert bundle.manifest.levels["balanced"].flops_ratio == pytest.approx(0.6, abs=0.01)
    for task, samples in MEASURED.items():
        for level in bundle.manifest.levels:
            measured = bundle.profile.levels[level].quality[task]
            assert (measured.metric, measured.samples) == ("accuracy", samples)
        assert exact[task].value >= MIN_ACCURACY.get(task, 0.0)
        assert balanced[task].value >= exact[task].value - MAX_LOSS
    assert all(bundle.profile.levels[level].latency for level in bundle.manifest.levels)


@pytest.mark.parametrize("name", BUNDLES)
def test_the_checkpoint_exports_to_the_shipped_bundle(name: str, tmp_path: Path) -> None:
    shipped = Bundle.open(DEMO / "bundles" / name)
    recipe = Recipe(
        name=name,
        method="pumer",
        precision=shipped.manifest.precision,
        levels={level: point.reduction for level, point in shipped.manifest.levels.items()},
    )
    exported = export_bundle(load(str(CHECKPOINT)), "a test", tmp_path / name, recipe)
    assert exported.manifest.workload == shipped.manifest.workload
    assert exported.manifest.levels == shipped.manifest.levels
    assert exported.manifest.tasks == shipped.manifest.tasks
    text = TextEncoder.open(shipped.tokenizer, 32)
    ids = text.encode("Is the red star left of the large ring?").ids[None]
    size = np.ones(ids.shape, dtype=np.float32)
    images = random_images(shipped.manifest.preprocess.size, 2)
    shipped_session, exported_session = PairSession(shipped), PairSession(exported)
    for level in shipped.manifest.levels.values():
        plan = shipped.manifest.plan(level, text=ids.shape[1], image=145)
        before, after = (
            ask(session, [session.embed(images[:1])], ids, size, [plan], task="vqa", slots=True)
            for session in (shipped_session, exported_session)
        )
        assert np.array_equal(before[0].image_slots, after[0].image_slots)  # type: ignore[arg-type]
        np.testing.assert_allclose(before[0].logits, after[0].logits, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BUNDLES)
def test_accuracy_matches_the_profile(name: str, tmp_path: Path) -> None:
    bundle = Bundle.open(DEMO / "bundles" / name)
    manifest = bundle.manifest
    texts: dict[PairTask, int] = dict.fromkeys(MEASURED, 150)
    write_held_out(tmp_path / "held-out.zip", texts)
    labels = {task: manifest.tasks[task] for task in manifest.pair_tasks}
    items = Items(tmp_path / "held-out.zip", labels)
    two_levels = {level: manifest.levels[level] for level in ("exact", "balanced")}
    session = PairSession(bundle)
    measured = measure(
        manifest.model_copy(update={"levels": two_levels}),
        session,
        items,
        TextEncoder.open(bundle.tokenizer, 32),
        unreduced=session,
        workers=Workers(2),
    )
    assert bundle.profile is not None
    for level, profile in measured.items():
        for task, share in profile.quality.items():
            published = bundle.profile.levels[level].quality[task].value
            assert share.low <= published <= share.high, (
                f"{level}, {task}: {share}, profile {published}"
            )


def test_the_tokenizer_knows_every_word_of_the_scenes() -> None:
    text = TextEncoder.open(DEMO / "bundles" / "scenes" / "tokenizer.json", 32)
    for word in scenes.WORDS:
        assert "[UNK]" not in text.encode(word).tokens
