"""A gallery of a running server, over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from tokenfold.client.folder import Failure, Picture, written

# Tries of a request that a busy or restarting server has not answered, and the longest pause.
_TRIES = 8
_LONGEST_PAUSE = 30.0
# The server is busy, or starting, or it is not the server that answers (a proxy before it).
_AGAIN = (502, 503, 504)
# Kinds of problems that no other image would escape.
_HOPELESS = (":unknown-gallery", ":other-model", ":storage-full", ":storage-failed")


class Stop(Exception):  # noqa: N818 - not every end is an error
    """There is no point in going on; the message says why."""


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        kept: images that are in the gallery now.
        failed: the others.
    """

    kept: int
    failed: list[Failure]


class Client:
    """A gallery of a server."""

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
        """Wait no longer for anything."""
        self._stopping.set()
        self._http.close()

    def open(self, *, create: bool, model: str | None, level: str | None) -> dict[str, Any]:
        """The gallery's description, of a new one if need be.

        Args:
            create: whether it may be a new one, of `model` at `level`, or of the server's default.

        Raises:
            Stop: there is none, or it is another model's.
        """
        response = self._send("GET", self._path)
        if response.status_code == 404 and create:
            chosen = {"model": model, "level": level}
            given = {name: value for name, value in chosen.items() if value is not None}
            body = {"name": self._gallery, **given}
            response = self._send("POST", "/v1/galleries", json=body)
            if response.status_code == 409:  # somebody else was faster
                response = self._send("GET", self._path)
        if response.status_code == 404:
            raise Stop(f"{_detail(response)} --create makes it.")
        found = _checked(response)
        for name, wanted in (("model", model), ("level", level)):
            if wanted is not None and found[name] != wanted:
                raise Stop(f"The {name} of {self._gallery} is {found[name]}, not {wanted}.")
        return found

    def known(self) -> set[str]:
        """The ids of all images that it has."""
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
        """Send images; 1 or more.

        Raises:
            Stop: the server takes no more of them at all.
        """
        response = self._send(
            "POST",
            f"{self._path}/images",
            data={
                "id": [picture.id for picture in pictures],
                "metadata": [json.dumps({"path": written(picture.path)}) for picture in pictures],
            },
            files=[("image", (picture.id, picture.content)) for picture in pictures],
        )
        if response.status_code == 413 and len(pictures) > 1:
            # Together they are too large for one request; each by itself may not be.
            each = [self.add([picture]) for picture in pictures]
            return Outcome(
                sum(one.kept for one in each), [found for one in each for found in one.failed]
            )
        try:
            answer = response.json()
        except ValueError:
            raise Stop(_detail(response)) from None
        if response.status_code in _AGAIN or answer.get("type", "").endswith(_HOPELESS):
            raise Stop(_detail(response))
        # If every one failed, there is a list only of several.
        results = answer.get("results") or [{"problem": answer}] * len(pictures)
        busy: list[Picture] = []
        failed: list[Failure] = []
        for picture, result in zip(pictures, results, strict=True):
            if "problem" in result and result["problem"]["status"] == 503:
                busy.append(picture)
            elif "problem" in result:
                failed.append((picture.path, result["problem"]["detail"]))
        kept = len(pictures) - len(busy) - len(failed)
        # The time of the request ran out: those that are left take less. (All would be a 503.)
        later = self.add(busy) if busy else Outcome(0, [])
        return Outcome(kept + later.kept, failed + later.failed)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Once more, after a while, where the server is busy or gone for a moment."""
        for turn in range(_TRIES):
            pause = min(0.5 * 2**turn, _LONGEST_PAUSE)
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if turn == _TRIES - 1 or self._stopping.is_set():
                    raise Stop(f"{self._http.base_url} does not answer: {error}") from error
            else:
                if response.status_code not in _AGAIN or turn == _TRIES - 1:
                    return response
                told = response.headers.get("retry-after", "")
                pause = min(float(told), _LONGEST_PAUSE) if told.isdecimal() else pause
            if self._stopping.wait(pause):
                raise Stop("stopped")
        raise AssertionError("the last try returns or raises")


def _checked(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise Stop(_detail(response))
    found: dict[str, Any] = response.json()
    return found


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answers {response.status_code}"
