"""Quality of an image classifier: accuracy on labelled images, agreement on unlabelled ones."""

from __future__ import annotations

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.profile import LevelProfile, Metric
from tokenfold.export.quality.measuring import quality
from tokenfold.export.quality.photos import Photos
from tokenfold.export.reference import ClassifierNetwork
from tokenfold.export.stages import Workers


def measure(
    manifest: Manifest,
    session: ClassifierNetwork,
    photos: Photos,
    *,
    unreduced: ClassifierNetwork,
    workers: Workers,
) -> dict[str, LevelProfile]:
    """Return the share of right answers of each level.

    The metric is `top1` for photos with labels, otherwise `agreement` with the unreduced network.

    Args:
        unreduced: the network in PyTorch, for photos without labels.

    Raises:
        DataError: an image cannot be read.
    """
    levels, exact = manifest.levels, manifest.workload.unreduced

    def evaluate(at: int) -> list[bool]:
        """Return, by level, whether its answer to a photo is right."""
        pixels = photos.pixels(at, manifest.preprocess)[None]

        def answer(network: ClassifierNetwork, plan: tuple[int, ...]) -> int:
            return int(network.run(pixels, plan).logits[0].argmax())

        right = answer(unreduced, exact) if photos.labels is None else photos.labels[at]
        return [answer(session, level.plan) == right for level in levels.values()]

    metric: Metric = "agreement" if photos.labels is None else "top1"
    rows = workers.map(evaluate, range(len(photos)))
    return {
        name: LevelProfile(quality={"classify": quality(sum(hits), len(photos), metric=metric)})
        for name, hits in zip(levels, zip(*rows, strict=True), strict=True)
    }
