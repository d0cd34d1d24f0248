"""Verification inputs: images and texts of several sizes and lengths, alone and in batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenfold.bundle.preprocess import Pixels, Preprocess
from tokenfold.bundle.text import TextEncoder, random_texts
from tokenfold.export.quality.photos import Photos
from tokenfold.runtime.dual import Float, Int

VERIFIED_IMAGES = 8
"""Number of random images, and of the user's images, to verify with."""

MIN_TEXT = 3
"""Tokens of a text with one word between two special tokens."""


def random_images(size: tuple[int, int], count: int, seed: int = 0) -> Pixels:
    """Draw images (count, H, W, 3) uint8, alternately smooth, as photos are, and noise."""
    generator = np.random.default_rng(seed)
    height, width = size
    images = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    for image in images[::2]:
        frequency = generator.uniform(0.5, 6, (2, 3)) * np.pi
        phase = generator.uniform(0, 2 * np.pi, 3)
        wave = rows[..., None] / height * frequency[0] + columns[..., None] / width * frequency[1]
        image[:] = 127.5 + 127.5 * np.sin(wave + phase)
    return images


def image_batches(photos: Photos | None, preprocess: Preprocess) -> list[Pixels]:
    """Return images (B, H, W, 3) uint8 of the network's input size: random ones and the user's.

    The first image is a batch by itself, as a CPU runs it; the others are one batch.
    """
    images = random_images(preprocess.size, VERIFIED_IMAGES)
    if photos is not None:
        spread = range(0, len(photos), max(1, len(photos) // VERIFIED_IMAGES))[:VERIFIED_IMAGES]
        images = np.concatenate(
            [images, np.stack([photos.pixels(at, preprocess) for at in spread])]
        )
    return [images[:1], images[1:]]


class Texts(NamedTuple):
    """A batch of texts: ids and sizes, (B, T) each; size 0 marks padding."""

    ids: Int
    size: Float


def text_batches(text: TextEncoder, seed: int = 0) -> list[Texts]:
    """Return texts of random tokens: several lengths in one batch, and single ones."""
    longest = text.most_tokens
    middle, shortest = max(longest // 2, 2), min(MIN_TEXT, longest)
    batches = [(longest, shortest, middle), (middle,), (shortest,)]
    return [Texts(*random_texts(text, lengths, seed + at)) for at, lengths in enumerate(batches)]


class Case(NamedTuple):
    """A batch of image-text inputs.

    Attributes:
        left, right: (B, H, W, 3) uint8; the right image is only used by the task `reason`.
        ids, size: (B, T); size 0 marks padding.
    """

    left: Pixels
    right: Pixels
    ids: Int
    size: Float


def pair_batches(
    text: TextEncoder, size: tuple[int, int], *, patch: int | None, seed: int = 0
) -> list[Case]:
    """Return random images with random texts.

    Args:
        size: height and width of an image, pixels.
        patch: side of a patch, for a network that takes other grids of patches than the trained
            one; None for any other network.
    """
    longest = text.most_tokens
    middle = max(MIN_TEXT, longest // 2)
    grids = {size: [(longest, MIN_TEXT, middle), (middle, MIN_TEXT), (max(MIN_TEXT, middle - 1),)]}
    if patch is not None:
        grids[size[0] + patch, max(patch, size[1] - patch)] = [(middle, longest)]
    cases = []
    for grid, batches in grids.items():
        for lengths in batches:
            seed += 1
            # Smooth images and noise alternate, so each half has both.
            left, right = np.split(random_images(grid, 2 * len(lengths), seed), 2)
            cases.append(Case(left, right, *random_texts(text, lengths, seed)))
    return cases
