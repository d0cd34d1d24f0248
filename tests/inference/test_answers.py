"""Tests of answers: the fields of a result, as the API returns them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.service.standin import bundle
from tests.service.standin_pairs import SIDE, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import answers
from tokenfold.inference.errors import ImageError, InternalError, RequestError
from tokenfold.inference.levels import Selector
from tokenfold.inference.model import Model
from tokenfold.inference.request import Item, ItemResult, Request, Result, matrix


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(Bundle.open(bundle(tmp_path_factory.mktemp("bundle") / "a")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = Model(Bundle.open(pair_bundle(tmp_path_factory.mktemp("bundle") / "a")))
    model.open_text()
    return model


def item_result(model: Model, output: Mapping[str, Any], **changes: Any) -> ItemResult:
    fields: dict[str, Any] = {
        "output": output,
        "works": (model.levels.choose(Selector(), next(iter(model.tasks))).work,),
        "shapes": ((SIDE, SIDE),),
        "batch_size": 1,
        "decode_seconds": 0.001,
        "embed_seconds": 0.0,
        "run_seconds": 0.002,
        "ended": 10.01,
    }
    return ItemResult(**fields | changes)


def logits(*values: float) -> dict[str, Any]:
    return {"logits": np.array(values, np.float32)}


def classify(model: Model, *items: ItemResult | RequestError, slots: bool = False) -> list[Any]:
    request = Request(
        model=model.name,
        task="classify",
        items=[Item((index,)) for index in range(len(items))],
        images=[b""] * len(items),
        slots=slots,
        arrived=10.0,
    )
    result = Result(model.levels.choose(Selector(), "classify"), items)
    return answers.answers(model, request, result, answers.classification(model, 2))


def test_an_answer_has_predictions_reduction_batch_size_and_timings(colours: Model) -> None:
    (answer,) = classify(colours, item_result(colours, logits(0, 2, 1), batch_size=3))
    assert [prediction["label"] for prediction in answer["predictions"]] == ["green", "blue"]
    assert answer["reduction"]["level"] == "exact"
    assert answer["reduction"]["tokens_in"] == answer["reduction"]["tokens_out"] == 17
    assert answer["batch_size"] == 3
    post = answer["timings_ms"].pop("post")
    assert post >= 0
    assert answer["timings_ms"] == {"decode": 1.0, "queue": 7.0, "infer": 2.0}
    assert "slots" not in answer


def test_slots_are_included_on_request(colours: Model) -> None:
    output = logits(0, 2, 1) | {"slots": np.arange(17)}
    (answer,) = classify(colours, item_result(colours, output), slots=True)
    assert answer["slots"] == list(range(17))
    assert (tuple(answer["grid"]), answer["protected"]) == ((4, 4), 1)


def test_a_failed_item_is_its_error_and_does_not_fail_the_others(colours: Model) -> None:
    error = ImageError("bad")
    first, second = classify(colours, error, item_result(colours, logits(1, 0, 0)))
    assert first is error
    assert second["predictions"][0]["label"] == "red"


def test_logits_that_are_not_finite_are_the_error_of_their_item(colours: Model) -> None:
    (answer,) = classify(colours, item_result(colours, logits(0, np.nan, 0)))
    assert isinstance(answer, InternalError)


def test_a_queue_time_is_never_negative(colours: Model) -> None:
    (answer,) = classify(colours, item_result(colours, logits(1, 0, 0), ended=10.0))
    assert answer["timings_ms"]["queue"] == 0.0


def test_a_row_of_a_matrix_is_one_answer(pairs: Model) -> None:
    request = Request(
        model=pairs.name,
        task="match",
        items=matrix(2, 2, max_pairs=4),
        images=[b""] * 2,
        texts=["red", "blue"],
    )
    items = [item_result(pairs, logits(value), embed_seconds=0.5) for value in (9, -9, -9, 9)]
    texts = [pairs.text.encode(text) for text in request.texts]
    result = Result(pairs.levels.choose(Selector(), "match"), items, texts)
    rows = answers.answers(pairs, request, result, answers.matching(pairs), row=2)
    scores = []
    for row in rows:
        assert not isinstance(row, RequestError)
        scores.append([score > 0.5 for score in row["scores"]])
        # The row's image is embedded once, and run with both texts.
        assert row["timings_ms"]["infer"] == 504.0
        json.dumps(row)
    assert scores == [[True, False], [False, True]]
