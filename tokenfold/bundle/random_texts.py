"""Texts that mean nothing, of given lengths, to verify and to measure on. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.text import TextEncoder


def random_texts(
    text: TextEncoder, lengths: Sequence[int], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Token ids and sizes, (B, T) each, of texts of so many tokens, padded to the longest."""
    draw = np.random.default_rng(seed)
    # Special tokens are at either end of the vocabulary, and at either end of a text.
    first, *_, last = text.encode("a").ids.tolist()
    lowest = text.vocabulary // 8
    ids = np.full((len(lengths), max(lengths)), last, dtype=np.int64)
    size = np.zeros(ids.shape, dtype=np.float32)
    for row, length in enumerate(lengths):
        words = draw.integers(lowest, max(text.vocabulary - 1, lowest + 1), length - 2)
        ids[row, :length] = [first, *words, last]
        size[row, :length] = 1.0
    return ids, size
