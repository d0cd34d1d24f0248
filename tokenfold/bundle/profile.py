"""Profiles: measurements of a bundle's levels."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field

from tokenfold.bundle.document import Document, Name, Share, VersionedDocument
from tokenfold.bundle.tasks import Task

PROFILE = "profile.json"

Metric = Literal["top1", "accuracy", "agreement", "recall"]


class Quality(Document):
    """A measured share of right answers, with its 95 % interval.

    Attributes:
        metric: `top1` against the labels of images; `accuracy` against the answers to texts;
            `recall`, the share of texts that find their image first among all measured images; or
            `agreement` with the first answer of the unreduced model, which is the nearest image
            for a dual encoder.
    """

    metric: Metric
    value: Share
    low: Share
    high: Share
    samples: int = Field(ge=1)


class Latency(Document):
    """Duration of one run of `batch` images, milliseconds."""

    batch: int = Field(ge=1)
    p50_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)


class LevelProfile(Document):
    """Measurements of one level.

    Attributes:
        quality: quality of each measured task.
        neighbours: for a dual encoder, top-10 overlap by the level of a gallery: the share of an
            image's ten nearest images, with all images embedded at the gallery's level, that are
            also found when the query image is embedded at this level.
    """

    quality: dict[Task, Quality] = Field(default_factory=dict)
    neighbours: dict[Name, Share] = Field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    images_per_second: float | None = Field(default=None, gt=0)
    peak_memory_mb: float | None = Field(default=None, gt=0)


class Profile(VersionedDocument):
    """Measurements of all levels, with the machine and runtime that they are from.

    Attributes:
        machine: processor and cores.
        runtime: name and version of the runtime, and the kind of ops that ran.
        texts_per_second: throughput of a dual encoder for texts of the maximum length.
    """

    format: Literal[2] = 2
    measured: date
    machine: str
    runtime: str
    texts_per_second: float | None = Field(default=None, gt=0)
    levels: dict[Name, LevelProfile]

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Convert format 1, in which the only task was `classify`."""
        levels = {
            name: {**level, "quality": {"classify": quality} if quality else {}}
            for name, level in content.get("levels", {}).items()
            for quality in [level.get("quality")]
        }
        return {**content, "levels": levels}
