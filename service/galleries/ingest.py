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
from tokenfold.service.galleries.inference import Embedded, GalleryInference
from tokenfold.service.galleries.model import gallery_choice
from tokenfold.service.galleries.record import ImageRow
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.galleries.thumbnails import Thumbnail, thumbnail
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

IngestResult = dict[str, Any] | RequestError
"""Result of adding an image, with the fields of `schemas.galleries.Kept`; or its error."""


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

    results: list[IngestResult]
    timings_ms: dict[str, float]


class _Content(NamedTuple):
    data: bytes
    sha256: str
    id: str


async def ingest(
    inference: GalleryInference,
    gallery: Gallery,
    model: ServedModel,
    arrivals: Sequence[Arrival],
) -> Ingested:
    """Add images to a gallery. An image is on disk if its result is not an error.

    Args:
        inference: embeds the images.
        gallery: the gallery.
        model: the gallery's model.
        arrivals: the images; 1 or more, at most as many as may wait in the queue.

    Raises:
        InvalidRequest: two different images have one id, or one image has two metadata.
        StorageFull, StorageFailed, UnknownGallery: nothing was stored.
        RequestError: no image can be embedded at the moment.
    """
    begun = time.perf_counter()
    contents = await asyncio.to_thread(lambda: [_content(arrival) for arrival in arrivals])
    first = _first_of_each(contents, arrivals)
    known = await gallery.known(list(first))
    new_contents = {
        index: content
        for name, (index, content) in first.items()
        if known.get(name) != content.sha256
    }
    known_contents = {
        index: content for index, content in first.values() if index not in new_contents
    }
    results: dict[int, IngestResult] = {index: {"status": "unchanged"} for index in known_contents}
    rows = await _changed_metadata(gallery, known_contents, arrivals)
    for index, outcome in (await _embed(inference, gallery, model, new_contents)).items():
        if isinstance(outcome, RequestError):
            results[index] = outcome
            continue
        embedded, small = outcome
        results[index] = {
            "status": "added",  # unless the gallery says otherwise
            "reduction": embedded.reduction,
            "timings_ms": embedded.timings_ms,
        }
        rows[index] = ImageRow(
            id=new_contents[index].id,
            vector=embedded.vector,
            sha256=new_contents[index].sha256,
            metadata=dict(arrivals[index].metadata or {}),
            width=small.width,
            height=small.height,
            added=datetime.now(UTC),
            thumbnail=small.jpeg,
        )
    embedded_at = time.perf_counter()
    if rows:
        for index, status in zip(rows, await gallery.put(list(rows.values())), strict=True):
            result = results[index]
            assert isinstance(result, dict)  # an image that failed has no row
            result["status"] = status
    stored_at = time.perf_counter()
    return Ingested(
        [_result(content, index, first, results) for index, content in enumerate(contents)],
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
        InvalidRequest: another image with that id has other content or metadata.
    """
    first: dict[str, tuple[int, _Content]] = {}
    for index, content in enumerate(contents):
        if isinstance(content, RequestError):
            continue
        origin, before = first.setdefault(content.id, (index, content))
        if before.sha256 != content.sha256:
            raise InvalidRequest(f"Two different images of this request have the id {content.id}.")
        if arrivals[origin].metadata != arrivals[index].metadata:
            raise InvalidRequest(
                f"The image {content.id} comes twice in this request with different metadata."
            )
    return first


async def _changed_metadata(
    gallery: Gallery, known_contents: Mapping[int, _Content], arrivals: Sequence[Arrival]
) -> dict[int, ImageRow]:
    """Return rows of known images whose metadata has changed. Their vectors stay valid."""
    rows = {}
    for index, content in known_contents.items():
        metadata = arrivals[index].metadata
        row = None if metadata is None else await gallery.fetch(content.id, vector=True)
        if row is not None and metadata is not None and row.metadata != metadata:
            rows[index] = row._replace(metadata=dict(metadata))
    return rows


async def _embed(
    inference: GalleryInference,
    gallery: Gallery,
    model: ServedModel,
    contents: Mapping[int, _Content],
) -> dict[int, tuple[Embedded, Thumbnail] | RequestError]:
    """Return the embedding and the thumbnail of each image, or its error."""
    if not contents:
        return {}
    pictures = [content.data for content in contents.values()]
    choice = gallery_choice(model, gallery.info)
    embedding = asyncio.ensure_future(inference.embed_images(model, pictures, choice))
    try:
        # The embedding's images are decoded first, because the workers wait for them.
        await asyncio.sleep(0)
        small: Sequence[Thumbnail | RequestError] = []
        if not embedding.done():  # else it was refused
            small = await asyncio.gather(
                *(_thumbnail(inference.dispatcher, picture) for picture in pictures)
            )
        embedded = await embedding
    finally:
        embedding.cancel()
    return {
        index: vector
        if isinstance(vector, RequestError)
        else picture
        if isinstance(picture, RequestError)
        else (vector, picture)
        for index, vector, picture in zip(contents, embedded, small, strict=True)
    }


async def _thumbnail(dispatcher: Dispatcher, picture: bytes) -> Thumbnail | RequestError:
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[Thumbnail | RequestError] = loop.create_future()

    def settle(outcome: Thumbnail | RequestError) -> None:
        if not settled.done():
            settled.set_result(outcome)

    def work() -> None:
        outcome: Thumbnail | RequestError
        try:
            outcome = thumbnail(picture, max_pixels=dispatcher.limits.max_pixels)
        except RequestError as error:
            outcome = error
        except Exception:
            logger.exception("a thumbnail could not be made")
            outcome = InternalError()
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, outcome)

    dispatcher.decoders.submit(work)
    return await settled


def _result(
    content: _Content | RequestError,
    index: int,
    first: Mapping[str, tuple[int, _Content]],
    results: Mapping[int, IngestResult],
) -> IngestResult:
    if isinstance(content, RequestError):
        return content
    origin, _ = first[content.id]
    result = results[origin]
    if isinstance(result, RequestError):
        return result
    # The image was sent twice; the first copy was stored.
    return {"id": content.id, **(result if origin == index else {"status": "unchanged"})}
