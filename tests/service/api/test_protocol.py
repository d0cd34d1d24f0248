"""Tests of the limit of request heads."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service import standin
from tests.service.standin import problem, serving
from tokenfold.service.api.protocol import BoundedHead
from tokenfold.service.app import create_app


@pytest.fixture(scope="module")
def port(bundles: Path) -> Iterator[int]:
    """Port of a server that limits heads, as `tokenfold serve` does."""
    with serving(create_app(standin.settings(bundles)), http=BoundedHead) as remote:
        yield int(remote.url.rpartition(":")[2])


class TestHeads:
    @staticmethod
    def exchange(port: int, *pieces: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for piece in pieces:
                connection.sendall(piece)
            while chunk := connection.recv(65_536):
                answer += chunk
                if b"}" in chunk:
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
    def test_a_head_above_the_limit_is_refused(self, port: int, pieces: list[bytes]) -> None:
        answer = self.exchange(port, *pieces)
        assert answer.startswith(b"HTTP/1.1 431 ")
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["type"] == "urn:tokenfold:problem:head-too-large"
        assert body["status"] == 431

    def test_an_endless_head_does_not_delay_other_requests(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\nx: ")
                for _ in range(200):
                    connection.sendall(b"a" * 500_000)
            begun = time.perf_counter()
            assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
            assert time.perf_counter() - begun < 1

    def test_long_heads_and_bodies_below_the_limits_are_accepted(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url) as session:
            for _ in range(5):
                assert session.get("/livez", headers={"x": "a" * 50_000}).status_code == 200
                response = session.post("/v1/classify", files={"image": ("a", b"x" * 1_000_000)})
                problem(response, 415, "image-format")
