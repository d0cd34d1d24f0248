"""Does the graph compute what PyTorch does? Asked at the end of each export, at every level.

Two implementations round differently, so two nearly equal similarities may rank the other way round
and a token merge elsewhere. Such an image is told by its slots, and is no disagreement as long as
it stays an exception; where the slots agree, the logits have to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from export.bundle import Level, Precision
from export.runtime import Session
from models.checkpoints.checkpoint import Checkpoint
from models.reduction.matcher import Matcher

Images = npt.NDArray[np.uint8]

# Largest difference of logits, relative to the largest logit of the level, where slots agree.
FP32_TOLERANCE = 1e-4
# Relative error of all logits, norm over norm, for precisions that change the slots as well.
LOSSY_TOLERANCE: dict[Precision, float] = {"fp16": 0.05, "int8": 0.5}
# Share of images that may merge some tokens elsewhere in fp32.
NEAR_TIES = 0.25


class VerificationError(ValueError):
    """The exported graph disagrees with PyTorch; the message says where and by how much."""


def random_images(size: tuple[int, int], count: int, seed: int = 0) -> Images:
    """(count, H, W, 3) uint8: half of them noise, half smooth, as real images are."""
    generator = np.random.default_rng(seed)
    height, width = size
    noise = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    for image in noise[::2]:
        frequency = generator.uniform(0.5, 6, (2, 3)) * np.pi
        phase = generator.uniform(0, 2 * np.pi, 3)
        wave = rows[..., None] / height * frequency[0] + columns[..., None] / width * frequency[1]
        image[:] = 127.5 + 127.5 * np.sin(wave + phase)
    return noise


def verify(
    checkpoint: Checkpoint,
    matchers: Sequence[Matcher] | None,
    proportional: bool,
    precision: Precision,
    session: Session,
    levels: Mapping[str, Level],
    images: Images,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compare a session with the PyTorch network at every level.

    Args:
        images: (B, H, W, 3) uint8, of the network's input size.
        progress: called after each level.

    Returns:
        The deviation of each level: for fp32 the largest difference of logits over the largest
        logit, among images with equal slots; for others the relative error of all logits.

    Raises:
        VerificationError: a level deviates by more than its precision allows, or is not finite.
    """
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (checkpoint.preprocess.mean, checkpoint.preprocess.std)
    )
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    deviations = {}
    for name, level in levels.items():
        with torch.inference_mode():
            plan = level.plan if matchers else None
            expected = checkpoint.model(x, plan, matchers, proportional=proportional)
        found = session.run(images, level.plan, slots=True)
        wanted = expected.logits.numpy()
        if not np.isfinite(found.logits).all():
            raise VerificationError(f"level {name}: the graph's logits are not finite")
        assert found.slots is not None
        moved = (found.slots != expected.slots.numpy()).any(1)
        if precision == "fp32":
            deviations[name] = _exact(name, wanted, found.logits, moved)
        else:
            limit = LOSSY_TOLERANCE[precision]
            deviations[name] = _lossy(name, wanted, found.logits, limit)
        progress()
    return deviations


def _exact(
    name: str,
    wanted: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    moved: npt.NDArray[np.bool_],
) -> float:
    if moved.mean() > NEAR_TIES:
        raise VerificationError(
            f"level {name}: {moved.sum()} of {len(moved)} images merge other tokens than PyTorch"
        )
    difference = float(np.abs(found - wanted)[~moved].max(initial=0.0))
    deviation = difference / float(np.abs(wanted).max(initial=1e-6))
    if deviation > FP32_TOLERANCE:
        raise VerificationError(
            f"level {name}: logits differ from PyTorch's by {deviation:.1e} of the largest, "
            f"more than {FP32_TOLERANCE:.0e}"
        )
    return deviation


def _lossy(
    name: str, wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32], limit: float
) -> float:
    deviation = float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)
    if deviation > limit:
        raise VerificationError(
            f"level {name}: logits are off by {deviation:.2f} of PyTorch's norm, more than {limit}"
        )
    return deviation
