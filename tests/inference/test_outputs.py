"""Scores: shares, or each by itself, whatever the logits are."""

from __future__ import annotations

import json
import warnings
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import TASKS, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Scoring
from tokenfold.bundle.tasks import PairTask
from tokenfold.inference.errors import InternalError
from tokenfold.inference.model import Model
from tokenfold.inference.outputs import best, positive, scores, vector, written


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(pair_bundle(tmp_path_factory.mktemp("bundle") / "a"))


def model(bundle: Bundle, scoring: dict[PairTask, Scoring] | None = None) -> Model:
    changed = bundle.manifest.model_copy(update={"scores": scoring or {}})
    return Model(Bundle(Path(bundle.folder), changed, None))


def float32(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3))
def test_shares_and_single_ones(bundle: Bundle, values: list[float]) -> None:
    logits = float32(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a difference beyond float32
        shares = scores(model(bundle), "vqa", logits)
    single = scores(model(bundle, {"vqa": "sigmoid"}), "vqa", logits)
    assert shares.sum() == pytest.approx(1)
    for found in (shares, single):
        assert (found >= 0).all()
        assert (found <= 1).all()
        # Order is kept, as far as numbers of this size can tell.
        assert (np.diff(found[np.argsort(logits)]) >= 0).all()


def test_known_values(bundle: Bundle) -> None:
    sigmoid = model(bundle, {"vqa": "sigmoid"})
    assert scores(sigmoid, "vqa", float32(0, np.log(3), -np.log(3))) == pytest.approx(
        [0.5, 0.75, 0.25]
    )
    assert scores(model(bundle), "vqa", float32(0, 0, np.log(2))) == pytest.approx(
        [0.25, 0.25, 0.5]
    )


def test_best(bundle: Bundle) -> None:
    found = best(model(bundle), "vqa", float32(1, 3, 1), 2, name="answer")
    assert [(one["answer"], one["index"]) for one in found] == [("green", 1), ("red", 0)]


def test_yes_of_one_logit_and_of_two(bundle: Bundle) -> None:
    assert TASKS["match"] == ()
    assert positive(model(bundle), "match", float32(0)) == 0.5
    assert positive(model(bundle), "match", float32(np.log(3))) == pytest.approx(0.75)
    assert positive(model(bundle), "reason", float32(0, np.log(3))) == pytest.approx(0.75)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_numbers_that_are_none(bundle: Bundle, bad: float, scoring: Scoring) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(InternalError, match="no finite numbers"):
            scores(model(bundle, {"vqa": scoring}), "vqa", float32(0, bad, 1))


VECTORS = arrays.arrays(np.float32, st.integers(1, 8), elements=st.floats(-1, 1, width=32))


@given(VECTORS)
def test_base64_is_exact_and_numbers_nearly(found: npt.NDArray[np.float32]) -> None:
    exact = written(found, "base64")
    assert isinstance(exact, str)
    assert np.frombuffer(b64decode(exact), "<f4").tobytes() == found.tobytes()
    numbers = json.loads(json.dumps(written(found, "float")))
    np.testing.assert_allclose(numbers, found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite(tmp_path: Path, bad: float) -> None:
    model = Model(Bundle.open(dual_bundle(tmp_path / "a")))
    with pytest.raises(InternalError, match="no finite numbers"):
        vector(model, {"vector": np.array([0.5, bad], np.float32)})
