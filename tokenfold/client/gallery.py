"""HTTP client for a gallery of a running server."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from tokenfold.client.folder import Failure, Picture, path_text

# Attempts to send a request to a busy or restarting server, and the longest pause in seconds.
_MAX_ATTEMPTS = 8
_MAX_PAUSE = 30.0
# Status codes of a server that is busy or starting, or of a proxy in front of it.
_RETRY_STATUSES = (502, 503, 504)
# Problem types that would affect every other image too.
_FATAL_TYPES = (":unknown-gallery", ":other-model", ":storage-full", ":storage-failed")


class Stop(Exception):  # noqa: N818 - not every end is an error
    """Adding images cannot continue; the message says why."""


class Outcome(NamedTuple):
    """Result of sending a batch.

    Attributes:
        kept: number of images that are in the gallery now.
        failed: the other images, with the reasons.
    """

    kept: int
    failed: list[Failure]


class Client:
    """Client for one gallery of a server."""

    def __init__(self, server: str, gallery: str) -> None:
        self._http = httpx.Client(
            base_url=server if "://" in server else f"http://{server}",
            timeout=httpx.Timeout(120.0, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )
        self._path = f"/v1/galleries/{quote(gallery, safe='')}"
        self._gallery = gallery
        self._stopping = threading.Event()

    def close(self) -> None:
        """Close the connections and stop waiting for retries."""
        self._stopping.set()
        self._http.close()

    def open(self, *, create: bool, model: str | None, level: str | None) -> dict[str, Any]:
        """Return the gallery's description; create the gallery if it is missing and may be created.

        Args:
            create: create a missing gallery, with `model` and `level` or the server's defaults.

        Raises:
            Stop: the gallery is missing, or has another model or level.
        """
        response = self._send("GET", self._path)
        if response.status_code == 404 and create:
            chosen = {"model": model, "level": level}
            selected = {name: value for name, value in chosen.items() if value is not None}
            body = {"name": self._gallery, **selected}
            response = self._send("POST", "/v1/galleries", json=body)
            if response.status_code == 409:  # another client created it meanwhile
                response = self._send("GET", self._path)
        if response.status_code == 404:
            raise Stop(f"{_detail(response)} Use --create to create it.")
        gallery_info = _checked(response)
        for name, expected in (("model", model), ("level", level)):
            if expected is not None and gallery_info[name] != expected:
                raise Stop(
                    f"The {name} of {self._gallery} is {gallery_info[name]}, not {expected}."
                )
        return gallery_info

    def known(self) -> set[str]:
        """Return the ids of all images in the gallery."""
        ids: set[str] = set()
        after: dict[str, str] = {}
        while True:
            response = self._send("GET", f"{self._path}/images", params={"limit": "1000", **after})
            page = _checked(response)
            ids.update(image["id"] for image in page["images"])
            if page.get("next") is None:
                return ids
            after = {"after": page["next"]}

    def add(self, pictures: Sequence[Picture]) -> Outcome:
        """Add images, at least one.

        Raises:
            Stop: the server accepts no images any more.
        """
        response = self._send(
            "POST",
            f"{self._path}/images",
            data={
                "id": [picture.id for picture in pictures],
                "metadata": [json.dumps({"path": path_text(picture.path)}) for picture in pictures],
            },
            files=[("image", (picture.id, picture.content)) for picture in pictures],
        )
        if response.status_code == 413 and len(pictures) > 1:
            # The batch is too large for one request; single images may not be.
            outcomes = [self.add([picture]) for picture in pictures]
            return Outcome(
                sum(outcome.kept for outcome in outcomes),
                [failure for outcome in outcomes for failure in outcome.failed],
            )
        try:
            body = response.json()
        except ValueError:
            raise Stop(_detail(response)) from None
        if response.status_code in _RETRY_STATUSES or body.get("type", "").endswith(_FATAL_TYPES):
            raise Stop(_detail(response))
        # If all images failed, only a batch of several images has a list of results.
        results = body.get("results") or [{"problem": body}] * len(pictures)
        busy: list[Picture] = []
        failed: list[Failure] = []
        for picture, result in zip(pictures, results, strict=True):
            if "problem" in result and result["problem"]["status"] == 503:
                busy.append(picture)
            elif "problem" in result:
                failed.append((picture.path, result["problem"]["detail"]))
        kept = len(pictures) - len(busy) - len(failed)
        # The server ran out of time: send the remaining images again. If it had stored none of
        # them, its answer would have been a 503.
        retried = self.add(busy) if busy else Outcome(0, [])
        return Outcome(kept + retried.kept, failed + retried.failed)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; retry after a pause if the server is busy or unreachable."""
        for attempt in range(_MAX_ATTEMPTS):
            pause = min(0.5 * 2**attempt, _MAX_PAUSE)
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if attempt == _MAX_ATTEMPTS - 1 or self._stopping.is_set():
                    raise Stop(f"{self._http.base_url} does not answer: {error}") from error
            else:
                if response.status_code not in _RETRY_STATUSES or attempt == _MAX_ATTEMPTS - 1:
                    return response
                retry_after = response.headers.get("retry-after", "")
                pause = min(float(retry_after), _MAX_PAUSE) if retry_after.isdecimal() else pause
            if self._stopping.wait(pause):
                raise Stop("stopped")
        raise AssertionError("unreachable: the last attempt returns or raises")


def _checked(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise Stop(_detail(response))
    body: dict[str, Any] = response.json()
    return body


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answers {response.status_code}"
