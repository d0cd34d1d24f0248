"""Comparison of exported graphs with PyTorch at every level, at the end of each export.

Two implementations round differently, so two nearly equal similarities may rank in the other order
and a token may merge elsewhere. The slots of an image show that. Such an image counts as a near
tie, which is allowed for a small share of images; images with equal slots need equal outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.manifest import Level, Manifest, Precision
from tokenfold.export.stages import Step, no_step

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]

# Largest difference of outputs with equal slots, relative to the largest output of the level.
FP32_TOLERANCE = 1e-4
# Relative error of all outputs, norm over norm: without reduction, and with it. Reduced networks
# have a larger limit because some tokens merge elsewhere.
ERROR_TOLERANCE: dict[Precision, tuple[float, float]] = {
    "fp32": (FP32_TOLERANCE, 0.5),
    "fp16": (0.02, 0.1),
    "int8": (0.25, 0.5),
}
# Largest share of near ties in fp32.
NEAR_TIES = 0.25


class VerificationError(ValueError):
    """An exported graph disagrees with PyTorch; the message gives the level and the deviation."""


class Answer(NamedTuple):
    """Outputs of one network for all verification inputs at one level.

    Attributes:
        label: names the question in messages, such as the task; empty for the only one.
        unit: names the outputs in messages: `logits` or `vectors`.
        outputs: of each batch, (B, classes or width).
        slots: of each batch, (B, N); empty for inputs that no plan reduces.
        tokens_out: exclusive upper bound of the slots, where it is known.
    """

    label: str
    unit: str
    outputs: Sequence[Float]
    slots: Sequence[Int] = ()
    tokens_out: int | None = None


Answers = Callable[[Level], Sequence[Answer]]
"""Runs one network on all verification inputs at a level; answers are in a fixed order."""


def verify(
    manifest: Manifest, reference: Answers, sessions: Sequence[Answers], step: Step = no_step
) -> dict[str, float]:
    """Compare sessions with the PyTorch reference at every level.

    Args:
        step: called after each level.

    Returns:
        The largest deviation of each level, see `judge`.

    Raises:
        VerificationError: a level deviates by more than its precision allows, or is not finite.
    """
    deviations = {}
    for name, level in manifest.levels.items():
        expected = reference(level)
        deviations[name] = max(
            _compare(f"level {name}", manifest.precision, level, actual, answer)
            for session in sessions
            for actual, answer in zip(session(level), expected, strict=True)
        )
        step()
    return deviations


def _compare(
    context: str, precision: Precision, level: Level, actual: Answer, expected: Answer
) -> float:
    context = ", ".join(filter(None, (context, expected.label)))
    outputs, expected_outputs = np.concatenate(actual.outputs), np.concatenate(expected.outputs)
    moved = np.zeros(len(outputs), dtype=bool)
    if expected.slots:
        for slots in actual.slots:
            _check_slots(context, slots, actual.tokens_out)
        pairs = zip(actual.slots, expected.slots, strict=True)
        moved = np.concatenate([(slots != other).any(1) for slots, other in pairs])
    reduced = bool(expected.slots) and any(level.plan)
    return judge(
        context, precision, outputs, expected_outputs, moved, reduced=reduced, unit=expected.unit
    )


def _check_slots(context: str, slots: Int, tokens_out: int | None) -> None:
    """Check that slots are in range; raise VerificationError otherwise."""
    if slots.min() < -1:
        raise VerificationError(f"{context}: slot {slots.min()} is below -1")
    if tokens_out is not None and slots.max() >= tokens_out:
        raise VerificationError(
            f"{context}: slot {slots.max()} is not among the {tokens_out} tokens that are left"
        )


def judge(
    context: str,
    precision: Precision,
    actual: Float,
    expected: Float,
    moved: npt.NDArray[np.bool_],
    *,
    reduced: bool,
    unit: str = "logits",
) -> float:
    """Return the deviation of a graph's outputs (B, classes or width) from those of PyTorch.

    Args:
        context: prefix of error messages.
        moved: (B), True for inputs with tokens that merged elsewhere.
        reduced: whether the plan removes tokens.
        unit: names the outputs in error messages.

    Returns:
        For fp32 the largest difference over the largest output, among inputs that did not move;
        for other precisions the relative error of all outputs, norm over norm.

    Raises:
        VerificationError: the outputs are too far apart or not finite.
    """
    if not np.isfinite(actual).all():
        raise VerificationError(f"{context}: the graph's {unit} are not finite")
    if moved.any() and not reduced:
        raise VerificationError(f"{context}: tokens moved though the plan removes none")
    if precision == "fp32" and moved.mean() > NEAR_TIES:
        raise VerificationError(
            f"{context}: {moved.sum()} of {len(moved)} images merge other tokens than PyTorch"
        )
    error = float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), 1e-6)
    limit = ERROR_TOLERANCE[precision][reduced]
    if error > limit:
        raise VerificationError(
            f"{context}: {unit} are off by {error:.1e} of PyTorch's norm, more than {limit:.0e}"
        )
    if precision != "fp32":
        return error
    largest = float(np.abs(expected).max(initial=1e-6))
    deviation = float(np.abs(actual - expected)[~moved].max(initial=0.0)) / largest
    if deviation > FP32_TOLERANCE:
        raise VerificationError(
            f"{context}: {unit} differ from PyTorch's by {deviation:.1e} of the largest, "
            f"more than {FP32_TOLERANCE:.0e}"
        )
    return deviation
