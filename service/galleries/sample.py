"""A gallery to search at once: drawn scenes, embedded when the server has started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from tokenfold.scenes import HELD_OUT, png, scene
from tokenfold.service.core import Core
from tokenfold.service.embedding import choose
from tokenfold.service.errors import ApiError, GalleryExists, Unavailable
from tokenfold.service.galleries.ingest import Arrival, ingest
from tokenfold.service.galleries.own import described, own_model
from tokenfold.service.galleries.table import Gallery
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.levels import Selector

logger = logging.getLogger(__name__)

NAME = "scenes"
MODEL = "scenes-retrieval"
IMAGES = 500
# Scenes that no network was trained on, and that no profile was measured on.
SEEDS = HELD_OUT[-IMAGES:]
_BATCH = 25
# Seconds between two looks at whether the models are there.
_PAUSE = 0.1


@contextlib.asynccontextmanager
async def filling(core: Core) -> AsyncIterator[None]:
    """Fill the gallery in the background, if the settings want it."""
    if not core.settings.sample_gallery:
        yield
        return
    task = asyncio.get_running_loop().create_task(_fill_or_say_why_not(core))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def fill(core: Core, *, images: int = IMAGES) -> None:
    """Make the gallery and put in what is missing: the last time may have been cut short.

    Raises:
        ApiError: it cannot be made, or is another model's.
    """
    while not core.started:
        if core.failed is not None:
            return
        await asyncio.sleep(_PAUSE)
    model = core.catalog.find(MODEL, "embed")
    gallery = await _gallery(core, model)
    own_model(core.catalog, gallery.info)
    seeds = SEEDS[:images]
    known = await gallery.known([_id(seed) for seed in seeds])
    missing = [seed for seed in seeds if _id(seed) not in known]
    if not missing:
        return
    for at in range(0, len(missing), _BATCH):
        arrivals = await asyncio.to_thread(_draw, missing[at : at + _BATCH])
        await _keep(core, gallery, model, arrivals)
    core.metrics.galleries.size(NAME, await gallery.count())
    logger.info("filled the gallery %s", NAME, extra={"images": len(missing)})


async def _fill_or_say_why_not(core: Core) -> None:
    try:
        await fill(core)
    except ApiError as error:
        logger.warning("there is no complete gallery %s: %s", NAME, error)
    except Exception:
        logger.exception("the gallery %s could not be filled", NAME)


async def _gallery(core: Core, model: Model) -> Gallery:
    galleries = await core.keeper.galleries()
    choice = choose(core, model, Selector())
    try:
        return await galleries.create(described(NAME, model, choice))
    except GalleryExists:
        return await galleries.get(NAME)


async def _keep(core: Core, gallery: Gallery, model: Model, arrivals: Sequence[Arrival]) -> None:
    while True:
        try:
            done = await ingest(core, gallery, model, arrivals)
        except Unavailable as error:
            # Whoever asks something goes first.
            await asyncio.sleep(error.retry_after or 1)
            continue
        failed = [one for one in done.results if isinstance(one, ApiError)]
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
