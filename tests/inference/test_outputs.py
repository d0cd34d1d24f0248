"""Tests of the scores of logits, and of vectors as JSON."""

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
def test_softmax_and_sigmoid_scores_are_probabilities_in_the_order_of_the_logits(
    bundle: Bundle, values: list[float]
) -> None:
    logits = float32(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a difference beyond float32
        softmax = scores(model(bundle), "vqa", logits)
    sigmoid = scores(model(bundle, {"vqa": "sigmoid"}), "vqa", logits)
    assert softmax.sum() == pytest.approx(1)
    for probabilities in (softmax, sigmoid):
        assert (probabilities >= 0).all()
        assert (probabilities <= 1).all()
        # The order is kept, up to rounding.
        assert (np.diff(probabilities[np.argsort(logits)]) >= 0).all()


def test_scores_of_known_logits(bundle: Bundle) -> None:
    sigmoid = model(bundle, {"vqa": "sigmoid"})
    assert scores(sigmoid, "vqa", float32(0, np.log(3), -np.log(3))) == pytest.approx(
        [0.5, 0.75, 0.25]
    )
    assert scores(model(bundle), "vqa", float32(0, 0, np.log(2))) == pytest.approx(
        [0.25, 0.25, 0.5]
    )


def test_best_returns_the_highest_scores_first(bundle: Bundle) -> None:
    answers = best(model(bundle), "vqa", float32(1, 3, 1), 2, name="answer")
    assert [(answer["answer"], answer["index"]) for answer in answers] == [("green", 1), ("red", 0)]


def test_positive_takes_one_logit_or_two(bundle: Bundle) -> None:
    assert TASKS["match"] == ()
    assert positive(model(bundle), "match", float32(0)) == 0.5
    assert positive(model(bundle), "match", float32(np.log(3))) == pytest.approx(0.75)
    assert positive(model(bundle), "reason", float32(0, np.log(3))) == pytest.approx(0.75)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_logits_that_are_not_finite_are_an_internal_error(
    bundle: Bundle, bad: float, scoring: Scoring
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(InternalError, match="no finite numbers"):
            scores(model(bundle, {"vqa": scoring}), "vqa", float32(0, bad, 1))


VECTORS = arrays.arrays(np.float32, st.integers(1, 8), elements=st.floats(-1, 1, width=32))


@given(VECTORS)
def test_base64_vectors_are_exact_and_numbers_are_rounded(values: npt.NDArray[np.float32]) -> None:
    exact = written(values, "base64")
    assert isinstance(exact, str)
    assert np.frombuffer(b64decode(exact), "<f4").tobytes() == values.tobytes()
    numbers = json.loads(json.dumps(written(values, "float")))
    np.testing.assert_allclose(numbers, values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_an_internal_error(tmp_path: Path, bad: float) -> None:
    model = Model(Bundle.open(dual_bundle(tmp_path / "a")))
    with pytest.raises(InternalError, match="no finite numbers"):
        vector(model, {"vector": np.array([0.5, bad], np.float32)})
