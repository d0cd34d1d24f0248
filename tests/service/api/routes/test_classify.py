"""Tests of POST /v1/classify: answers, images, and invalid fields."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service import standin
from tests.service.api.classification import base64_of, json_body, results
from tests.service.standin import WORKLOAD, Remote, encoded, picture, problem
from tokenfold.bundle.schedule import flops_ratio, plan_for


class TestAnswers:
    def test_a_form_is_answered_with_predictions(self, client: Remote) -> None:
        response = client.classify(picture("lime"))
        (result,) = results(response)
        assert response.json()["model"] == "colours"
        assert [prediction["label"] for prediction in result["predictions"]] == [
            "green",
            "red",
            "blue",
        ]
        assert sum(prediction["score"] for prediction in result["predictions"]) == pytest.approx(
            1, abs=1e-5
        )
        assert result["reduction"] == {
            "method": "tome",
            "level": "exact",
            "requested": 0.0,
            "flops_ratio": 1.0,
            "tokens_in": 17,
            "tokens_out": 17,
        }
        assert result["batch_size"] == 1
        assert set(result["timings_ms"]) == {"decode", "queue", "infer", "post"}
        assert min(result["timings_ms"].values()) >= 0
        assert "slots" not in result

    def test_json_is_answered_like_a_form(self, client: Remote) -> None:
        data = base64_of(picture("blue"))
        for image in (data, [data], f"data:image/png;base64,{data}"):
            (result,) = results(json_body(client, image=image, top_k=1, level="fast"))
            assert [prediction["label"] for prediction in result["predictions"]] == ["blue"]
            assert result["reduction"]["level"] == "fast"

    def test_integers_in_json_may_have_a_decimal_point(self, client: Remote) -> None:
        (result,) = results(json_body(client, image=base64_of(picture()), top_k=2.0))
        assert len(result["predictions"]) == 2

    def test_results_are_in_the_order_of_the_images(self, client: Remote) -> None:
        names = ["blue", "red", "lime", "red"]
        answers = results(client.classify(*map(picture, names)))
        assert [answer["predictions"][0]["label"] for answer in answers] == [
            "blue",
            "red",
            "green",
            "red",
        ]

    def test_slots_are_included_on_request(self, client: Remote) -> None:
        for include in ("slots", ["slots"], "slots,slots"):
            (result,) = results(client.classify(picture(), include=include, reduction=0.5))
            kept = result["reduction"]["tokens_out"]
            assert result["slots"] == [i if i < kept else 0 for i in range(17)]
            assert result["grid"] == [4, 4]
            assert result["protected"] == 1
        assert len(results(json_body(client, image=base64_of(picture()), include=["slots"]))) == 1

    def test_a_reduction_selects_the_closest_plan(self, client: Remote) -> None:
        (result,) = results(client.classify(picture(), reduction=0.25))
        plan = plan_for(WORKLOAD, 0.25)
        assert result["reduction"] == {
            "method": "tome",
            "level": "custom",
            "requested": 0.25,
            "flops_ratio": pytest.approx(flops_ratio(WORKLOAD, plan), abs=1e-6),
            "tokens_in": 17,
            "tokens_out": WORKLOAD.widths(plan)[-1],
        }
        (result,) = results(client.classify(picture(), reduction=0.6))
        assert result["reduction"]["level"] == "fast"

    def test_latency_and_accuracy_budgets_select_a_level(self, client: Remote) -> None:
        (result,) = results(client.classify(picture(), max_latency_ms=10_000))
        assert result["reduction"]["level"] == "exact"
        (result,) = results(client.classify(picture(), min_accuracy=0.85))
        assert result["reduction"]["level"] == "balanced"

    def test_the_model_can_be_selected(self, client: Remote) -> None:
        response = client.classify(picture(), model="plain", level="half")
        assert response.json()["model"] == "plain"


class TestBadImages:
    @pytest.mark.parametrize(
        ("data", "status", "slug"),
        [
            (b"not an image", 415, "image-format"),
            (b"", 422, "bad-image"),
            (picture()[:60], 422, "bad-image"),
            (standin.picture("red", style="PPM"), 415, "image-format"),
        ],
    )
    def test_a_bad_image_is_refused(
        self, client: Remote, data: bytes, status: int, slug: str
    ) -> None:
        problem(client.classify(data), status, slug)
        if data:
            problem(json_body(client, image=base64_of(data)), status, slug)

    def test_an_image_with_too_many_pixels_is_refused_at_once(self, client: Remote) -> None:
        bomb = encoded(Image.new("1", (10_000, 10_000)))
        assert len(bomb) < 100_000
        begun = time.perf_counter()
        detail = problem(client.classify(bomb), 413, "image-too-large")
        assert "10000 x 10000" in detail
        assert time.perf_counter() - begun < 1

    @pytest.mark.parametrize("text", ["%%%", "aGVsbG8", "", "data:image/png;base64", "é"])
    def test_invalid_base64_is_refused(self, client: Remote, text: str) -> None:
        assert json_body(client, image=text).status_code in (415, 422)

    @pytest.mark.parametrize(
        "image",
        [
            picture("red", (1, 1)),
            encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"),
            encoded(Image.new("RGB", (9, 9), "red").quantize(2)),
            encoded(Image.new("RGBA", (9, 9), "red")),
            encoded(
                Image.new("RGB", (9, 9), "red"),
                "GIF",
                save_all=True,
                append_images=[Image.new("RGB", (9, 9), "blue")],
            ),
        ],
    )
    def test_unusual_image_modes_are_accepted(self, client: Remote, image: bytes) -> None:
        assert results(client.classify(image))[0]["predictions"][0]["label"] == "red"

    def test_images_of_16_bits_are_accepted(self, client: Remote) -> None:
        image = encoded(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)))
        scores = [
            prediction["score"] for prediction in results(client.classify(image))[0]["predictions"]
        ]
        assert scores == pytest.approx([1 / 3] * 3, abs=1e-5)

    def test_a_bad_image_does_not_fail_the_others(self, client: Remote) -> None:
        answers = results(client.classify(picture("red"), b"bad", b"", picture("blue")))
        assert answers[0]["predictions"][0]["label"] == "red"
        assert answers[1]["problem"]["status"] == 415
        assert answers[2]["problem"]["status"] == 422
        assert answers[3]["predictions"][0]["label"] == "blue"

    def test_the_status_is_that_of_the_first_item_if_all_fail(self, client: Remote) -> None:
        response = client.classify(b"", b"bad")
        problem(response, 422, "bad-image")
        statuses = [result["problem"]["status"] for result in response.json()["results"]]
        assert statuses == [422, 415]


class TestBadRequests:
    @pytest.mark.parametrize(
        ("fields", "status", "slug", "text"),
        [
            ({"reduction": 1.01}, 422, "invalid-request", "reduction"),
            ({"reduction": -0.01}, 422, "invalid-request", "reduction"),
            ({"reduction": "nan"}, 422, "invalid-request", "reduction"),
            ({"reduction": "half"}, 422, "invalid-request", "reduction"),
            ({"reduction": ""}, 422, "invalid-request", "reduction"),
            ({"min_accuracy": 1.5}, 422, "invalid-request", "min_accuracy"),
            ({"max_latency_ms": 0}, 422, "invalid-request", "max_latency_ms"),
            ({"max_latency_ms": "inf"}, 422, "invalid-request", "max_latency_ms"),
            ({"top_k": 0}, 422, "invalid-request", "top_k"),
            ({"top_k": 1.5}, 422, "invalid-request", "top_k"),
            ({"include": "tokens"}, 422, "invalid-request", "include"),
            ({"levle": "fast"}, 422, "invalid-request", "levle"),
            ({"level": "turbo"}, 422, "unknown-level", "exact, balanced, fast"),
            ({"model": "plain", "level": "fast"}, 422, "unknown-level", "exact, half"),
            ({"model": "resnet"}, 404, "unknown-model", "colours, plain"),
            ({"level": "fast", "reduction": 0.5}, 422, "two-selectors", "level and reduction"),
            ({"max_latency_ms": 1e-6}, 409, "latency-budget", "fastest level, fast"),
            ({"min_accuracy": 0.99}, 409, "accuracy-budget", "exact"),
            ({"model": "plain", "min_accuracy": 0.1}, 409, "no-accuracy-profile", "plain"),
        ],
    )
    def test_invalid_fields_are_named(
        self, client: Remote, fields: dict[str, Any], status: int, slug: str, text: str
    ) -> None:
        assert text in problem(client.classify(picture(), **fields), status, slug)
        if not any(isinstance(value, str) for value in fields.values()):
            response = json_body(client, image=base64_of(picture()), **fields)
            assert text in problem(response, status, slug)

    def test_json_values_of_the_wrong_type_are_refused(self, client: Remote) -> None:
        image = base64_of(picture())
        wrong: Sequence[dict[str, Any]] = (
            {"reduction": "0.5"},
            {"top_k": "3"},
            {"include": "slots"},
            {"level": None},
            {"image": 3},
            {"image": []},
            {"image": [None]},
        )
        for fields in wrong:
            problem(json_body(client, **({"image": image} | fields)), 422, "invalid-request")

    def test_a_request_without_an_image_is_refused(self, client: Remote) -> None:
        assert "image" in problem(json_body(client), 422, "invalid-request")
        form = client.post("/v1/classify", files={"level": (None, "fast")})
        assert "image" in problem(form, 422, "invalid-request")

    def test_the_number_of_images_is_limited(self, client: Remote) -> None:
        detail = problem(client.classify(*[picture()] * 5), 422, "invalid-request")
        assert "at most 4" in detail


def test_concurrent_requests_get_their_own_answers(
    client: Remote, pool: ThreadPoolExecutor
) -> None:
    names = ["red", "lime", "blue"] * 20
    fields: list[dict[str, Any]] = [
        {"level": "fast"}, {"reduction": 0.2}, {}, {"model": "plain"}
    ]  # fmt: skip
    futures = [
        pool.submit(client.classify, picture(name), **fields[i % 4]) for i, name in enumerate(names)
    ]
    expected = {"red": "red", "lime": "green", "blue": "blue"}
    for name, future in zip(names, futures, strict=True):
        assert results(future.result())[0]["predictions"][0]["label"] == expected[name]
