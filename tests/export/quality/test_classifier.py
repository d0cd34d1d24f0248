"""Shares of right answers of a classifier's levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.export.quality import manifests
from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.preprocess import Pixels
from tokenfold.export.quality.classifier import measure
from tokenfold.export.quality.photos import Photos
from tokenfold.export.reference import ClassifierReference
from tokenfold.export.stages import Workers
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.runtime.session import Output

PLANS = {"exact": (0, 0, 0), "half": (4, 2, 1)}


class FixedAnswers(ClassifierReference):
    """A classifier whose answer is the red value of the first pixel, or 0 when it reduces."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, "tome", proportional=True)

    def run(
        self,
        images: Pixels,
        plan: Sequence[int],
        *,
        slots: bool = False,  # noqa: ARG002
    ) -> Output:
        answers = images[:, 0, 0, 0] * (not any(plan))
        return Output(np.eye(len(tiny.LABELS), dtype=np.float32)[answers], None)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return tiny.checkpoint()


@pytest.fixture
def manifest(checkpoint: Checkpoint) -> Manifest:
    workload = checkpoint.model.config.workload("tome")
    return manifests.manifest(
        "classifier",
        workload,
        PLANS,
        tasks={"classify": checkpoint.labels},
        preprocess=checkpoint.preprocess,
    )


def save(folder: Path, answers: dict[str, Sequence[int]]) -> Path:
    """Save one image for each answer, in folders named by the keys."""
    for name, reds in answers.items():
        (folder / name).mkdir(parents=True)
        for at, red in enumerate(reds):
            Image.new("RGB", tiny.SIZE, (red, 0, 0)).save(folder / name / f"{at}.png")
    return folder


def test_labels_give_the_accuracy_of_each_level(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    # At exact, the images 0, 2 and 2 are right; at half every answer is 0, an ant.
    source = save(tmp_path / "photos", {"ant": (0, 1), "cat": (2, 2, 1)})
    photos, network = Photos(source, tiny.LABELS), FixedAnswers(checkpoint)
    steps: list[None] = []
    workers = Workers(2, lambda: steps.append(None))
    profiles = measure(manifest, network, photos, unreduced=network, workers=workers)
    qualities = {name: level.quality["classify"] for name, level in profiles.items()}
    assert {quality.metric for quality in qualities.values()} == {"top1"}
    assert {quality.samples for quality in qualities.values()} == {5} == {len(steps)}
    assert qualities["exact"].value == pytest.approx(3 / 5)
    assert qualities["half"].value == pytest.approx(2 / 5)


def test_without_labels_the_unreduced_network_is_right(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    photos = Photos(save(tmp_path / "photos", {"others": (0, 3, 4, 0)}), tiny.LABELS)
    network = FixedAnswers(checkpoint)
    profiles = measure(manifest, network, photos, unreduced=network, workers=Workers())
    qualities = {name: level.quality["classify"] for name, level in profiles.items()}
    assert {quality.metric for quality in qualities.values()} == {"agreement"}
    assert qualities["exact"].value == 1.0
    assert qualities["half"].value == pytest.approx(2 / 4)
