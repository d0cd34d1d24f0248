"""/v1/galleries: create, list, describe and delete galleries."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response

from tokenfold.service.api import body
from tokenfold.service.api.openapi import accepting, problems
from tokenfold.service.api.schemas.galleries import GalleryCreate, GalleryDescription, GalleryList
from tokenfold.service.core import Core
from tokenfold.service.errors import OtherModel
from tokenfold.service.galleries.inference import GalleryInference
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.galleries.model import gallery_info, gallery_model
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
    """Return the gallery of a request.

    Raises:
        UnknownGallery: there is no such gallery.
        StorageFailed: the data directory cannot be used.
    """
    keeper: Keeper = request.app.state.keeper
    return await (await keeper.galleries()).get(name)


def path_of(name: str, image: str = "") -> str:
    """Return the path of a gallery, or of one of its images."""
    return f"/v1/galleries/{quote(name)}" + (f"/images/{quote(image, safe='')}" if image else "")


@router.post(
    "/v1/galleries",
    operation_id="createGallery",
    summary="Create a gallery",
    status_code=201,
    response_model=GalleryDescription,
    **accepting(
        GalleryCreate,
        fields={"name": "holiday"},
        example=_EXAMPLE,
        status=201,
        statuses=(404, 409, 500, 507),
    ),
)
async def create_gallery(request: Request) -> Response:
    """Create an empty gallery. Its model and level are fixed."""
    core: Core = request.app.state.core
    core.check_open()
    fields = await body.read(request, GalleryCreate)
    model = core.catalog.find(fields.model, "embed")
    choice = await GalleryInference(core.dispatcher).choose(model, fields.selector)
    info = gallery_info(fields.name, model, choice)
    keeper: Keeper = request.app.state.keeper
    gallery = await (await keeper.galleries()).create(info)
    keeper.metrics.size(info.name, 0)
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
    """List every gallery by name."""
    core: Core = request.app.state.core
    core.check_open()
    keeper: Keeper = request.app.state.keeper
    listed = await (await keeper.galleries()).list()
    return GalleryList(galleries=[await describe(core, gallery) for gallery in listed])


@router.get(
    "/v1/galleries/{name}",
    operation_id="getGallery",
    summary="Describe a gallery",
    responses=problems(404, 422, 500, 503, galleries=True),
)
async def get_gallery(request: Request, name: GalleryName) -> GalleryDescription:
    """Describe a gallery: its model, its level and its size."""
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
    """Delete a gallery and its images permanently."""
    core: Core = request.app.state.core
    core.check_open()
    keeper: Keeper = request.app.state.keeper
    await (await keeper.galleries()).delete(name)
    keeper.metrics.forget(name)
    return Response(status_code=204)


async def describe(core: Core, gallery: Gallery) -> GalleryDescription:
    """Return the description of a gallery."""
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
        gallery_model(core.catalog, info)
    except OtherModel:
        return False
    return True
