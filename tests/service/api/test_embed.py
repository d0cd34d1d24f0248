"""Vectors of images and of texts, over real HTTP."""

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
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def texts(client: Remote, *found: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/embed", json={"text": list(found), **fields})


def vectors(response: httpx.Response) -> Any:
    return np.array([result["vector"] for result in results(response)])


class TestVectors:
    def test_an_image(self, client: Remote) -> None:
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

    def test_texts(self, client: Remote) -> None:
        response = texts(client, "a red circle", "blue . " * 20)
        short, long = results(response)
        assert response.json()["model"] == "dual"
        assert short["text"] == {"tokens": 5, "cut": False}
        assert long["text"] == {"tokens": MOST_TOKENS, "cut": True}
        assert "reduction" not in short
        assert np.linalg.norm(short["vector"]) == pytest.approx(1, abs=1e-6)
        assert short["timings_ms"]["decode"] == 0

    def test_which_image_a_text_is_about(self, client: Remote) -> None:
        images = vectors(client.ask("embed", RED, GREEN, BLUE))
        said = vectors(texts(client, "the blue one", "green", "a photo of a red circle"))
        assert (said @ images.T).argmax(axis=1).tolist() == [2, 1, 0]

    def test_exactly(self, client: Remote) -> None:
        (result,) = results(client.ask("embed", RED, encoding="base64"))
        exact = np.frombuffer(base64.b64decode(result["vector"]), "<f4")
        assert exact.shape == (WIDTH,)
        np.testing.assert_allclose(exact, vectors(client.ask("embed", RED))[0], atol=1e-9)

    def test_a_form_of_texts(self, client: Remote) -> None:
        files = [("text", (None, "red, or not")), ("text", (None, "blue"))]
        found = results(client.post("/v1/embed", files=files))
        assert [result["text"]["tokens"] for result in found] == [6, 3]

    def test_slots_and_pieces(self, client: Remote) -> None:
        (result,) = results(client.ask("embed", RED, include="slots", level="fast"))
        left = result["reduction"]["tokens_out"]
        assert result["slots"] == [at if at < left else 0 for at in range(WORKLOAD.tokens)]
        assert result["grid"] == [4, 4]
        assert result["protected"] == 1
        (result,) = results(texts(client, "a circle", include=["slots"]))
        assert result["text"]["pieces"] == ["[CLS]", "a", "circle", "[SEP]"]
        assert "slots" not in result

    def test_every_selector(self, client: Remote) -> None:
        for fields, levels in (
            ({"level": "fast"}, ["fast"]),
            ({"reduction": 0.123}, ["custom"]),
            ({"max_latency_ms": 10_000}, ["exact"]),
            # The faster of those that reach it; which that is was measured, of a tiny network.
            ({"min_accuracy": 0.85}, ["exact", "balanced"]),
        ):
            (result,) = results(client.ask("embed", RED, **fields))
            assert result["reduction"]["level"] in levels
        detail = problem(client.ask("embed", RED, min_accuracy=0.95), 409, "accuracy-budget")
        assert "(recall)" in detail

    def test_texts_that_are_filled_up(self, client: Remote) -> None:
        found = results(texts(client, "red", "a red circle", model="padded"))
        # The words alone, as people count.
        assert [result["text"]["tokens"] for result in found] == [3, 5]
        same = vectors(texts(client, "red", "a red circle"))
        np.testing.assert_allclose([result["vector"] for result in found], same, atol=1e-6)

    def test_one_that_fails_fails_alone(self, client: Remote) -> None:
        found = results(client.ask("embed", RED, b"no image", BLUE))
        assert found[1]["problem"]["status"] == 415
        assert len(found[2]["vector"]) == WIDTH

    def test_texts_count_as_texts(self, client: Remote) -> None:
        before = client.sample("tokenfold_texts_total")
        images = client.sample("tokenfold_images_total", task="embed")
        spent = client.sample("tokenfold_flops_total", task="embed", kind="spent")
        results(texts(client, "red", "blue"))
        assert client.sample("tokenfold_texts_total") == before + 2
        assert client.sample("tokenfold_images_total", task="embed") == images
        flops = client.sample("tokenfold_flops_total", task="embed", kind="spent") - spent
        assert flops == 2 * WORKLOAD.text_flops(3)


class TestRefused:
    def test_both_kinds_or_none(self, client: Remote) -> None:
        one = base64.b64encode(RED).decode()
        for fields, given in (({}, "neither"), ({"image": one, "text": "red"}, "both")):
            detail = problem(client.post("/v1/embed", json=fields), 422, "invalid-request")
            assert given in detail

    def test_empty_texts_and_lists(self, client: Remote) -> None:
        assert "text.1" in problem(texts(client, "red", " "), 422, "invalid-request")
        assert "text.0: is empty" in problem(texts(client, "\u200b"), 422, "invalid-request")
        assert "at least 1" in problem(texts(client), 422, "invalid-request")

    def test_too_many(self, client: Remote) -> None:
        assert "8 texts" in problem(texts(client, *["red"] * 9), 422, "invalid-request")
        assert "8 images" in problem(client.ask("embed", *[RED] * 9), 422, "invalid-request")

    def test_models_that_make_no_vectors(self, client: Remote) -> None:
        assert "dual, padded" in problem(
            client.ask("embed", RED, model="colours"), 404, "unknown-model"
        )
        problem(texts(client, "red", model="pairs"), 404, "unknown-model")


def test_models(client: Remote) -> None:
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
    def test_texts_share_a_run(self, bundles: Path) -> None:
        gated = Gated(bundles / "b")
        with serving(gated.app) as remote, ThreadPoolExecutor(8) as pool:
            gated.backend.gate.clear()
            first = pool.submit(texts, remote, "red")
            until(lambda: gated.backend.running == 1)
            later = [pool.submit(texts, remote, "blue", "green") for _ in range(3)]
            until(lambda: remote.sample("tokenfold_queue_depth") == 6)
            gated.backend.gate.set()
            assert results(first.result())[0]["batch_size"] == 1
            found = [result for one in later for result in results(one.result())]
            assert {result["batch_size"] for result in found} == {6}
