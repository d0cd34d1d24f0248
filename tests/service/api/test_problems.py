"""Tests of errors as HTTP responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.api.classification import json_body, results
from tests.service.gated import Gated
from tests.service.standin import (
    PROBLEM,
    Remote,
    picture,
    problem,
    serving,
)


def test_unknown_paths_and_methods_are_problems(client: Remote) -> None:
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


class TestLongNames:
    LONG = "x" * 1_000_000

    @pytest.mark.parametrize("field", ["level", "model"])
    def test_long_values_are_not_echoed(self, client: Remote, field: str) -> None:
        response = json_body(client, image="", **{field: self.LONG})
        assert field in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000

    def test_long_keys_are_shortened(self, client: Remote) -> None:
        response = json_body(client, image="", **{self.LONG: 1})
        assert "x" * 100 in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000

    def test_long_paths_and_headers_are_shortened(self, client: Remote) -> None:
        long = self.LONG[:20_000]
        for response in (
            client.get(f"/{long}"),
            client.get(f"/v1/models/{long}"),
            client.post("/v1/classify", content=b"", headers={"content-type": long}),
        ):
            assert response.status_code in (404, 415, 422)
            assert len(response.content) < 1000


def test_an_error_of_the_model_is_a_500_without_details(
    bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_a_connection_is_kept_alive_after_errors(client: Remote) -> None:
    with Remote(client.url) as connection:
        for _ in range(3):
            problem(connection.classify(b"bad"), 415, "image-format")
            assert results(connection.classify(picture()))
