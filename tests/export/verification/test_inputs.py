"""Verification inputs: several sizes and lengths, alone and in batches."""

from __future__ import annotations

import numpy as np

from tests import tiny
from tokenfold.export.verification.inputs import (
    VERIFIED_IMAGES,
    image_batches,
    pair_batches,
    random_images,
    text_batches,
)


def test_random_images_are_smooth_and_noisy_by_turns() -> None:
    images = random_images((16, 24), 4)
    assert images.shape == (4, 16, 24, 3)
    steps = np.abs(np.diff(images.astype(float), axis=1)).mean((1, 2, 3))
    assert (steps[::2] < steps[1::2]).all()
    assert np.array_equal(images, random_images((16, 24), 4))
    assert not np.array_equal(images, random_images((16, 24), 4, seed=1))


def test_the_first_image_is_a_batch_by_itself() -> None:
    first, remaining = image_batches(None, tiny.PREPROCESS)
    assert first.shape == (1, *tiny.SIZE, 3)
    assert len(remaining) == VERIFIED_IMAGES - 1


def test_texts_have_several_lengths_in_one_batch() -> None:
    batches = text_batches(tiny.dual_checkpoint().text)
    assert [batch.size.sum(1).tolist() for batch in batches] == [[12, 3, 6], [6], [3]]


def test_pairs_have_another_grid_where_the_network_takes_one() -> None:
    text = tiny.pair_checkpoint().text
    fixed = pair_batches(text, tiny.SIZE, patch=None)
    assert {case.left.shape[1:3] for case in fixed} == {tiny.SIZE}
    free = pair_batches(text, tiny.SIZE, patch=8)
    assert {case.right.shape[1:3] for case in free} == {tiny.SIZE, (40, 24)}
    for case in free:
        assert len(case.left) == len(case.right) == len(case.ids) == len(case.size)
