"""Ingest: from images to rows of a gallery. Known images are not embedded again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tokenfold.inference.errors import InternalError, InvalidRequest, RequestError
from tokenfold.inference.images import unbase64
from tokenfold.service.galleries.inference import Embedded, embed_images
from tokenfold.service.galleries.own import own_choice
from tokenfold.service.galleries.record import ImageRow
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.galleries.thumbnails import Thumbnail, thumbnail
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher, Gone

logger = logging.getLogger(__name__)

Result = dict[str, Any] | RequestError
"""As `schemas.galleries.Kept` describes it."""


class Arrival(NamedTuple):
    """An image to add.

    Attributes:
        picture: an encoded image, as bytes or base64.
        id: its id; None for the hash of its content.
        metadata: its metadata; None to keep the stored metadata.
    """

    picture: bytes | str
    id: str | None = None
    metadata: Mapping[str, Any] | None = None


class Ingested(NamedTuple):
    """The results of adding images.

    Attributes:
        results: of each image, in order.
        timings_ms: milliseconds by stage, of all images together.
    """

    results: list[Result]
    timings_ms: dict[str, float]


class _Content(NamedTuple):
    data: bytes
    sha256: str
    id: str


async def ingest(
    dispatcher: Dispatcher,
    gallery: Gallery,
    model: ServedModel,
    arrivals: Sequence[Arrival],
    *,
    gone: Gone | None = None,
    priority: int = 0,
) -> Ingested:
    """Add images to a gallery. Those whose result is no error are on disk.

    Args:
        dispatcher: embeds the images.
        gallery: the gallery.
        model: the gallery's model.
        arrivals: the images; 1 or more, at most as many as may wait in the queue.
        gone: returns when the caller has gone away.
        priority: of the embedding.

    Raises:
        InvalidRequest: two different images have one id, or one image has two metadata.
        StorageFull, StorageFailed, UnknownGallery: nothing was stored.
        RequestError: no image can be embedded at the moment.
    """
    begun = time.perf_counter()
    contents = await asyncio.to_thread(lambda: [_content(one) for one in arrivals])
    first = _first_of_each(contents, arrivals)
    known = await gallery.known(list(first))
    fresh = {
        at: content for name, (at, content) in first.items() if known.get(name) != content.sha256
    }
    there = {at: content for at, content in first.values() if at not in fresh}
    results: dict[int, Result] = {at: {"status": "unchanged"} for at in there}
    rows = await _changed_metadata(gallery, there, arrivals)
    for at, found in (await _embed(dispatcher, gallery, model, fresh, gone, priority)).items():
        if isinstance(found, RequestError):
            results[at] = found
            continue
        embedded, small = found
        results[at] = {
            "status": "added",  # unless the gallery says otherwise
            "reduction": embedded.reduction,
            "timings_ms": embedded.timings_ms,
        }
        rows[at] = ImageRow(
            id=fresh[at].id,
            vector=embedded.vector,
            sha256=fresh[at].sha256,
            metadata=dict(arrivals[at].metadata or {}),
            width=small.width,
            height=small.height,
            added=datetime.now(UTC),
            thumbnail=small.jpeg,
        )
    embedded_at = time.perf_counter()
    if rows:
        for at, status in zip(rows, await gallery.put(list(rows.values())), strict=True):
            found_at = results[at]
            assert isinstance(found_at, dict)  # what failed has no row
            found_at["status"] = status
    stored_at = time.perf_counter()
    return Ingested(
        [_result(content, at, first, results) for at, content in enumerate(contents)],
        {
            "embed": round((embedded_at - begun) * 1000, 3),
            "store": round((stored_at - embedded_at) * 1000, 3),
        },
    )


def _content(arrival: Arrival) -> _Content | RequestError:
    try:
        data = unbase64(arrival.picture) if isinstance(arrival.picture, str) else arrival.picture
    except RequestError as error:
        return error
    digest = hashlib.sha256(data).hexdigest()
    return _Content(data, digest, arrival.id or digest)


def _first_of_each(
    contents: Sequence[_Content | RequestError], arrivals: Sequence[Arrival]
) -> dict[str, tuple[int, _Content]]:
    """Return, by id, the index and content of the first image that has it.

    Raises:
        InvalidRequest: another one with that id has other content, or other metadata.
    """
    first: dict[str, tuple[int, _Content]] = {}
    for at, content in enumerate(contents):
        if isinstance(content, RequestError):
            continue
        origin, before = first.setdefault(content.id, (at, content))
        if before.sha256 != content.sha256:
            raise InvalidRequest(f"Two different images of this request have the id {content.id}.")
        if arrivals[origin].metadata != arrivals[at].metadata:
            raise InvalidRequest(
                f"The image {content.id} comes twice in this request, with different metadata."
            )
    return first


async def _changed_metadata(
    gallery: Gallery, there: Mapping[int, _Content], arrivals: Sequence[Arrival]
) -> dict[int, ImageRow]:
    """Return rows of known images whose metadata has changed. Their vectors stay valid."""
    rows = {}
    for at, content in there.items():
        metadata = arrivals[at].metadata
        row = None if metadata is None else await gallery.fetch(content.id, vector=True)
        if row is not None and metadata is not None and row.metadata != metadata:
            rows[at] = row._replace(metadata=dict(metadata))
    return rows


async def _embed(
    dispatcher: Dispatcher,
    gallery: Gallery,
    model: ServedModel,
    contents: Mapping[int, _Content],
    gone: Gone | None,
    priority: int,
) -> dict[int, tuple[Embedded, Thumbnail] | RequestError]:
    """Return the embedding and the thumbnail of each image, or its error."""
    if not contents:
        return {}
    pictures = [content.data for content in contents.values()]
    choice = own_choice(model, gallery.info)
    embedding = asyncio.ensure_future(
        embed_images(dispatcher, model, pictures, choice, gone=gone, priority=priority)
    )
    try:
        # The embedding's images are decoded first, because the workers wait for them.
        await asyncio.sleep(0)
        small: Sequence[Thumbnail | RequestError] = []
        if not embedding.done():  # else it was refused
            small = await asyncio.gather(*(_thumbnail(dispatcher, picture) for picture in pictures))
        embedded = await embedding
    finally:
        embedding.cancel()
    return {
        at: vector
        if isinstance(vector, RequestError)
        else picture
        if isinstance(picture, RequestError)
        else (vector, picture)
        for at, vector, picture in zip(contents, embedded, small, strict=True)
    }


async def _thumbnail(dispatcher: Dispatcher, picture: bytes) -> Thumbnail | RequestError:
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[Thumbnail | RequestError] = loop.create_future()

    def settle(found: Thumbnail | RequestError) -> None:
        if not settled.done():
            settled.set_result(found)

    def work() -> None:
        found: Thumbnail | RequestError
        try:
            found = thumbnail(picture, max_pixels=dispatcher.limits.max_pixels)
        except RequestError as error:
            found = error
        except Exception:
            logger.exception("a thumbnail could not be made")
            found = InternalError()
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, found)

    dispatcher.decoders.submit(work)
    return await settled


def _result(
    content: _Content | RequestError,
    at: int,
    first: Mapping[str, tuple[int, _Content]],
    results: Mapping[int, Result],
) -> Result:
    if isinstance(content, RequestError):
        return content
    origin, _ = first[content.id]
    result = results[origin]
    if isinstance(result, RequestError):
        return result
    # The same image for the second time: the first one has brought it.
    return {"id": content.id, **(result if origin == at else {"status": "unchanged"})}
