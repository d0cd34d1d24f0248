"""Image classifiers: verification against PyTorch, and measured agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests import tiny
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.workload import Method
from tokenfold.export.cli import main
from tokenfold.export.families.classifier import classifier_answers
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.export.reference import ClassifierReference, normalised
from tokenfold.export.verification.comparison import VerificationError, verify
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.checkpoints import native
from tokenfold.runtime.session import Session

LEVELS = {"exact": 0.0, "half": 0.4}


def test_verification_notices_other_weights_and_other_merges(tmp_path: Path) -> None:
    bundle = export_bundle(
        tiny.checkpoint(), "a test", tmp_path / "b", Recipe(name="b", levels=LEVELS)
    )
    images = [random_images(tiny.SIZE, 4)]
    session = classifier_answers(Session(bundle), images)

    def deviations(
        seed: int = 0, method: Method = "tome", precision: Precision = "fp32"
    ) -> dict[str, float]:
        reference = ClassifierReference(tiny.checkpoint(seed=seed), method, proportional=True)
        manifest = bundle.manifest.model_copy(update={"precision": precision})
        return verify(manifest, classifier_answers(reference, images), [session])

    assert max(deviations().values()) < 1e-4
    with pytest.raises(VerificationError, match="level exact"):
        deviations(seed=1)
    with pytest.raises(VerificationError, match="level exact"):
        deviations(seed=1, precision="int8")
    with pytest.raises(VerificationError, match="level half: 4 of 4 images merge other tokens"):
        deviations(method="pitome")


def test_a_graph_that_disagrees_is_not_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    native.save(tmp_path / "checkpoint", tiny.checkpoint())
    write = ClassifierGraph.write

    def write_wrong(graph: ClassifierGraph, path: Path) -> None:
        head = graph.model.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight *= 1.01
        write(graph, path)

    monkeypatch.setattr(ClassifierGraph, "write", write_wrong)
    source, out = tmp_path / "checkpoint", tmp_path / "b"
    assert main([str(source), "--out", str(out), "--levels", "exact=0"]) == 2
    assert "level exact: logits are off" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_unlabelled_images_measure_agreement(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for at, pixels in enumerate(random_images(tiny.SIZE, 4)):
        Image.fromarray(pixels).save(folder / f"{at}.png")
    recipe = Recipe(name="b", levels=LEVELS, images=folder)
    bundle = export_bundle(tiny.checkpoint(), "a test", tmp_path / "b", recipe)
    assert bundle.profile is not None
    quality = bundle.profile.levels["exact"].quality["classify"]
    assert (quality.metric, quality.value) == ("agreement", 1.0)


def test_int8_agreement_is_with_the_unreduced_fp32_network(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for at, pixels in enumerate(random_images(tiny.SIZE, 60)):
        Image.fromarray(pixels).save(folder / f"{at:02}.png")
    recipe = Recipe(name="b", precision="int8", levels={"exact": 0.0}, images=folder)
    bundle = export_bundle(tiny.checkpoint(), "a test", tmp_path / "b", recipe)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    with torch.inference_mode():
        x = normalised(images, bundle.manifest.preprocess)
        expected = tiny.checkpoint().model(x).logits.argmax(-1).numpy()
    session = Session(bundle)
    answers = [int(session.run(image[None], (0, 0, 0)).logits.argmax()) for image in images]
    assert bundle.profile is not None
    quality = bundle.profile.levels["exact"].quality["classify"]
    assert quality.value == pytest.approx(np.mean(answers == expected))
