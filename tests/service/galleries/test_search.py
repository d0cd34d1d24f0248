"""Searches over real HTTP: by text, by image, for more like one, and with a second look."""

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
        metadata = [{"n": at, "warm": name in ("red", "yellow")} for at, name in enumerate(NAMES)]
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
        # At the gallery's level, if it chooses none.
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

    def test_more_like_one(self, client: Remote) -> None:
        answer = search(client, "colours", id="red")
        assert sorted(ids(answer)) == ["blue", "green", "white", "yellow"]
        assert ids(answer)[0] == "yellow"
        assert ids(search(client, "colours", id="red", top_k=1)) == ["yellow"]
        whole = ids(answer)
        assert ids(search(client, "colours", id="red", top_k=2, offset=1)) == whole[1:3]

    def test_offset_goes_on(self, client: Remote) -> None:
        whole = ids(search(client, "colours", text="yellow"))
        assert len(whole) == 5
        parts = [search(client, "colours", text="yellow", top_k=2, offset=at) for at in (0, 2, 4)]
        assert [name for part in parts for name in ids(part)] == whole
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
        for by, value in {"text": "red", "id": "red", "image": b64(RED)}.items():
            before = client.sample(name, by=by)
            search(client, "colours", **{by: value})
            assert client.sample(name, by=by) == before + 1


class TestRerank:
    def test_the_best_are_looked_at_again(self, client: Remote) -> None:
        answer = search(client, "colours", text="red", rerank=3, level="fast")
        plain = search(client, "colours", text="red")
        again, rest = answer["results"][:3], answer["results"][3:]
        assert {one["id"] for one in again} == set(ids(plain)[:3])
        assert [one["id"] for one in rest] == ids(plain)[3:]
        scores = [one["score"] for one in again]
        assert scores == sorted(scores, reverse=True)
        similarity = {one["id"]: one["score"] for one in plain["results"]}
        for one in again:
            assert one["similarity"] == pytest.approx(similarity[one["id"]], abs=1e-6)
            assert 0 <= one["match"] <= 1
            assert one["score"] == pytest.approx(one["similarity"] + one["match"], abs=2e-6)
        assert all(one.keys().isdisjoint({"similarity", "match"}) for one in rest)
        assert answer["rerank"]["model"] == "pairs"
        assert answer["rerank"]["candidates"] == 3
        assert answer["rerank"]["reduction"]["level"] == "fast"
        assert set(answer["timings_ms"]) == {"embed", "search", "rerank"}

    def test_it_changes_the_order(self, client: Remote) -> None:
        # The dual encoder counts what a text names, the other network what it says of the image:
        # white has as much of every colour.
        create(client, "mixed")
        half = Image.new("RGB", (40, 30), "red")
        half.paste((0, 0, 0), (0, 0, 20, 30))
        added(add(client, "mixed", encoded(half), WHITE, ids=["half", "white"]))
        assert ids(search(client, "mixed", text="red")) == ["half", "white"]
        assert ids(search(client, "mixed", text="red", rerank=2)) == ["white", "half"]

    def test_offset_counts_after_it(self, client: Remote) -> None:
        whole = ids(search(client, "colours", text="green", rerank=4))
        parts = [
            search(client, "colours", text="green", rerank=4, top_k=2, offset=at)
            for at in (0, 2, 4)
        ]
        assert [name for part in parts for name in ids(part)] == whole

    def test_what_is_refused(self, client: Remote) -> None:
        assert "at most 4" in refused(client, 422, "invalid-request", text="red", rerank=5)
        refused(client, 422, "invalid-request", text="red", rerank=0)
        refused(client, 422, "invalid-request", image=b64(RED), rerank=2)
        refused(client, 422, "invalid-request", id="red", rerank=2)
        refused(client, 404, "unknown-model", text="red", rerank=2, rerank_model="dual")
        refused(client, 422, "unknown-level", text="red", rerank=2, level="turbo")
        named = search(client, "colours", text="red", rerank=2, rerank_model="pairs")
        assert named["rerank"]["candidates"] == 2


def test_what_is_refused(client: Remote) -> None:
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
    wrong = client.post("/v1/galleries/colours/search", json={"txt": "red"})
    assert "known: " in problem(wrong, 422, "invalid-request")


def test_vectors_are_the_same_as_embed_gives(client: Remote) -> None:
    one = client.get("/v1/galleries/colours/images/red", params={"include": "vector"}).json()
    answer = client.ask("embed", RED, level="balanced").json()
    np.testing.assert_allclose(answer["results"][0]["vector"], one["vector"], atol=1e-6)
