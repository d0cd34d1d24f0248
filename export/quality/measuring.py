"""Results of a measurement: shares with their interval, the profile, and encoded texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date

import numpy as np

from tokenfold.bundle.profile import LevelProfile, Metric, Profile, Quality
from tokenfold.bundle.text import EmptyTextError, TextEncoder
from tokenfold.export.quality.photos import DataError
from tokenfold.runtime.dual import Float, Int
from tokenfold.runtime.machine import machine, software


def quality(right: int, samples: int, *, metric: Metric) -> Quality:
    """Return a share with its 95 % interval (Wilson's score interval)."""
    z = 1.959964
    share = right / samples
    centre = share + z * z / (2 * samples)
    spread = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    scale = 1 + z * z / samples
    return Quality(
        metric=metric,
        value=share,
        low=max(0.0, min(share, (centre - spread) / scale)),
        high=min(1.0, max(share, (centre + spread) / scale)),
        samples=samples,
    )


def profile(levels: Mapping[str, LevelProfile], *, native: bool) -> Profile:
    """Return the profile of levels that were measured on this machine today.

    Args:
        levels: measurements, by level.
        native: whether the compiled ops ran.
    """
    return Profile(
        measured=date.today(),
        machine=machine(),
        runtime=software(native=native),
        levels=dict(levels),
    )


def encode(text: TextEncoder, content: str, source: str) -> tuple[Int, Float]:
    """Return the ids and sizes, (1, T) each, of a text to measure on.

    Args:
        source: path of the images and texts, for the error message.

    Raises:
        DataError: the text has no content.
    """
    try:
        ids = text.encode(content).ids[None]
    except EmptyTextError as error:
        raise DataError(f"{source}: {content!r}: {error}") from error
    return ids, np.ones(ids.shape, dtype=np.float32)
