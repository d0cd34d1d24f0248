"""Tests of the responses to inference requests: results, partial and total failures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import Response

from tokenfold.inference.errors import ImageError, ImageFormat, InvalidRequest, RequestError
from tokenfold.service.api.answering import check_count, response, results
from tokenfold.service.errors import QueueFull
from tokenfold.service.metrics import Track


def answer(**changes: Any) -> dict[str, Any]:
    return {"batch_size": 1, "timings_ms": {"decode": 1.0, "infer": 2.0}} | changes


def decoded(sent: Response) -> Any:
    return json.loads(bytes(sent.body))


def test_the_response_has_the_model_the_extra_fields_and_the_results() -> None:
    track = Track()
    body = decoded(response("colours", [answer()], track, {"texts": []}))
    assert body == {"model": "colours", "texts": [], "results": [answer()]}
    assert track.outcome == "ok"


def test_server_timing_has_the_slowest_item_of_each_stage_and_the_largest_batch() -> None:
    slow = answer(batch_size=4, timings_ms={"decode": 0.5, "infer": 9.0})
    headers = response("colours", [answer(), slow], Track(), {}).headers
    assert headers["server-timing"] == 'decode;dur=1, infer;dur=9, batch;desc="4"'


def test_a_failed_item_is_a_problem_in_its_place() -> None:
    track = Track()
    listed: list[dict[str, Any] | RequestError] = [ImageFormat("not an image"), answer()]
    sent = response("colours", listed, track, {})
    assert sent.status_code == 200
    first, second = decoded(sent)["results"]
    assert first["problem"]["status"] == 415
    assert second == answer()
    assert track.outcome == "partial"
    assert results(listed) == [first, second]


def test_the_error_of_an_only_item_is_raised() -> None:
    with pytest.raises(ImageFormat):
        response("colours", [ImageFormat("not an image")], Track(), {})


def test_if_all_items_fail_the_response_is_the_first_problem_with_all_of_them() -> None:
    track = Track()
    refused = response("colours", [QueueFull("full", retry_after=2), ImageError("bad")], track, {})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    problems = [result["problem"] for result in decoded(refused)["results"]]
    assert [problem["status"] for problem in problems] == [503, 422]
    assert track.outcome == "rejected"


def test_a_count_above_the_limit_is_refused() -> None:
    check_count("images", 4, 4)
    with pytest.raises(InvalidRequest, match="at most 4 images; this one has 5"):
        check_count("images", 5, 4)
