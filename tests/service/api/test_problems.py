"""Tests of errors as HTTP responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.api.classification import json_body, results
from tests.service.gated import Gated
from tests.service.standin import PROBLEM, Remote, picture, problem, serving
from tokenfold.inference import errors as inference
from tokenfold.inference.errors import RequestError
from tokenfold.service import errors
from tokenfold.service.api.problems import headers_of, problem_of, status_of


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


def subclasses(kind: type[RequestError]) -> set[type[RequestError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


STATUSES: dict[type[RequestError], int] = {
    RequestError: 500,
    inference.InternalError: 500,
    inference.InvalidRequest: 422,
    inference.EmptyText: 422,
    inference.TwoSelectors: 422,
    inference.UnknownLevel: 422,
    inference.BudgetError: 409,
    inference.LatencyBudget: 409,
    inference.AccuracyBudget: 409,
    inference.NoProfile: 409,
    inference.ImageError: 422,
    inference.ImageFormat: 415,
    inference.ImageTooLarge: 413,
    inference.Unavailable: 503,
    inference.TooSlowNow: 503,
    errors.UnknownModel: 404,
    errors.UnknownGallery: 404,
    errors.UnknownImage: 404,
    errors.MalformedBody: 400,
    errors.BodyTimeout: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.HeadTooLarge: 431,
    errors.InvalidFilter: 422,
    errors.GalleryExists: 409,
    errors.OtherModel: 409,
    errors.StorageFailed: 500,
    errors.StorageFull: 507,
    errors.QueueFull: 503,
    errors.TooManyBodies: 503,
    errors.Expired: 503,
    errors.Draining: 503,
    errors.Starting: 503,
    errors.WorkerDied: 503,
    errors.Abandoned: 499,
}


def test_every_error_has_its_status() -> None:
    kinds = {
        kind
        for kind in subclasses(RequestError)
        if kind.__module__ in (inference.__name__, errors.__name__)
    }
    assert kinds == set(STATUSES)
    for kind, status in STATUSES.items():
        assert status_of(kind) == status, kind


def test_a_problem_describes_its_error() -> None:
    fields = [inference.FieldError("top_k", "is too small")]
    described = problem_of(inference.InvalidRequest.of_fields(fields))
    assert described.type == "urn:tokenfold:problem:invalid-request"
    assert (described.status, described.detail) == (422, "top_k: is too small")
    assert described.errors is not None
    assert [(field.field, field.message) for field in described.errors] == fields


def test_an_error_that_may_pass_has_a_retry_after_header() -> None:
    assert headers_of(errors.QueueFull("full", retry_after=3)) == {"retry-after": "3"}
    assert headers_of(errors.UnknownModel("no such model")) == {}
    assert headers_of(errors.BodyTimeout("late")) == {"connection": "close"}
