"""A server with galleries, and what is asked of it in tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.service import standin
from tests.service.standin import Remote, bundle, picture, serving
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.service.api.schemas.galleries import ImagesAdded, SearchResponse
from tokenfold.service.app import create_app

RED, GREEN, BLUE = picture("red"), picture("lime"), picture("blue")
YELLOW, WHITE = picture("yellow"), picture("white")


def bundles(root: Path) -> Path:
    """A classifier, a dual encoder and a network that sees images with texts."""
    bundle(root / "a")
    dual_bundle(root / "b")
    pair_bundle(root / "c")
    return root


@contextmanager
def galleries_at(root: Path, **changes: Any) -> Iterator[Remote]:
    """A server on bundles."""
    with serving(create_app(standin.settings(root, **changes))) as remote:
        yield remote


def create(remote: Remote, name: str, **fields: Any) -> dict[str, Any]:
    """A new gallery's description."""
    response = remote.post("/v1/galleries", json={"name": name, **fields})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def add(
    remote: Remote,
    name: str,
    *images: bytes,
    ids: Sequence[str] = (),
    metadata: Sequence[dict[str, Any]] = (),
    **fields: Any,
) -> httpx.Response:
    """POST a form of images."""
    return remote.post(
        f"/v1/galleries/{name}/images",
        files=[("image", (f"{at}.png", data)) for at, data in enumerate(images)],
        data={"id": list(ids), "metadata": [json.dumps(one) for one in metadata], **fields},
    )


def added(response: httpx.Response) -> list[dict[str, Any]]:
    """The results of adding images."""
    assert response.status_code == 200, response.text
    ImagesAdded.model_validate_json(response.content)
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def search(remote: Remote, name: str, **body: Any) -> dict[str, Any]:
    """The answer to a search, by JSON."""
    response = remote.post(f"/v1/galleries/{name}/search", json=body)
    assert response.status_code == 200, response.text
    SearchResponse.model_validate_json(response.content)
    found: dict[str, Any] = response.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    """Of the images that were found, in order."""
    return [found["id"] for found in answer["results"]]
