"""Shares with their intervals, and texts to measure on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tokenfold.export.quality.measuring import encode, quality
from tokenfold.export.quality.photos import DataError


def test_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 is 0.3080, from 0.2553 to 0.3662.
    measured = quality(81, 263, metric="top1")
    assert (measured.metric, measured.samples) == ("top1", 263)
    np.testing.assert_allclose(
        (measured.value, measured.low, measured.high), (0.3080, 0.2553, 0.3662), atol=1e-4
    )


@given(samples=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_interval_holds_the_share(samples: int, share: float) -> None:
    measured = quality(round(share * samples), samples, metric="agreement")
    assert measured.metric == "agreement"
    assert 0 <= measured.low <= measured.value <= measured.high <= 1


def test_the_interval_of_no_hits_is_not_empty() -> None:
    assert quality(0, 10, metric="top1").high > 0.2
    assert quality(10, 10, metric="top1").low < 0.8


def test_texts_are_encoded_alone() -> None:
    text = tiny.dual_checkpoint().text
    ids, size = encode(text, "is it a cat", "a test")
    assert ids.tolist() == [text.encode("is it a cat").ids.tolist()]
    assert size.tolist() == [[1.0] * ids.shape[1]]
    with pytest.raises(DataError, match="a test: ' ': The text is empty"):
        encode(text, " ", "a test")
