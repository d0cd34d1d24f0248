"""A server with galleries, and requests to it."""

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
    """Write bundles of a classifier, a dual encoder and a network for images with texts."""
    bundle(root / "a")
    dual_bundle(root / "b")
    pair_bundle(root / "c")
    return root


@contextmanager
def galleries_at(root: Path, **changes: Any) -> Iterator[Remote]:
    """Run a server on a folder of bundles."""
    with serving(create_app(standin.settings(root, **changes))) as remote:
        yield remote


def create(remote: Remote, name: str, **fields: Any) -> dict[str, Any]:
    """Create a gallery and return its description."""
    response = remote.post("/v1/galleries", json={"name": name, **fields})
    assert response.status_code == 201, response.text
    description: dict[str, Any] = response.json()
    return description


def add(
    remote: Remote,
    name: str,
    *images: bytes,
    ids: Sequence[str] = (),
    metadata: Sequence[dict[str, Any]] = (),
    **fields: Any,
) -> httpx.Response:
    """POST a form that adds images."""
    return remote.post(
        f"/v1/galleries/{name}/images",
        files=[("image", (f"{index}.png", data)) for index, data in enumerate(images)],
        data={"id": list(ids), "metadata": [json.dumps(item) for item in metadata], **fields},
    )


def added(response: httpx.Response) -> list[dict[str, Any]]:
    """Check that images were added, and return the results."""
    assert response.status_code == 200, response.text
    ImagesAdded.model_validate_json(response.content)
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def search(remote: Remote, name: str, **body: Any) -> dict[str, Any]:
    """Search with a JSON body and return the answer."""
    response = remote.post(f"/v1/galleries/{name}/search", json=body)
    assert response.status_code == 200, response.text
    SearchResponse.model_validate_json(response.content)
    answer: dict[str, Any] = response.json()
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    """Return the ids of the hits, in order."""
    return [hit["id"] for hit in answer["results"]]
