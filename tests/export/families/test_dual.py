"""Dual encoders: exported, verified and measured."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import exp
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import IMAGE, TEXT, TOKENIZER, Similarity, TextSpec
from tokenfold.bundle.profile import PROFILE
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.cli import main
from tokenfold.export.families.dual import dual_answers
from tokenfold.export.graphs.dual import TextGraph
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.reference import DualReference
from tokenfold.export.verification.comparison import VerificationError, verify
from tokenfold.export.verification.inputs import random_images, text_batches
from tokenfold.models.checkpoints import native
from tokenfold.runtime.dual import DualSession

LEVELS = {"exact": 0.0, "half": 0.3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    native.save(folder, tiny.dual_checkpoint())
    return folder


def photos(folder: Path, *, described: bool) -> Path:
    folder.mkdir()
    lines = []
    for at, pixels in enumerate(random_images((40, 50), 12)):
        Image.fromarray(pixels).save(folder / f"{at:02}.png")
        text = f"is it {tiny.LABELS[at % 5]}"
        lines.append({"task": "retrieve", "images": [f"{at:02}.png"], "text": text})
    if described:
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export a bundle by the command, with its defaults, and measure it."""
    folder = tmp_path_factory.mktemp("exported")
    images = photos(folder / "photos", described=True)
    assert main([str(source), "--images", str(images), "--out", str(folder / "finder")]) == 0
    return Bundle.open(folder / "finder")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SigLIP with PiToMe, in int8, measured on images without descriptions."""
    folder = tmp_path_factory.mktemp("siglip")
    images = photos(folder / "photos", described=False)
    recipe = Recipe(name="s", method="pitome", precision="int8", levels=LEVELS, images=images)
    return export_bundle(tiny.dual_checkpoint(siglip=True), "a test", folder / "s", recipe)


def test_a_checkpoint_becomes_a_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.name == "finder"
    assert manifest.tasks == {"embed": ()}
    assert manifest.text == TextSpec(most_tokens=12)
    assert manifest.workload.method == "tome"
    assert manifest.similarity is not None
    assert manifest.similarity.scale == pytest.approx(exp(3))
    assert manifest.similarity.model_copy(update={"scale": 1.0}) == Similarity(
        width=40, scale=1.0, scores="softmax", template="it is an {}"
    )
    assert set(manifest.files) == {IMAGE, TEXT, TOKENIZER, PROFILE}
    assert manifest.default_level == "balanced"
    assert max(manifest.deviation.values()) < 1e-4
    text = TextEncoder.open(bundle.tokenizer, 12)
    ids = text.encode("is it a cat").ids
    assert ids.tolist() == tiny.dual_checkpoint().text.encode("is it a cat").ids.tolist()


def test_every_level_is_measured(bundle: Bundle) -> None:
    assert bundle.profile is not None
    for level in bundle.manifest.levels:
        measured = bundle.profile.levels[level]
        quality = measured.quality["embed"]
        assert (quality.metric, quality.samples) == ("recall", 12)
        assert quality.low <= quality.value <= quality.high
        assert set(measured.neighbours) == set(bundle.manifest.levels)
        assert measured.neighbours[level] == 1.0


def test_siglip_attends_to_padding(siglip: Bundle) -> None:
    manifest = siglip.manifest
    assert manifest.text == TextSpec(most_tokens=12, padding=0)
    assert manifest.similarity is not None
    assert manifest.similarity.scores == "sigmoid"
    assert manifest.similarity.bias == -2.0
    assert 0 < manifest.deviation["exact"] < 0.25
    for path in (siglip.image, siglip.text):
        kinds = [weight.data_type for weight in onnx.load(path).graph.initializer]
        assert kinds.count(onnx.TensorProto.INT8) >= 4 * 3, "the weights of every linear layer"
    assert siglip.profile is not None
    quality = siglip.profile.levels["exact"].quality["embed"]
    assert (quality.metric, quality.samples) == ("agreement", 12)


def test_fp16(tmp_path: Path) -> None:
    recipe = Recipe(name="b", precision="fp16", levels=LEVELS)
    exported = export_bundle(tiny.dual_checkpoint(), "a test", tmp_path / "b", recipe)
    assert 0 < exported.manifest.deviation["half"] < 0.02
    vectors = DualSession(exported).embed_images(random_images(tiny.SIZE, 2), (0, 0, 0)).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("which", ["bundle", "siglip"])
def test_sessions_embed_images_and_texts(which: str, request: pytest.FixtureRequest) -> None:
    exported: Bundle = request.getfixturevalue(which)
    images, session = random_images(tiny.SIZE, 6), DualSession(exported)
    plan = list(exported.manifest.levels.values())[1].plan
    vectors, slots = session.embed_images(images, plan, slots=True)
    assert slots is not None
    assert slots.max() + 1 == exported.manifest.workload.widths(plan)[-1]
    assert session.embed_images(images, plan).slots is None
    assert exported.manifest.similarity is not None
    assert vectors.shape == (6, exported.manifest.similarity.width)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for texts in text_batches(TextEncoder.open(exported.tokenizer, 12)):
        text_vectors = session.embed_texts(*texts)
        np.testing.assert_allclose(np.linalg.norm(text_vectors, axis=1), 1, atol=1e-5)


def test_threads_share_a_session(bundle: Bundle) -> None:
    session, plan = DualSession(bundle), bundle.manifest.levels["balanced"].plan
    images = random_images(tiny.SIZE, 6)
    together = session.embed_images(images, plan).vectors
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda output: session.embed_images(output[None], plan), images))
    separate_vectors = np.concatenate([output.vectors for output in alone])
    np.testing.assert_allclose(separate_vectors, together, atol=1e-5)


def test_verification_notices_other_weights_and_another_way_to_merge(bundle: Bundle) -> None:
    images, texts = [random_images(tiny.SIZE, 4)], text_batches(tiny.dual_checkpoint().text)
    session = dual_answers(DualSession(bundle), images, texts)

    def deviations(seed: int = 0, proportional: bool = True) -> dict[str, float]:
        checkpoint = tiny.dual_checkpoint(seed=seed)
        reference = DualReference(checkpoint, "tome", proportional=proportional)
        return verify(bundle.manifest, dual_answers(reference, images, texts), [session])

    assert max(deviations().values()) < 1e-4
    with pytest.raises(VerificationError, match="level high: vectors"):
        deviations(proportional=False)
    with pytest.raises(VerificationError, match="texts: vectors are off"):
        deviations(seed=1)


def test_a_graph_that_disagrees_is_not_written(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = TextGraph.write

    def write_wrong(graph: TextGraph, path: Path) -> None:
        graph.tower.norm.weight.data[0] += 0.1
        write(graph, path)

    monkeypatch.setattr(TextGraph, "write", write_wrong)
    assert main([str(source), "--method", "none", "--out", str(tmp_path / "b")]) == 2
    assert "texts: vectors" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
