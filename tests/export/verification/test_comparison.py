"""Judging a graph's outputs by those of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tokenfold.export.verification.comparison import VerificationError, judge

EXPECTED = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
UNMOVED = np.zeros(8, dtype=bool)


def test_the_deviation_is_relative_to_the_largest_output() -> None:
    actual = EXPECTED.copy()
    actual[0, 0] += 5e-5 * np.abs(EXPECTED).max()
    deviation = judge("x", "fp32", actual, EXPECTED, UNMOVED, reduced=False)
    assert deviation == pytest.approx(5e-5, rel=0.05)


def test_other_precisions_have_a_relative_error() -> None:
    deviation = judge("x", "fp16", EXPECTED * 1.01, EXPECTED, UNMOVED, reduced=False)
    assert deviation == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(VerificationError, match=r"x: logits are off by 3\.0e-02"):
        judge("x", "fp16", EXPECTED * 1.03, EXPECTED, UNMOVED, reduced=False)


def test_near_ties_are_exceptions() -> None:
    actual, moved = EXPECTED.copy(), UNMOVED.copy()
    actual[0] += 0.1
    moved[0] = True
    assert judge("x", "fp32", actual, EXPECTED, moved, reduced=True) == 0
    with pytest.raises(VerificationError, match="the plan removes none"):
        judge("x", "fp32", actual, EXPECTED, moved, reduced=False)
    moved[:3] = True
    with pytest.raises(VerificationError, match="3 of 8 images merge other tokens"):
        judge("x", "fp32", actual, EXPECTED, moved, reduced=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_are_finite(value: float) -> None:
    actual = EXPECTED.copy()
    actual[3, 2] = value
    with pytest.raises(VerificationError, match="x: the graph's vectors are not finite"):
        judge("x", "int8", actual, EXPECTED, UNMOVED, reduced=True, unit="vectors")
