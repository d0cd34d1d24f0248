"""/v1/galleries/{name}/images: added, listed, fetched, deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from tokenfold.service.api import body
from tokenfold.service.api.openapi import accepting, problems
from tokenfold.service.api.routes.galleries import GalleryName, opened, path_of
from tokenfold.service.api.schemas.galleries import (
    GalleryImage,
    ImagePage,
    ImagesAdd,
    ImagesAdded,
    ImagesDelete,
    ImagesDeleted,
    JsonObject,
)
from tokenfold.service.core import Core
from tokenfold.service.errors import ApiError, InvalidRequest, UnknownImage, invalid
from tokenfold.service.galleries.ingest import Arrival, ingest
from tokenfold.service.galleries.own import own_model
from tokenfold.service.galleries.record import Hit, ImageRow
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.results import listed, refusal
from tokenfold.service.task import check_count

router = APIRouter(tags=["galleries"])

ImageName = Annotated[str, Path(max_length=256, description="The image's id.")]

_EXAMPLE = {
    "gallery": "holiday",
    "model": "scenes-retrieval",
    "results": [
        {
            "id": "beach-1",
            "status": "added",
            "reduction": {
                "method": "tome",
                "level": "balanced",
                "requested": 0.4,
                "flops_ratio": 0.6,
                "tokens_in": 145,
                "tokens_out": 45,
            },
            "timings_ms": {"decode": 0.731, "queue": 0.204, "infer": 3.912, "post": 0.058},
        }
    ],
    "timings_ms": {"embed": 6.104, "store": 8.377},
}

_FILTER: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)


@router.post(
    "/v1/galleries/{name}/images",
    operation_id="addImages",
    summary="Add images to a gallery",
    response_model=ImagesAdded,
    **accepting(
        ImagesAdd,
        asked={"id": "beach-1", "metadata": {"album": "2024", "stars": 4}},
        example=_EXAMPLE,
        also=(404, 409, 413, 500, 507),
    ),
)
async def add_images(request: Request, name: GalleryName) -> Response:
    """Embed images at the gallery's level and keep them, each with a thumbnail.

    What is acknowledged is on disk. An image that fails carries its problem in its result; the
    others are kept still. If all fail, the answer is the first one's problem. Adding the same again
    changes nothing.
    """
    core: Core = request.app.state.core
    with core.metrics.track("gallery-add") as track:
        core.check_room()
        asked = await body.read(request, ImagesAdd)
        begun = time.perf_counter()
        check_count(core, "images", len(asked.image))
        gallery = await opened(request, name)
        model = own_model(core.catalog, gallery.info, asked=asked.model)
        track.model, track.level = model.name, gallery.info.level
        arrivals = _arrivals(asked)
        statuses = ["failed"] * len(arrivals)
        try:
            done = await ingest(core, gallery, model, arrivals, request=request)
            statuses = [
                "failed" if isinstance(one, ApiError) else one["status"] for one in done.results
            ]
        finally:
            core.metrics.galleries.ingested(statuses, time.perf_counter() - begun)
        await _count(core, gallery)
        refused = refusal(done.results, track)
        if refused is not None:
            return refused
        return _json(
            {
                "gallery": gallery.info.name,
                "model": model.name,
                "results": listed(done.results),
                "timings_ms": done.timings_ms,
            }
        )


def _arrivals(asked: ImagesAdd) -> list[Arrival]:
    """A request's images, each with its id and what is said of it.

    Raises:
        InvalidRequest: there are not as many.
    """
    images = len(asked.image)
    if asked.id and len(asked.id) != images:
        raise InvalidRequest(
            f"There are {images} of image and {len(asked.id)} of id: send one for each image, or "
            "none."
        )
    said = len(asked.metadata)
    if said not in (0, 1, images):
        raise InvalidRequest(
            f"There are {images} of image and {said} of metadata: send one for each image, one for "
            "all of them, or none."
        )
    given: list[Any] = [*asked.metadata] or [None]
    metadata = given if said == images else given * images
    return [
        Arrival(picture, asked.id[at] if asked.id else None, metadata[at])
        for at, picture in enumerate(asked.image)
    ]


@router.get(
    "/v1/galleries/{name}/images",
    operation_id="listImages",
    summary="List a gallery's images",
    response_model_exclude_none=True,
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def list_images(
    request: Request,
    name: GalleryName,
    after: Annotated[
        str | None, Query(max_length=256, description="Ids up to this one are left out.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Images of a page.")] = 100,
    filter: Annotated[
        str | None, Query(description="Of the metadata, as JSON; see the search.")
    ] = None,
) -> ImagePage:
    """A page of them, by id. `next` is the `after` of the next page."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    hits = await gallery.page(after, limit + 1, None if filter is None else _filter(filter))
    return ImagePage(
        gallery=gallery.info.name,
        images=[_shown(gallery, hit) for hit in hits[:limit]],
        next=hits[limit - 1].id if len(hits) > limit else None,
    )


@router.get(
    "/v1/galleries/{name}/images/{id}",
    operation_id="getImage",
    summary="Describe an image of a gallery",
    response_model_exclude_none=True,
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def get_image(
    request: Request,
    name: GalleryName,
    id: ImageName,
    include: Annotated[
        Literal["vector"] | None, Query(description="Further parts of the answer.")
    ] = None,
) -> GalleryImage:
    """What is kept of it, but for the thumbnail."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    row = await gallery.fetch(id, vector=include is not None)
    if row is None:
        raise _unknown(gallery, id)
    shown = _shown(gallery, row)
    if include is not None:
        shown.vector = [float(one) for one in row.vector]
    return shown


@router.get(
    "/v1/galleries/{name}/images/{id}/thumbnail",
    operation_id="getThumbnail",
    summary="An image in small",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "It is the one that the caller has"},
        **problems(404, 422, 500, 503, galleries=True),
    },
)
async def get_thumbnail(request: Request, name: GalleryName, id: ImageName) -> Response:
    """A JPEG of 384 pixels at most, upright, without the original's EXIF."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    jpeg = (await gallery.thumbnails([id])).get(id)
    if jpeg is None:
        raise _unknown(gallery, id)
    tag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    # Another image may get that id: a copy is good as long as it is asked about.
    headers = {
        "etag": tag,
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.delete(
    "/v1/galleries/{name}/images/{id}",
    operation_id="deleteImage",
    summary="Delete an image of a gallery",
    status_code=204,
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def delete_image(request: Request, name: GalleryName, id: ImageName) -> Response:
    """One of them, for good."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    if not await _delete(core, gallery, [id]):
        raise _unknown(gallery, id)
    return Response(status_code=204)


@router.post(
    "/v1/galleries/{name}/delete-images",
    operation_id="deleteImages",
    summary="Delete images of a gallery",
    response_model=ImagesDeleted,
    **accepting(
        ImagesDelete,
        asked={"ids": ["beach-1", "beach-2"]},
        example={"deleted": 2},
        also=(404, 500, 507),
    ),
)
async def delete_images(request: Request, name: GalleryName) -> Response:
    """Several at once. Those that are not there are no error."""
    core: Core = request.app.state.core
    core.check_open()
    asked = await body.read(request, ImagesDelete)
    gallery = await opened(request, name)
    return _json({"deleted": await _delete(core, gallery, asked.ids)})


async def _delete(core: Core, gallery: Gallery, ids: Sequence[str]) -> int:
    deleted = await gallery.delete(ids)
    await _count(core, gallery)
    return deleted


async def _count(core: Core, gallery: Gallery) -> None:
    # What is done is done: that it cannot be counted, or is deleted by now, changes no answer.
    with contextlib.suppress(ApiError):
        core.metrics.galleries.size(gallery.info.name, await gallery.count())


def _filter(text: str) -> dict[str, Any]:
    try:
        return _FILTER.validate_python(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise invalid({**one, "loc": ("filter",)} for one in found) from None


def _shown(gallery: Gallery, image: Hit | ImageRow) -> GalleryImage:
    return GalleryImage(
        id=image.id,
        metadata=image.metadata,
        width=image.width,
        height=image.height,
        added=image.added,
        sha256=image.sha256,
        thumbnail=path_of(gallery.info.name, image.id) + "/thumbnail",
    )


def _unknown(gallery: Gallery, id: str) -> UnknownImage:
    return UnknownImage(f"{gallery.info.name} has no image {id!r}.")


def _json(found: dict[str, Any]) -> Response:
    return Response(json.dumps(found, separators=(",", ":")), media_type="application/json")
