"""Requests to POST /v1/classify, and checks of their responses."""

from __future__ import annotations

import base64
from typing import Any

import httpx

from tests.service.standin import Remote
from tokenfold.service.api.schemas.inference import ClassifyResponse


def results(response: httpx.Response) -> list[dict[str, Any]]:
    """Check a response, and return its results."""
    assert response.status_code == 200, response.text
    ClassifyResponse.model_validate_json(response.content)
    listed: list[dict[str, Any]] = response.json()["results"]
    return listed


def json_body(client: Remote, **fields: Any) -> httpx.Response:
    """POST fields as JSON."""
    return client.post("/v1/classify", json=fields)


def base64_of(data: bytes) -> str:
    """Encode bytes as base64 text."""
    return base64.b64encode(data).decode()
