"""Tests of POST /v1/embed: vectors of images and of texts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service import standin
from tests.service.gated import Gated
from tests.service.standin import Remote, picture, problem, serving, until
from tests.service.standin_dual import MOST_TOKENS, WIDTH, WORKLOAD, every_kind
from tokenfold.service.api.schemas.embed import EmbedResponse
from tokenfold.service.app import create_app

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
    EmbedResponse.model_validate_json(response.content)
    listed: list[dict[str, Any]] = response.json()["results"]
    return listed


def texts(client: Remote, *values: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/embed", json={"text": list(values), **fields})


def vectors(response: httpx.Response) -> Any:
    return np.array([result["vector"] for result in results(response)])


class TestVectors:
    def test_an_image_is_answered_with_a_unit_vector(self, client: Remote) -> None:
        (result,) = results(client.ask("embed", RED, reduction=0.6))
        assert len(result["vector"]) == WIDTH
        assert np.linalg.norm(result["vector"]) == pytest.approx(1, abs=1e-6)
        assert result["reduction"] == {
            "method": "tome",
            "level": "fast",
            "requested": 0.6,
            "flops_ratio": pytest.approx(0.3875, abs=1e-3),
            "tokens_in": 17,
            "tokens_out": 2,
        }
        assert result["batch_size"] == 1
        assert set(result["timings_ms"]) == {"decode", "queue", "infer", "post"}
        assert "text" not in result
        assert "slots" not in result

    def test_texts_are_answered_with_unit_vectors(self, client: Remote) -> None:
        response = texts(client, "a red circle", "blue . " * 20)
        short, long = results(response)
        assert response.json()["model"] == "dual"
        assert short["text"] == {"tokens": 5, "cut": False}
        assert long["text"] == {"tokens": MOST_TOKENS, "cut": True}
        assert "reduction" not in short
        assert np.linalg.norm(short["vector"]) == pytest.approx(1, abs=1e-6)
        assert short["timings_ms"]["decode"] == 0

    def test_a_text_is_closest_to_the_image_it_describes(self, client: Remote) -> None:
        images = vectors(client.ask("embed", RED, GREEN, BLUE))
        text_vectors = vectors(texts(client, "the blue one", "green", "a photo of a red circle"))
        assert (text_vectors @ images.T).argmax(axis=1).tolist() == [2, 1, 0]

    def test_base64_vectors_are_exact(self, client: Remote) -> None:
        (result,) = results(client.ask("embed", RED, encoding="base64"))
        exact = np.frombuffer(base64.b64decode(result["vector"]), "<f4")
        assert exact.shape == (WIDTH,)
        np.testing.assert_allclose(exact, vectors(client.ask("embed", RED))[0], atol=1e-9)

    def test_texts_in_a_form(self, client: Remote) -> None:
        files = [("text", (None, "red, or not")), ("text", (None, "blue"))]
        answers = results(client.post("/v1/embed", files=files))
        assert [result["text"]["tokens"] for result in answers] == [6, 3]

    def test_slots_and_text_pieces_are_included_on_request(self, client: Remote) -> None:
        (result,) = results(client.ask("embed", RED, include="slots", level="fast"))
        kept = result["reduction"]["tokens_out"]
        assert result["slots"] == [
            position if position < kept else 0 for position in range(WORKLOAD.tokens)
        ]
        assert result["grid"] == [4, 4]
        assert result["protected"] == 1
        (result,) = results(texts(client, "a circle", include=["slots"]))
        assert result["text"]["pieces"] == ["[CLS]", "a", "circle", "[SEP]"]
        assert "slots" not in result

    def test_every_selector_selects_a_level(self, client: Remote) -> None:
        for fields, levels in (
            ({"level": "fast"}, ["fast"]),
            ({"reduction": 0.123}, ["custom"]),
            ({"max_latency_ms": 10_000}, ["exact"]),
            # The fastest level that reaches it; which one depends on measured durations.
            ({"min_accuracy": 0.85}, ["exact", "balanced"]),
        ):
            (result,) = results(client.ask("embed", RED, **fields))
            assert result["reduction"]["level"] in levels
        detail = problem(client.ask("embed", RED, min_accuracy=0.95), 409, "accuracy-budget")
        assert "(recall)" in detail

    def test_padding_does_not_change_vectors(self, client: Remote) -> None:
        answers = results(texts(client, "red", "a red circle", model="padded"))
        # Padding tokens are not counted.
        assert [result["text"]["tokens"] for result in answers] == [3, 5]
        same = vectors(texts(client, "red", "a red circle"))
        np.testing.assert_allclose([result["vector"] for result in answers], same, atol=1e-6)

    def test_a_bad_image_does_not_fail_the_others(self, client: Remote) -> None:
        answers = results(client.ask("embed", RED, b"no image", BLUE))
        assert answers[1]["problem"]["status"] == 415
        assert len(answers[2]["vector"]) == WIDTH

    def test_texts_are_counted_separately_from_images(self, client: Remote) -> None:
        before = client.sample("tokenfold_texts_total")
        images = client.sample("tokenfold_images_total", task="embed")
        spent = client.sample("tokenfold_flops_total", task="embed", kind="spent")
        results(texts(client, "red", "blue"))
        assert client.sample("tokenfold_texts_total") == before + 2
        assert client.sample("tokenfold_images_total", task="embed") == images
        flops = client.sample("tokenfold_flops_total", task="embed", kind="spent") - spent
        assert flops == 2 * WORKLOAD.text_flops(3)


class TestRefused:
    def test_a_request_has_either_images_or_texts(self, client: Remote) -> None:
        image = base64.b64encode(RED).decode()
        for fields, count_word in (({}, "neither"), ({"image": image, "text": "red"}, "both")):
            detail = problem(client.post("/v1/embed", json=fields), 422, "invalid-request")
            assert count_word in detail

    def test_empty_texts_and_lists_are_refused(self, client: Remote) -> None:
        assert "text.1" in problem(texts(client, "red", " "), 422, "invalid-request")
        assert "text.0: is empty" in problem(texts(client, "\u200b"), 422, "invalid-request")
        assert "at least 1" in problem(texts(client), 422, "invalid-request")

    def test_the_number_of_items_is_limited(self, client: Remote) -> None:
        assert "8 texts" in problem(texts(client, *["red"] * 9), 422, "invalid-request")
        assert "8 images" in problem(client.ask("embed", *[RED] * 9), 422, "invalid-request")

    def test_models_without_embeddings_are_refused(self, client: Remote) -> None:
        assert "dual, padded" in problem(
            client.ask("embed", RED, model="colours"), 404, "unknown-model"
        )
        problem(texts(client, "red", model="pairs"), 404, "unknown-model")


def test_models_describe_the_similarity(client: Remote) -> None:
    listed = client.get("/v1/models").json()
    assert listed["default"]["embed"] == "dual"
    assert listed["default"]["classify"] == "colours"
    model = client.get("/v1/models/dual").json()
    assert model["similarity"] == {
        "width": WIDTH,
        "scale": 20.0,
        "bias": 0.0,
        "scores": "softmax",
        "template": "a photo of {}.",
    }
    assert model["text"]["most_tokens"] == MOST_TOKENS
    assert model["tasks"] == [{"name": "embed", "label_count": 0, "labels": []}]
    fast = model["levels"][-1]
    assert fast["quality"]["embed"]["metric"] == "recall"
    assert fast["neighbours"] == {"exact": 1.0, "balanced": 0.9, "fast": 0.7}
    assert model["profile"]["texts_per_second"] == 1000.0
    assert model["weights_bytes"] > 1000
    assert "similarity" not in client.get("/v1/models/colours").json()


class TestUnderLoad:
    def test_waiting_texts_share_a_run(self, bundles: Path) -> None:
        gated = Gated(bundles / "b")
        with serving(gated.app) as remote, ThreadPoolExecutor(8) as pool:
            gated.backend.gate.clear()
            first = pool.submit(texts, remote, "red")
            until(lambda: gated.backend.running == 1)
            later = [pool.submit(texts, remote, "blue", "green") for _ in range(3)]
            until(lambda: remote.sample("tokenfold_queue_depth") == 6)
            gated.backend.gate.set()
            assert results(first.result())[0]["batch_size"] == 1
            answers = [result for future in later for result in results(future.result())]
            assert {result["batch_size"] for result in answers} == {6}
