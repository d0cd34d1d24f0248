"""From the samples of a batch to the inputs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenfold.service.scheduling.backends.backend import Sample


def stacked(samples: Sequence[Sample], name: str) -> npt.NDArray[Any]:
    """An input of equal shapes, (B, ...)."""
    # A view where there is only one: no copy.
    if len(samples) == 1:
        return samples[0][name][np.newaxis]
    return np.stack([sample[name] for sample in samples])


def padded(
    texts: Sequence[npt.NDArray[Any]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids (B, T) with zeros behind the shorter texts, and the sizes that say where these are."""
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    size = np.zeros((len(texts), longest), dtype=np.float32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        size[row, : len(text)] = 1.0
    return ids, size
