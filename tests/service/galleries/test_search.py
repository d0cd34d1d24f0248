"""Searches over HTTP: by text, by image, by id, and with reranking."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.galleries.served import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    add,
    added,
    bundles,
    create,
    galleries_at,
    ids,
    search,
)
from tests.service.standin import Remote, encoded, problem

NAMES = {"red": RED, "green": GREEN, "blue": BLUE, "yellow": YELLOW, "white": WHITE}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = bundles(tmp_path_factory.mktemp("bundles"))
    with galleries_at(root, max_rerank=4) as remote:
        create(remote, "colours", level="balanced")
        metadata = [
            {"n": index, "warm": name in ("red", "yellow")} for index, name in enumerate(NAMES)
        ]
        added(add(remote, "colours", *NAMES.values(), ids=list(NAMES), metadata=metadata))
        yield remote


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(remote: Remote, status: int, slug: str, **body: Any) -> str:
    return problem(remote.post("/v1/galleries/colours/search", json=body), status, slug)


class TestSearch:
    def test_by_text(self, client: Remote) -> None:
        answer = search(client, "colours", text="a photo of the blue circle.", top_k=2)
        assert answer["gallery"] == "colours"
        assert answer["model"] == "dual"
        first, second = answer["results"]
        assert first["id"] == "blue"
        assert first["metadata"] == {"n": 2, "warm": False}
        assert (first["width"], first["height"]) == (40, 30)
        assert -1 <= second["score"] < first["score"] <= 1
        assert "similarity" not in first
        assert client.get(first["thumbnail"]).status_code == 200
        assert set(answer["timings_ms"]) == {"embed", "search"}
        assert "reduction" not in answer
        assert "rerank" not in answer

    def test_by_image(self, client: Remote) -> None:
        answer = search(client, "colours", image=b64(GREEN), top_k=1)
        assert ids(answer) == ["green"]
        assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-5)
        # Without a selector, the gallery's level applies.
        assert answer["reduction"]["level"] == "balanced"
        answer = search(client, "colours", image=b64(GREEN), top_k=1, level="fast")
        assert answer["reduction"]["level"] == "fast"
        assert 0.9 < answer["results"][0]["score"] < 1
        response = client.post(
            "/v1/galleries/colours/search",
            files={"image": ("a.png", GREEN)},
            data={"top_k": 1, "reduction": 0.6},
        )
        assert ids(response.json()) == ["green"]
        assert response.json()["reduction"]["level"] == "fast"
        assert "embed;dur=" in response.headers["server-timing"]

    def test_by_id(self, client: Remote) -> None:
        answer = search(client, "colours", id="red")
        assert sorted(ids(answer)) == ["blue", "green", "white", "yellow"]
        assert ids(answer)[0] == "yellow"
        assert ids(search(client, "colours", id="red", top_k=1)) == ["yellow"]
        all_ids = ids(answer)
        assert ids(search(client, "colours", id="red", top_k=2, offset=1)) == all_ids[1:3]

    def test_offset_continues_a_search(self, client: Remote) -> None:
        all_ids = ids(search(client, "colours", text="yellow"))
        assert len(all_ids) == 5
        parts = [
            search(client, "colours", text="yellow", top_k=2, offset=offset) for offset in (0, 2, 4)
        ]
        assert [name for part in parts for name in ids(part)] == all_ids
        assert ids(search(client, "colours", text="yellow", offset=5)) == []

    def test_filter(self, client: Remote) -> None:
        answer = search(client, "colours", text="blue", filter={"warm": True})
        assert sorted(ids(answer)) == ["red", "yellow"]
        answer = search(client, "colours", text="blue", filter={"n": {"gte": 1, "lt": 3}})
        assert ids(answer) == ["blue", "green"]
        response = client.post(
            "/v1/galleries/colours/search",
            files={"text": (None, "blue"), "filter": (None, '{"warm": true}')},
        )
        assert len(response.json()["results"]) == 2
        refused(client, 422, "invalid-filter", text="blue", filter={"n": {"near": 1}})
        refused(client, 422, "invalid-request", text="blue", filter=[1])

    def test_exact(self, client: Remote) -> None:
        assert ids(search(client, "colours", text="blue", exact=True, top_k=1)) == ["blue"]

    def test_an_empty_gallery(self, client: Remote) -> None:
        create(client, "empty")
        assert search(client, "empty", text="blue", rerank=3)["results"] == []
        assert search(client, "empty", image=b64(RED))["results"] == []

    def test_metrics(self, client: Remote) -> None:
        name = "tokenfold_gallery_search_duration_seconds_count"
        for query_type, value in {"text": "red", "id": "red", "image": b64(RED)}.items():
            before = client.sample(name, by=query_type)
            search(client, "colours", **{query_type: value})
            assert client.sample(name, by=query_type) == before + 1


class TestRerank:
    def test_the_best_hits_are_reranked(self, client: Remote) -> None:
        answer = search(client, "colours", text="red", rerank=3, level="fast")
        plain = search(client, "colours", text="red")
        reranked, rest = answer["results"][:3], answer["results"][3:]
        assert {hit["id"] for hit in reranked} == set(ids(plain)[:3])
        assert [hit["id"] for hit in rest] == ids(plain)[3:]
        scores = [hit["score"] for hit in reranked]
        assert scores == sorted(scores, reverse=True)
        similarity = {hit["id"]: hit["score"] for hit in plain["results"]}
        for hit in reranked:
            assert hit["similarity"] == pytest.approx(similarity[hit["id"]], abs=1e-6)
            assert 0 <= hit["match"] <= 1
            assert hit["score"] == pytest.approx(hit["similarity"] + hit["match"], abs=2e-6)
        assert all(hit.keys().isdisjoint({"similarity", "match"}) for hit in rest)
        assert answer["rerank"]["model"] == "pairs"
        assert answer["rerank"]["candidates"] == 3
        assert answer["rerank"]["reduction"]["level"] == "fast"
        assert set(answer["timings_ms"]) == {"embed", "search", "rerank"}

    def test_reranking_changes_the_order(self, client: Remote) -> None:
        # The dual encoder compares all colours; the reranker only counts the colours that the text
        # names, of which white has as much as red.
        create(client, "mixed")
        half = Image.new("RGB", (40, 30), "red")
        half.paste((0, 0, 0), (0, 0, 20, 30))
        added(add(client, "mixed", encoded(half), WHITE, ids=["half", "white"]))
        assert ids(search(client, "mixed", text="red")) == ["half", "white"]
        assert ids(search(client, "mixed", text="red", rerank=2)) == ["white", "half"]

    def test_offset_applies_after_reranking(self, client: Remote) -> None:
        all_ids = ids(search(client, "colours", text="green", rerank=4))
        parts = [
            search(client, "colours", text="green", rerank=4, top_k=2, offset=offset)
            for offset in (0, 2, 4)
        ]
        assert [name for part in parts for name in ids(part)] == all_ids

    def test_invalid_reranking_is_refused(self, client: Remote) -> None:
        assert "at most 4" in refused(client, 422, "invalid-request", text="red", rerank=5)
        refused(client, 422, "invalid-request", text="red", rerank=0)
        refused(client, 422, "invalid-request", image=b64(RED), rerank=2)
        refused(client, 422, "invalid-request", id="red", rerank=2)
        refused(client, 404, "unknown-model", text="red", rerank=2, rerank_model="dual")
        refused(client, 422, "unknown-level", text="red", rerank=2, level="turbo")
        named = search(client, "colours", text="red", rerank=2, rerank_model="pairs")
        assert named["rerank"]["candidates"] == 2


def test_invalid_searches_are_refused(client: Remote) -> None:
    refused(client, 422, "invalid-request")
    assert "text and id" in refused(client, 422, "invalid-request", text="red", id="red")
    refused(client, 422, "invalid-request", image=[b64(RED), b64(RED)])
    refused(client, 422, "invalid-request", image=[])
    refused(client, 422, "invalid-request", text="")
    refused(client, 422, "invalid-request", text="red", top_k=0)
    refused(client, 422, "invalid-request", text="red", top_k=1001)
    refused(client, 422, "invalid-request", text="red", offset=-1)
    refused(client, 422, "two-selectors", text="red", level="fast", reduction=0.5)
    refused(client, 422, "unknown-level", image=b64(RED), level="turbo")
    refused(client, 404, "unknown-image", id="pink")
    refused(client, 415, "image-format", image=b64(b"no image"))
    refused(client, 422, "bad-image", image="?")
    missing = client.post("/v1/galleries/none/search", json={"text": "red"})
    problem(missing, 404, "unknown-gallery")
    misspelt = client.post("/v1/galleries/colours/search", json={"txt": "red"})
    assert "known: " in problem(misspelt, 422, "invalid-request")


def test_stored_vectors_equal_embed(client: Remote) -> None:
    image = client.get("/v1/galleries/colours/images/red", params={"include": "vector"}).json()
    answer = client.ask("embed", RED, level="balanced").json()
    np.testing.assert_allclose(answer["results"][0]["vector"], image["vector"], atol=1e-6)
