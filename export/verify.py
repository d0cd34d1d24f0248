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

from tokenfold.bundle.manifest import Level, Precision
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export.quality import Photos
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.runtime.session import Output, Session

Images = npt.NDArray[np.uint8]

VERIFIED_IMAGES = 8

# Largest difference of logits, relative to the largest logit of the level, where slots agree.
FP32_TOLERANCE = 1e-4
# Relative error of all logits, norm over norm: of the unreduced network, and of reduced ones, whose
# tokens merge elsewhere too.
ERROR_TOLERANCE: dict[Precision, tuple[float, float]] = {
    "fp32": (FP32_TOLERANCE, 0.5),
    "fp16": (0.02, 0.1),
    "int8": (0.25, 0.5),
}
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


def verified_images(photos: Photos | None, preprocess: Preprocess) -> Images:
    """(B, H, W, 3) uint8, of the network's input size: random ones, and some of the user's."""
    drawn = random_images(preprocess.size, VERIFIED_IMAGES)
    if photos is None:
        return drawn
    spread = range(0, len(photos), max(1, len(photos) // VERIFIED_IMAGES))[:VERIFIED_IMAGES]
    return np.concatenate([drawn, np.stack([photos.pixels(at, preprocess) for at in spread])])


def normalised(images: Images, preprocess: Preprocess) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as a network in PyTorch takes it."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std)
    )
    return (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std


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
    x = normalised(images, checkpoint.preprocess)
    deviations = {}
    for name, level in levels.items():
        with torch.inference_mode():
            plan = level.plan if matchers else None
            expected = checkpoint.model(x, plan, matchers, proportional=proportional)
        found = _run(session, images, level)
        deviations[name] = _compare(
            f"level {name}",
            precision,
            level,
            found,
            expected.logits.numpy(),
            expected.slots.numpy(),
        )
        progress()
    return deviations


def _run(session: Session, images: Images, level: Level) -> Output:
    """All images but the first in one batch; the first alone, as a CPU serves them."""
    runs = [session.run(part, level.plan, slots=True) for part in (images[:1], images[1:])]
    return Output(
        np.concatenate([run.logits for run in runs]),
        np.concatenate([run.slots for run in runs if run.slots is not None]),
    )


def _compare(
    where: str,
    precision: Precision,
    level: Level,
    found: Output,
    wanted: npt.NDArray[np.float32],
    slots: npt.NDArray[np.int64],
) -> float:
    assert found.slots is not None
    if found.slots.min() < -1 or found.slots.max() >= level.tokens_out:
        raise VerificationError(f"{where}: slots are not among the {level.tokens_out} tokens left")
    moved = (found.slots != slots).any(1)
    return judge(where, precision, found.logits, wanted, moved, reduced=any(level.plan))


def judge(
    where: str,
    precision: Precision,
    found: npt.NDArray[np.float32],
    wanted: npt.NDArray[np.float32],
    moved: npt.NDArray[np.bool_],
    *,
    reduced: bool,
    what: str = "logits",
) -> float:
    """The deviation of the graph's outputs (B, classes or width) from those of PyTorch.

    Args:
        where: begins the message of an error, and `what` they are follows.
        moved: (B), whose tokens merged elsewhere.
        reduced: whether anything was to be reduced.

    Raises:
        VerificationError: they are too far apart.
    """
    if not np.isfinite(found).all():
        raise VerificationError(f"{where}: the graph's {what} are not finite")
    if moved.any() and not reduced:
        raise VerificationError(f"{where}: tokens moved where nothing was to be reduced")
    if precision == "fp32" and moved.mean() > NEAR_TIES:
        raise VerificationError(
            f"{where}: {moved.sum()} of {len(moved)} images merge other tokens than PyTorch"
        )
    error = float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)
    limit = ERROR_TOLERANCE[precision][reduced]
    if error > limit:
        raise VerificationError(
            f"{where}: {what} are off by {error:.1e} of PyTorch's norm, more than {limit:.0e}"
        )
    if precision != "fp32":
        return error
    largest = float(np.abs(wanted).max(initial=1e-6))
    deviation = float(np.abs(found - wanted)[~moved].max(initial=0.0)) / largest
    if deviation > FP32_TOLERANCE:
        raise VerificationError(
            f"{where}: {what} differ from PyTorch's by {deviation:.1e} of the largest, "
            f"more than {FP32_TOLERANCE:.0e}"
        )
    return deviation
