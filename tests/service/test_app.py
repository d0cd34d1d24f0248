"""The application over real HTTP: answers, every bad input, overload, metrics."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service import standin
from tests.service.gated import Gated
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.standin import (
    LABELS,
    PROBLEM,
    WORKLOAD,
    Remote,
    bundle,
    encoded,
    picture,
    problem,
    serving,
    until,
)
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.workload import Plan
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend
from tokenfold.service import logs
from tokenfold.service.api.protocol import BoundedHead
from tokenfold.service.api.schemas.inference import ClassifyResponse
from tokenfold.service.app import create_app
from tokenfold.service.scheduling.costs import Times


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours", work=20)
    bundle(root / "b", name="plain", profile=False, levels={"exact": 0.0, "half": 0.5})
    return root


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[Remote]:
    with serving(create_app(standin.settings(bundles, max_items=4))) as remote:
        yield remote


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content)
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def json_body(client: Remote, **fields: Any) -> httpx.Response:
    return client.post("/v1/classify", json=fields)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


class TestAnswers:
    def test_a_form(self, client: Remote) -> None:
        response = client.classify(picture("lime"))
        (result,) = results(response)
        assert response.json()["model"] == "colours"
        assert [found["label"] for found in result["predictions"]] == ["green", "red", "blue"]
        assert sum(found["score"] for found in result["predictions"]) == pytest.approx(1, abs=1e-5)
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

    def test_json(self, client: Remote) -> None:
        one = base64_of(picture("blue"))
        for image in (one, [one], f"data:image/png;base64,{one}"):
            (result,) = results(json_body(client, image=image, top_k=1, level="fast"))
            assert [found["label"] for found in result["predictions"]] == ["blue"]
            assert result["reduction"]["level"] == "fast"

    def test_a_whole_number_may_have_a_point(self, client: Remote) -> None:
        (result,) = results(json_body(client, image=base64_of(picture()), top_k=2.0))
        assert len(result["predictions"]) == 2

    def test_several_images_in_order(self, client: Remote) -> None:
        names = ["blue", "red", "lime", "red"]
        found = results(client.classify(*map(picture, names)))
        assert [r["predictions"][0]["label"] for r in found] == ["blue", "red", "green", "red"]

    def test_slots(self, client: Remote) -> None:
        for include in ("slots", ["slots"], "slots,slots"):
            (result,) = results(client.classify(picture(), include=include, reduction=0.5))
            left = result["reduction"]["tokens_out"]
            assert result["slots"] == [i if i < left else 0 for i in range(17)]
            assert result["grid"] == [4, 4]
            assert result["protected"] == 1
        assert len(results(json_body(client, image=base64_of(picture()), include=["slots"]))) == 1

    def test_a_reduction(self, client: Remote) -> None:
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

    def test_budgets(self, client: Remote) -> None:
        (result,) = results(client.classify(picture(), max_latency_ms=10_000))
        assert result["reduction"]["level"] == "exact"
        (result,) = results(client.classify(picture(), min_accuracy=0.85))
        assert result["reduction"]["level"] == "balanced"

    def test_headers(self, client: Remote) -> None:
        response = client.classify(picture(), headers={"X-Request-ID": "abc-1"})
        assert response.headers["x-request-id"] == "abc-1"
        timing = r"decode;dur=[\d.]+, queue;dur=[\d.]+, infer;dur=[\d.]+, post;dur=[\d.]+"
        assert re.fullmatch(timing + ', batch;desc="1"', response.headers["server-timing"])
        ids = {client.get("/livez").headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        odd = client.get("/livez", headers={"X-Request-ID": 'a"b c'})
        assert odd.headers["x-request-id"] != 'a"b c'

    def test_another_model(self, client: Remote) -> None:
        response = client.classify(picture(), model="plain", level="half")
        assert response.json()["model"] == "plain"

    def test_models(self, client: Remote) -> None:
        listed = client.get("/v1/models").json()
        assert listed["default"] == {"classify": "colours"}
        assert [model["name"] for model in listed["models"]] == ["colours", "plain"]
        colours = client.get("/v1/models/colours").json()
        assert colours == listed["models"][0] | {
            "levels": colours["levels"],
            "tasks": [{"name": "classify", "label_count": 3, "labels": list(LABELS)}],
        }
        assert listed["models"][0]["tasks"] == [{"name": "classify", "label_count": 3}]
        assert [level["name"] for level in colours["levels"]] == ["exact", "balanced", "fast"]
        exact, *_, fast = colours["levels"]
        assert fast["expected_ms"] < exact["expected_ms"]
        assert exact["quality"]["classify"]["value"] == 0.9
        assert exact["latency"] == [{"batch": 1, "p50_ms": 1000.0, "p99_ms": 2000.0}]

    def test_probes(self, client: Remote) -> None:
        for path in ("/livez", "/readyz", "/startupz"):
            assert client.get(path).json() == {"status": "ok"}


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
    def test_alone(self, client: Remote, data: bytes, status: int, slug: str) -> None:
        problem(client.classify(data), status, slug)
        if data:
            problem(json_body(client, image=base64_of(data)), status, slug)

    def test_a_bomb(self, client: Remote) -> None:
        bomb = encoded(Image.new("1", (10_000, 10_000)))
        assert len(bomb) < 100_000
        begun = time.perf_counter()
        detail = problem(client.classify(bomb), 413, "image-too-large")
        assert "10000 x 10000" in detail
        assert time.perf_counter() - begun < 1

    @pytest.mark.parametrize("text", ["%%%", "aGVsbG8", "", "data:image/png;base64", "é"])
    def test_base64(self, client: Remote, text: str) -> None:
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
    def test_odd_but_good(self, client: Remote, image: bytes) -> None:
        assert results(client.classify(image))[0]["predictions"][0]["label"] == "red"

    def test_sixteen_bits(self, client: Remote) -> None:
        image = encoded(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)))
        scores = [found["score"] for found in results(client.classify(image))[0]["predictions"]]
        assert scores == pytest.approx([1 / 3] * 3, abs=1e-5)

    def test_a_bad_one_among_good_ones(self, client: Remote) -> None:
        found = results(client.classify(picture("red"), b"bad", b"", picture("blue")))
        assert found[0]["predictions"][0]["label"] == "red"
        assert found[1]["problem"]["status"] == 415
        assert found[2]["problem"]["status"] == 422
        assert found[3]["predictions"][0]["label"] == "blue"

    def test_all_bad(self, client: Remote) -> None:
        response = client.classify(b"", b"bad")
        problem(response, 422, "bad-image")
        statuses = [found["problem"]["status"] for found in response.json()["results"]]
        assert statuses == [422, 415]


class TestBadRequests:
    @pytest.mark.parametrize(
        ("fields", "status", "slug", "said"),
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
    def test_fields(
        self, client: Remote, fields: dict[str, Any], status: int, slug: str, said: str
    ) -> None:
        assert said in problem(client.classify(picture(), **fields), status, slug)
        if not any(isinstance(value, str) for value in fields.values()):
            found = json_body(client, image=base64_of(picture()), **fields)
            assert said in problem(found, status, slug)

    def test_json_has_to_have_the_types(self, client: Remote) -> None:
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

    def test_no_image(self, client: Remote) -> None:
        assert "image" in problem(json_body(client), 422, "invalid-request")
        form = client.post("/v1/classify", files={"level": (None, "fast")})
        assert "image" in problem(form, 422, "invalid-request")

    def test_too_many_images(self, client: Remote) -> None:
        detail = problem(client.classify(*[picture()] * 5), 422, "invalid-request")
        assert "at most 4" in detail

    def test_files_and_text_confused(self, client: Remote) -> None:
        as_text = client.post("/v1/classify", files={"image": (None, "hello")})
        assert "-F image=@path" in problem(as_text, 422, "invalid-request")
        unnamed = client.post("/v1/classify", files={"image": (None, picture(), "image/png")})
        assert results(unnamed)
        as_file = client.post(
            "/v1/classify", files={"image": ("a.png", picture()), "level": ("l", b"fast")}
        )
        assert "not a file" in problem(as_file, 422, "invalid-request")

    def test_a_field_given_twice(self, client: Remote) -> None:
        detail = problem(client.classify(picture(), top_k=["1", "2"]), 422, "invalid-request")
        assert "twice" in detail

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"image": "a"'])
    def test_malformed_json(self, client: Remote, content: bytes) -> None:
        response = client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json"}
        )
        problem(response, 400, "malformed-body")

    @pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"x"'])
    def test_json_that_is_no_object(self, client: Remote, content: bytes) -> None:
        response = client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json"}
        )
        problem(response, 422, "invalid-request")

    @pytest.mark.parametrize(
        "kind", ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data;b"]
    )
    def test_malformed_forms(self, client: Remote, kind: str) -> None:
        response = client.post("/v1/classify", content=b"abc", headers={"content-type": kind})
        problem(response, 400, "malformed-body")

    @pytest.mark.parametrize("kind", [None, "image/png", "application/x-www-form-urlencoded", ";"])
    def test_other_content_types(self, client: Remote, kind: str | None) -> None:
        headers = {} if kind is None else {"content-type": kind}
        response = client.post("/v1/classify", content=picture(), headers=headers)
        problem(response, 415, "unsupported-media-type")

    def test_unknown_paths_and_methods(self, client: Remote) -> None:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("GET", "/v1/classify", 405),
            ("DELETE", "/livez", 405),
        ):
            response = client.request(method, path)
            assert response.status_code == status
            assert response.headers["content-type"] == PROBLEM
            assert response.json()["status"] == status
            assert ("allow" in response.headers) == (status == 405)
        problem(client.get("/v1/models/resnet"), 404, "unknown-model")


@pytest.fixture(scope="module")
def small(bundles: Path) -> Iterator[Remote]:
    """A server that takes only small bodies."""
    with serving(create_app(standin.settings(bundles, max_body_bytes=20_000))) as remote:
        yield remote


class TestBodyLimit:
    def test_by_the_header(self, small: Remote) -> None:
        problem(small.classify(b"x" * 30_000), 413, "body-too-large")
        problem(small.classify(b"x" * 20_000_000), 413, "body-too-large")

    def test_by_counting(self, small: Remote) -> None:
        def stream() -> Iterator[bytes]:
            for _ in range(30):
                yield b"x" * 1000

        for kind in ("application/json", "multipart/form-data; boundary=x"):
            response = small.post("/v1/classify", content=stream(), headers={"content-type": kind})
            problem(response, 413, "body-too-large")

    def test_before_anything_is_sent(self, small: Remote) -> None:
        port = int(small.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(
                b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n"
                b"content-type: application/json\r\nexpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    def test_others_go_on(self, small: Remote) -> None:
        assert results(small.classify(picture()))

    def test_each_is_counted(self, small: Remote) -> None:
        counted = {"task": "classify", "model": "unknown", "level": "unknown"}
        before = small.sample("tokenfold_requests_total", outcome="invalid", **counted)
        problem(small.classify(b"x" * 30_000), 413, "body-too-large")
        assert small.sample("tokenfold_requests_total", outcome="invalid", **counted) == before + 1


@pytest.fixture(scope="module")
def port(bundles: Path) -> Iterator[int]:
    """Of a server that limits heads, as `tokenfold serve` does."""
    with serving(create_app(standin.settings(bundles)), http=BoundedHead) as remote:
        yield int(remote.url.rpartition(":")[2])


class TestHeads:
    @staticmethod
    def exchange(port: int, *pieces: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for piece in pieces:
                connection.sendall(piece)
            while found := connection.recv(65_536):
                answer += found
                if b"}" in found:
                    break
        return answer

    @pytest.mark.parametrize(
        "pieces",
        [
            [b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"],
            [b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ", *[b"a" * 20_000] * 50],
            [b"GET /livez HTTP/1.1\r\n", *[b"x: a\r\n" * 5000] * 10],
            [b"GET /" + b"a" * 100_000],
        ],
    )
    def test_too_long(self, port: int, pieces: list[bytes]) -> None:
        answer = self.exchange(port, *pieces)
        assert answer.startswith(b"HTTP/1.1 431 ")
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["type"] == "urn:tokenfold:problem:head-too-large"
        assert body["status"] == 431

    def test_one_without_end_delays_nobody(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nx: ")
                for _ in range(200):
                    connection.sendall(b"a" * 500_000)
            begun = time.perf_counter()
            assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
            assert time.perf_counter() - begun < 1

    def test_long_ones_and_long_bodies_are_fine(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url) as one:
            for _ in range(5):
                assert one.get("/livez", headers={"x": "a" * 50_000}).status_code == 200
                response = one.post("/v1/classify", files={"image": ("a", b"x" * 1_000_000)})
                problem(response, 415, "image-format")


class TestBodiesBeingSent:
    HEAD = (
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n"
        b"content-type: application/json\r\n\r\n"
    )

    def test_all_of_them_are_limited(self, bundles: Path) -> None:
        app = create_app(standin.settings(bundles, max_body_bytes=20_000, max_bodies_bytes=30_000))
        with serving(app) as remote:
            port = app.state.port
            with socket.create_connection(("127.0.0.1", port), timeout=5) as first:
                first.sendall(self.HEAD + b" " * 18_000)
                # The first one's bytes are counted when they are read, which nothing tells.
                until(lambda: self._refused(remote))
                assert results(remote.classify(picture()))  # a small one has room
            until(lambda: not self._refused(remote))
            counted = {"task": "classify", "model": "unknown", "level": "unknown"}
            assert remote.sample("tokenfold_requests_total", outcome="rejected", **counted) >= 1

    @staticmethod
    def _refused(remote: Remote) -> bool:
        response = remote.classify(b"x" * 18_000)
        if response.status_code != 503:
            problem(response, 415, "image-format")
            return False
        problem(response, 503, "too-many-bodies")
        assert int(response.headers["retry-after"]) >= 1
        return True

    def test_each_has_its_time(self, bundles: Path) -> None:
        app = create_app(standin.settings(bundles, body_timeout=0.2))
        with (
            serving(app) as remote,
            socket.create_connection(("127.0.0.1", app.state.port), timeout=5) as slow,
        ):
            slow.sendall(self.HEAD + b"{")
            answer = b""
            while found := slow.recv(4096):  # until the server hangs up
                answer += found
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"urn:tokenfold:problem:body-timeout" in answer
            assert results(remote.classify(picture()))


class TestLongNames:
    LONG = "x" * 1_000_000

    @pytest.mark.parametrize("field", ["level", "model"])
    def test_values(self, client: Remote, field: str) -> None:
        response = json_body(client, image="", **{field: self.LONG})
        assert field in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000

    def test_keys(self, client: Remote) -> None:
        response = json_body(client, image="", **{self.LONG: 1})
        assert "x" * 100 in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000

    def test_paths_and_headers(self, client: Remote) -> None:
        long = self.LONG[:20_000]
        for response in (
            client.get(f"/{long}"),
            client.get(f"/v1/models/{long}"),
            client.post("/v1/classify", content=b"", headers={"content-type": long}),
        ):
            assert response.status_code in (404, 415, 422)
            assert len(response.content) < 1000


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/startupz", "/metrics", "/v1/models", "/v1/models/plain"]
)
def test_head_is_like_get(client: Remote, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert not head.content
    if path not in ("/metrics", "/v1/models", "/v1/models/plain"):  # these change
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.delete(path).headers["allow"] == "GET, HEAD"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


class TestUnderLoad:
    def test_overload(self, bundles: Path, pool: ThreadPoolExecutor) -> None:
        gated = Gated(bundles, queue_limit=3, max_items=3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            first = pool.submit(remote.classify, picture("red"))
            until(lambda: gated.backend.running == 1)
            waiting = pool.submit(remote.classify, picture("blue"), picture("lime"))
            until(lambda: remote.sample("tokenfold_queue_depth") == 2)
            refused = remote.classify(picture(), picture())
            problem(refused, 503, "queue-full")
            assert int(refused.headers["retry-after"]) >= 1
            gated.backend.gate.set()
            assert len(results(first.result())) == 1
            assert len(results(waiting.result())) == 2
            assert remote.sample("tokenfold_queue_depth") == 0
            counted = {"task": "classify", "model": "colours", "level": "exact"}
            assert remote.sample("tokenfold_requests_total", outcome="rejected", **counted) == 1

    def test_out_of_time(self, bundles: Path, pool: ThreadPoolExecutor) -> None:
        gated = Gated(bundles, request_timeout=0.3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            ran = gated.backend.ran
            slow = [pool.submit(remote.classify, picture()) for _ in range(3)]
            for future in slow:
                refused = future.result()
                problem(refused, 503, "expired")
                assert int(refused.headers["retry-after"]) >= 1
            gated.backend.gate.set()
            assert results(remote.classify(picture()))
            # What had expired in the queue was never run.
            assert gated.backend.ran == ran + 2

    def test_callers_that_go_away(self, bundles: Path, pool: ThreadPoolExecutor) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            ran = gated.backend.ran
            first = pool.submit(remote.classify, picture())
            until(lambda: gated.backend.running == 1)
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(
                        remote.url + "/v1/classify",
                        files={"image": ("a.png", picture())},
                        timeout=0.2,
                    )
            counted = {"task": "classify", "model": "colours", "level": "exact"}
            until(
                lambda: (
                    remote.sample("tokenfold_requests_total", outcome="abandoned", **counted) == 3
                )
            )
            assert remote.sample("tokenfold_queue_depth") == 0
            gated.backend.gate.set()
            assert results(first.result())
            assert gated.backend.ran == ran + 1

    def test_a_caller_that_stops_in_the_middle(self, bundles: Path) -> None:
        with serving(create_app(standin.settings(bundles))) as remote:
            port = int(remote.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
                    b"content-type: application/json\r\n\r\n{"
                )
            until(
                lambda: (
                    remote.sample(
                        "tokenfold_requests_total",
                        task="classify",
                        model="unknown",
                        level="unknown",
                        outcome="abandoned",
                    )
                    == 1
                )
            )

    def test_a_latency_budget_under_load(self, bundles: Path, pool: ThreadPoolExecutor) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            costs = gated.app.state.core.catalog.get("colours").costs
            takes = {name: self._seconds(gated, level.plan) for name, level in self._levels(gated)}
            known = {WORKLOAD.flops(level.plan): 0.1 for _, level in self._levels(gated)}
            costs.learn(Times(known))
            gated.backend.gate.clear()
            waiting = [pool.submit(remote.classify, picture()) for _ in range(5)]
            until(lambda: remote.sample("tokenfold_queue_depth") == 4)
            refused = remote.classify(picture(), max_latency_ms=150)
            problem(refused, 503, "deadline")
            gated.backend.gate.set()
            assert all(results(future.result()) for future in waiting)
            assert takes["fast"] < takes["exact"]

    @staticmethod
    def _seconds(gated: Gated, plan: Plan) -> float:
        model = gated.app.state.core.catalog.get("colours")
        return float(model.costs.seconds((model.levels.work(plan),)))

    @staticmethod
    def _levels(gated: Gated) -> Any:
        return gated.app.state.core.catalog.get("colours").levels.levels.items()

    def test_a_failing_model(self, bundles: Path, caplog: pytest.LogCaptureFixture) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            gated.backend.error = RuntimeError("secret")
            response = remote.classify(picture(), headers={"X-Request-ID": "the-one"})
            problem(response, 500, "internal")
            assert "secret" not in response.text
            assert "secret" in caplog.text
            gated.backend.error = None
            assert results(remote.classify(picture()))
            assert remote.get("/livez").status_code == 200

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_dead_worker_is_not_live(self, bundles: Path) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            gated.backend.error = SystemExit()
            problem(remote.classify(picture()), 500, "internal")
            until(lambda: remote.get("/livez").status_code == 503)
            problem(remote.get("/livez"), 503, "worker-died")
            problem(remote.get("/readyz"), 503, "worker-died")

    def test_many_at_once(self, client: Remote, pool: ThreadPoolExecutor) -> None:
        names = ["red", "lime", "blue"] * 20
        fields: list[dict[str, Any]] = [
            {"level": "fast"}, {"reduction": 0.2}, {}, {"model": "plain"}
        ]  # fmt: skip
        futures = [
            pool.submit(client.classify, picture(name), **fields[i % 4])
            for i, name in enumerate(names)
        ]
        expected = {"red": "red", "lime": "green", "blue": "blue"}
        for name, future in zip(names, futures, strict=True):
            assert results(future.result())[0]["predictions"][0]["label"] == expected[name]

    def test_keep_alive_after_errors(self, client: Remote) -> None:
        with Remote(client.url) as one:
            for _ in range(3):
                problem(one.classify(b"bad"), 415, "image-format")
                assert results(one.classify(picture()))


class TestStarting:
    def test_not_ready_until_warm(self, bundles: Path) -> None:
        gate = threading.Event()

        def load(found: Bundle) -> Backend:
            gate.wait(10)
            return sessions.load(found)

        app = create_app(standin.settings(bundles), kinds=[StubKind("cpu", "cpu", load)])
        release = threading.Thread(target=self._probe, args=(app, gate))
        release.start()
        with serving(app) as remote:
            release.join()
            assert self.seen == [503, 503, 200, 503, 503]
            assert remote.get("/readyz").status_code == 200
            assert remote.get("/startupz").status_code == 200
            assert results(remote.classify(picture()))

    def _probe(self, app: Any, gate: threading.Event) -> None:
        # `serving` returns when the models are loaded: look in before.
        self.seen: list[int] = []
        until(lambda: hasattr(app.state, "port"))
        with Remote(f"http://127.0.0.1:{app.state.port}") as remote:
            self.seen = [
                remote.get("/readyz").status_code,
                remote.get("/startupz").status_code,
                remote.get("/livez").status_code,
                remote.classify(picture()).status_code,
                remote.get("/v1/models").status_code,
            ]
        gate.set()

    def test_a_model_that_cannot_be_loaded(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed = threading.Event()

        def load(_: Bundle) -> Backend:
            raise RuntimeError("no such op")

        app = create_app(
            standin.settings(bundles),
            kinds=[StubKind("cpu", "cpu", load)],
            on_failure=failed.set,
        )
        with serving(app) as remote:
            assert failed.is_set()
            problem(remote.get("/readyz"), 503, "starting")
        assert "no such op" in caplog.text

    def test_labels_that_do_not_fit_the_graph(self, tmp_path: Path) -> None:
        bundle(tmp_path / "a", labels=("red", "green"))
        app = create_app(standin.settings(tmp_path))
        with serving(app):
            assert "3 outputs and 2 labels" in str(app.state.core.failed)


class TestMetrics:
    def test_a_request(self, bundles: Path) -> None:
        with serving(create_app(standin.settings(bundles))) as remote:
            assert remote.sample("tokenfold_images_total", task="classify") == 0
            remote.classify(picture(), picture("blue"), b"bad", level="fast")
            remote.classify(b"bad")
            remote.classify(picture(), level="turbo")
            remote.classify(picture(), model="x" * 1000)
            remote.classify(picture(), reduction=0.123)
            counted = {"task": "classify", "model": "colours"}
            total = "tokenfold_requests_total"
            assert remote.sample(total, level="fast", outcome="partial", **counted) == 1
            assert remote.sample(total, level="exact", outcome="invalid", **counted) == 1
            assert remote.sample(total, level="unknown", outcome="invalid", **counted) == 1
            assert remote.sample(total, level="custom", outcome="ok", **counted) == 1
            unknown = {"task": "classify", "model": "unknown", "level": "unknown"}
            assert remote.sample(total, outcome="invalid", **unknown) == 1
            duration = "tokenfold_request_duration_seconds_count"
            assert remote.sample(duration, level="fast", **counted) == 1
            for stage in ("decode", "queue", "infer", "post"):
                counted = {"task": "classify", "stage": stage}
                assert remote.sample("tokenfold_stage_duration_seconds_count", **counted) == 3
            assert remote.sample("tokenfold_images_total", task="classify") == 3
            assert remote.sample("tokenfold_batch_size_sum") == 3
            assert remote.sample("tokenfold_tokens_total", task="classify", kind="in") == 51
            spent = remote.sample("tokenfold_flops_total", task="classify", kind="spent")
            saved = remote.sample("tokenfold_flops_total", task="classify", kind="saved")
            assert (spent + saved) % 3 == 0
            assert saved > 0
            weights = remote.sample("tokenfold_model_memory_bytes", model="colours", kind="weights")
            assert weights == (bundles / "a" / "model.onnx").stat().st_size
            peak = remote.sample("tokenfold_model_memory_bytes", model="colours", kind="peak")
            assert peak > 0
            assert remote.sample("process_resident_memory_bytes") > 1e6

    def test_buckets_begin_at_a_millisecond(self, client: Remote) -> None:
        client.classify(picture())
        text = client.get("/metrics").text
        labels = '{le="0.001",stage="infer",task="classify"}'
        assert "tokenfold_stage_duration_seconds_bucket" + labels in text
        assert "_created" not in text

    def test_openmetrics(self, client: Remote) -> None:
        response = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")
        plain = client.get("/metrics").headers["content-type"]
        assert plain.startswith("text/plain; version=")

    def test_two_apps_do_not_share(self, bundles: Path, client: Remote) -> None:
        client.classify(picture())
        with serving(create_app(standin.settings(bundles))) as other:
            assert other.sample("tokenfold_images_total", task="classify") == 0


class TestLogs:
    def test_a_line_a_request(self, client: Remote, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "tokenfold.access"):
            client.classify(b"bad", headers={"X-Request-ID": "who"})
            until(lambda: caplog.records)
        (record,) = [found for found in caplog.records if found.name == "tokenfold.access"]
        line = json.loads(json.dumps(vars(record), default=str))
        assert record.getMessage() == "POST /v1/classify"
        assert line["status"] == 415
        assert line["ms"] > 0

    def test_a_path_cannot_forge_a_line(self) -> None:
        record = logging.makeLogRecord(
            {"levelname": "INFO", "msg": "GET /a\nINFO b\x1b[0m\x85\u2028é", "status": "\r4"}
        )
        line = logs.Text().format(record)
        assert line.endswith(r"GET /a\nINFO b\x1b[0m\x85\u2028é status=\r4")
        assert len(line.splitlines()) == 1

    def test_nor_can_a_traceback(self) -> None:
        try:
            raise ValueError("a\n2026-01-01 00:00:00,000 INFO     b\x1b[0m\r\u2028c")
        except ValueError:
            record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
        first, *others = logs.Text().format(record).splitlines()
        assert first.endswith("failed")
        assert all(line.startswith("  ") for line in others)
        assert others[-1] == r"  2026-01-01 00:00:00,000 INFO     b\x1b[0m\r\u2028c"


BIG = 4_000_000
PART = b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("json", b"{" + b",".join(b'"%d":1' % i for i in range(BIG // 12)) + b"}"),
        ("json", b"{" + b",".join(b'"%d":1' % i for i in range(1000)) + b"}"),
        ("json", b'{"image":[' + b"1," * (BIG // 2) + b"1]}"),
        ("json", b'{"image":[' + b",".join([b'""'] * 2000) + b"]}"),
        ("json", b'{"image":"","include":[' + b",".join([b"1"] * 2000) + b"]}"),
        ("json", b'{"image":' + b"[" * (BIG // 2)),
        ("form", PART * (BIG // len(PART))),
        ("form", b"--X\r\n" + b"a:b\r\n" * (BIG // 5) + b"\r\n"),
        ("form", b"--X\r\nContent-Disposition: form-data" + b'; a="\\"' * (BIG // 7)),
        ("form", PART + b"\r\n--Xa" * (BIG // 6)),
        ("form", b'--X\r\nContent-Disposition: form-data; name="level"\r\n\r\n' + b"," * BIG),
        (
            "form",
            b'--X\r\nContent-Disposition: form-data; name="include"\r\n\r\n'
            + b"," * BIG
            + b"\r\n--X--",
        ),
        ("form", b"".join(PART.replace(b"image", b"%d" % i) + b"\r\n" for i in range(200))),
    ],
)
def test_bodies_made_to_keep_the_parser_busy(client: Remote, kind: str, content: bytes) -> None:
    types = {"json": "application/json", "form": "multipart/form-data; boundary=X"}
    begun = time.perf_counter()
    response = client.post("/v1/classify", content=content, headers={"content-type": types[kind]})
    assert response.status_code in (400, 422)
    assert len(response.content) < 10_000
    assert time.perf_counter() - begun < 1
