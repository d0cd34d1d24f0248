"""The profile: what was measured of a bundle, level by level. No torch in here."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from tokenfold.bundle.document import Document, Name, Share
from tokenfold.bundle.tasks import Task

PROFILE = "profile.json"

Metric = Literal["top1", "accuracy", "agreement", "recall"]


class Quality(Document):
    """A measured share of right answers, with its 95 % interval.

    Attributes:
        metric: `top1` against the labels of images, `accuracy` against the answers to texts,
            `recall` of the image that a text was written for as the first among all images
            measured, or `agreement` with the unreduced model's first answer (of a dual encoder:
            the image nearest to an image).
    """

    metric: Metric
    value: Share
    low: Share
    high: Share
    samples: int = Field(ge=1)


class Latency(Document):
    """Time of one run of `batch` images, milliseconds."""

    batch: int = Field(ge=1)
    p50_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)


class LevelProfile(Document):
    """What was measured of one level.

    Attributes:
        quality: by task, of those that were measured.
        neighbours: of a dual encoder, by the level of a gallery: of the ten images there that are
            nearest to an image at the gallery's own level, the share that the image finds, too,
            when it is embedded at this level.
    """

    quality: dict[Task, Quality] = Field(default_factory=dict)
    neighbours: dict[Name, Share] = Field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    images_per_second: float | None = Field(default=None, gt=0)
    peak_memory_mb: float | None = Field(default=None, gt=0)


class Profile(Document):
    """Measured curves, and on what they were measured.

    Attributes:
        machine: processor and cores.
        runtime: name and version, and whether the native ops ran.
        texts_per_second: of a dual encoder, texts of the most tokens it takes.
    """

    format: Literal[2] = 2
    measured: date
    machine: str
    runtime: str
    texts_per_second: float | None = Field(default=None, gt=0)
    levels: dict[Name, LevelProfile]
