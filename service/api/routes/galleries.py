"""/v1/galleries: made, listed, described, deleted."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response

from tokenfold.service.api import body
from tokenfold.service.api.openapi import accepting, problems
from tokenfold.service.api.schemas.galleries import GalleryCreate, GalleryDescription, GalleryList
from tokenfold.service.core import Core
from tokenfold.service.embedding import choose
from tokenfold.service.errors import OtherModel
from tokenfold.service.galleries.own import described, own_model
from tokenfold.service.galleries.record import GalleryInfo
from tokenfold.service.galleries.table import Gallery

router = APIRouter(tags=["galleries"])

GalleryName = Annotated[str, Path(max_length=128, description="Of the gallery.")]

_EXAMPLE = {
    "name": "holiday",
    "model": "scenes-retrieval",
    "level": "balanced",
    "reduction": 0.4,
    "width": 192,
    "created": "2026-01-31T12:00:00Z",
    "images": 0,
    "indexed": 0,
    "bytes": 0,
    "served": True,
}


async def opened(request: Request, name: str) -> Gallery:
    """The gallery that a request is about.

    Raises:
        UnknownGallery: there is none.
        StorageFailed: the data directory cannot be used.
    """
    core: Core = request.app.state.core
    return await (await core.keeper.galleries()).get(name)


def path_of(name: str, image: str = "") -> str:
    """Of a gallery, or of one of its images."""
    return f"/v1/galleries/{quote(name)}" + (f"/images/{quote(image, safe='')}" if image else "")


@router.post(
    "/v1/galleries",
    operation_id="createGallery",
    summary="Create a gallery",
    status_code=201,
    response_model=GalleryDescription,
    **accepting(
        GalleryCreate,
        asked={"name": "holiday"},
        example=_EXAMPLE,
        status=201,
        also=(404, 409, 500, 507),
    ),
)
async def create_gallery(request: Request) -> Response:
    """An empty gallery, whose images are embedded by one model at one level, for good."""
    core: Core = request.app.state.core
    core.check_open()
    asked = await body.read(request, GalleryCreate)
    model = core.catalog.find(asked.model, "embed")
    choice = choose(core, model, asked.selector)
    info = described(asked.name, model, choice)
    gallery = await (await core.keeper.galleries()).create(info)
    core.metrics.galleries.size(info.name, 0)
    return Response(
        (await describe(core, gallery)).model_dump_json(),
        status_code=201,
        headers={"location": path_of(info.name)},
        media_type="application/json",
    )


@router.get(
    "/v1/galleries",
    operation_id="listGalleries",
    summary="List the galleries",
    responses=problems(500, 503, galleries=True),
)
async def list_galleries(request: Request) -> GalleryList:
    """Every gallery, by name."""
    core: Core = request.app.state.core
    core.check_open()
    found = await (await core.keeper.galleries()).list()
    return GalleryList(galleries=[await describe(core, gallery) for gallery in found])


@router.get(
    "/v1/galleries/{name}",
    operation_id="getGallery",
    summary="Describe a gallery",
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def get_gallery(request: Request, name: GalleryName) -> GalleryDescription:
    """How its vectors were made, and how many there are."""
    core: Core = request.app.state.core
    core.check_open()
    return await describe(core, await opened(request, name))


@router.delete(
    "/v1/galleries/{name}",
    operation_id="deleteGallery",
    summary="Delete a gallery",
    status_code=204,
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def delete_gallery(request: Request, name: GalleryName) -> Response:
    """It and all of its images, for good."""
    core: Core = request.app.state.core
    core.check_open()
    await (await core.keeper.galleries()).delete(name)
    core.metrics.galleries.gone(name)
    return Response(status_code=204)


async def describe(core: Core, gallery: Gallery) -> GalleryDescription:
    """A gallery as it is now."""
    info, stats = gallery.info, await gallery.stats()
    return GalleryDescription(
        name=info.name,
        model=info.model,
        level=info.level,
        reduction=info.requested,
        width=info.width,
        created=info.created,
        images=stats.images,
        indexed=stats.indexed,
        bytes=stats.bytes,
        served=_served(core, info),
    )


def _served(core: Core, info: GalleryInfo) -> bool:
    try:
        own_model(core.catalog, info)
    except OtherModel:
        return False
    return True
