"""Tests of the random inputs of the self-test and the warm-up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.service.standin import SIDE, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Manifest, TextSpec
from tokenfold.service.scheduling.backends import noise


def manifest(tmp_path: Path) -> Manifest:
    return Bundle.open(bundle(tmp_path / "a")).manifest


def test_samples_have_the_right_shapes_and_are_reproducible(tmp_path: Path) -> None:
    image_manifest = manifest(tmp_path)
    single = noise.sample(image_manifest, images=1)
    assert set(single) == {"image"}
    assert single["image"].shape == (SIDE, SIDE, 3)
    assert single["image"].dtype == np.uint8
    pair = noise.sample(image_manifest, images=2, text=5, vocabulary=7)
    assert set(pair) == {"image", "second_image", "input_ids"}
    assert pair["input_ids"].shape == (5,)
    assert pair["input_ids"].max() < 7
    assert not np.array_equal(pair["image"], pair["second_image"])
    repeated = noise.sample(image_manifest, images=1)
    assert np.array_equal(single["image"], repeated["image"])
    assert not np.array_equal(
        single["image"], noise.sample(image_manifest, images=1, seed=1)["image"]
    )


def test_the_number_of_images_of_each_step() -> None:
    assert noise.images_of("classify", "answer") == 1
    assert noise.images_of("reason", "answer") == 2
    assert noise.images_of("reason", "embed") == 1
    assert noise.images_of("embed", "read") == 0


def test_the_text_lengths_to_test(tmp_path: Path) -> None:
    plain = manifest(tmp_path)
    lengths = {
        spec: noise.lengths(plain.model_copy(update={"text": spec}))
        for spec in (
            None,
            TextSpec(most_tokens=40),
            TextSpec(most_tokens=5),
            TextSpec(most_tokens=64, padding=1),
        )
    }
    assert list(lengths.values()) == [(), (8, 40), (5,), (64,)]
