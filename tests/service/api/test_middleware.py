"""Tests of the middleware: request ids, access log, and limits of bodies."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import standin
from tests.service.api.classification import results
from tests.service.standin import Remote, picture, problem, serving, until
from tokenfold.service.app import create_app


def test_responses_have_a_request_id_and_server_timing(client: Remote) -> None:
    response = client.classify(picture(), headers={"X-Request-ID": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    timing = r"decode;dur=[\d.]+, queue;dur=[\d.]+, infer;dur=[\d.]+, post;dur=[\d.]+"
    assert re.fullmatch(timing + ', batch;desc="1"', response.headers["server-timing"])
    ids = {client.get("/livez").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    invalid = client.get("/livez", headers={"X-Request-ID": 'a"b c'})
    assert invalid.headers["x-request-id"] != 'a"b c'


@pytest.fixture(scope="module")
def small(bundles: Path) -> Iterator[Remote]:
    """A server with a small body limit."""
    with serving(create_app(standin.settings(bundles, max_body_bytes=20_000))) as remote:
        yield remote


class TestBodyLimit:
    def test_a_body_is_refused_by_its_content_length(self, small: Remote) -> None:
        problem(small.classify(b"x" * 30_000), 413, "body-too-large")
        problem(small.classify(b"x" * 20_000_000), 413, "body-too-large")

    def test_a_streamed_body_is_refused_at_the_limit(self, small: Remote) -> None:
        def stream() -> Iterator[bytes]:
            for _ in range(30):
                yield b"x" * 1000

        for kind in ("application/json", "multipart/form-data; boundary=x"):
            response = small.post("/v1/classify", content=stream(), headers={"content-type": kind})
            problem(response, 413, "body-too-large")

    def test_a_body_is_refused_before_it_is_sent(self, small: Remote) -> None:
        port = int(small.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(
                b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n"
                b"content-type: application/json\r\nexpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

    def test_small_bodies_are_accepted(self, small: Remote) -> None:
        assert results(small.classify(picture()))

    def test_refused_bodies_are_counted(self, small: Remote) -> None:
        counted = {"task": "classify", "model": "unknown", "level": "unknown"}
        before = small.sample("tokenfold_requests_total", outcome="invalid", **counted)
        problem(small.classify(b"x" * 30_000), 413, "body-too-large")
        assert small.sample("tokenfold_requests_total", outcome="invalid", **counted) == before + 1


class TestBodiesBeingSent:
    HEAD = (
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n"
        b"content-type: application/json\r\n\r\n"
    )

    def test_the_total_size_of_bodies_in_memory_is_limited(self, bundles: Path) -> None:
        app = create_app(standin.settings(bundles, max_body_bytes=20_000, max_bodies_bytes=30_000))
        with serving(app) as remote:
            port = app.state.port
            with socket.create_connection(("127.0.0.1", port), timeout=5) as first:
                first.sendall(self.HEAD + b" " * 18_000)
                # The first body counts once its bytes are read; no event reports that.
                until(lambda: self._refused(remote))
                assert results(remote.classify(picture()))  # a small body has room
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

    def test_a_slow_body_times_out(self, bundles: Path) -> None:
        app = create_app(standin.settings(bundles, body_timeout=0.2))
        with (
            serving(app) as remote,
            socket.create_connection(("127.0.0.1", app.state.port), timeout=5) as slow,
        ):
            slow.sendall(self.HEAD + b"{")
            answer = b""
            while chunk := slow.recv(4096):  # until the server hangs up
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"urn:tokenfold:problem:body-timeout" in answer
            assert results(remote.classify(picture()))


def test_each_request_has_a_line_in_the_access_log(
    client: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tokenfold.access"):
        client.classify(b"bad", headers={"X-Request-ID": "who"})
        until(lambda: caplog.records)
    (record,) = [entry for entry in caplog.records if entry.name == "tokenfold.access"]
    line = json.loads(json.dumps(vars(record), default=str))
    assert record.getMessage() == "POST /v1/classify"
    assert line["status"] == 415
    assert line["ms"] > 0
