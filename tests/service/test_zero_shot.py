"""Tests of zero-shot classification over HTTP, and of the cache of label vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service import standin
from tests.service.gated import Gated
from tests.service.standin import LABELS, Remote, picture, problem, serving, until
from tests.service.standin_dual import WORKLOAD, every_kind
from tokenfold.service.api.schemas.inference import MAX_LABELS, ClassifyResponse
from tokenfold.service.app import create_app
from tokenfold.service.zero_shot import VectorCache

RED, GREEN, BLUE = picture("red"), picture("lime"), picture("blue")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_kind(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[Remote]:
    with serving(create_app(standin.settings(bundles, max_items=8))) as remote:
        yield remote


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content)
    listed: list[dict[str, Any]] = response.json()["results"]
    return listed


class TestLabels:
    def test_images_are_classified_by_the_labels_of_the_request(self, client: Remote) -> None:
        names = ["blue", "a green circle", "red"]
        answers = results(client.ask("classify", RED, GREEN, labels=names, top_k=2))
        assert [result["predictions"][0]["label"] for result in answers] == ["red", names[1]]
        assert answers[0]["predictions"][0]["index"] == 2
        assert answers[0]["reduction"]["level"] == "exact"
        everything = results(client.ask("classify", RED, labels=names))[0]["predictions"]
        assert sum(prediction["score"] for prediction in everything) == pytest.approx(1, abs=1e-5)

    def test_a_sigmoid_model_scores_each_label_independently(self, client: Remote) -> None:
        response = client.ask("classify", RED, labels=["red", "red", "blue"], model="padded")
        scores = [prediction["score"] for prediction in results(response)[0]["predictions"]]
        assert response.json()["model"] == "padded"
        assert scores[0] == scores[1] > 0.9 > 0.1 > scores[2]

    def test_json_may_have_a_single_label(self, client: Remote) -> None:
        body = {"image": base64.b64encode(RED).decode(), "labels": "red", "level": "fast"}
        (result,) = results(client.post("/v1/classify", json=body))
        assert result["predictions"] == [{"label": "red", "index": 0, "score": 1.0}]
        assert result["reduction"]["level"] == "fast"

    def test_the_template_changes_the_scores(self, client: Remote) -> None:
        def score(**fields: Any) -> float:
            (result,) = results(client.ask("classify", RED, labels=["{} red", "blue"], **fields))
            return float(result["predictions"][0]["score"])

        # A template that always names blue lowers the score of red.
        assert score() > score(template="{} blue")

    @pytest.mark.parametrize("template", ["a photo", "{} and {}", "", " "])
    def test_invalid_templates_are_refused(self, client: Remote, template: str) -> None:
        response = client.ask("classify", RED, labels=["red"], template=template)
        assert "template" in problem(response, 422, "invalid-request")

    def test_control_characters_in_a_template_are_refused(self, client: Remote) -> None:
        refused = client.ask("classify", RED, labels=["red"], template="a \x07{}")
        assert "template: contains the unreadable character U+0007" in problem(
            refused, 422, "invalid-request"
        )

    @pytest.mark.parametrize(
        ("selector", "code", "status"),
        [
            ({"level": "turbo"}, "unknown-level", 422),
            ({"level": "fast", "reduction": 0.5}, "two-selectors", 422),
            ({"min_accuracy": 1}, "accuracy-budget", 409),
            ({"max_latency_ms": 1e-6}, "latency-budget", 409),
        ],
    )
    def test_an_invalid_selector_is_refused_before_labels_are_encoded(
        self, client: Remote, selector: dict[str, Any], code: str, status: int
    ) -> None:
        before = client.sample("tokenfold_texts_total")
        refused = client.ask("classify", RED, labels=[f"a {code} circle"], **selector)
        problem(refused, status, code)
        assert client.sample("tokenfold_texts_total") == before

    def test_a_template_without_labels_is_refused(self, client: Remote) -> None:
        problem(client.ask("classify", RED, template="a {}"), 422, "invalid-request")

    def test_slots_are_returned_with_labels(self, client: Remote) -> None:
        response = client.ask("classify", RED, labels=["red"], include="slots", reduction=0.5)
        (result,) = results(response)
        assert len(result["slots"]) == WORKLOAD.tokens

    def test_a_request_without_labels_uses_a_classifier(self, client: Remote) -> None:
        response = client.classify(RED)
        assert response.json()["model"] == "colours"
        assert results(response)[0]["predictions"][0]["label"] in LABELS

    def test_labels_need_a_dual_encoder(self, client: Remote) -> None:
        refused = client.ask("classify", RED, labels=["red"], model="colours")
        assert "classes of its own" in problem(refused, 422, "invalid-request")
        refused = client.classify(RED, model="dual")
        assert "labels" in problem(refused, 422, "invalid-request")
        for model in ("pairs", "nobody"):
            refused = client.ask("classify", RED, labels=["red"], model=model)
            assert "dual, padded" in problem(refused, 404, "unknown-model")

    def test_empty_labels_are_refused(self, client: Remote) -> None:
        refused = client.ask("classify", RED, labels=["red", " "])
        assert "labels.1: is empty" in problem(refused, 422, "invalid-request")
        refused = client.ask("classify", RED, labels=["green", "red", "\u200b"], template="{}")
        assert "labels.2: is empty" in problem(refused, 422, "invalid-request")

    def test_the_number_of_labels_is_limited(self, client: Remote) -> None:
        body: dict[str, Any] = {"image": base64.b64encode(BLUE).decode()}
        names = ["blue", *(f"red {'.' * count}" for count in range(MAX_LABELS - 1))]
        (result,) = results(client.post("/v1/classify", json={**body, "labels": names}))
        assert result["predictions"][0]["label"] == "blue"
        refused = client.post("/v1/classify", json={**body, "labels": [*names, "one more"]})
        assert "labels" in problem(refused, 422, "invalid-request")

    def test_each_label_is_encoded_once(self, client: Remote) -> None:
        names = ["the white circle", "the black circle", "the white circle"]
        before = client.sample("tokenfold_texts_total")
        for _ in range(3):
            results(client.ask("classify", RED, labels=names))
        assert client.sample("tokenfold_texts_total") == before + 2

    def test_min_accuracy_with_labels_is_the_recall(self, client: Remote) -> None:
        refused = client.ask("classify", RED, labels=["red"], min_accuracy=0.95)
        assert "(recall)" in problem(refused, 409, "accuracy-budget")


class TestUnderLoad:
    def test_a_latency_budget_includes_the_encoding_of_labels(self, bundles: Path) -> None:
        gated = Gated(bundles / "b")
        with serving(gated.app) as remote, ThreadPoolExecutor(1) as pool:
            gated.backend.gate.clear()
            fields: dict[str, Any] = {"labels": ["red", "blue"], "max_latency_ms": 50}
            waiting = pool.submit(remote.ask, "classify", RED, **fields)
            until(lambda: gated.backend.running == 1)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.1)
            gated.backend.gate.set()
            problem(waiting.result(), 503, "deadline")
            # The labels are cached now, so only the image takes time.
            assert remote.ask("classify", RED, **fields | {"max_latency_ms": 5000}).is_success

    def test_a_request_whose_labels_are_not_encoded_in_time_expires(self, bundles: Path) -> None:
        gated = Gated(bundles / "b", request_timeout=0.2)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            refused = remote.ask("classify", RED, labels=["red", "blue"])
            gated.backend.gate.set()
            problem(refused, 503, "expired")


def vectors(*texts: str) -> dict[str, np.ndarray]:
    return {text: np.full(2, len(text), np.float32) for text in texts}


def test_the_cache_is_keyed_by_model_and_text() -> None:
    cache = VectorCache()
    cache.put("a", vectors("red", "blue"))
    assert set(cache.get("a", ["red", "green"])) == {"red"}
    assert cache.get("b", ["red"]) == {}
    assert cache.get("a", ["blue"])["blue"].tolist() == [4, 4]


def test_the_cache_evicts_the_least_recently_used_vectors() -> None:
    cache = VectorCache(max_vectors=2)
    cache.put("a", vectors("red", "blue"))
    cache.get("a", ["red"])
    cache.put("a", vectors("green"))
    assert set(cache.get("a", ["red", "green", "blue"])) == {"red", "green"}


def test_a_cached_vector_does_not_keep_its_batch_in_memory() -> None:
    cache = VectorCache()
    batch = np.ones((100, 2), np.float32)
    cache.put("a", {"red": batch[0]})
    batch[0] = 2
    cached = cache.get("a", ["red"])["red"]
    assert cached.base is None
    assert cached.tolist() == [1, 1]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=9)), st.integers(1, 5))
def test_the_cache_never_exceeds_its_limit(requests: list[list[str]], max_vectors: int) -> None:
    cache = VectorCache(max_vectors)
    for texts in requests:
        cache.put("m", vectors(*texts))
        assert len(cache) <= max_vectors
        # The most recent vectors are kept.
        recent = list(dict.fromkeys(texts))[-max_vectors:]
        assert set(cache.get("m", recent)) == set(recent)
