"""Random inputs, to test whether a network runs and how long it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.tasks import Task
from tokenfold.inference.backend import PIXELS, Sample, Step

# Tokens of a short text.
SHORT = 8


def images_of(task: Task, step: Step) -> int:
    """Return the number of images of an item."""
    if step == "read":
        return 0
    return 2 if task == "reason" and step != "embed" else 1


def sample(
    manifest: Manifest,
    *,
    images: int,
    text: int | None = None,
    vocabulary: int = 0,
    seed: int = 0,
) -> Sample:
    """Return the inputs of an item.

    Args:
        manifest: of the bundle.
        images: number of images, of the bundle's image size.
        text: tokens of the text; None for no text.
        vocabulary: size of the vocabulary, which bounds the token ids.
        seed: of the random numbers.
    """
    noise = np.random.default_rng(seed)
    shape = manifest.preprocess.size
    inputs: dict[str, npt.NDArray[Any]] = {
        name: noise.integers(0, 256, (*shape, 3), dtype=np.uint8) for name in PIXELS[:images]
    }
    if text is not None:
        inputs["input_ids"] = noise.integers(0, vocabulary, text)
    return inputs


def lengths(manifest: Manifest) -> tuple[int, ...]:
    """Return the lengths of texts to test: a short one and the longest, or the padded length."""
    if manifest.text is None:
        return ()
    max_tokens = manifest.text.most_tokens
    if manifest.text.padding is not None or max_tokens <= SHORT:
        return (max_tokens,)
    return (SHORT, max_tokens)
