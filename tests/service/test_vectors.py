"""Vectors as they are answered."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.service.standin_dual import dual_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference.errors import InternalError
from tokenfold.inference.outputs import vector, written
from tokenfold.service.scheduling.catalog import Model

VECTORS = arrays.arrays(np.float32, st.integers(1, 8), elements=st.floats(-1, 1, width=32))


@given(VECTORS)
def test_base64_is_exact_and_numbers_nearly(found: npt.NDArray[np.float32]) -> None:
    exact = written(found, "base64")
    assert isinstance(exact, str)
    assert np.frombuffer(b64decode(exact), "<f4").tobytes() == found.tobytes()
    numbers = json.loads(json.dumps(written(found, "float")))
    np.testing.assert_allclose(numbers, found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none(tmp_path: Path, bad: float) -> None:
    model = Model(Bundle.open(dual_bundle(tmp_path / "a")))
    with pytest.raises(InternalError, match="no finite numbers"):
        vector(model, {"vector": np.array([0.5, bad], np.float32)})
