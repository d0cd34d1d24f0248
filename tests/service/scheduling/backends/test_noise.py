"""Inputs that mean nothing: of the right shapes, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.service.standin import SIDE, bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Manifest, TextSpec
from tokenfold.service.scheduling.backends import noise


def manifest(tmp_path: Path) -> Manifest:
    return Bundle.open(bundle(tmp_path / "a")).manifest


def test_an_item_of_each_kind(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    one = noise.sample(found, images=1)
    assert set(one) == {"image"}
    assert one["image"].shape == (SIDE, SIDE, 3)
    assert one["image"].dtype == np.uint8
    two = noise.sample(found, images=2, text=5, vocabulary=7)
    assert set(two) == {"image", "second_image", "input_ids"}
    assert two["input_ids"].shape == (5,)
    assert two["input_ids"].max() < 7
    assert not np.array_equal(two["image"], two["second_image"])
    again = noise.sample(found, images=1)
    assert np.array_equal(one["image"], again["image"])
    assert not np.array_equal(one["image"], noise.sample(found, images=1, seed=1)["image"])


def test_how_many_images_a_step_looks_at() -> None:
    assert noise.images_of("classify", "answer") == 1
    assert noise.images_of("reason", "answer") == 2
    assert noise.images_of("reason", "embed") == 1
    assert noise.images_of("embed", "read") == 0


def test_lengths_of_texts(tmp_path: Path) -> None:
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
