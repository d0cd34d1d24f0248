"""The sample gallery: drawn scenes, embedded when the server has started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from tokenfold.inference.errors import RequestError, Unavailable
from tokenfold.inference.levels import Selector
from tokenfold.scenes import HELD_OUT, png, scene
from tokenfold.service.errors import GalleryExists
from tokenfold.service.galleries.inference import GalleryInference
from tokenfold.service.galleries.ingest import Arrival, ingest
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.galleries.model import gallery_info, gallery_model
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

NAME = "scenes"
MODEL = "scenes-retrieval"
IMAGES = 500
# Scenes that no network was trained on, and that no profile was measured on.
SEEDS = HELD_OUT[-IMAGES:]
_BATCH = 25
_PRIORITY = -1  # the requests of callers go first


@contextlib.asynccontextmanager
async def filling(
    dispatcher: Dispatcher, keeper: Keeper, started: Callable[[], Awaitable[bool]]
) -> AsyncIterator[None]:
    """Fill the gallery in the background, until the context is left.

    Args:
        dispatcher: embeds the scenes.
        keeper: of the galleries.
        started: waits for the models; returns False if they cannot be loaded.
    """
    task = asyncio.get_running_loop().create_task(_fill(dispatcher, keeper, started))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def fill(dispatcher: Dispatcher, keeper: Keeper, *, images: int = IMAGES) -> None:
    """Create the gallery, if need be, and add the scenes that are missing.

    Args:
        dispatcher: embeds the scenes.
        keeper: of the galleries.
        images: number of scenes.

    Raises:
        RequestError: the gallery cannot be created, or belongs to another model.
    """
    model = dispatcher.catalog.find(MODEL, "embed")
    inference = GalleryInference(dispatcher, priority=_PRIORITY)
    gallery = await _gallery(inference, keeper, model)
    gallery_model(dispatcher.catalog, gallery.info)
    seeds = SEEDS[:images]
    known = await gallery.known([_id(seed) for seed in seeds])
    missing = [seed for seed in seeds if _id(seed) not in known]
    if not missing:
        return
    for start in range(0, len(missing), _BATCH):
        arrivals = await asyncio.to_thread(_draw, missing[start : start + _BATCH])
        await _add(inference, gallery, model, arrivals)
    keeper.metrics.size(NAME, await gallery.count())
    logger.info("filled the gallery %s", NAME, extra={"images": len(missing)})


async def _fill(
    dispatcher: Dispatcher, keeper: Keeper, started: Callable[[], Awaitable[bool]]
) -> None:
    try:
        if await started():
            await fill(dispatcher, keeper)
    except RequestError as error:
        logger.warning("the gallery %s is incomplete: %s", NAME, error)
    except Exception:
        logger.exception("the gallery %s could not be filled", NAME)


async def _gallery(inference: GalleryInference, keeper: Keeper, model: ServedModel) -> Gallery:
    galleries = await keeper.galleries()
    choice = await inference.choose(model, Selector())
    try:
        return await galleries.create(gallery_info(NAME, model, choice))
    except GalleryExists:
        return await galleries.get(NAME)


async def _add(
    inference: GalleryInference, gallery: Gallery, model: ServedModel, arrivals: Sequence[Arrival]
) -> None:
    """Add images; wait and repeat while the server is busy."""
    while True:
        try:
            ingested = await ingest(inference, gallery, model, arrivals)
        except Unavailable as error:
            await asyncio.sleep(error.retry_after or 1)
            continue
        failed = [result for result in ingested.results if isinstance(result, RequestError)]
        if not failed:
            return
        if not isinstance(failed[0], Unavailable):
            raise failed[0]
        await asyncio.sleep(failed[0].retry_after or 1)


def _id(seed: int) -> str:
    return f"scene-{seed}"


def _draw(seeds: Sequence[int]) -> list[Arrival]:
    arrivals = []
    for seed in seeds:
        shown = scene(seed)
        metadata = {
            "things": len(shown.things),
            "colours": sorted({thing.colour for thing in shown.things}),
            "shapes": sorted({thing.shape for thing in shown.things}),
        }
        arrivals.append(Arrival(png(shown, compress_level=1), _id(seed), metadata))
    return arrivals
