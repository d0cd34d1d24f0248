"""/v1/galleries/{name}/images: add, list, fetch and delete images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from tokenfold.inference.errors import InvalidRequest, RequestError
from tokenfold.service.api import body
from tokenfold.service.api.answering import check_count, results, total_failure
from tokenfold.service.api.openapi import accepting, problems
from tokenfold.service.api.problems import invalid_fields
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
from tokenfold.service.errors import UnknownImage
from tokenfold.service.galleries.inference import GalleryInference
from tokenfold.service.galleries.ingest import Arrival, ingest
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.galleries.model import gallery_model
from tokenfold.service.galleries.record import Hit, ImageRow
from tokenfold.service.galleries.table import Gallery

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
        fields={"id": "beach-1", "metadata": {"album": "2024", "stars": 4}},
        example=_EXAMPLE,
        statuses=(404, 409, 413, 500, 507),
    ),
)
async def add_images(request: Request, name: GalleryName) -> Response:
    """Embed images at the gallery's level, and store their vectors, metadata and thumbnails.

    Acknowledged images are on disk. The result of an image that fails is its problem; the others
    are stored. If all fail, the answer is the problem of the first. Adding an image again changes
    nothing.
    """
    core: Core = request.app.state.core
    keeper: Keeper = request.app.state.keeper
    with core.metrics.track("gallery-add") as track:
        core.check_room()
        fields = await body.read(request, ImagesAdd)
        begun = time.perf_counter()
        check_count("images", len(fields.image), core.settings.max_items)
        gallery = await opened(request, name)
        model = gallery_model(core.catalog, gallery.info, named=fields.model)
        track.model, track.level = model.name, gallery.info.level
        arrivals = _arrivals(fields)
        statuses = ["failed"] * len(arrivals)
        try:
            inference = GalleryInference(core.dispatcher, disconnect=request.receive)
            ingested = await ingest(inference, gallery, model, arrivals)
            statuses = [
                "failed" if isinstance(result, RequestError) else result["status"]
                for result in ingested.results
            ]
        finally:
            keeper.metrics.ingested(statuses, time.perf_counter() - begun)
        await _count(keeper, gallery)
        failure = total_failure(ingested.results, track)
        if failure is not None:
            return failure
        return _json(
            {
                "gallery": gallery.info.name,
                "model": model.name,
                "results": results(ingested.results),
                "timings_ms": ingested.timings_ms,
            }
        )


def _arrivals(fields: ImagesAdd) -> list[Arrival]:
    """Return the images of a request, each with its id and metadata.

    Raises:
        InvalidRequest: the numbers of images, ids and metadata do not fit.
    """
    images = len(fields.image)
    if fields.id and len(fields.id) != images:
        raise InvalidRequest(
            f"The request has {images} of image and {len(fields.id)} of id: send one id for each "
            "image, or none."
        )
    metadata_count = len(fields.metadata)
    if metadata_count not in (0, 1, images):
        raise InvalidRequest(
            f"The request has {images} of image and {metadata_count} of metadata: send one for "
            "each image, one for all images, or none."
        )
    listed: list[Any] = [*fields.metadata] or [None]
    metadata = listed if metadata_count == images else listed * images
    return [
        Arrival(picture, fields.id[index] if fields.id else None, metadata[index])
        for index, picture in enumerate(fields.image)
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
        str | None,
        Query(max_length=256, description="Return images whose ids come after this one."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Images of a page.")] = 100,
    filter: Annotated[
        str | None, Query(description="Filter on the metadata, as JSON; see the search.")
    ] = None,
) -> ImagePage:
    """Return a page of images, ordered by id. `next` is the `after` of the next page."""
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
        Literal["vector"] | None, Query(description="Additional parts of the answer.")
    ] = None,
) -> GalleryImage:
    """Return an image's metadata, and its vector if asked for."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    row = await gallery.fetch(id, vector=include is not None)
    if row is None:
        raise _unknown(gallery, id)
    shown = _shown(gallery, row)
    if include is not None:
        shown.vector = [float(component) for component in row.vector]
    return shown


@router.get(
    "/v1/galleries/{name}/images/{id}/thumbnail",
    operation_id="getThumbnail",
    summary="Get a thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The thumbnail has not changed"},
        **problems(404, 422, 500, 503, galleries=True),
    },
)
async def get_thumbnail(request: Request, name: GalleryName, id: ImageName) -> Response:
    """Return a JPEG of at most 384 pixels a side, upright, without the original's EXIF."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    jpeg = (await gallery.thumbnails([id])).get(id)
    if jpeg is None:
        raise _unknown(gallery, id)
    tag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    # Another image may get the same id, so a cached copy has to be revalidated.
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
    """Delete an image permanently."""
    core: Core = request.app.state.core
    core.check_open()
    gallery = await opened(request, name)
    if not await _delete(request, gallery, [id]):
        raise _unknown(gallery, id)
    return Response(status_code=204)


@router.post(
    "/v1/galleries/{name}/delete-images",
    operation_id="deleteImages",
    summary="Delete images of a gallery",
    response_model=ImagesDeleted,
    **accepting(
        ImagesDelete,
        fields={"ids": ["beach-1", "beach-2"]},
        example={"deleted": 2},
        statuses=(404, 500, 507),
    ),
)
async def delete_images(request: Request, name: GalleryName) -> Response:
    """Delete several images. Ids that do not exist are ignored."""
    core: Core = request.app.state.core
    core.check_open()
    fields = await body.read(request, ImagesDelete)
    gallery = await opened(request, name)
    return _json({"deleted": await _delete(request, gallery, fields.ids)})


async def _delete(request: Request, gallery: Gallery, ids: Sequence[str]) -> int:
    deleted = await gallery.delete(ids)
    await _count(request.app.state.keeper, gallery)
    return deleted


async def _count(keeper: Keeper, gallery: Gallery) -> None:
    # The change is stored: a failure to count the images must not change the answer.
    with contextlib.suppress(RequestError):
        keeper.metrics.size(gallery.info.name, await gallery.count())


def _filter(text: str) -> dict[str, Any]:
    try:
        return _FILTER.validate_python(text)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise invalid_fields({**details, "loc": ("filter",)} for details in errors) from None


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


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")
