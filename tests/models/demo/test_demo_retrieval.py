"""The demo dual encoder: its profile and its export are reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tokenfold import scenes
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.schedule import DEFAULT_LEVELS
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.checkpoints.load import load
from tokenfold.models.training.retrieval import MEASURED, SETTINGS
from tokenfold.models.training.retrieval_data import held_out
from tokenfold.runtime.dual import DualSession

DEMO = Path(__file__).parents[3] / "models" / "demo"
CHECKPOINT = DEMO / "checkpoints" / "scenes-retrieval"
BUNDLE = DEMO / "bundles" / "scenes-retrieval"
# Minimum for the unreduced network, and maximum loss with 40 % fewer FLOPs.
MIN_RECALL, MAX_LOSS = 0.8, 0.01


def test_every_level_has_its_measured_recall() -> None:
    bundle = Bundle.open(BUNDLE)
    assert bundle.manifest.name == BUNDLE.name
    assert bundle.manifest.kind == "dual"
    assert {name: level.reduction for name, level in bundle.manifest.levels.items()} == (
        DEFAULT_LEVELS
    )
    assert bundle.profile is not None
    recalls = {name: level.quality["embed"] for name, level in bundle.profile.levels.items()}
    assert {(recall.metric, recall.samples) for recall in recalls.values()} == {
        ("recall", MEASURED)
    }
    assert recalls["exact"].value >= MIN_RECALL
    assert recalls["balanced"].value >= recalls["exact"].value - MAX_LOSS
    assert all(level.latency and level.neighbours for level in bundle.profile.levels.values())


def test_the_network_is_small_and_sees_enough_tokens() -> None:
    checkpoint = load(str(CHECKPOINT))
    assert isinstance(checkpoint, DualCheckpoint)
    assert sum(weight.numel() for weight in checkpoint.model.parameters()) < 6_000_000
    assert checkpoint.model.config.image.workload("tome").tokens >= 144


def test_the_checkpoint_records_its_training_settings() -> None:
    settings = json.loads((CHECKPOINT / "training.json").read_text())
    assert settings["steps"] == SETTINGS.steps


def test_the_checkpoint_exports_to_the_shipped_bundle(tmp_path: Path) -> None:
    shipped = Bundle.open(BUNDLE)
    recipe = Recipe(name=BUNDLE.name, precision=shipped.manifest.precision)
    exported = export_bundle(load(str(CHECKPOINT)), "a test", tmp_path / BUNDLE.name, recipe)
    assert exported.manifest.workload == shipped.manifest.workload
    assert exported.manifest.levels == shipped.manifest.levels
    assert exported.manifest.similarity == shipped.manifest.similarity
    images = np.stack([scenes.draw(scene) for scene in held_out(3).scenes])
    shipped_session, exported_session = DualSession(shipped), DualSession(exported)
    for level in shipped.manifest.levels.values():
        before, after = (
            session.embed_images(images, level.plan)
            for session in (shipped_session, exported_session)
        )
        np.testing.assert_allclose(before.vectors, after.vectors, atol=1e-4)


def test_recall_matches_the_profile() -> None:
    bundle = Bundle.open(BUNDLE)
    assert bundle.profile is not None
    session, count = DualSession(bundle), 300
    # Scenes that the profile was not measured on.
    gallery = held_out(count, first=70_000)
    text = TextEncoder.open(bundle.tokenizer, 64)
    texts = []
    for query in gallery.texts:
        ids = text.encode(query).ids[None]
        texts.append(session.embed_texts(ids, np.ones(ids.shape, dtype=np.float32))[0])
    images = np.stack([scenes.draw(scene) for scene in gallery.scenes])
    for name in ("exact", "balanced"):
        plan = bundle.manifest.levels[name].plan
        vectors = np.concatenate(
            [
                session.embed_images(images[start : start + 50], plan).vectors
                for start in range(0, count, 50)
            ]
        )
        hits = (np.stack(texts) @ vectors.T).argmax(1) == np.arange(count)
        # Recall is higher in a smaller gallery, so the profile is a lower bound.
        assert hits.mean() >= bundle.profile.levels[name].quality["embed"].low


def test_short_queries_retrieve_matching_scenes() -> None:
    bundle = Bundle.open(BUNDLE)
    session = DualSession(bundle)
    gallery = held_out(300, first=80_000)
    images = np.stack([scenes.draw(scene) for scene in gallery.scenes])
    plan = bundle.manifest.levels["balanced"].plan
    vectors = np.concatenate(
        [
            session.embed_images(images[start : start + 50], plan).vectors
            for start in range(0, 300, 50)
        ]
    )
    text = TextEncoder.open(bundle.tokenizer, 64)
    hits = []
    for colour in scenes.COLOURS:
        for shape in scenes.SHAPES:
            ids = text.encode(f"a {colour} {shape}").ids[None]
            vector = session.embed_texts(ids, np.ones(ids.shape, dtype=np.float32))[0]
            best = gallery.scenes[int((vectors @ vector).argmax())]
            hits.append(
                any((thing.colour, thing.shape) == (colour, shape) for thing in best.things)
            )
    assert np.mean(hits) >= 0.8
