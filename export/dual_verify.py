"""Do the graphs of a dual encoder compute what PyTorch does? See `tokenfold.export.verify`.

Images are asked at every level; texts of several lengths, alone and padded in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tokenfold.bundle.manifest import Level, Manifest
from tokenfold.bundle.random_texts import random_texts
from tokenfold.bundle.text import TextEncoder
from tokenfold.export.verify import Images, VerificationError, judge
from tokenfold.runtime.dual import Embedder, Float, ImageVectors, Int

LEAST_TOKENS = 3
"""Of a text of one word between two special tokens."""


class Texts(NamedTuple):
    """A batch of texts: ids and sizes, (B, T) each, size 0 for padding."""

    ids: Int
    size: Float


def verified_texts(text: TextEncoder, seed: int = 0) -> list[Texts]:
    """Texts that mean nothing: of different lengths in one batch, and alone."""
    most = text.most_tokens
    some, few = max(most // 2, 2), min(LEAST_TOKENS, most)
    batches = [(most, few, some), (some,), (few,)]
    return [Texts(*random_texts(text, lengths, seed + at)) for at, lengths in enumerate(batches)]


def verify(
    manifest: Manifest,
    reference: Embedder,
    sessions: Sequence[Embedder],
    images: Images,
    texts: Sequence[Texts],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare sessions with the network in PyTorch: images at every level, and texts.

    Args:
        images: (B, H, W, 3) uint8, of the network's input size; two or more.
        progress: called after each level.

    Returns:
        The largest deviation of each level, of images or of texts, see `verify.judge`.

    Raises:
        VerificationError: vectors deviate by more than the precision allows, or are not finite.
    """
    of_texts = max(_texts(manifest, reference, session, texts) for session in sessions)
    deviations = {}
    for name, level in manifest.levels.items():
        wanted = reference.embed_images(images, level.plan, slots=True)
        found = max(
            _images(f"level {name}", manifest, level, _run(session, images, level), wanted)
            for session in sessions
        )
        deviations[name] = max(found, of_texts)
        progress()
    return deviations


def _texts(
    manifest: Manifest, reference: Embedder, session: Embedder, texts: Sequence[Texts]
) -> float:
    found, wanted = (
        np.concatenate([network.embed_texts(*batch) for batch in texts])
        for network in (session, reference)
    )
    stay = np.zeros(len(found), dtype=bool)
    return judge("texts", manifest.precision, found, wanted, stay, reduced=False, what="vectors")


def _run(session: Embedder, images: Images, level: Level) -> ImageVectors:
    """All images but the first in one batch; the first alone, as a CPU serves them."""
    runs = [session.embed_images(part, level.plan, slots=True) for part in (images[:1], images[1:])]
    return ImageVectors(
        np.concatenate([run.vectors for run in runs]),
        np.concatenate([run.slots for run in runs if run.slots is not None]),
    )


def _images(
    where: str, manifest: Manifest, level: Level, found: ImageVectors, wanted: ImageVectors
) -> float:
    assert found.slots is not None
    assert wanted.slots is not None
    if found.slots.min() < -1 or found.slots.max() >= level.tokens_out:
        raise VerificationError(f"{where}: slots are not among the {level.tokens_out} tokens left")
    return judge(
        where,
        manifest.precision,
        found.vectors,
        wanted.vectors,
        (found.slots != wanted.slots).any(1),
        reduced=any(level.plan),
        what="vectors",
    )
